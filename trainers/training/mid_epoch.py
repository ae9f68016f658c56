"""Saving within an epoch: every few minutes, at the notice that a node will be taken away, or when somebody asks.

Rank 0 decides that a state is due, all ranks agree on the iteration, each sends the sum of its losses so far, rank 0 commits. A start from
such a state goes on with the next iteration and ends with the same bits.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from trainers.contract.commits import InFlight
from trainers.contract.requests import save_request_seen, withdraw_save
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.network.learner import Learner
from trainers.training.state import StateWriter, TrainingProgress
from trainers.training.world import World

log = logging.getLogger(__name__)
AGREEMENTS_PER_EPOCH = 25
"""How often within an epoch rank 0's decision is broadcast; at nnU-Net's 250 iterations every tenth."""
LEAVING_S = 20.0
"""While a node is about to be taken away, a state is saved so often."""


def save_is_due(since_save_s: float, every_s: float | None, *, is_requested: bool, is_leaving: bool, saved_since_notice: bool) -> bool:
    """Whether a state within the epoch is due now; pure. `since_save_s`: since the newest one, within or at the end of an epoch."""
    if is_requested or (is_leaving and (not saved_since_notice or since_save_s >= LEAVING_S)):
        return True
    return every_s is not None and since_save_s >= every_s


@dataclass
class MidEpochSaver:
    """Saves within epochs. `writer` is there on rank 0 only; `is_leaving` says that a node of the run will be taken away."""

    spec: RunSpec
    folder: RunFolder
    world: World
    learner: Learner
    writer: StateWriter | None
    is_leaving: Callable[[], bool] = lambda: False
    _reached: TrainingProgress = field(default_factory=TrainingProgress)
    _epoch_started: float = 0.0
    _saved_at: float = field(default_factory=time.monotonic)
    _saved_since_notice: bool = False
    _has_refused: bool = False

    def begin_epoch(self, reached: TrainingProgress) -> torch.Tensor:
        """Take note of where an epoch begins or goes on; returns this rank's sum of losses so far, float64 on the device."""
        now = time.monotonic()
        self._reached, self._saved_at, self._has_refused = reached, now, False
        self._epoch_started = now - reached.elapsed_s
        return torch.tensor(self._own_share(reached.in_flight), dtype=torch.float64, device=self.learner.device)

    def save_if_due(self, iteration: int, loss_sum: torch.Tensor) -> None:
        """To be called by every rank after every training step; `iteration` steps of the epoch are done."""
        stride = max(1, self.spec.schedule.train_iterations // AGREEMENTS_PER_EPOCH)
        if iteration % stride or not self.world.main_decides(self.world.is_main and self._is_due()):
            return
        sums = self.world.from_all(float(loss_sum))
        now = time.monotonic()
        if self.writer is None:
            return
        if not self.learner.is_state_finite():
            self._refuse(iteration)
            return
        in_flight = InFlight(iteration=iteration, train_loss_sums=sums, elapsed_s=now - self._epoch_started)
        self.writer.commit(replace(self._reached, in_flight=in_flight), False, self.learner.tensors)
        self._saved_at, self._saved_since_notice = now, self.is_leaving()
        log.info("saved within epoch %d after %d iterations", self._reached.epochs_done, iteration)

    def _refuse(self, iteration: int) -> None:
        """Weights that are no numbers replace no sound state; the end of the epoch decides what becomes of the run."""
        self._has_refused = True
        withdraw_save(self.folder)
        epoch = self._reached.epochs_done
        log.warning("epoch %d: not saved after %d iterations, nor later within it: weights hold NaN or infinity", epoch, iteration)

    def _is_due(self) -> bool:
        if self._has_refused:
            withdraw_save(self.folder)
            return False
        minutes = self.spec.checkpoint.every_minutes
        return save_is_due(
            time.monotonic() - self._saved_at,
            None if minutes is None else minutes * 60,
            is_requested=save_request_seen(self.folder) is not None,
            is_leaving=self.is_leaving(),
            saved_since_notice=self._saved_since_notice,
        )

    def _own_share(self, in_flight: InFlight | None) -> float:
        """What this rank's sum of losses goes on from.

        Sums of another number of ranks go to rank 0: the mean over ranks is the loss of the batch, so it is the mean that is kept.
        """
        if in_flight is None:
            return 0.0
        sums, ranks = in_flight.train_loss_sums, self.world.world_size
        if len(sums) == ranks:
            return sums[self.world.global_rank]
        return sum(sums) / len(sums) * ranks if self.world.is_main else 0.0
