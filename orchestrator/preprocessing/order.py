"""What the job that preprocesses is asked for, and the events by which it answers."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from orchestrator.preprocessing.due import Due
from orchestrator.run.events import Event
from orchestrator.run.job_record import JobRecord
from trainers.contract.run_spec import Frozen


class Order(Frozen):
    """One job's work."""

    due: Due
    processes: int = Field(ge=1)
    """That work at the same time; as many as the job has CPU cores."""

    @property
    def place(self) -> str:
        """The preprocessed dataset, by which two orders of the same are known."""
        return place_of(self.due)


def place_of(due: Due) -> str:
    """The folder of the preprocessed dataset, as the cluster's jobs name it."""
    return str(due.preprocessed / due.dataset)


def entry_key(place: str) -> str:
    """What stands among the runs of a campaign's entry in the registry while that campaign has this dataset preprocessed. Pure."""
    return f"preprocessing of {place}"


def submission_id(place: str, jobs: Sequence[JobRecord]) -> str:
    """The id of the next job of a dataset: the same for all who ask at the same time, so that one of them starts it. Pure."""
    return f"preprocess-{hashlib.sha256(place.encode()).hexdigest()[:12]}-r{len(jobs_of(place, jobs))}"


def jobs_of(place: str, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs that preprocess, or have preprocessed, this dataset, oldest first. Pure."""
    return [job for job in jobs if job.kind == "preprocess" and job.dataset_folder == place]


class Progressed(Event):
    """The job has come further."""

    event: Literal["progress"] = "progress"
    what: str
    """What is being done, such as `3d_fullres`."""
    done: int = 0
    total: int = 0
    """Cases; 0: they are not counted."""


class Refused(Event):
    """The job ends by an error."""

    event: Literal["error"] = "error"
    error: str
    """Name of the error in the tree of `orchestrator/errors.py`."""
    message: str


PreprocessEvent = Progressed | Refused
PREPROCESS_EVENTS: TypeAdapter[PreprocessEvent] = TypeAdapter(Annotated[PreprocessEvent, Field(discriminator="event")])
