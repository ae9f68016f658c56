"""The training loop: restore; for each epoch: train, validate, gather, decide, save.

Every rank runs this code and calls every collective; only rank 0 decides what is stored and writes it. There is one collective per
epoch of ours (counts, losses and requests in one small vector) beside those of DDP and of a batch Dice, and a flag between the
CPUs every few iterations (`trainers/training/mid_epoch.py`).

Shapes: B batch of this rank, C class, Z Y X voxels.
"""

import logging
import math
import time
from dataclasses import dataclass

import torch

from trainers.contract.bottleneck import describe_limit
from trainers.contract.commits import BestRecord, EpochRow
from trainers.contract.records import HEARTBEAT_S
from trainers.contract.records import Heartbeat as HeartbeatRecord
from trainers.contract.requests import end_asked_for
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderPlacement, RunSpec
from trainers.contract.states import TrainingEnd
from trainers.data.batches import BatchSource, SplitName
from trainers.errors import DivergedError
from trainers.network.learner import Learner
from trainers.storage.files import write_heartbeat
from trainers.training.asked import Asked, asked_of, with_early_end
from trainers.training.mid_epoch import MidEpochSaver
from trainers.training.node_load import device_kind, node_load
from trainers.training.pseudo_dice import batch_counts, dice_per_class, gather_epoch, mean_dice, updated, zero_counts
from trainers.training.state import TrainingProgress
from trainers.training.world import World

log = logging.getLogger(__name__)
PATIENCE_EPOCHS = 3
"""Epochs in a row without a loss that is a number, after which a run has diverged though its weights have not."""


@dataclass(frozen=True)
class EpochTotals:
    """One epoch over all ranks: losses as means over its global batches, pseudo-Dice per class, the longest wait for data of a rank, and
    which requests rank 0 saw.
    """

    train_loss: float
    val_loss: float
    pseudo_dice: tuple[float, ...]
    longest_wait_s: float
    asked: Asked


def train(
    spec: RunSpec,
    folder: RunFolder,
    world: World,
    learner: Learner,
    source: BatchSource,
    mid_epoch: MidEpochSaver,
    reached: TrainingProgress,
) -> TrainingEnd:
    """Train from what is `reached` to the last epoch, or to the end of the epoch in which a stop, a pause or an early end was asked for.

    `mid_epoch` saves within epochs and holds the writer of states, which is there on rank 0 only. Returns how training ended; the newest
    committed state says how far it came.
    """
    heartbeats, writer = Heartbeats(folder, world, learner.fencing_token), mid_epoch.writer
    is_between = reached.epochs_done > 0 and reached.iterations_done == 0  # the start before may have ended before it could obey
    end = world.from_main(end_asked_for(folder)) if is_between else None
    # an early end is decided at the end of an epoch alone: whoever committed this one has decided, and an unbroken run decides at the next
    while not (reached.is_trained(spec.schedule.epochs) or end):
        epoch, clock = reached.epochs_done, Clock(source, reached)
        learning_rate = learner.start_epoch(epoch, reached.early_end)

        train_loss = train_epoch(learner, source, reached, heartbeats, mid_epoch)
        clock.lap("train")
        val_loss, counts_3C = validate_epoch(learner, source, epoch, heartbeats)
        clock.lap("val")
        totals = gather(learner, world, train_loss, val_loss, counts_3C, clock.waited_s(), asked_of(folder, spec.run_key, world, epoch))
        check_finite(totals, learner, reached)

        best, is_best = updated(reached.best_policy, mean_dice(totals.pseudo_dice), epoch)
        row = epoch_row(spec, world, learner, epoch, learning_rate, totals, best, clock, held_s=writer.held_s if writer else 0.0)
        end = totals.asked.end
        reached = TrainingProgress((*reached.history, row), best, early_end=reached.early_end)
        reached = with_early_end(reached, totals.asked, spec)
        if writer is not None:
            writer.commit(reached, is_best, learner.tensors)
            log.info(describe(row, is_best, spec.loader.placement))
    if writer is not None:
        writer.drain()
    return "TRAINED" if end is None or reached.is_trained(spec.schedule.epochs) else end


