"""How long the trainings of a campaign are expected to take, from what epochs took so far: their own, else those of the same model here,
else those that were measured before."""

from collections.abc import Iterable

from orchestrator.experiment.estimates import Measured
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.run.estimate import note_expected
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

Kind = tuple[str, int, int, str, int, int, int]


class Expected:
    """What a campaign has seen its runs take."""

    def __init__(self) -> None:
        self._epoch_s: dict[Kind, float] = {}
        self._before: dict[Kind, float | None] = {}
        """What epochs took that other campaigns trained: looked up once."""
        self._ends: dict[str, tuple[int, float, float]] = {}
        """By key of a run that trains: after how many epochs it was worked out, when the epoch in flight ends, and when the training
        does; so that it changes once an epoch."""

    def note(self, runs: Iterable[FollowedRun], now_unix: float) -> None:
        """Take note of what the runs showed last."""
        for run in runs:
            if run.state is not RunState.RUNNING:
                self._ends.pop(run.key, None)  # it ends later by as long as it does not train
            if run.seen is None or run.seen.epoch_s is None:
                continue
            self._epoch_s[_kind(run.spec)] = run.seen.epoch_s
            done = run.seen.epochs_done
            if run.state is RunState.RUNNING and (run.key not in self._ends or self._ends[run.key][0] != done):
                self._ends[run.key] = done, now_unix + run.seen.epoch_s, now_unix + (run.seen.epochs - done) * run.seen.epoch_s

    def ends_unix(self, run: FollowedRun) -> float | None:
        """When a training at work leaves its workers, which one that is asked to pause does after its epoch; None: not known, as of a
        validation."""
        if run.state is not RunState.RUNNING or run.key not in self._ends:
            return None
        _, epoch_unix, training_unix = self._ends[run.key]
        return training_unix if run.observer.pause is None else min(epoch_unix, training_unix)

    def note_beginning(self, run: FollowedRun) -> None:
        """Write down what an epoch of a run is expected to take that has trained none; its error is known at its end."""
        if run.seen is None or run.seen.epochs_done == 0:
            epoch_s = self._epoch_s.get(_kind(run.spec)) or self._measured_before(run.spec)
            if epoch_s:
                note_expected(run.folder, epoch_s)

    def left_s(self, run: FollowedRun) -> float | None:
        """How long the epochs take that a waiting run has not done; None: not known."""
        left = run.spec.schedule.epochs if run.seen is None else run.seen.epochs - run.seen.epochs_done
        own = run.seen.epoch_s if run.seen is not None else None
        epoch_s = own or self._epoch_s.get(_kind(run.spec)) or self._measured_before(run.spec)
        return None if epoch_s is None else left * epoch_s

    def _measured_before(self, spec: RunSpec) -> float | None:
        kind = _kind(spec)
        if kind not in self._before:
            self._before[kind] = Measured().epoch_s(spec)
        return self._before[kind]


def _kind(spec: RunSpec) -> Kind:
    """What runs have in common whose epochs take the same time."""
    workers, schedule = spec.workers, spec.schedule
    kind = workers.accelerator_type
    return spec.model, workers.least, workers.gpus, kind, workers.cpus, schedule.train_iterations, schedule.val_iterations
