"""Experiments and runs that somebody deleted in MLflow's pages while they are still written to: they are taken out of the bin.

MLflow keeps what is deleted until `mlflow gc`, but takes no measurement of it, and no other experiment may have its name.
"""

import logging
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

DELETED = "deleted"


def restore_experiment(client: "MlflowClient", experiment: Any) -> None:
    """Take an experiment out of the bin if it is there, with its runs, as MLflow does."""
    if experiment.lifecycle_stage != DELETED:
        return
    client.restore_experiment(experiment.experiment_id)
    log.warning(
        "MLflow's experiment %r was deleted there and is restored with its runs, as a run needs it. To leave one deleted, name another "
        "under `tracking: {experiment: NAME}`.",
        experiment.name,
    )


def restore_run(client: "MlflowClient", run_id: str) -> None:
    """Take a run out of the bin if it is there, with the whole experiment if that was deleted."""
    info = client.get_run(run_id).info
    if info.lifecycle_stage != DELETED:
        return
    experiment = client.get_experiment(info.experiment_id)
    if experiment.lifecycle_stage == DELETED:  # its runs come back with it
        restore_experiment(client, experiment)
        return
    client.restore_run(run_id)
    log.warning(
        "MLflow's run %s was deleted there and is restored, as its results are still delivered. Stop a run before you delete it.", run_id
    )


def withdraw_experiment(client: "MlflowClient", experiment: Any) -> None:
    """Delete an experiment that was just made and may not be used; another one may have its name then."""
    client.rename_experiment(experiment.experiment_id, f"{experiment.name} (unused {uuid.uuid4().hex[:12]})")
    client.delete_experiment(experiment.experiment_id)