def train_epoch(
    learner: Learner, source: BatchSource, reached: TrainingProgress, heartbeats: "Heartbeats", mid_epoch: MidEpochSaver
) -> torch.Tensor:
    """One optimizer step per batch that is left of the epoch in flight.

    Returns the sum of this rank's losses over the whole epoch, float64 on the device: no synchronisation in between.
    """
    epoch, start = reached.epochs_done, reached.iterations_done
    learner.network.train()
    loss_sum = mid_epoch.begin_epoch(reached)
    for iteration, batch in enumerate(source.batches("train", epoch, start), start):
        learner.start_iteration(epoch, iteration)
        loss_sum += learner.step(batch)
        heartbeats.send("train", epoch, iteration)
        mid_epoch.save_if_due(iteration + 1, loss_sum)
    return loss_sum


@torch.no_grad()
def validate_epoch(learner: Learner, source: BatchSource, epoch: int, heartbeats: "Heartbeats") -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and counts on validation patches. Returns the sum of this rank's losses and its counts (3, C): tp, fp, fn in voxels."""
    learner.network.eval()
    loss_sum = torch.zeros((), dtype=torch.float64, device=learner.device)
    counts_3C = zero_counts(learner.labels, learner.device)
    for iteration, batch in enumerate(source.batches("val", epoch)):
        loss, logits_BCZYX, target = learner.evaluate(batch)
        loss_sum += loss
        counts_3C += batch_counts(logits_BCZYX, target, learner.labels)
        heartbeats.send("val", epoch, iteration)
    return loss_sum, counts_3C


def gather(
    learner: Learner,
    world: World,
    train_loss: torch.Tensor,
    val_loss: torch.Tensor,
    counts_3C: torch.Tensor,
    waited_s: float,
    asked: Asked,
) -> EpochTotals:
    """The one collective of an epoch: counts, losses, each rank's wait and the requests that rank 0 has seen, summed over the ranks."""
    own = torch.zeros(2 + world.world_size, dtype=torch.float64)
    own[0], own[1] = asked.as_numbers
    own[2 + world.global_rank] = waited_s
    counts_3C, sums = gather_epoch(counts_3C, torch.cat([torch.stack([train_loss, val_loss]), own.to(learner.device)]))
    schedule, ranks = learner.schedule, learner.world_size
    train_sum, val_sum, stop, finish, *waits_s = sums.tolist()
    return EpochTotals(
        train_loss=train_sum / (ranks * schedule.train_iterations),
        val_loss=val_sum / (ranks * schedule.val_iterations),
        pseudo_dice=dice_per_class(counts_3C),
        longest_wait_s=max(waits_s),
        asked=Asked.of_numbers(stop, finish),
    )


def check_finite(totals: EpochTotals, learner: Learner, reached: TrainingProgress) -> None:
    """Raise DivergedError where an epoch cannot be kept; every rank sees the same and raises alike.

    One epoch without a mean loss may be an overflow of mixed precision whose step was skipped; weights are then still finite numbers.
    """
    losses = (totals.train_loss, totals.val_loss)
    if all(math.isfinite(loss) for loss in losses):
        return
    before = [row.epoch for row in reached.history[-(PATIENCE_EPOCHS - 1) :] if not math.isfinite(row.train_loss + row.val_loss)]
    epoch = reached.epochs_done
    what = f"train loss {losses[0]:g}, val loss {losses[1]:g} at learning rate {learner.optimizer.param_groups[0]['lr']:.3g}"
    is_sound = learner.is_finite()
    if is_sound and len(before) < PATIENCE_EPOCHS - 1:
        log.warning("epoch %d: %s: some batch gave no number, but the weights are sound. Do images hold NaN?", epoch, what)
        return
    last = f"the last sound epoch, {epoch - 1}, is kept" if reached.history else "no epoch is kept"
    state = "weights hold NaN or infinity" if not is_sound else f"no loss in {PATIENCE_EPOCHS} epochs"
    raise DivergedError(
        f"training: diverged in epoch {epoch}: {what}, {state}; {last}. Look for NaN or huge values in the images, or lower initial_lr: "
        "the same run would diverge again."
    )


