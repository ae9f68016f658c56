"""How a job of a run ended (`outcome.json`): what the campaign decides by."""

import logging
from typing import Literal

from pydantic import Field, ValidationError

from trainers.contract.fencing import check_driver_fence, fencing_tokens
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen
from trainers.errors import ClusterError, DataError, StorageError, Superseded
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)

EndState = Literal["TRAINED", "SUCCEEDED", "STOPPED", "PAUSED", "SUPERSEDED", "FAILED_CONFIG", "FAILED_CODE", "FAILED_CLUSTER"]
EVIDENCE_CHARACTERS = 8000


class Outcome(Frozen):
    """The end of one job of a run."""

    job: Literal["training", "validation"]
    state: EndState
    fencing_token: int = Field(alias="attempt")
    """Of the driver that ended."""
    message: str
    """What happened and what to do, in a sentence or two."""
    evidence: str = ""
    """Traceback or log tail of the guilty worker."""

    @property
    def is_failure(self) -> bool:
        """True when the run cannot go on by itself."""
        return self.state.startswith("FAILED")

    @property
    def is_open(self) -> bool:
        """True when the run goes on under the same campaign: with its validation, or where it paused."""
        return self.state in ("TRAINED", "PAUSED")

    @property
    def exit_code(self) -> int:
        """That of the job: by it the campaign knows the end where the disk did not take it."""
        codes = {"SUPERSEDED": Superseded.exit_code, "FAILED_CLUSTER": ClusterError.exit_code}
        return codes.get(self.state, int(self.is_failure))


def write_outcome(folder: RunFolder, outcome: Outcome) -> bool:
    """Store how the newest job of a run ended; False, and nothing is written, when another driver has claimed a newer attempt since.

    Where the disk does not take it, or the run folder is not to be seen (one made there would hide that), that is told: the job's exit code
    and log have to do.
    """
    try:
        if not folder.spec_file.is_file():
            raise StorageError(f"storage: {folder.spec_file} is not there on this node. Mount the shared folder.")
        if not is_newest(folder, outcome.fencing_token):
            told = "the job with fencing token %d of the run in %s was superseded: its end (%s) is not recorded"
            log.warning(told, outcome.fencing_token, folder.root, outcome.state)
            return False
        write_atomic(folder.outcome_file, outcome.model_dump_json(indent=1).encode())
    except (StorageError, OSError) as err:
        log.error(
            "the end of the job with fencing token %d (%s: %s) is not stored: %s",
            outcome.fencing_token,
            outcome.state,
            outcome.message,
            err,
        )
    return True


def is_newest(folder: RunFolder, fencing_token: int) -> bool:
    """True when the driver of this fencing token acquired the newest one too, or none was acquired.

    A claim that cannot be read is no sign that another driver goes on, so it is taken for this one's.
    """
    try:
        check_driver_fence(folder, fencing_token)
    except Superseded:
        return False
    except DataError:
        return fencing_token in fencing_tokens(folder)  # else nobody claimed it, and others claimed newer ones
    return True


def read_outcome(folder: RunFolder) -> Outcome | None:
    """How the newest job of a run ended; None while none has."""
    try:
        return Outcome.model_validate_json(folder.outcome_file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
