"""A training that ends before its schedule does because somebody asked for it, and is a trained run all the same.

The request takes effect once, at the end of an epoch, and is from then on part of every commit: whatever dies afterwards, the run goes on
to the same end by the same learning rates.
"""

from pydantic import Field

from trainers.contract.run_spec import Frozen

EXPONENT = 0.9
"""Of the annealing: that of nnU-Net's own curve."""


class EarlyEnd(Frozen):
    """After how many epochs a run ends, and how the learning rate goes until then."""

    epochs: int = Field(ge=1)
    """Epochs of the run in all."""
    anneal_from: int = Field(0, ge=0)
    """Index of the first epoch whose learning rate is annealed."""
    anneal_epochs: int = Field(0, ge=0)
    """Over so many epochs from there; 0: the learning rate stays that of the schedule."""

    def rate(self, epoch: int, scheduled: float) -> float:
        """Learning rate of `epoch` where the schedule has `scheduled` for the epoch in which the annealing begins (for others: of its own).

        `scheduled * (1 - i / (N + 1))^0.9` in the i-th of N epochs, counted from 1: it comes near 0 as nnU-Net's curve does.
        """
        if not self.anneals(epoch):
            return scheduled
        return float(scheduled * (1 - (epoch - self.anneal_from + 1) / (self.anneal_epochs + 1)) ** EXPONENT)

    def anneals(self, epoch: int) -> bool:
        """True for the epochs whose learning rate is annealed."""
        return self.anneal_epochs > 0 and epoch >= self.anneal_from

    def text(self, epochs: int) -> str:
        """For users, after `ended early`: what became of a schedule of `epochs`."""
        return f"after {self.epochs} of {epochs} epochs, {self._rate_text()}"

    def _rate_text(self) -> str:
        if self.anneal_epochs == 0:
            return "learning rate not annealed"
        done = self.epochs - self.anneal_from
        cut = "" if done == self.anneal_epochs else f" (meant for {self.anneal_epochs})"
        return f"learning rate annealed over the last {done}{cut}" if done else "learning rate not annealed"


def early_end_after(epochs_done: int, anneal_epochs: int, epochs: int, before: EarlyEnd | None) -> EarlyEnd | None:
    """The early end of a run with a schedule of `epochs`, of which `epochs_done` are done, once somebody asks for it; pure.

    `anneal_epochs`: so many more epochs. A request never makes a run longer: where the schedule, or an earlier request, ends it as soon,
    that stays; an annealing that has begun keeps its curve.
    """
    ends = epochs_done + anneal_epochs
    if ends >= (epochs if before is None else before.epochs):
        return before
    if before is not None and before.anneals(epochs_done):
        return before.model_copy(update={"epochs": ends})
    return EarlyEnd(epochs=ends, anneal_from=epochs_done, anneal_epochs=anneal_epochs)


def early_end_text(early_end: EarlyEnd | None, epochs: int) -> str:
    """`EarlyEnd.text`; empty without one."""
    return "" if early_end is None else early_end.text(epochs)
