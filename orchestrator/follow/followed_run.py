"""One run of a campaign: where the campaign has brought it, and the observer that looks after its folder."""

from dataclasses import dataclass, field
from typing import Literal

from orchestrator.follow.observe import Observer
from orchestrator.follow.render import with_reading
from orchestrator.run.halving import OVERRULED
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import TrackedRun
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

Order = Literal["start", "stop"]
"""What is asked of the cluster for a run: a job, or the end of one."""
Turn = Literal["first", "next", "usual", "last"]
"""Its place in the queue: `first`, before everything new, as one whose job died; `next` and `last`, before and behind the others of its
campaign."""


@dataclass(frozen=True)
class Refusal:
    """What the cluster, or a disk, last refused one run."""

    order: Order
    count: int
    """How often in a row."""
    again_s: float
    """It is not asked again before, on the monotonic clock."""
    because: str

    def __str__(self) -> str:
        return f"Refused{f' {self.count} times' if self.count > 1 else ''}, and tried again: {self.because}"


@dataclass
class FollowedRun:
    """A run with the state that this campaign last gave it."""

    observer: Observer
    campaign: str
    tracked: TrackedRun = field(default_factory=TrackedRun)
    state: RunState = RunState.QUEUED
    reason: str = ""
    refusal: Refusal | None = None
    """Of what was last asked for it; None once it was taken."""
    is_waiting: bool = False
    """It stands in the queue, also for its next job."""
    needs_others: bool = False
    """It waits for what no job of its own brings: results of other runs, or its folder. Meanwhile it holds no workers, which others may
    need."""
    turn: Turn = "usual"
    """By successive halving: see `orchestrator/campaign/pausing.py`."""
    halved: str = ""
    """What successive halving did with it, also that it asked it to stop; empty: nothing."""
    is_delivering: bool = False
    """It was finished before, and a job sends its results to MLflow."""
    changed_unix: float = 0.0
    seen: RunStatus | None = field(default=None, repr=False)
    """Its status when its folder was last read."""
    _end: RunStatus | None = field(default=None, repr=False)
    """The status of a run that has ended: its folder is not read again."""

    @property
    def spec(self) -> RunSpec:
        """The specification that holds now."""
        return self.observer.spec

    @property
    def key(self) -> str:
        """The run's key."""
        return self.observer.spec.run_key

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return self.observer.folder

    @property
    def is_queued(self) -> bool:
        """It waits for a job that this campaign is to start."""
        return bool(self.changed_unix) and (self.is_waiting or self.state is RunState.QUEUED)

    @property
    def has_left_workers(self) -> bool:
        """It is paused, whatever another campaign that follows it has published of it before."""
        return self.state is RunState.QUEUED and self.observer.is_paused

    @property
    def offers_workers_to(self) -> str:
        """Key of the run that it has paused for; empty: none."""
        return self.observer.pause.workers_to if self.has_left_workers and self.observer.pause is not None else ""

    @property
    def halving_tag(self) -> str:
        """`halved` for MLflow: one that is asked to stop may be in its last epoch and is trained then, so only the end shows it."""
        return self.halved if self.state is RunState.STOPPED or self.halved == OVERRULED else ""

    def enter(self, state: RunState, reason: str = "", *, is_waiting: bool = False) -> bool:
        """Take note of a state; True if MLflow has to know: it is a new one, or the run has begun or ended to wait in it."""
        is_new = state is not self.state or not self.changed_unix
        if is_new:
            self.changed_unix = self.observer.clock.unix()
        is_told = is_new or (is_waiting is not self.is_waiting and state is not RunState.QUEUED)
        self.state, self.reason, self.is_waiting = state, reason, is_waiting
        if state.is_final:
            self.refusal = None
        return is_told

    def status(self) -> RunStatus:
        """The run as users see it, read from its folder now; of one that has ended, read when it ended and MLflow lacked nothing.

        Raises StorageError or OSError.
        """
        if self._end is not None:
            return self._end
        known = RunStatus(
            run_key=self.key,
            address=self.spec.address,
            campaign=self.campaign,
            state=self.state,
            epochs=self.spec.schedule.epochs,
            reason=f"{self.reason} {self.refusal or ''}".strip(),
            since_unix=round(self.changed_unix, 3),
            mlflow_run_id=self.tracked.run_id,
            mlflow_url=self.tracked.url,
            run_folder=self.folder.root,
        )
        reading = self.observer.reading(self.state)
        status = self.seen = with_reading(known, self.spec, reading)
        self._end = status if self.state.is_final and not (self.is_delivering or reading.undelivered) else None
        return status
