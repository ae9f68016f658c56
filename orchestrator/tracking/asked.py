"""What an MLflow server knows, asked by HTTP without MLflow's client, whose import takes longer than a submission: for whoever can go on
without an answer."""

import logging
import os
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import requests

from orchestrator.tracking.login import access_of
from orchestrator.tracking.records import RUN_KEY_TAG

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
MOST_EXPERIMENTS = 1000
MOST_RUNS = 100
"""Runs that are asked for at most, with a request for each."""
Post = Callable[..., requests.Response]


def lacks_runs(uri: str, run_keys: Collection[str]) -> bool:
    """True if the server answers and has no run with any of these keys; False where it has one, or nothing is learnt. It is asked with the
    login and certificates that MLflow's client would use."""
    if not uri.startswith(("http://", "https://")) or len(run_keys) > MOST_RUNS:
        return False
    try:
        access = access_of(os.environ)
        with requests.Session() as session:
            session.auth = access.sign if access.authorization else None
            post = partial(session.post, timeout=TIMEOUT_S, verify=access.verify, cert=access.client_certificate)
            found = _asked(post, uri, "experiments", {"max_results": MOST_EXPERIMENTS})
            experiments = [each["experiment_id"] for each in found.get("experiments", [])]
            return "next_page_token" not in found and not any(_has_run(post, uri, experiments, key) for key in run_keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:  # those of requests are OSError
        log.info("%s was not asked for runs: %s", uri, type(err).__name__)  # texts may quote a header
        return False


def _has_run(post: Post, uri: str, experiments: list[str], run_key: str) -> bool:
    wanted = {"experiment_ids": experiments, "filter": f"tags.`{RUN_KEY_TAG}` = '{run_key}'", "max_results": 1}
    return bool(experiments and _asked(post, uri, "runs", wanted).get("runs"))


def _asked(post: Post, uri: str, what: str, wanted: dict[str, Any]) -> dict[str, Any]:
    answer = post(f"{uri.rstrip('/')}/api/2.0/mlflow/{what}/search", json=wanted)
    answer.raise_for_status()
    return dict(answer.json())
