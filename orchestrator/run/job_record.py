"""One job as the cluster lists it, without Ray: what admission, the campaign and status decide by."""

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from trainers.contract.run_spec import PRIORITY, Frozen, RunSpec, WorkerSpec
from trainers.errors import ConfigError

log = logging.getLogger(__name__)

JobKind = Literal["campaign", "train", "validate", "control", "test", "preprocess"]
"""`test`: predicts a held-out test set. `preprocess`: makes what of a dataset is not preprocessed."""
JobState = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]


PREPROCESSING = re.compile(r"preprocess-[0-9a-f]{12}-r\d+")
"""How the ids of jobs that preprocess look."""
HANDED_KEY = "nnfleet.runs"
"""Where a campaign's job carries its runs. No `nnfleet_...`: versions before pass over a job with such a key that they do not know."""
KINDS_KEY = "nnfleet.accelerator_types"
"""Where a job carries the kinds of GPUs that its runs ask for, by run key, beside their workers: versions before refuse workers with a
kind, and take these for workers on any GPU."""


class HandedRun(Frozen):
    """A run that a campaign was handed: known to everybody before the campaign reports it."""

    run_key: str
    address: str
    epochs: int
    epochs_done: int = 0
    run_folder: Path
    workers: WorkerSpec
    priority: int = PRIORITY
    user: str = ""


_HANDED = TypeAdapter(tuple[HandedRun, ...])
_KINDS = TypeAdapter(dict[str, str])


class JobRecord(Frozen):
    """One job of ours, as the cluster lists it."""

    submission_id: str
    kind: JobKind
    state: JobState
    run_key: str = ""
    campaign: str = ""
    job_number: int = Field(0, alias="attempt")
    """Of a training job the least fencing token that its driver takes, of a validation job the token of the training that it follows."""
    reserved: WorkerSpec | None = None
    """What the job's run holds on the cluster while the job lives."""
    run_folder: str = ""
    mlflow_run_id: str = ""
    dataset_folder: str = ""
    """Of a job of kind `preprocess`: the preprocessed dataset."""
    code: str = ""
    """Version and commit of nnfleet that it runs."""
    handed: tuple[HandedRun, ...] = ()
    """Of a campaign whose submission was checked before it was sent: the runs that it goes on with."""
    obeys_gentle_stop: bool = True
    """False for the validation job of the version before, which a stop has to end."""
    message: str = ""
    exit_code: int | None = None
    """Of the entry point; 128 + n or -n when signal n killed it; None when the job never started or its supervisor died."""
    started_unix: float = 0.0
    ended_unix: float | None = None
    command: str = ""
    """Its entry point with its arguments."""

    @property
    def is_live(self) -> bool:
        """True until the job has ended."""
        return self.state in ("PENDING", "RUNNING")

    @property
    def test_set(self) -> str:
        """Of a job of kind `test`: which images are predicted, by which model."""
        model, *options = [*shlex.split(self.command)[3:], ""]  # after `python -m MODULE`
        images = next((option.removeprefix("--images=") for option in options if option.startswith("--images=")), "")
        return f"{images} by {model}" if images else "unknown images"

    @property
    def test_set_state(self) -> str:
        """Of a job of kind `test`: QUEUED until it begins, then as the cluster lists it."""
        return "QUEUED" if self.state == "PENDING" else self.state

    @property
    def has_failed_by_itself(self) -> bool:
        """True when its own code ended it with an error: no signal did, and no node took it along."""
        return self.exit_code is not None and 0 < self.exit_code < 128


def is_test_set(name: str) -> bool:
    """True for the id of a job of a test set, which names no run."""
    return name.startswith("test-")


def is_preprocessing(name: str) -> bool:
    """True for the id of a job that preprocesses a dataset, which names no run."""
    return PREPROCESSING.fullmatch(name) is not None


def preprocessing_named_in(reason: str) -> str:
    """The id of the job that the reason of a run's state names, if it waits for preprocessing or ended with it; else ''."""
    found = PREPROCESSING.search(reason)
    return found[0] if found else ""


