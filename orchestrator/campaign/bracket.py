"""The runs that successive halving compares, a bracket, as one campaign sees them: what each has reached, and the rung that they are at."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.follow.followed_run import FollowedRun
from orchestrator.queue.rungs import Contestant, num_kept, those_compared
from orchestrator.run.halving import RungDecision, competitor_of
from orchestrator.run.outcome import read_outcome
from trainers.contract.commits import CommitReader
from trainers.contract.requests import PauseRequest, read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import HalvingOfRun, RunSpec
from trainers.contract.states import RunState


@dataclass(eq=False)
class Member:
    """A run of a bracket; one that this campaign does not follow was brought to its end by an earlier one, or goes on under another."""

    spec: RunSpec
    run: FollowedRun | None = None
    values: dict[int, float | None] = field(default_factory=dict)
    """Rung that it has reached -> its EMA pseudo-Dice then."""
    is_at_work_elsewhere: bool = False
    """Another living campaign has not brought it to its end, whatever its folder holds: it may be trying it again."""
    pause: PauseRequest | None = None
    """The last one in this bracket, also one that is over."""
    _commits: CommitReader = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._commits = CommitReader(RunFolder(self.spec.run_folder))

    @property
    def is_open(self) -> bool:
        """It may reach a rung yet: here, under another campaign of this cluster, or by its folder. Raises OSError."""
        if self.is_at_work_elsewhere or self._is_followed:
            return True
        has_succeeded = self.run is not None and self.run.state is RunState.SUCCEEDED
        return not has_succeeded and _goes_on(RunFolder(self.spec.run_folder))

    @property
    def _is_followed(self) -> bool:
        """This campaign has not brought it to its end."""
        return self.run is not None and not self.run.state.is_final

    def at(self, rung: int) -> Contestant:
        """What it has reached at a rung. Raises StorageError or OSError."""
        if rung not in self.values and not self._is_known_to_be_before(rung):
            committed = self.run.observer.committed() if self.run is not None else self._commits.newest()
            rows = committed.history if committed is not None and committed.run_key == self.spec.run_key else ()
            for row in rows:
                if row.epoch == rung - 1:
                    self.values[rung] = row.ema_pseudo_dice
        has_reached, is_open = rung in self.values, self.is_open
        was_stopped = not (has_reached or is_open) and self._was_stopped
        return Contestant(competitor_of(self.spec), self.spec.address, is_open, has_reached, self.values.get(rung), was_stopped)

    def was_paused_at(self, rung: int) -> bool:
        """A run is paused once at a rung."""
        return self.pause is not None and self.pause.rung == rung

    @property
    def _was_stopped(self) -> bool:
        """Of one that is not open: somebody stopped it, or it goes on elsewhere. Raises OSError."""
        if self.run is not None and self.run.state.is_final:
            return self.run.state is RunState.STOPPED
        folder = RunFolder(self.spec.run_folder)
        outcome = read_outcome(folder)
        if outcome is None or outcome.is_open:
            return read_stop_request(folder) is not None
        return outcome.state in ("STOPPED", "SUPERSEDED")

    def _is_known_to_be_before(self, rung: int) -> bool:
        """By what was last read of it: no folder is listed for an epoch that lies far ahead."""
        run = self.run if self._is_followed else None
        return run is not None and run.seen is not None and run.seen.epochs_done < rung


def _goes_on(folder: RunFolder) -> bool:
    """By its folder: nothing has ended the run, and nobody asks it to stop."""
    outcome = read_outcome(folder)
    return (outcome is None or outcome.is_open) and read_stop_request(folder) is None


@dataclass(frozen=True)
class OpenRung:
    """A rung that is not decided yet, and the runs of the models that are compared there."""

    rung: int
    reached: tuple[Member, ...]
    late: tuple[Member, ...]
    """Those that have not reached it, and are waited for."""


@dataclass
class Bracket:
    """Runs that are compared with each other, rung after rung."""

    halving: HalvingOfRun
    members: list[Member]
    decided: dict[int, RungDecision]
    is_complete: bool = True
    """All runs that are compared were found; else nothing more is decided."""
    open_rung: OpenRung | None = None
    """The one that is decided next, if that will stop a model; None also while nothing can be decided."""


def open_rung(rung: int, members: Sequence[Member], runs: Sequence[Contestant], keep: float) -> OpenRung | None:
    """Who has reached an undecided rung and who is waited for; `runs`: the members there. None where all models go on after it. Pure."""
    models = {run.model for run in those_compared(runs)}
    if num_kept(len(models), keep) >= len(models):
        return None
    compared = [(member, run.has_reached) for member, run in zip(members, runs, strict=True) if run.model in models]
    reached = tuple(member for member, has_reached in compared if has_reached)
    return OpenRung(rung, reached, tuple(member for member, has_reached in compared if not has_reached))
