"""What is asked of a run that trains: to stop, to pause, or to end early as a trained run. Rank 0 sees it, all ranks act on it alike."""

import logging
from dataclasses import dataclass, replace

from trainers.contract.early_end import early_end_after
from trainers.contract.requests import end_asked_for, finish_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import AskedEnd
from trainers.training.state import TrainingProgress
from trainers.training.world import World

log = logging.getLogger(__name__)
_ENDS: tuple[AskedEnd | None, ...] = (None, "STOPPED", "PAUSED")


@dataclass(frozen=True)
class Asked:
    """What somebody asks of the run, as rank 0 sees it at the end of an epoch."""

    end: AskedEnd | None = None
    """How training is to end with the epoch; None: it goes on."""
    anneal_epochs: int | None = None
    """To end early, after so many more epochs; None: nobody asks for it."""

    @property
    def as_numbers(self) -> tuple[float, float]:
        """To be summed over the ranks, of which all but rank 0 contribute zeros."""
        return float(_ENDS.index(self.end)), 0.0 if self.anneal_epochs is None else 1.0 + self.anneal_epochs

    @classmethod
    def of_numbers(cls, end: float, finish: float) -> "Asked":
        """Back from `as_numbers`."""
        return cls(_ENDS[round(end)], round(finish) - 1 if finish > 0 else None)


def asked_of(folder: RunFolder, run_key: str, world: World, epoch: int) -> Asked:
    """What somebody asks of the run at the end of `epoch`, as rank 0 sees it; the others see nothing.

    An early end that was asked for in a later epoch waits for that one: a kill may have cost the run the states up to there.
    """
    if not world.is_main:
        return Asked()
    finish = finish_request_seen(folder, run_key)
    return Asked(end_asked_for(folder), None if finish is None or finish.epoch > epoch else finish.anneal_epochs)


def with_early_end(reached: TrainingProgress, asked: Asked, spec: RunSpec) -> TrainingProgress:
    """`reached` at the end of an epoch, with the early end that is asked for: from the next commit on it is part of the run."""
    if asked.anneal_epochs is None:
        return reached
    early_end = early_end_after(reached.epochs_done, asked.anneal_epochs, spec.schedule.epochs, reached.early_end)
    if early_end is not None and early_end != reached.early_end:
        log.info("%s ends early, as asked: %s", spec.run_key, early_end.text(spec.schedule.epochs))
    return replace(reached, early_end=early_end)
