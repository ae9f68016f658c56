"""Which MLflow run a run folder belongs to, and what may not be mixed in it."""

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestrator.errors import TrackingError
from orchestrator.run.names import Names
from orchestrator.tracking.address import masked
from orchestrator.tracking.records import FOLDER_TAG, MARKER_METRIC, KnownRun, OpenRun, job_tags
from orchestrator.tracking.saved_views import run_url
from trainers.contract.commits import CommitReader, Committed, newest_committed
from trainers.contract.fencing import check_driver_fence
from trainers.contract.records import MlflowRun, read_mlflow_run, write_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.errors import ConfigError, DataError, StorageError

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker


class TrackingServer(Protocol):
    """What a campaign needs of the tracking server; `orchestrator.tracking.client.Tracker` is it."""

    uri: str

    def ping(self) -> None: ...
    def ensure_experiment(self, name: str, *, local_artifacts: bool = True) -> str: ...
    def known_run(self, run_key: str) -> KnownRun | None: ...
    def recorded_run(self, run_id: str) -> KnownRun | None: ...
    def get_or_create_run(self, experiment_id: str, spec: RunSpec, run_id: str = "") -> str: ...
    def tags(self, run_id: str) -> dict[str, str]: ...
    def set_state(self, run_id: str, state: RunState, *, is_waiting: bool = False) -> None: ...
    def set_tags(self, run_id: str, tags: dict[str, str]) -> None: ...
    def restore_run(self, run_id: str) -> None: ...
    def open_runs(self) -> list[OpenRun]: ...
    def run_url(self, run_id: str) -> str: ...


@dataclass(frozen=True)
class TrackedRun:
    """The MLflow run of a run; empty strings when the experiment is not tracked."""

    run_id: str = ""
    url: str = ""


def refuse_mixture(spec: RunSpec, tracker: TrackingServer) -> None:
    """Raise ConfigError when the MLflow run that `track` would take records another training than the one in the run folder.

    The caller knows that no job of the run is alive on its cluster. A recorded folder without a committed epoch frees the MLflow run once
    it has ended: `track` then records it from here.
    """
    folder, known = RunFolder(spec.run_folder), run_to_take(spec, tracker)
    if known is None:
        return
    page = f" ({url})" if (url := tracker.run_url(known.run_id)) else ""
    way_out = f"delete the MLflow run {known.run_id} in its pages{page}, or name another server under `tracking`."
    elsewhere = known.tags.get(FOLDER_TAG, "")
    if elsewhere and elsewhere != str(folder.root) and _keeps(RunFolder(Path(elsewhere)), known, spec.run_key):
        raise ConfigError(
            f"mlflow: {spec.run_key} is recorded from {elsewhere}, and {folder.root} is another training of it: one MLflow run cannot "
            f"hold both. Name the nnUNet_results of that folder to continue there; or write `replicate: NAME` into the experiment file, to "
            f"train the same once more here; or {way_out}"
        )
    committed = newest_committed(folder)
    if MARKER_METRIC in known.metrics and (committed is None or committed.run_key != spec.run_key):
        raise ConfigError(
            f"mlflow: {spec.run_key} has epochs in MLflow, but {folder.root} holds none: it would start at epoch 0, and "
            f"its epochs would be mixed with the old ones. Bring the run folder back to continue; or {way_out}"
        )


def _keeps(folder: RunFolder, known: KnownRun, run_key: str) -> bool:
    """True when the folder that an MLflow run is recorded from has something to lose: a committed epoch, or a run that has not ended.

    One that another run has now keeps nothing of this one; one that cannot be looked into belongs to somebody else.
    """
    try:
        if not folder.spec_file.exists() or folder.spec().run_key != run_key:
            return False
        return not known.has_ended or newest_committed(folder) is not None
    except (OSError, DataError, StorageError):
        return True


def experiment_of(spec: RunSpec) -> str:
    """Name of the MLflow experiment of a run."""
    return spec.mlflow_experiment or spec.dataset


def open_experiments(specs: Sequence[RunSpec], tracker: TrackingServer) -> None:
    """Make the experiments of runs, or restore them with their runs if they were deleted.

    Raises ConfigError where artifacts would go to a path of the sender's machine, unless a run asks for that or has been recorded there.
    """
    asks: dict[str, bool] = {}
    for spec in specs:
        recorded = _recorded(RunFolder(spec.run_folder))
        is_known = recorded is not None and recorded.tracking_uri == tracker.uri
        asks[experiment_of(spec)] = asks.get(experiment_of(spec), True) and (spec.local_artifacts or is_known)
    for name, local_artifacts in asks.items():
        tracker.ensure_experiment(name, local_artifacts=local_artifacts)


def track(spec: RunSpec, tracker: TrackingServer | None) -> TrackedRun:
    """Get or create the MLflow run and record it in the run folder. Raises TrackingError."""
    if tracker is None:
        return TrackedRun()
    folder = RunFolder(spec.run_folder)
    experiment_id = tracker.ensure_experiment(experiment_of(spec))
    taken = run_to_take(spec, tracker)
    run_id = tracker.get_or_create_run(experiment_id, spec, taken.run_id if taken is not None else "")
    bound = MlflowRun(run_id=run_id, experiment_id=experiment_id, tracking_uri=tracker.uri)
    if _recorded(folder) != bound:
        write_mlflow_run(folder, bound)
    return TrackedRun(run_id, tracker.run_url(run_id))


