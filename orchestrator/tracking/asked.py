"""What an MLflow server knows, asked by HTTP without MLflow's client, whose import takes longer than a submission: for whoever can go on
without an answer."""

import logging
from collections.abc import Collection
from typing import Any

import requests

from orchestrator.tracking.records import RUN_KEY_TAG

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0
MOST_EXPERIMENTS = 1000
MOST_RUNS = 100
"""Runs that are asked for at most, with a request for each."""


def lacks_runs(uri: str, run_keys: Collection[str]) -> bool:
    """True if the server answers and has no run with any of these keys; False where it has one, or nothing is learnt."""
    if not uri.startswith(("http://", "https://")) or len(run_keys) > MOST_RUNS:
        return False
    try:
        with requests.Session() as session:
            found = _asked(session, uri, "experiments", {"max_results": MOST_EXPERIMENTS})
            experiments = [each["experiment_id"] for each in found.get("experiments", [])]
            return "next_page_token" not in found and not any(_has_run(session, uri, experiments, key) for key in run_keys)
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        log.info("%s was not asked for runs: %s", uri, err)
        return False


def _has_run(session: requests.Session, uri: str, experiments: list[str], run_key: str) -> bool:
    wanted = {"experiment_ids": experiments, "filter": f"tags.`{RUN_KEY_TAG}` = '{run_key}'", "max_results": 1}
    return bool(experiments and _asked(session, uri, "runs", wanted).get("runs"))


def _asked(session: requests.Session, uri: str, what: str, wanted: dict[str, Any]) -> dict[str, Any]:
    answer = session.post(f"{uri.rstrip('/')}/api/2.0/mlflow/{what}/search", json=wanted, timeout=TIMEOUT_S)
    answer.raise_for_status()
    return dict(answer.json())
