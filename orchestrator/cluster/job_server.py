"""The job server's own HTTP interface, without Ray, whose import takes longer than an answer: jobs submitted, listed, looked up, read and
stopped, and the packages of code that they run.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import requests

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 60.0
RETRY_PAUSES_S = (1.0, 3.0)
OLDEST_RAY = 2
"""Major version of Ray from which on its job server takes our metadata."""


class TokenRefused(RuntimeError):
    """The server wants another token, or one at all."""


class JobServerClient:
    """The job server at `address` (http(s)://host:port). Raises RuntimeError for what it refuses, requests' errors where it is away."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        """Raises RuntimeError, ValueError or requests' errors where no job server answers."""
        self._address = address.rstrip("/")
        self._headers = dict(headers)
        self._check(self._asked("GET", "/api/version"))

    def list_jobs(self) -> list[dict[str, Any]]:
        """All jobs, as the server describes them."""
        return list(self._asked("GET", "/api/jobs/"))

    def get_job_info(self, submission_id: str) -> dict[str, Any]:
        """One job."""
        return dict(self._asked("GET", f"/api/jobs/{submission_id}"))

    def get_job_logs(self, submission_id: str) -> str:
        """Everything that a job has printed so far."""
        return str(self._asked("GET", f"/api/jobs/{submission_id}/logs")["logs"])

    def stop_job(self, submission_id: str) -> None:
        """Have a job ended."""
        self._asked("POST", f"/api/jobs/{submission_id}/stop")

    def submit_job(
        self,
        submission_id: str,
        entrypoint: str,
        runtime_env: Mapping[str, Any],
        metadata: Mapping[str, str],
        held: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Start a job; returns once the server has stored it. An id that is taken is refused.

        `held`: what the entry point takes of the node that it runs on, by Ray's names (`entrypoint_num_cpus`).
        """
        order = {"submission_id": submission_id, "entrypoint": entrypoint, "runtime_env": runtime_env, "metadata": metadata, **held}
        self._asked("POST", "/api/jobs/", json=order)

    def store_package(self, content: bytes) -> str:
        """Store a zip file that jobs may name as their `working_dir`, unless the cluster has it already; returns its URI."""
        name = f"_ray_pkg_{hashlib.sha256(content).hexdigest()[:40]}.zip"  # the form of name that Ray keeps and deletes by itself
        place = f"/api/packages/gcs/{name}"
        if (found := self._answer("GET", place)).status_code == 404:  # the question keeps it from being deleted before a job names it
            found = self._answer("PUT", place, data=content)
        _refuse_failure(found)
        return f"gcs://{name}"

    def _asked(self, method: str, endpoint: str, **content: Any) -> Any:
        answer = self._answer(method, endpoint, **content)
        _refuse_failure(answer)
        return answer.json()

    def _answer(self, method: str, endpoint: str, **content: Any) -> requests.Response:
        options = request_options(self._headers) | content
        answer: requests.Response = repeated(
            f"{method} {endpoint}", lambda: requests.request(method, self._address + endpoint, headers=self._headers, **options)
        )
        if answer.status_code in (401, 403):
            raise TokenRefused(f"status {answer.status_code}: {answer.text}")
        return answer

    def _check(self, answer: Any) -> None:
        version = str(answer["ray_version"]) if isinstance(answer, dict) and "ray_version" in answer else ""
        major = version.partition(".")[0]
        if not major.isdecimal() or int(major) < OLDEST_RAY:
            raise RuntimeError(f"its version of Ray is {version or 'unknown'}; {OLDEST_RAY}.0 is the oldest that is understood.")


def _refuse_failure(answer: requests.Response) -> None:
    if answer.status_code != 200:
        raise RuntimeError(f"Request failed with status code {answer.status_code}: {answer.text}.")


def request_options(headers: Mapping[str, str]) -> dict[str, Any]:
    """Options of every request: a limit, without which a silent host blocks the caller for ever, and no login of requests' own."""
    options: dict[str, Any] = {"timeout": REQUEST_TIMEOUT_S}
    return options | ({"auth": _as_it_is} if any(name.lower() == "authorization" for name in headers) else {})


def repeated(what: str, ask: Callable[[], Any]) -> Any:
    """What `ask` returns, asked again where the server is too busy to take the connection.

    Every request of ours may be repeated: packages are stored by content, and a submission id is taken once.
    """
    for pause_s in RETRY_PAUSES_S:
        try:
            return ask()
        except requests.ConnectionError as err:
            log.info("%s broke off (%s); asked again in %.0f s", what, err, pause_s)
            time.sleep(pause_s)
    return ask()


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` of requests that adds nothing: without any, it replaces a token by what ~/.netrc has for the host (psf/requests#3929)."""
    return request
