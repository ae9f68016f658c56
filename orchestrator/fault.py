"""The first fault that a worker met (`fault.json`), and whose fault a failed training is: the user's, the code's or the cluster's."""

import traceback
from collections.abc import Iterable

from pydantic import ValidationError

from orchestrator.outcome import EVIDENCE_CHARACTERS, EndState
from trainers.spec.attempts import newest_attempt
from trainers.spec.errors import ConfigError, DataError, Superseded
from trainers.spec.files import write_atomic
from trainers.spec.folder import RunFolder
from trainers.spec.run_spec import Frozen


class Fault(Frozen):
    """An error that a worker met, written by it before it died, so that no restart repeats an error that it cannot mend."""

    driver: str
    attempt: int
    """Start of the workers in which it happened."""
    state: EndState
    message: str
    evidence: str

    @staticmethod
    def of(driver: str, attempt: int, error: BaseException) -> "Fault":
        """The record of `error` for the workers of `driver`."""
        evidence = "".join(traceback.format_exception(error))[-EVIDENCE_CHARACTERS:]
        message = f"{type(error).__name__}: {error}"
        return Fault(driver=driver, attempt=attempt, state=state_of(error), message=message, evidence=evidence)

    @property
    def is_worth_a_retry(self) -> bool:
        """True for errors that may come from a dying neighbour or node; never for the user's files or a lost claim."""
        return self.state == "FAILED_CODE"

    def record(self) -> dict[str, str]:
        """What a worker returns for it."""
        return {"state": self.state, "message": self.message, "evidence": self.evidence}


def state_of(error: BaseException) -> EndState:
    """How a run ends that one error of a worker's own ends."""
    if isinstance(error, Superseded):
        return "SUPERSEDED"
    return "FAILED_CONFIG" if isinstance(error, ConfigError | DataError) else "FAILED_CODE"


def guilty(failures: Iterable[tuple[bool, BaseException]], fault: Fault | None) -> EndState:
    """Whose fault it is that a gang failed for good; pure.

    `failures`: per rank, whether its own code raised (else its process or node is gone), and the error. A rank that died takes the
    others' connections with it, so one death outweighs their errors; an error of the user's making outweighs all.
    """
    if fault is not None and not fault.is_worth_a_retry:
        return fault.state
    seen = list(failures)
    states = [state_of(error) for raised_itself, error in seen if raised_itself]
    if "FAILED_CONFIG" in states:
        return "FAILED_CONFIG"
    return "FAILED_CLUSTER" if any(not raised_itself for raised_itself, _ in seen) else "FAILED_CODE"


def write_fault(folder: RunFolder, fault: Fault) -> None:
    """Store a fault unless a worse one of the same start is there: one that a restart cannot mend is not replaced by its echoes.

    Does nothing where the run folder is not to be seen: a folder made there would hide that it is not shared.
    """
    if not folder.own.is_dir():
        return
    present = read_fault(folder, fault.driver)
    if present is None or present.is_worth_a_retry:
        write_atomic(folder.fault_file, fault.model_dump_json(indent=1).encode())


def read_fault(folder: RunFolder, driver: str) -> Fault | None:
    """The fault that stopped the newest start of `driver`'s workers; None if they met none, or have recovered from it since."""
    try:
        fault = Fault.model_validate_json(folder.fault_file.read_bytes())
    except (OSError, ValidationError):
        return None
    return fault if fault.driver == driver and fault.attempt >= newest_attempt(folder) else None
