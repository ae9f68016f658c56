"""Ray's own client of its job server, by which jobs are submitted: it packs their code, stores it in the cluster by content, and names it.

Imported where a job is submitted, since Ray takes longer to import than a verb that only reads may take.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from ray.job_submission import JobSubmissionClient

from orchestrator.cluster.discovery import ADDRESS_VARIABLES
from orchestrator.cluster.job_server import repeated, request_options

_ENVIRONMENT_LOCK = threading.Lock()
for _chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)  # they print every upload onto the user's terminal


def client_of(address: str, headers: Mapping[str, str]) -> JobSubmissionClient:
    """A client of exactly this server, which has answered: Ray lets its environment variables override what a caller names, so they are
    hidden from it."""
    with _ENVIRONMENT_LOCK, _hidden(*ADDRESS_VARIABLES):
        return _Client(address, headers=dict(headers))


class _Client(JobSubmissionClient):
    """Ray's client with our limits on every request."""

    def _check_connection_and_version(self, *arguments: Any, **options: Any) -> None:
        """Nothing: `JobServerClient` has asked."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        options = request_options(self._headers) | options
        return repeated(f"{method} {endpoint}", lambda: super(_Client, self)._do_request(method, endpoint, **options))


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