def run_to_take(spec: RunSpec, tracker: TrackingServer) -> KnownRun | None:
    """The MLflow run that `track` takes: the one that the run folder names, while it is this run's, else the oldest with the run key; None:
    it makes a new one.

    One that the folder names and that was deleted in MLflow's pages is restored, unless another has its place; or unless it has epochs and
    the folder none: then it was deleted to start anew.
    """
    folder = RunFolder(spec.run_folder)
    recorded = None if _is_of_another(folder, spec.run_key) else _recorded(folder)
    is_of_server = recorded is not None and recorded.tracking_uri.rstrip("/") == tracker.uri
    own = tracker.recorded_run(recorded.run_id) if recorded is not None and is_of_server else None
    if own is not None and not own.is_deleted:
        return own
    other = tracker.known_run(spec.run_key)
    if other is not None or own is None:
        return other
    return None if MARKER_METRIC in own.metrics and newest_committed(folder) is None else own


def _is_of_another(folder: RunFolder, run_key: str) -> bool:
    """True while another run has the folder, which has not been replaced yet."""
    try:
        return folder.spec_file.exists() and folder.spec().run_key != run_key
    except DataError:
        return False


def noted_run_id(folder: RunFolder) -> str:
    """The MLflow run that `track` recorded in a run folder; empty when there is none, or none that can be read."""
    recorded = _recorded(folder)
    return recorded.run_id if recorded is not None else ""


def noted_url(folder: RunFolder) -> str:
    """Link to the page of that run; empty where there is none, or it is none of a web server. Asks nobody."""
    recorded = _recorded(folder)
    if recorded is None or not recorded.experiment_id or not recorded.tracking_uri.startswith("http"):
        return ""
    return run_url(recorded.tracking_uri, recorded.experiment_id, recorded.run_id)


def _recorded(folder: RunFolder) -> MlflowRun | None:
    try:
        return read_mlflow_run(folder)
    except DataError:
        return None


def owners_last(names: Sequence[Names]) -> list[Names]:
    """The runs in the order given, but those last that their folder notes, where it is seen here and several runs name it."""
    shared = {folder for folder, count in Counter(name.folder for name in names).items() if count > 1 and Path(folder).is_absolute()}
    noted = {}
    for folder in shared:
        with suppress(StorageError):  # a disk that is away says nothing
            noted[folder] = noted_run_id(RunFolder(Path(folder)))
    return sorted(names, key=lambda name: noted.get(name.folder, "") == name.mlflow_run_id)


def bound_run(folder: RunFolder, spec: RunSpec) -> MlflowRun | None:
    """The MLflow run of a run folder; None for a run that is not tracked. Raises TrackingError while it has not been made yet."""
    bound = read_mlflow_run(folder)
    if bound is None and spec.tracking_uri:
        raise TrackingError(
            f"mlflow: {folder.mlflow_file} does not exist: no MLflow run was made for {spec.address} yet. "
            f"The campaign makes it when {masked(spec.tracking_uri)} can be reached."
        )
    return bound


def server_of(bound: MlflowRun) -> "Tracker":
    """The server of an MLflow run, asked for the run, which is restored if somebody has deleted it there. Raises TrackingError."""
    from orchestrator.tracking.client import Tracker  # seconds and 150 MB: not before it is needed

    tracker = Tracker(bound.tracking_uri)
    tracker.ping()  # fails within seconds, where other calls wait for minutes
    tracker.restore_run(bound.run_id)
    return tracker


class Destination:
    """Where one run folder is delivered to: its MLflow run, opened when it is first needed. Not shared between threads."""

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self.folder, self.fencing_token, self.spec = folder, fencing_token, folder.spec()
        self._opened: tuple[Tracker, str] | None = None
        self._commits = CommitReader(folder)

    def open(self) -> "tuple[Tracker, str] | None":
        """The server and the id of the run there; None for a run that is not tracked. Raises TrackingError, Superseded.

        When it is opened, the MLflow run is tagged with the job and the fencing token that deliver it.
        """
        if self._opened is None:
            bound = bound_run(self.folder, self.spec)
            if bound is None:
                return None
            self.check_fence()
            tracker = server_of(bound)
            tracker.set_tags(bound.run_id, job_tags(os.environ.get("NNFLEET_SUBMISSION_ID", ""), self.fencing_token))
            self._opened = tracker, bound.run_id
        return self._opened

    def forget(self) -> None:
        """Ask anew which MLflow run this is: the server failed, and may come back with another database."""
        self._opened = None

    def check_fence(self) -> None:
        """Raise Superseded when another driver owns the run: asked before each change in MLflow."""
        check_driver_fence(self.folder, self.fencing_token)

    def committed(self) -> Committed | None:
        """The newest commit."""
        return self._commits.newest()