def named_test_sets(names: Sequence[str], known: Sequence[JobRecord], verb: str) -> list[JobRecord]:
    """Those of the `known` jobs of test sets that have these ids. Raises ConfigError for an id that none has."""
    if ended := sorted(set(names) - {job.submission_id for job in known}):
        raise ConfigError(f"{verb}: no job {', '.join(ended)} of a test set lives on this cluster. `nnfleet status` shows those that do.")
    return [job for job in known if job.submission_id in names]


def validations(jobs: Sequence[JobRecord], run_key: str, job_number: int) -> list[JobRecord]:
    """The validation jobs of a training attempt, in whatever run folder: a cluster takes each of their names once."""
    return [job for job in jobs if job.kind == "validate" and job.run_key == run_key and job.job_number == job_number]


def handed_text(runs: Sequence[HandedRun]) -> str:
    """As a job carries them under HANDED_KEY, without their kinds of GPUs."""
    untyped = [run.model_copy(update={"workers": run.workers.on_any_gpu}) for run in runs]
    return _HANDED.dump_json(tuple(untyped), exclude_defaults=True).decode()


def kinds_text(workers: Mapping[str, WorkerSpec]) -> str:
    """What a job carries under KINDS_KEY of these workers by run key; '' where none asks for a kind."""
    kinds = {run_key: each.accelerator_type for run_key, each in workers.items() if each.accelerator_type}
    return _KINDS.dump_json(kinds).decode() if kinds else ""


def _kinds(text: str | None) -> dict[str, str]:
    try:
        return _KINDS.validate_json(text) if text else {}
    except ValidationError:  # of another version
        return {}


def _handed(text: str | None, kinds: Mapping[str, str]) -> tuple[HandedRun, ...]:
    try:
        runs = _HANDED.validate_json(text) if text else ()
    except ValidationError:  # of another version
        return ()
    return tuple(run.model_copy(update={"workers": _typed(run.workers, kinds.get(run.run_key))}) for run in runs)


def _typed(workers: WorkerSpec, kind: str | None) -> WorkerSpec:
    return workers.of_type(kind) if kind else workers


def record_of(details: Mapping[str, Any]) -> JobRecord | None:
    """Our view of what the job server says of a job; None for one that is not ours."""
    metadata = details.get("metadata") or {}
    ours = {key.removeprefix("nnfleet_"): value for key, value in metadata.items() if key.startswith("nnfleet_")}
    submission_id, end_ms = details.get("submission_id"), details.get("end_time")
    if "kind" not in ours or not submission_id:
        return None
    reserved = ours.pop("reservation", None)
    kinds = _kinds(metadata.get(KINDS_KEY))
    is_before = '"orchestrator.validation_job"' in ours.pop("modules", "")
    try:
        return JobRecord(
            submission_id=submission_id,
            state=details["status"],
            reserved=_typed(WorkerSpec.model_validate_json(reserved), kinds.get(ours.get("run_key", ""))) if reserved else None,
            message=details.get("message") or "",
            exit_code=details.get("driver_exit_code"),
            started_unix=(details.get("start_time") or 0) / 1000,
            ended_unix=end_ms / 1000 if end_ms else None,
            obeys_gentle_stop=not is_before,
            command=details.get("entrypoint") or "",
            handed=_handed(metadata.get(HANDED_KEY), kinds),
            **ours,
        )
    except ValidationError as err:
        log.warning("job %s carries metadata of another version and is ignored: %s", submission_id, err)
        return None


def living_job(spec: RunSpec, jobs: Sequence[JobRecord]) -> JobRecord | None:
    """The job of a run that lives on this cluster."""
    return next((job for job in jobs if job.is_live and job.run_key == spec.run_key and job.kind in ("train", "validate")), None)


def living_campaigns(jobs: Sequence[JobRecord]) -> set[str]:
    """Ids of the campaigns that live on this cluster."""
    return {job.campaign for job in jobs if job.kind == "campaign" and job.is_live}


def living_members(jobs: Sequence[JobRecord]) -> set[str]:
    """Whose entries in the registry count: those of living campaigns, and of the jobs of test sets, which wait and hold as campaigns do."""
    return living_campaigns(jobs) | {job.submission_id for job in jobs if job.kind == "test" and job.is_live}
