"""The verbs of maintenance: run folders removed or freed, MLflow brought up to date, a drill."""

import logging
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.campaign.follower import Follower
from orchestrator.cluster import local_services, submissions
from orchestrator.cluster.home import Home
from orchestrator.cluster.target import reach
from orchestrator.run.below import RESULTS, results_folder
from orchestrator.verbs.known_runs import warn_of

if TYPE_CHECKING:
    from orchestrator.drill.order import DrillEvent, Report
    from orchestrator.publishing.reconcile import Synced
    from orchestrator.resume.garbage import Garbage
    from orchestrator.resume.removal import Removable
    from orchestrator.run.job_record import JobRecord
    from orchestrator.run.status import RunStatus

log = logging.getLogger(__name__)


def removable(runs: Sequence[str], results: Path | None = None, cluster: str | None = None) -> "list[Removable]":
    """The runs that `remove` would remove, with their sizes on disk: those below `results` (default: nnUNet_results of this process) that
    the names mean. Raises ConfigError for a name that means none, and for a run that has not ended, on `cluster` or by its folder.
    """
    from orchestrator.resume.removal import removable

    found, left = removable(runs, results_folder(results, os.environ), *_at_work(cluster))
    if {*runs} != {run.run_key for run in found}:  # else each of them was named, and no name could have meant more
        warn_of(left)
    return found


def remove(runs: Sequence[str], results: Path | None = None, cluster: str | None = None, *, mlflow: bool = False) -> "list[Removable]":
    """Remove those runs' folders for good, and with `mlflow` put their MLflow runs into its bin, and those of cross-validations that hold
    them, which `sync` makes anew of the folds that stay; returns what was removed.

    Raises as `removable`, then nothing was removed; TrackingError, DataError.
    """
    from orchestrator.resume.removal import remove

    found = removable(runs, results, cluster)
    submissions.drop_runs(Home.default(), {run.run_key for run in found})
    return remove(found, mlflow=mlflow)


def garbage(
    runs: Sequence[str] = (), results: Path | None = None, cluster: str | None = None, *, mlflow: bool = False
) -> "tuple[list[Garbage], list[str], list[str]]":
    """What the ended runs below `results` (default: nnUNet_results of this process), or those that the names mean, hold that nobody needs,
    with `mlflow` there too; a sentence for each run that is left out; and one for each that failed, since its disk or MLflow gave no
    answer. Removes nothing. Raises ConfigError for a name that means none.
    """
    from orchestrator.resume.garbage import garbage_below

    return garbage_below(runs, results_folder(results, os.environ), *_at_work(cluster), mlflow=mlflow)


def free(found: "Sequence[Garbage]") -> "tuple[list[Garbage], list[str]]":
    """Remove what `garbage` has found; returns what went, and a sentence for each run of which not all did: it was started since, say."""
    from orchestrator.resume.garbage import free_all

    return free_all(found)


def sync(run: str = "", results: Path | None = None, cluster: str | None = None) -> "list[Synced]":
    """Deliver to MLflow what run folders hold and it lacks, and end there the runs whose jobs died: of all runs below `results`, or of
    those that `run` means; then the cross-validations of their models.

    `results`: by default nnUNet_results of this shell, or of the named cluster's head. Raises ConfigError when there is none.
    """
    from orchestrator.campaign.handover import registry_here
    from orchestrator.compare.model_run import with_models
    from orchestrator.publishing.reconcile import SYNC_EVENTS, sync_below

    meant = reach(cluster)
    if meant.is_here:
        jobs = [] if meant.reached is None else meant.reached.records()
        registry = registry_here() if jobs else None
        return list(with_models(sync_below(results, [run] if run else [], jobs, registry), jobs))
    arguments = ["sync", *([run] if run else []), *(["--results", str(results)] if results else [])]
    submission_id = meant.jobs.submit_control(f"sync-{secrets.token_hex(4)}", arguments)
    events, failure = Follower(meant.jobs).ended(submission_id, SYNC_EVENTS)
    found = [event.synced for event in events]
    if failure is not None and not any(item.lacking for item in found):  # else it has failed by what is lacking
        raise failure
    return found


def drill(
    parts: Sequence[str] = (),
    cluster: str | None = None,
    folder: Path | None = None,
    *,
    gpus: bool = False,
    is_sure: bool = False,
    keeps: bool = False,
    on_event: Callable[["DrillEvent"], None] = lambda event: None,
) -> "Report":
    """Train a toy run on the cluster, kill `parts` of it (worker, node, driver, tracking; default worker and driver), report what was lost.

    `folder`: where the nodes see it; default nnUNet_results of this process for the local services, else of the head. Raises ConfigError
    for what may not be killed, ClusterError.
    """
    from orchestrator.drill.order import check_parts, follow, order_of

    check_parts(parts)
    meant = reach(cluster, starts=True)
    place, uri, mlflow = str(folder or ""), "", None
    if meant.local is not None:
        place = place or os.environ.get(RESULTS) or str(Home.default().root)
        uri, mlflow = meant.local.mlflow_uri, meant.local.mlflow
    order = order_of(parts, folder=place, tracking_uri=uri, mlflow=mlflow, gpus=int(gpus), is_sure=is_sure, keeps=keeps)

    def mended(event: "DrillEvent") -> None:
        if event.event == "mend":
            local_services.up()
        on_event(event)

    try:
        return follow(meant.jobs, order, mended)
    finally:
        if "tracking" in order.parts:
            local_services.up()


def _at_work(cluster: str | None) -> "tuple[list[RunStatus], list[JobRecord]]":
    """What the cluster reports of runs, and its jobs; nothing where none answers."""
    reached = reach(cluster).reached
    return ([], []) if reached is None else (Follower(reached).statuses(), reached.records())