class Clock:
    """Wall-clock seconds of the parts of one epoch, and of the waiting in it; work on it before a restart is counted in.

    The beginning of an epoch that goes on after a restart is dated back by that work: nnU-Net takes its seconds from the stamps.
    """

    def __init__(self, source: BatchSource, reached: TrainingProgress) -> None:
        self.started_unix = time.time() - reached.elapsed_s
        self._source, self._waited_before, self._prepared_before = source, source.wait_s, source.preparation
        self._last = self._start = time.perf_counter() - reached.elapsed_s
        self.laps: dict[str, float] = {}

    def lap(self, name: SplitName) -> None:
        """Close the part that just ended under `name`."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now

    def total_s(self) -> float:
        """Seconds since the epoch began."""
        return time.perf_counter() - self._start

    def waited_s(self) -> float:
        """Seconds of the epoch so far in which this rank waited for a batch."""
        return self._source.wait_s - self._waited_before

    def prepared(self) -> dict[str, float]:
        """How many loaders this rank has and what the batches of the epoch so far took them, by the names of EpochRow."""
        took = self._source.preparation - self._prepared_before
        return {"loaders": self._source.loaders, "prepare_s": took.wall_s, "prepare_cpu_s": took.cpu_s, "read_wait_s": took.disk_s}


def epoch_row(
    spec: RunSpec,
    world: World,
    learner: Learner,
    epoch: int,
    learning_rate: float,
    totals: EpochTotals,
    best: BestRecord,
    clock: Clock,
    held_s: float,
) -> EpochRow:
    """What is kept of one epoch."""
    samples = learner.global_batch * spec.schedule.train_iterations
    return EpochRow(
        epoch=epoch,
        fencing_token=learner.fencing_token,
        started_unix=clock.started_unix,
        ended_unix=time.time(),
        train_loss=totals.train_loss,
        val_loss=totals.val_loss,
        pseudo_dice=totals.pseudo_dice,
        pseudo_dice_mean=mean_dice(totals.pseudo_dice),
        ema_pseudo_dice=best.ema,
        learning_rate=learning_rate,
        world_size=world.world_size,
        epoch_s=clock.total_s(),
        train_s=clock.laps["train"],
        val_s=clock.laps["val"],
        wait_data_s=clock.waited_s(),
        longest_wait_s=totals.longest_wait_s,
        **clock.prepared(),
        save_s=held_s,
        samples_per_s=samples / clock.laps["train"],
        gpu_memory_gib=learner.peak_memory_gib(),
        system=node_load(learner.device) if world.is_main else {},
        device=device_kind(learner.device),
    )


def describe(row: EpochRow, is_best: bool, placement: LoaderPlacement) -> str:
    """One line of the training log."""
    ema = "none yet" if row.ema_pseudo_dice is None else f"{row.ema_pseudo_dice:.4f}"
    classes = ", ".join(f"{dice:.4f}" for dice in row.pseudo_dice)
    return (
        f"epoch {row.epoch}: train_loss {row.train_loss:.4f}, val_loss {row.val_loss:.4f}, pseudo-Dice [{classes}], "
        f"EMA {ema}{' (new best)' if is_best else ''}, lr {row.learning_rate:.6f}, "
        f"{row.epoch_s:.2f} s, waited {row.wait_data_s:.2f} s for data; {describe_limit([row], placement)}"
    )


class Heartbeats:
    """Rank 0's heartbeats: `progress.json`, rewritten at most every HEARTBEAT_S."""

    def __init__(self, folder: RunFolder, world: World, fencing_token: int) -> None:
        self._path = folder.progress_file if world.is_main else None
        self._fencing_token = fencing_token
        self._last = 0.0
        self._is_mute = False

    def send(self, phase: SplitName, epoch: int, iteration: int) -> None:
        """Say where training is: `iteration` of `phase` in `epoch` is done."""
        now = time.monotonic()
        if self._path is None or now - self._last < HEARTBEAT_S:
            return
        self._last = now
        heartbeat = HeartbeatRecord(epoch=epoch, iteration=iteration, phase=phase, unix=time.time(), fencing_token=self._fencing_token)
        try:
            write_heartbeat(self._path, heartbeat.model_dump(), self._fencing_token)
            self._is_mute = False
        except OSError as err:
            if not self._is_mute:
                log.warning("no heartbeat is written to %s for now: %s", self._path, err)
            self._is_mute = True
