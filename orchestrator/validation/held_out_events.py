"""What the job of a held-out test set tells whoever follows it."""

from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from orchestrator.run.events import Event


class HeldOutWaits(Event):
    """Its workers do not fit yet."""

    event: Literal["held_out_waits"] = "held_out_waits"
    because: str


class HeldOutWarned(Event):
    """Something that the user should know and that stops nothing."""

    event: Literal["held_out_warned"] = "held_out_warned"
    message: str


class HeldOutEvent(Event):
    """How the job of a test set ended: `exit_code` is that of the error, 0 where there was none."""

    event: Literal["held_out"] = "held_out"
    message: str
    exit_code: int = 0
    output: Path | None = None
    num_cases: int = 0
    scores: dict[str, float | None] = Field(default_factory=dict)
    """`dice_mean`, `hd95_mm_mean`, `nsd_mean`, with labels alone."""
    test_set: str = ""
    """How comparisons and MLflow call the test set, with labels alone."""
    left: tuple[str, ...] = ()
    """A sentence for each fold that was meant and has no checkpoint yet."""
    undelivered: str = ""
    """Why MLflow does not have the scores; empty where it has, and without labels."""
    unrecorded: str = ""
    """Why `nnfleet compare` does not find the scores; empty where it does, and without labels."""


HeldOutReport = HeldOutWaits | HeldOutWarned | HeldOutEvent
HELD_OUT_EVENTS: TypeAdapter[HeldOutReport] = TypeAdapter(HeldOutReport)
