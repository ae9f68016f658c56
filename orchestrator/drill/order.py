"""A drill: a toy training on the user's own cluster, parts of it killed on purpose, and a table of what that cost.

What is asked and what is found, as plain values, and the following of the job that does it (`orchestrator/drill/job.py`).
"""

import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.processes import ProcessRecord
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.run.events import Event, events_in
from trainers.contract.commits import EpochRow
from trainers.contract.run_spec import Frozen

Part = Literal["worker", "node", "driver", "tracking"]
PARTS: tuple[Part, ...] = ("worker", "node", "driver", "tracking")
EPOCHS_PER_STRIKE = 3
POLL_S = 0.5
OUTAGE_S = 5.0
"""For how long a killed tracking server stays away."""


class Order(Frozen):
    """What a drill is asked to do."""

    drill: str
    """Its id."""
    parts: tuple[Part, ...]
    folder: str = ""
    """Where the drill works, as the cluster's nodes see it; empty: below nnUNet_results of the head."""
    tracking_uri: str = ""
    """The local MLflow server; empty: the one that the head knows, if any."""
    mlflow: ProcessRecord | None = None
    """The local MLflow server's process, the only one that `tracking` may kill."""
    gpus: int = 0
    is_sure: bool = False
    """Whoever asked accepts that a node dies even if other people's work runs on it."""
    keeps: bool = False

    @property
    def epochs(self) -> int:
        """Epochs of the toy run: some before, between and after the strikes."""
        return EPOCHS_PER_STRIKE * (len(self.parts) + 1)

    def epoch_of(self, index: int) -> int:
        """After how many epochs the `index`-th part is killed."""
        return EPOCHS_PER_STRIKE * index + 2


class Strike(Frozen):
    """One part that was killed."""

    part: Part
    what: str
    moment: str
    recovery_s: float | None = None
    """Until the next training step; for `tracking` until MLflow had everything again. None: it did not recover in time."""
    epochs_redone: int = 0
    """Epochs of which a part was trained a second time: at most the one in flight."""
    lost: str = ""
    """What was lost; empty: nothing."""


class Report(Frozen):
    """What a drill found."""

    strikes: tuple[Strike, ...] = ()
    differences: tuple[str, ...] = ()
    """Where the struck run does not equal the unbroken one."""
    weights_sha256: str = ""
    stays: tuple[str, ...] = ()
    """What was not cleaned up."""

    @property
    def is_nothing_lost(self) -> bool:
        """True if every part recovered and the struck run equals the unbroken one."""
        return not self.differences and all(strike.recovery_s is not None and not strike.lost for strike in self.strikes)


class Phase(Event):
    """The drill begins something else."""

    event: Literal["phase"] = "phase"
    text: str


class Struck(Event):
    """A part was killed."""

    event: Literal["struck"] = "struck"
    part: Part
    what: str


class Mend(Event):
    """The killed tracking server may be started again, by whoever asked for the drill."""

    event: Literal["mend"] = "mend"


class Recovered(Event):
    """What came of a strike."""

    event: Literal["strike"] = "strike"
    strike: Strike


class Reported(Event):
    """The drill is over."""

    event: Literal["report"] = "report"
    report: Report


class Refused(Event):
    """The drill cannot be done here."""

    event: Literal["refused"] = "refused"
    message: str


DrillEvent = Phase | Struck | Mend | Recovered | Reported | Refused
DRILL_EVENTS: TypeAdapter[DrillEvent] = TypeAdapter(Annotated[DrillEvent, Field(discriminator="event")])


def check_parts(parts: Sequence[str]) -> None:
    """Raise ConfigError for a part that no drill kills."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"drill: {unknown[0]!r} is nothing that a drill kills. Name any of: {', '.join(PARTS)}.")


def order_of(parts: Sequence[str], **more: Any) -> Order:
    """A checked order; no part named means a worker and the driver. Raises ConfigError.

    `tracking` is killed last: training goes on meanwhile, perhaps to its end, and would leave nothing for another part to interrupt.
    """
    check_parts(parts)
    named: Any = tuple(sorted(dict.fromkeys(parts), key=lambda part: part == "tracking")) or ("worker", "driver")
    if "tracking" in named and more.get("mlflow") is None:
        raise ConfigError(
            "drill: `tracking` kills only the MLflow server that `nnfleet up` started, on the local cluster, and that is not what runs "
            "here. Leave `tracking` out, or run the drill without --cluster."
        )
    return Order(drill=secrets.token_hex(4), parts=named, **more)


def differences(ours: Iterable[EpochRow], theirs: Iterable[EpochRow], our_weights: str, their_weights: str) -> list[str]:
    """Where a struck run differs from an unbroken one in what must not depend on interruptions; pure."""
    found, a, b = [], list(ours), list(theirs)
    if [row.epoch for row in a] != [row.epoch for row in b]:
        found.append(f"epochs {[row.epoch for row in a]} instead of {[row.epoch for row in b]}")
    for mine, other in zip(a, b, strict=False):
        for name in ("train_loss", "val_loss", "pseudo_dice_mean", "ema_pseudo_dice", "learning_rate"):
            x, y = getattr(mine, name), getattr(other, name)
            if x != y and not (isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y)):
                found.append(f"epoch {mine.epoch}: {name} {x} instead of {y}")
    if our_weights != their_weights:
        found.append(f"weights {our_weights[:12]} instead of {their_weights[:12]} (SHA-256)")
    return found


def follow(jobs: Jobs, order: Order, on_event: Callable[[DrillEvent], None]) -> Report:
    """Run the drill's job and return its report; `on_event` gets what happens meanwhile. An interrupt ends the job, which cleans up.

    Raises ClusterError when the job dies, ConfigError when it refuses.
    """
    submission_id = jobs.submit_drill(order.drill, ["--order", order.model_dump_json()])
    read = 0
    try:
        while True:
            job = jobs.find(submission_id)
            events = list(events_in(jobs.logs(submission_id), DRILL_EVENTS))
            for event in events[read:]:
                match event:
                    case Reported():
                        return event.report
                    case Refused():
                        raise ConfigError(event.message)
                on_event(event)
            read = len(events)
            if not job.is_live:
                raise ClusterError(f"drill: its job {submission_id} died. {job.message[-2000:]}")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        jobs.stop(submission_id)
        raise
