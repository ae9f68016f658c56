"""Batches, and where the training loop gets them from: an iterator per epoch that also counts the seconds spent waiting.

B batch, C channels, R targets' channels (1 for labels, one per region else), Z Y X voxels. Imports nothing that prepares samples: a
worker, whose loaders do that, starts the sooner.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

SplitName = Literal["train", "val"]
Request = tuple[SplitName, int, int]
"""(split, epoch, iteration)"""


@dataclass(frozen=True)
class Preparation:
    """What preparing batches took, in seconds of the loaders that did."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    disk_s: float = 0.0
    """Of `wall_s`: reading a case without computing, that is, waiting for its disk."""

    def __add__(self, other: "Preparation") -> "Preparation":
        return Preparation(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s, self.disk_s + other.disk_s)

    def __sub__(self, other: "Preparation") -> "Preparation":
        return Preparation(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s, self.disk_s - other.disk_s)


@dataclass(frozen=True)
class Batch:
    """Samples of one global batch, ready for a step; plain numpy, so that it crosses processes without a copy."""

    images: npt.NDArray[np.float32]
    """(B, C, [Z,] Y, X)."""
    targets: list[npt.NDArray[Any]]
    """(B, R, [Z,] Y, X) per deep-supervision scale, finest first: int16 labels, or bool region masks with the ignore mask last."""
    case_ids: tuple[str, ...]
    preparation: Preparation = Preparation()

    @property
    def nbytes(self) -> int:
        """Bytes of images and targets."""
        return self.images.nbytes + sum(target.nbytes for target in self.targets)


class BatchSource(Protocol):
    """Batches of this rank in the order that training takes them, whoever prepares them."""

    @property
    def wait_s(self) -> float:
        """Seconds that the consumer has waited for batches since the source was made."""
        ...

    @property
    def preparation(self) -> Preparation:
        """What preparing the batches took that the consumer has had."""
        ...

    @property
    def loaders(self) -> int:
        """How many loaders prepare batches for this rank."""
        ...

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
