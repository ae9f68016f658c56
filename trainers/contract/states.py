"""The states of a run and the only transitions between them."""

from enum import StrEnum
from typing import Literal

AskedEnd = Literal["STOPPED", "PAUSED"]
"""How a training ends with the epoch in which it was asked to."""
TrainingEnd = Literal["TRAINED"] | AskedEnd
"""How the workers of a training end by themselves."""


class RunState(StrEnum):
    """Where a run stands; a FAILED state names what has to be mended: experiment or data, the training's code, the cluster."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    VALIDATING = "VALIDATING"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    PAUSED = "PAUSED"
    """Cut off before its end, by `down` or a reboot, and followed by nobody; only shown, never a campaign's."""
    FAILED_CONFIG = "FAILED_CONFIG"
    FAILED_CODE = "FAILED_CODE"
    FAILED_CLUSTER = "FAILED_CLUSTER"

    @property
    def is_final(self) -> bool:
        """True when nothing more happens without a new submission."""
        return self in FINAL

    @property
    def is_failure(self) -> bool:
        """True for the states that end a run without a result."""
        return self.name.startswith("FAILED")


FINAL = frozenset(
    {RunState.SUCCEEDED, RunState.STOPPED, RunState.PAUSED, RunState.FAILED_CONFIG, RunState.FAILED_CODE, RunState.FAILED_CLUSTER}
)
_ENDS = frozenset({RunState.STOPPED, RunState.FAILED_CONFIG, RunState.FAILED_CODE, RunState.FAILED_CLUSTER})
TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.VALIDATING}) | _ENDS,
    RunState.RUNNING: frozenset({RunState.QUEUED, RunState.RECOVERING, RunState.VALIDATING, RunState.SUCCEEDED}) | _ENDS,
    RunState.RECOVERING: frozenset({RunState.QUEUED, RunState.RUNNING, RunState.VALIDATING}) | _ENDS,
    RunState.VALIDATING: frozenset({RunState.RECOVERING, RunState.SUCCEEDED}) | _ENDS,
    **{state: frozenset({RunState.QUEUED}) for state in FINAL},  # submitted again
}


def can_follow(before: RunState, after: RunState) -> bool:
    """True if a run in state `before` may go to `after` (or stay)."""
    return before == after or after in TRANSITIONS[before]
