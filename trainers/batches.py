"""Where the training loop gets its batches from: an iterator per epoch that also counts the seconds spent waiting."""

from collections.abc import Iterator
from typing import Protocol

from trainers.dataset import SplitName
from trainers.samples import Batch

Request = tuple[SplitName, int, int]
"""(split, epoch, iteration)"""


class BatchSource(Protocol):
    """Batches of this rank in the order that training takes them, whoever prepares them."""

    wait_s: float
    """Seconds that the consumer has waited for batches since the source was made."""

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        """This rank's part of every global batch of one epoch, from an iteration on."""
        ...


def requests_from(epoch: int, first_iteration: int, epochs: int, iterations: dict[SplitName, int]) -> Iterator[Request]:
    """Every batch of a training from an iteration of `epoch` on, in the order in which the loop takes them.

    Each epoch trains, then validates; `first_iteration` may be the number of training iterations, when only validation is left.
    """
    splits: tuple[SplitName, ...] = ("train", "val")
    for now in range(epoch, epochs):
        for split in splits:
            for iteration in range(first_iteration if (now, split) == (epoch, "train") else 0, iterations[split]):
                yield split, now, iteration
