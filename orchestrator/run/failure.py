"""Why a start of a run's workers failed (`failures/<fencing token>.json`): what retry budgets are charged with and status tells."""

import contextlib
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from orchestrator.run.outcome import EndState, Outcome
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen

FailureKind = Literal["user", "superseded", "code", "memory", "cluster", "preemption"]


class Failure(Frozen):
    """One failed start of a run's workers."""

    driver: str
    fencing_token: int = Field(alias="attempt")
    """Number of the start."""
    kind: FailureKind
    state: EndState
    """How the run ends if it is not tried again."""
    epochs_done: int
    iteration: int
    """Where the newest commit stood: epochs, and training iterations of the next one."""
    message: str
    evidence: str
    rank: int | None = None
    """Global rank that is to blame; None when it is not known."""
    unix: float = 0.0
    is_final: bool = False
    """True when the job ended by it."""

    @property
    def position(self) -> tuple[int, int]:
        """Where the newest commit stood."""
        return self.epochs_done, self.iteration

    @property
    def where(self) -> str:
        """The position, in words."""
        return f"epoch {self.epochs_done}" + (f", iteration {self.iteration}" if self.iteration else "")

    def outcome(self, fencing_token: int) -> Outcome:
        """How the training job with this token ended, if it ended by this failure."""
        return Outcome(job="training", state=self.state, fencing_token=fencing_token, message=self.message, evidence=self.evidence)


def failure_files(folder: RunFolder) -> list[Path]:
    """The records of failed starts, oldest first: by token, then by the number of those that failed before they had one of their own.

    Raises OSError.
    """
    return sorted(folder.failures.glob("[0-9]*.json"), key=lambda path: tuple(map(int, re.findall("[0-9]+", path.stem))))


def newest_failure(folder: RunFolder) -> Failure | None:
    """Why the newest failed start failed; None when none has, or that cannot be read."""
    with contextlib.suppress(OSError, ValidationError, IndexError):
        return Failure.model_validate_json(failure_files(folder)[-1].read_bytes())
    return None
