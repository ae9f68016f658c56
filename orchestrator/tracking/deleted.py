"""Experiments and runs that somebody deleted in MLflow's pages while they are still written to: they are taken out of the bin.

MLflow keeps what is deleted until `mlflow gc`, but takes no measurement of it, and no other experiment may have its name.
"""

import logging
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from orchestrator.tracking.pages import pages
from orchestrator.tracking.records import RUN_KEY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

DELETED = "deleted"


def restore_experiment(client: "MlflowClient", experiment: Any) -> None:
    """Take an experiment out of the bin if it is there, with its runs, as MLflow does; but those that were there before it stay there."""
    if experiment.lifecycle_stage != DELETED:
        return
    try:
        client.restore_experiment(experiment.experiment_id)
    except Exception as err:  # MLflow, which only client.py imports, calls an experiment unknown that is not in its bin any more
        is_gone = getattr(err, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
        if not is_gone or client.get_experiment(experiment.experiment_id).lifecycle_stage == DELETED:
            raise
        return  # another caller was faster
    for run_id in deleted_before(pages(client.search_runs, [experiment.experiment_id], f"tags.`{RUN_KEY_TAG}` != ''")):
        client.delete_run(run_id)
    log.warning(
        "MLflow's experiment %r was deleted there and is restored with its runs, as a run needs it. To leave one deleted, name another "
        "under `tracking: {experiment: NAME}`.",
        experiment.name,
    )


def deleted_before(runs: Iterable[Any]) -> list[str]:
    """Of all runs of an experiment that was deleted, those that had been deleted alone before, as far as they show it. Pure.

    MLflow keeps neither that nor when, and restores them too. But a second run of a key is only made where the first was deleted, so of
    several the last one was there; and one without parameters was never recorded from: it lost to another that was made at the same moment.
    """
    others: list[str] = []
    last: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: (bool(run.data.params), run.info.start_time or 0)):
        key = run.data.tags[RUN_KEY_TAG]
        others += [last[key]] if key in last else []
        last[key] = run.info.run_id
    return others


def restore_run(client: "MlflowClient", run_id: str) -> None:
    """Take a run out of the bin if it is there, with the whole experiment if that was deleted."""
    info = client.get_run(run_id).info
    if info.lifecycle_stage != DELETED:
        return
    experiment = client.get_experiment(info.experiment_id)
    if experiment.lifecycle_stage == DELETED:
        restore_experiment(client, experiment)
        if client.get_run(run_id).info.lifecycle_stage != DELETED:  # it came back with it
            return
    client.restore_run(run_id)
    log.warning(
        "MLflow's run %s was deleted there and is restored, as its results are still delivered. Stop a run before you delete it.", run_id
    )


def withdraw_experiment(client: "MlflowClient", experiment: Any) -> None:
    """Delete an experiment that was just made and may not be used; another one may have its name then."""
    client.rename_experiment(experiment.experiment_id, f"{experiment.name} (unused {uuid.uuid4().hex[:12]})")
    client.delete_experiment(experiment.experiment_id)
