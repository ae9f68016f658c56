"""Taking possession of a run before anything of it starts: its folder, nnU-Net's files beside it, its MLflow run."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.dataset.model_folder import model_folder_problems
from orchestrator.dataset.problems import Problems
from orchestrator.run.job_record import JobRecord, living_job
from orchestrator.run.outcome import Outcome, is_newest, read_outcome, write_outcome
from orchestrator.run.progress import Stage, progress_of
from orchestrator.run.write_access import explained
from trainers.contract.errors import ConfigError
from trainers.contract.fencing import newest_token
from trainers.contract.files import create_exclusive, write_atomic
from trainers.contract.plans import load_plans
from trainers.contract.requests import read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec

log = logging.getLogger(__name__)

Opening = Literal["adopt", "finished", "deliver", "validate", "train"]
"""What a submission does with a run: follow its living job; nothing; bring its results to MLflow; validate it; train it."""


def opening_of(stage: Stage) -> Opening:
    """How a submission begins with a run that has no living job: pure. A result is kept; what is trained is only validated."""
    return "finished" if stage == "finished" else "validate" if stage == "validates" else "train"


@dataclass(frozen=True)
class Acquired:
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


def acquire(spec: RunSpec, jobs: Sequence[JobRecord], *, only_validate: bool = False) -> Acquired:
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
            was_stopping = read_stop_request(folder) is not None
            folder.stop_file.unlink(missing_ok=True)
            return Acquired(spec, "adopt", was_stopping)
        stage: Stage = "validates" if only_validate else progress_of(spec).stage
        opening = opening_of(stage)
        if opening != "finished":
            reset(folder, opening)
    return Acquired(spec, opening)


def _refuse_second_folder(spec: RunSpec, job: JobRecord | None) -> None:
    """The same run in two results folders at once would write one MLflow run twice."""
    if job is not None and job.run_folder != str(spec.run_folder):
        raise ConfigError(
            f"results: {spec.run_key} is running in {job.run_folder} ({job.submission_id}), not in {spec.run_folder}. "
            "Wait for its end or stop it, or name the same nnUNet_results."
        )


def reset(folder: RunFolder, opening: Opening) -> None:
    """Forget how the run ended before: it was submitted again."""
    folder.stop_file.unlink(missing_ok=True)
    if opening == "train":
        folder.outcome_file.unlink(missing_ok=True)
        return
    before = read_outcome(folder)
    is_owned = before is not None and is_newest(folder, before.fencing_token)
    if before is not None and is_owned and before.state == "TRAINED":
        return
    fencing_token = before.fencing_token if before is not None and is_owned else newest_token(folder)
    write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=fencing_token, message="trained before; validated again"))


def _share_model_files(spec: RunSpec) -> None:
    """nnU-Net's files of a model folder, shared by its folds: made once, never changed. `refuse` has compared them."""
    for name, source in (("plans", spec.plans), ("dataset", "dataset"), ("dataset_fingerprint", "dataset_fingerprint")):
        file, target = spec.preprocessed_folder / f"{source}.json", spec.model_folder / f"{name}.json"
        if target.exists() or (name == "dataset_fingerprint" and not file.is_file()):
            continue
        if create_exclusive(target, file.read_bytes()):
            shutil.copymode(file, target)
