"""Where the training loop gets its batches from: an iterator per epoch that also counts the seconds spent waiting."""

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from trainers.samples import Batch

SplitName = Literal["train", "val"]
Request = tuple[SplitName, int, int]
"""(split, epoch, iteration)"""


class BatchSource(Protocol):
    """Batches of this rank in the order that training takes them, whoever prepares them."""

    wait_s: float
    """Seconds that the consumer has waited for batches since the source was made."""

    def batches(self, split: SplitName, epoch: int) -> Iterator[Batch]:
        """This rank's part of every global batch of one epoch."""
        ...


class InlineBatches:
    """Prepares each batch when it is asked for, in this process: for tests and for training without a loader pool."""

    def __init__(self, make: Callable[[SplitName, int, int], Batch], iterations: dict[SplitName, int]) -> None:
        self._make = make
        self._iterations = iterations
        self.wait_s = 0.0

    def batches(self, split: SplitName, epoch: int) -> Iterator[Batch]:
        """See BatchSource."""
        for iteration in range(self._iterations[split]):
            yield self._make(split, epoch, iteration)


def requests_from(epoch: int, epochs: int, iterations: dict[SplitName, int]) -> Iterator[Request]:
    """Every batch of a training from `epoch` on, in the order in which the loop takes them: each epoch trains, then validates."""
    splits: tuple[SplitName, ...] = ("train", "val")
    for now in range(epoch, epochs):
        for split in splits:
            for iteration in range(iterations[split]):
                yield split, now, iteration
