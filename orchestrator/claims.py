"""Taking possession of a run before anything of it starts: its folder, nnU-Net's files beside it, its MLflow run."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.outcome import Outcome, read_outcome, write_outcome
from orchestrator.plan import Stage, standing_of
from trainers.spec.attempts import newest_attempt
from trainers.spec.errors import ConfigError, TrackingError
from trainers.spec.files import create_exclusive, read_json, write_atomic, write_json_atomic
from trainers.spec.folder import RunFolder
from trainers.spec.run_spec import RunSpec
from trainers.spec.states import RunState

log = logging.getLogger(__name__)

Opening = Literal["adopt", "finished", "validate", "train"]


REFUSALS = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST", "PERMISSION_DENIED"})
"""MLflow's codes for a request that would fail again: the run was deleted, or is not ours to change."""


class Tracking(Protocol):
    """What a campaign needs of the tracking server; `orchestrator.tracking.Tracker` is it."""

    uri: str

    def ping(self) -> None: ...
    def ensure_experiment(self, name: str) -> str: ...
    def claim_run(self, experiment_id: str, spec: RunSpec) -> str: ...
    def metrics(self, run_id: str) -> dict[str, float]: ...
    def set_state(self, run_id: str, state: RunState) -> None: ...
    def set_tags(self, run_id: str, tags: dict[str, str]) -> None: ...
    def run_url(self, run_id: str) -> str: ...


@dataclass(frozen=True)
class TrackedRun:
    """The MLflow run of a run; empty strings when the experiment is not tracked."""

    run_id: str = ""
    url: str = ""


def opening_of(outcome: Outcome | None, stage: Stage, *, has_live_job: bool) -> Opening:
    """How a submission begins with a run: pure. A living job is followed; a result is kept; what is trained is only validated."""
    if has_live_job:
        return "adopt"
    if stage == "finished" and outcome is not None and outcome.state == "SUCCEEDED":
        return "finished"
    return "validate" if stage in ("finished", "validates") else "train"


def claim(spec: RunSpec, *, has_live_job: bool, only_validate: bool = False) -> tuple[RunSpec, Opening]:
    """Take possession of the run folder; returns the specification that holds and how to begin.

    The same run key always continues; its other settings (workers, loader, tracking) are taken over unless a job of the run lives.
    Raises ConfigError when the folder belongs to another run.
    """
    folder = RunFolder(spec.run_folder)
    _share_model_files(spec)
    if not create_exclusive(folder.spec_file, spec.model_dump_json(indent=1).encode()):
        present = folder.spec()
        if present.run_key != spec.run_key:
            raise ConfigError(
                f"results: {folder.root} belongs to the run {present.run_key}, not to {spec.run_key}. "
                "Move the folder away or name another nnUNet_results."
            )
        if has_live_job:
            spec = present
        elif present != spec:
            write_atomic(folder.spec_file, spec.model_dump_json(indent=1).encode())
    stage: Stage = "validates" if only_validate else standing_of(spec).stage
    opening = opening_of(read_outcome(folder), stage, has_live_job=has_live_job)
    if opening in ("train", "validate"):
        reset(folder, opening)
    return spec, opening


def track(spec: RunSpec, tracker: Tracking | None) -> TrackedRun:
    """Create or adopt the MLflow run and note it in the run folder. Raises TrackingError."""
    if tracker is None:
        return TrackedRun()
    folder = RunFolder(spec.run_folder)
    experiment_id = tracker.ensure_experiment(spec.mlflow_experiment or spec.dataset)
    run_id = tracker.claim_run(experiment_id, spec)
    place = {"run_id": run_id, "experiment_id": experiment_id, "tracking_uri": tracker.uri}
    if not folder.mlflow_file.exists() or read_json(folder.mlflow_file, "MLflow run of the run folder") != place:
        write_json_atomic(folder.mlflow_file, place)
    return TrackedRun(run_id, tracker.run_url(run_id))


def is_refusal(error: TrackingError) -> bool:
    """True when the tracking server answered and said no; False when it is away."""
    return getattr(error.__cause__, "error_code", "") in REFUSALS


def lacks_scores(spec: RunSpec, tracked: TrackedRun, tracker: Tracking | None) -> bool:
    """True when MLflow does not have the scores of a finished run: it was not tracked before, or its MLflow run was lost."""
    if tracker is None:
        return False
    known = tracker.metrics(tracked.run_id)
    return not all(any(key.startswith(f"full/{name}/") for key in known) for name in spec.validation.checkpoints)


def reset(folder: RunFolder, opening: Opening) -> None:
    """Forget how the run ended before: it was submitted again."""
    folder.stop_file.unlink(missing_ok=True)
    if opening == "train":
        folder.outcome_file.unlink(missing_ok=True)
        return
    before = read_outcome(folder)
    if before is None or before.state != "TRAINED":
        attempt = before.attempt if before is not None else newest_attempt(folder)
        write_outcome(folder, Outcome(job="training", state="TRAINED", attempt=attempt, message="trained before; validated again"))


def _share_model_files(spec: RunSpec) -> None:
    """nnU-Net's files of a model folder, shared by its folds: made once, never changed."""
    sources = {
        "plans.json": spec.preprocessed_folder / f"{spec.plans}.json",
        "dataset.json": spec.preprocessed_folder / "dataset.json",
        "dataset_fingerprint.json": spec.preprocessed_folder / "dataset_fingerprint.json",
    }
    for name, source in sources.items():
        if name == "dataset_fingerprint.json" and not source.is_file():
            continue
        _share(source, spec.model_folder / name, is_vital=name != "dataset_fingerprint.json")


def _share(source: Path, target: Path, *, is_vital: bool) -> None:
    content = source.read_bytes()
    if create_exclusive(target, content):
        shutil.copymode(source, target)
        return
    if read_json(target, "results") == json.loads(content):
        return
    if is_vital:
        raise ConfigError(
            f"results: {target} differs from {source}: folds of one model folder must share one plan and one dataset.json. "
            "Move the folder away or name another nnUNet_results."
        )
    log.warning("%s differs from %s; the first one stays", target, source)
