"""Taking possession of a run before anything of it starts: its folder, nnU-Net's files beside it, its MLflow run."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from orchestrator.dataset.preflight import Problems, model_folder_problems
from orchestrator.experiment.plan import Stage, standing_of
from orchestrator.run.activity import stop_wish
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import Outcome, is_newest, read_outcome, write_outcome
from orchestrator.run.write_access import explained
from orchestrator.tracking.records import MARKER_METRIC, STATE_TAG, KnownRun, OpenRun
from trainers.contract.commits import newest_committed
from trainers.contract.errors import ConfigError, DataError, StorageError
from trainers.contract.fencing import newest_attempt
from trainers.contract.files import create_exclusive, read_json, write_atomic, write_json_atomic
from trainers.contract.plans import load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

log = logging.getLogger(__name__)

Opening = Literal["adopt", "finished", "deliver", "validate", "train"]
"""What a submission does with a run: follow its living job; nothing; bring its results to MLflow; validate it; train it."""


class Tracking(Protocol):
    """What a campaign needs of the tracking server; `orchestrator.tracking.client.Tracker` is it."""

    uri: str

    def ping(self) -> None: ...
    def ensure_experiment(self, name: str) -> str: ...
    def known_run(self, run_key: str) -> KnownRun | None: ...
    def claim_run(self, experiment_id: str, spec: RunSpec) -> str: ...
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


def opening_of(stage: Stage) -> Opening:
    """How a submission begins with a run that has no living job: pure. A result is kept; what is trained is only validated."""
    return "finished" if stage == "finished" else "validate" if stage == "validates" else "train"


@dataclass(frozen=True)
class Claim:
    """A run that was taken possession of."""

    spec: RunSpec
    """The specification that holds."""
    opening: Opening
    was_stopping: bool = False
    """Its living job had been asked to stop; the wish was taken back, but it may have been heard already."""


def refuse(spec: RunSpec, jobs: Sequence[JobRecord]) -> None:
    """Raise ConfigError or DataError for a run that cannot be taken possession of. Changes nothing."""
    _refuse_second_folder(spec, living_job(spec, jobs))
    with explained(spec):
        problems = Problems()
        problems.add(*model_folder_problems(spec, load_plans(spec.preprocessed_folder, spec.plans)))
        problems.raise_if_any()


def claim(spec: RunSpec, jobs: Sequence[JobRecord], *, only_validate: bool = False) -> Claim:
    """Take possession of a run folder that `refuse` let pass; the caller holds the lock under which jobs are submitted.

    The same run key always continues; its other settings (workers, loader, tracking) are taken over unless a job of the run lives.
    Raises ConfigError when the folder belongs to another run, DataError when it cannot be written.
    """
    folder, job = RunFolder(spec.run_folder), living_job(spec, jobs)
    with explained(spec):
        _share_model_files(spec)
        if not create_exclusive(folder.spec_file, spec.model_dump_json(indent=1).encode()):
            present = folder.spec()
            if present.run_key != spec.run_key:
                raise ConfigError(
                    f"results: {folder.root} belongs to the run {present.run_key}, not to {spec.run_key}. "
                    "Move the folder away or name another nnUNet_results."
                )
            if job is not None:
                spec = present
            elif present != spec:
                write_atomic(folder.spec_file, spec.model_dump_json(indent=1).encode())
        if job is not None:
            was_stopping = stop_wish(folder) is not None
            folder.stop_file.unlink(missing_ok=True)
            return Claim(spec, "adopt", was_stopping)
        stage: Stage = "validates" if only_validate else standing_of(spec).stage
        opening = opening_of(stage)
        if opening != "finished":
            reset(folder, opening)
    return Claim(spec, opening)


def living_job(spec: RunSpec, jobs: Sequence[JobRecord]) -> JobRecord | None:
    """The job of a run that lives on this cluster."""
    return next((job for job in jobs if job.is_live and job.run_key == spec.run_key and job.kind in ("train", "validate")), None)


def _refuse_second_folder(spec: RunSpec, job: JobRecord | None) -> None:
    """The same run in two results folders at once would write one MLflow run twice."""
    if job is not None and job.run_folder != str(spec.run_folder):
        raise ConfigError(
            f"results: {spec.run_key} is running in {job.run_folder} ({job.submission_id}), not in {spec.run_folder}. "
            "Wait for its end or stop it, or name the same nnUNet_results."
        )


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
    if elsewhere and elsewhere != str(folder.root) and _keeps(RunFolder(Path(elsewhere)), known):
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


def _keeps(folder: RunFolder, known: KnownRun) -> bool:
    """True when the folder that an MLflow run is recorded from has something to lose: a kept epoch, or a run that has not ended.

    One that cannot be looked into belongs to somebody else.
    """
    state = known.tags.get(STATE_TAG, "")
    has_ended = state in RunState.__members__ and RunState(state).is_final
    try:
        return folder.spec_file.exists() and (not has_ended or newest_committed(folder) is not None)
    except (OSError, StorageError):
        return True


def experiment_of(spec: RunSpec) -> str:
    """Name of the MLflow experiment of a run."""
    return spec.mlflow_experiment or spec.dataset


def track(spec: RunSpec, tracker: Tracking | None) -> TrackedRun:
    """Create or adopt the MLflow run and note it in the run folder. Raises TrackingError."""
    if tracker is None:
        return TrackedRun()
    folder = RunFolder(spec.run_folder)
    experiment_id = tracker.ensure_experiment(experiment_of(spec))
    run_id = tracker.claim_run(experiment_id, spec)
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
    is_owned = before is not None and is_newest(folder, before.attempt)
    if before is not None and is_owned and before.state == "TRAINED":
        return
    attempt = before.attempt if before is not None and is_owned else newest_attempt(folder)
    write_outcome(folder, Outcome(job="training", state="TRAINED", attempt=attempt, message="trained before; validated again"))


def _share_model_files(spec: RunSpec) -> None:
    """nnU-Net's files of a model folder, shared by its folds: made once, never changed. `refuse` has compared them."""
    for name, source in (("plans", spec.plans), ("dataset", "dataset"), ("dataset_fingerprint", "dataset_fingerprint")):
        file, target = spec.preprocessed_folder / f"{source}.json", spec.model_folder / f"{name}.json"
        if target.exists() or (name == "dataset_fingerprint" and not file.is_file()):
            continue
        if create_exclusive(target, file.read_bytes()):
            shutil.copymode(file, target)
