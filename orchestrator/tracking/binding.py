"""Which MLflow run a run folder belongs to, and what may not be mixed in it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.errors import TrackingError
from orchestrator.run.progress import checkpoints_due, full_dice
from orchestrator.tracking.records import MARKER_METRIC, STATE_TAG, KnownRun, OpenRun
from trainers.contract.commits import newest_committed
from trainers.contract.errors import ConfigError, DataError, StorageError
from trainers.contract.files import read_json, write_json_atomic
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState


class Tracking(Protocol):
    """What a campaign needs of the tracking server; `orchestrator.tracking.client.Tracker` is it."""

    uri: str

    def ping(self) -> None: ...
    def ensure_experiment(self, name: str) -> str: ...
    def known_run(self, run_key: str) -> KnownRun | None: ...
    def get_or_create_run(self, experiment_id: str, spec: RunSpec) -> str: ...
    def metrics(self, run_id: str) -> dict[str, float]: ...
    def set_state(self, run_id: str, state: RunState) -> None: ...
    def set_tags(self, run_id: str, tags: dict[str, str]) -> None: ...
    def open_runs(self) -> list[OpenRun]: ...
    def run_url(self, run_id: str) -> str: ...


@dataclass(frozen=True)
class TrackedRun:
    """The MLflow run of a run; empty strings when the experiment is not tracked."""

    run_id: str = ""
    url: str = ""


def refuse_mixture(spec: RunSpec, tracker: Tracking) -> None:
    """Raise ConfigError when the MLflow run that would be adopted records another training than the one in the run folder.

    The caller knows that no job of the run lives on its cluster. A recorded folder in which no epoch was kept gives the MLflow run away
    once it has ended: `track` then records it from here.
    """
    folder, known = RunFolder(spec.run_folder), tracker.known_run(spec.run_key)
    if known is None:
        return
    way_out = f"delete the MLflow run {known.run_id} in its pages, or name another server under `tracking`."
    elsewhere = known.tags.get("nnfleet.run_folder", "")
    if elsewhere and elsewhere != str(folder.root) and _keeps(RunFolder(Path(elsewhere)), known, spec.run_key):
        raise ConfigError(
            f"mlflow: {spec.run_key} is recorded from {elsewhere}, and {folder.root} is another training of it: one MLflow run cannot "
            f"hold both. Name the nnUNet_results of that folder to continue there; or {way_out}"
        )
    committed = newest_committed(folder)
    if MARKER_METRIC in known.metrics and (committed is None or committed.run_key != spec.run_key):
        raise ConfigError(
            f"mlflow: {spec.run_key} has epochs in MLflow, but {folder.root} holds none: it would start anew and its epochs would be "
            f"mixed with the old ones. Bring the run folder back to continue; or {way_out}"
        )


def _keeps(folder: RunFolder, known: KnownRun, run_key: str) -> bool:
    """True when the folder that an MLflow run is recorded from has something to lose: a kept epoch, or a run that has not ended.

    One that another run has now keeps nothing of this one; one that cannot be looked into belongs to somebody else.
    """
    try:
        if not folder.spec_file.exists() or folder.spec().run_key != run_key:
            return False
        return not has_ended(known) or newest_committed(folder) is not None
    except (OSError, DataError, StorageError):
        return True


def has_ended(known: KnownRun) -> bool:
    """True when MLflow shows the run as ended."""
    state = known.tags.get(STATE_TAG, "")
    return state in RunState.__members__ and RunState(state).is_final


def experiment_of(spec: RunSpec) -> str:
    """Name of the MLflow experiment of a run."""
    return spec.mlflow_experiment or spec.dataset


def track(spec: RunSpec, tracker: Tracking | None) -> TrackedRun:
    """Create or adopt the MLflow run and note it in the run folder. Raises TrackingError."""
    if tracker is None:
        return TrackedRun()
    folder = RunFolder(spec.run_folder)
    experiment_id = tracker.ensure_experiment(experiment_of(spec))
    run_id = tracker.get_or_create_run(experiment_id, spec)
    place = {"run_id": run_id, "experiment_id": experiment_id, "tracking_uri": tracker.uri}
    if not folder.mlflow_file.exists() or read_json(folder.mlflow_file, "MLflow run of the run folder") != place:
        write_json_atomic(folder.mlflow_file, place)
    return TrackedRun(run_id, tracker.run_url(run_id))


def noted_run_id(folder: RunFolder) -> str:
    """The MLflow run that `track` noted in a run folder; empty when there is none, or none that can be read."""
    try:
        content = read_json(folder.mlflow_file, "MLflow run of the run folder")
    except DataError:
        return ""
    return str(content.get("run_id", "")) if isinstance(content, dict) else ""


def lacks_scores(spec: RunSpec, tracked: TrackedRun, tracker: Tracking | None) -> bool:
    """True when MLflow does not have the scores of a finished run: it was not tracked before, or its MLflow run was lost.

    A checkpoint whose every score is NaN, since no case had foreground, has no score to lack.
    """
    if tracker is None:
        return False
    folder, known = RunFolder(spec.run_folder), tracker.metrics(tracked.run_id)
    dice = full_dice(folder, spec)
    scored = [name for name in checkpoints_due(spec, newest_committed(folder)) if not math.isnan(dice.get(name, 0.0))]
    return not all(any(key.startswith(f"full/{name}/") for key in known) for name in scored)


@dataclass(frozen=True)
class Address:
    """Which MLflow run a run folder belongs to."""

    tracking_uri: str
    run_id: str


def address_of(folder: RunFolder, spec: RunSpec) -> Address | None:
    """The run's place in MLflow; None for a run that is not tracked. Raises TrackingError while it has not been made yet."""
    if not folder.mlflow_file.exists():
        if not spec.tracking_uri:
            return None
        raise TrackingError(
            f"mlflow: {folder.mlflow_file} does not exist: no MLflow run was made for {spec.run_key} yet. "
            f"The campaign makes it when {spec.tracking_uri} can be reached."
        )
    content = read_json(folder.mlflow_file, "MLflow run of the run folder")
    return Address(str(content["tracking_uri"]), str(content["run_id"]))
