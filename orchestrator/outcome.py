"""How a job of a run ended (`outcome.json`), and the first fault that a worker met (`fault.json`): what the campaign decides by."""

import traceback
from typing import Literal

from pydantic import ValidationError

from trainers.spec.files import write_atomic
from trainers.spec.folder import RunFolder
from trainers.spec.run_spec import Frozen

EndState = Literal["TRAINED", "SUCCEEDED", "STOPPED", "SUPERSEDED", "FAILED_CONFIG", "FAILED_CODE", "FAILED_CLUSTER"]
EVIDENCE_CHARACTERS = 8000


class Outcome(Frozen):
    """The end of one job of a run."""

    job: Literal["training", "validation"]
    state: EndState
    attempt: int
    message: str
    """What happened and what to do, in a sentence or two."""
    evidence: str = ""
    """Traceback or log tail of the guilty worker."""

    @property
    def is_failure(self) -> bool:
        """True when the run cannot go on by itself."""
        return self.state.startswith("FAILED")


class Fault(Frozen):
    """An error that a worker met, written by it before it died, so that no restart repeats an error that it cannot mend."""

    driver: str
    state: EndState
    message: str
    evidence: str

    @staticmethod
    def of(driver: str, state: EndState, error: BaseException) -> "Fault":
        """The record of `error` for the workers of `driver`."""
        evidence = "".join(traceback.format_exception(error))[-EVIDENCE_CHARACTERS:]
        return Fault(driver=driver, state=state, message=f"{type(error).__name__}: {error}", evidence=evidence)

    @property
    def is_worth_a_retry(self) -> bool:
        """True for errors that may come from a dying neighbour or node; never for the user's files or a lost claim."""
        return self.state == "FAILED_CODE"

    def record(self) -> dict[str, str]:
        """What a worker returns for it."""
        return {"state": self.state, "message": self.message, "evidence": self.evidence}


def write_outcome(folder: RunFolder, outcome: Outcome) -> None:
    """Store how the newest job of a run ended."""
    write_atomic(folder.outcome_file, outcome.model_dump_json(indent=1).encode())


def read_outcome(folder: RunFolder) -> Outcome | None:
    """How the newest job of a run ended; None while none has."""
    try:
        return Outcome.model_validate_json(folder.outcome_file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_fault(folder: RunFolder, fault: Fault) -> None:
    """Store a fault unless a worse one of the same driver is there: one that a restart cannot mend is not replaced by its echoes."""
    present = read_fault(folder, fault.driver)
    if present is None or present.is_worth_a_retry:
        write_atomic(folder.own / "fault.json", fault.model_dump_json(indent=1).encode())


def read_fault(folder: RunFolder, driver: str) -> Fault | None:
    """The fault that a worker of `driver` left; None if there is none."""
    try:
        fault = Fault.model_validate_json((folder.own / "fault.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return fault if fault.driver == driver else None
