"""Batches of a run that are prepared in the training thread, without loaders."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from trainers.contract.run_spec import RunSpec
from trainers.data.batches import Batch, Preparation, SplitName
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch


class Killed(Exception):
    """The end of a process in the middle of a training."""


@dataclass
class OwnBatches:
    """A BatchSource that prepares each batch when it is asked for."""

    spec: RunSpec
    positions: Sequence[int]
    killed_at: tuple[int, int] | None = None
    """Epoch and iteration at which Killed is raised."""
    wait_s: float = 0.0
    preparation: Preparation = field(default_factory=Preparation)
    loaders: int = 1

    def __post_init__(self) -> None:
        self._data = open_dataset(self.spec)

    def __enter__(self) -> "OwnBatches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        """See BatchSource."""
        schedule = self.spec.schedule
        for iteration in range(first_iteration, schedule.train_iterations if split == "train" else schedule.val_iterations):
            if split == "train" and (epoch, iteration) == self.killed_at:
                raise Killed
            yield self.batch(split, epoch, iteration, self.positions)

    def batch(self, split: SplitName, epoch: int, iteration: int, positions: Sequence[int]) -> Batch:
        """One of them, of these positions in the global batch."""
        return make_batch(self._data, self.spec, split, epoch, iteration, positions)
