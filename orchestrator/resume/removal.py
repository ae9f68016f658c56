"""Removing runs: which are meant, which have not ended, what they take on the disk, and how they go."""

import os
import shutil
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.dataset.problems import listed
from orchestrator.publishing.reconcile import is_alive
from orchestrator.resume.stored import status_of_stored
from orchestrator.resume.unfinished import Found, find_runs
from orchestrator.run.aside import move_aside
from orchestrator.run.crossvals import crossvals_with, remove_crossvals
from orchestrator.run.job_record import JobRecord, living_campaigns
from orchestrator.run.names import resolve_all
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import noted_url
from orchestrator.tracking.records import FOLDS_TAG
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen, RunSpec
from trainers.contract.states import RunState
from trainers.errors import ConfigError, DataError

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

SHARED = frozenset({"plans.json", "dataset.json", "dataset_fingerprint.json"})
"""What a campaign puts into a model folder for all folds."""


class Removable(Frozen):
    """A run that nobody works on, with what goes when it is removed."""

    run_key: str
    address: str
    state: RunState
    epochs_done: int
    epochs: int
    run_folder: Path
    size_bytes: int
    """Taken on the disk by what is removed; a file with several names counts once."""
    mlflow_run_id: str = ""
    mlflow_url: str = ""
    """Link to the page of that run; empty where there is none."""
    is_imported_here: bool = False
    """nnU-Net itself made the folder: only what was noted of the run is removed."""
    second_stages: tuple[str, ...] = ()
    """Models of a cascade that were trained on its segmentations and stay: without its weights they predict no new images."""
    crossvals: tuple[Path, ...] = ()
    """Folders of the model's cross-validation that hold this fold's predictions and are removed with it."""

    @property
    def leaving(self) -> Path:
        """The folder that is removed."""
        return RunFolder(self.run_folder).own if self.is_imported_here else self.run_folder


def removable(
    names: Sequence[str], results: Path, statuses: Sequence[RunStatus] = (), jobs: Sequence[JobRecord] = ()
) -> tuple[list[Removable], list[str]]:
    """The runs below `results` that the names mean, and a sentence for each run folder that is left out, as `find_runs` has it.
    `statuses` and `jobs`: what the cluster knows.

    Raises ConfigError for a name that means none, and for runs that have not ended.
    """
    found, left = find_runs(results)
    meant = resolve_all(names, [run.names for run in found], f"below {results}", hints=False, left=left)
    wanted = [found[i] for i in meant]
    if busy := [f"{run} {why}" for run in wanted if (why := at_work(run, statuses, jobs))]:
        raise ConfigError(
            f"rm: {len(busy)} of {len(wanted)} runs have not ended: {listed(busy)}. Nothing was removed. Stop them first (nnfleet stop), "
            "or name other runs."
        )
    staying = [run.spec for i, run in enumerate(found) if i not in meant]
    return [_removable(run, staying) for run in wanted], left


def at_work(run: Found, statuses: Sequence[RunStatus], jobs: Sequence[JobRecord]) -> str:
    """Who still works on a run or is going to, in words; '' when nobody does."""
    spec, living = run.spec, living_campaigns(jobs)
    for job in jobs:
        if job.is_live and (job.run_key == spec.run_key or job.run_folder == str(spec.run_folder)):
            return f"has the job {job.submission_id}"
    for status in statuses:
        is_its = status.run_key == spec.run_key or status.run_folder == spec.run_folder  # while its data are preprocessed it has no key yet
        if is_its and status.campaign in living and not status.state.is_final:
            return f"is {status.state.value} in the campaign {status.campaign}"
    is_active = is_alive(RunFolder(spec.run_folder), spec, jobs, time.time())
    return "shows recent activity in its folder" if is_active else ""


def _removable(run: Found, staying: Sequence[RunSpec]) -> Removable:
    status = status_of_stored(run)
    after = {spec.model for spec in staying if spec.previous_stage and run.spec.run_key in spec.previous_stage.run_keys}
    found = Removable(
        run_key=status.run_key,
        address=status.address,
        state=status.state,
        epochs_done=status.epochs_done,
        epochs=status.epochs,
        run_folder=status.run_folder,
        size_bytes=0,
        mlflow_run_id=run.mlflow_run_id,
        mlflow_url=noted_url(RunFolder(run.spec.run_folder)),
        is_imported_here=run.spec.is_imported_in_place,
        second_stages=tuple(sorted(after)),
        crossvals=tuple(crossvals_with(run.spec.model_folder, run.spec.fold)),
    )
    return found.model_copy(update={"size_bytes": size_on_disk(found.leaving)})


def size_on_disk(folder: Path) -> int:
    """Bytes that a folder's files take; one with several names, as best checkpoints have, counts once. Links are not followed."""
    sizes: dict[tuple[int, int], int] = {}
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                found = os.lstat(os.path.join(root, name))
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                sizes[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def remove(runs: Sequence[Removable], *, mlflow: bool) -> list[Removable]:
    """Remove run folders for good, one after the other, and with `mlflow` their MLflow runs into its bin before. Of a run that nnU-Net
    trained in that folder only what was noted of it goes. Its model's cross-validations that hold it go with it, with `mlflow` there too:
    returns the runs, each with the folders of those that are removed.

    A model folder in which no fold is left goes too. Raises TrackingError before anything is removed where a server does not answer,
    DataError for a folder that may not be removed: those before it are gone then.
    """
    if mlflow:
        _into_the_bin(runs)
    removed = []
    for run in runs:
        try:
            aside = move_aside(run.leaving, "removed", time.time())  # half a run folder would look like a run
            removed.append(run.model_copy(update={"crossvals": tuple(remove_crossvals(run.crossvals))}))
            shutil.rmtree(aside)
            _remove_if_empty(run.run_folder.parent)
        except OSError as err:
            raise DataError(
                f"rm: {run.run_folder} of {run.address} cannot be removed: {err.strerror or err} ({err.filename or 'unknown file'}). "
                "Let this user write there; what begins with `removed-` in its model folder is left of it and may be deleted."
            ) from err
    return removed


def _into_the_bin(runs: Sequence[Removable]) -> None:
    from orchestrator.tracking.client import Tracker  # seconds and 150 MB: not before it is needed

    folders = [RunFolder(run.run_folder) for run in runs]
    bound = [(folder, found) for folder in folders if (found := read_mlflow_run(folder)) is not None]
    servers = {each.tracking_uri: Tracker(each.tracking_uri) for _, each in bound}
    for server in servers.values():
        server.ping()
    for folder, each in bound:
        server = servers[each.tracking_uri]
        for model in _cross_validations_with(folder, server):
            server.delete_run(model)
        server.delete_run(each.run_id)


def _cross_validations_with(folder: RunFolder, server: "Tracker") -> list[str]:
    """Ids of the MLflow runs of cross-validations that hold this fold's cases."""
    fold = folder.root.name.removeprefix("fold_")
    return [run for run in server.models_in(str(folder.model_folder)) if fold in server.tags(run).get(FOLDS_TAG, "").split(", ")]


def _remove_if_empty(model_folder: Path) -> None:
    """Remove a model folder that holds nnU-Net's shared files alone: they would keep plans from changing that no fold needs."""
    left = {path.name for path in model_folder.iterdir()}
    if left <= SHARED:
        for name in left:
            (model_folder / name).unlink()
        model_folder.rmdir()
