"""The loop of a trainer of the user's, a subclass of nnU-Net's, in the place of ours: its `run_training`, watched and saved by us.

Hooks on the one object see its steps and the ends of its epochs. There the row of the epoch is read from its logger, the state is
committed as after an epoch of ours (`trainers/training/state.py`), with whatever its own `save_checkpoint` keeps, and a stop is obeyed; so
everything behind the commits stays as it is. Its own checkpoints and pictures are not written, ours have nnU-Net's names.

Its loader processes are forked, as nnU-Net forks them, and end with this one: see `children_bound`.
"""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainers.contract.commits import Committed, EpochRow
from trainers.contract.own_code import fault_text
from trainers.contract.requests import end_asked_for
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import AskedEnd, TrainingEnd
from trainers.data.batches import SplitName
from trainers.errors import ConfigError, DivergedError
from trainers.network.own_trainer import kept_of, load_state, made_trainer
from trainers.training.asked import asked_of, with_early_end
from trainers.training.assemble import (
    ModelConfig,
    check_compiler,
    configure_kernels,
    model_config,
    newest_everywhere,
    progress_from,
    writer_with_axes,
)
from trainers.training.children import children_bound
from trainers.training.loop import Heartbeats, describe
from trainers.training.node_load import device_kind, node_load
from trainers.training.pseudo_dice import updated
from trainers.training.start_of_log import log_start
from trainers.training.state import StateWriter, TrainingProgress
from trainers.training.world import World

log = logging.getLogger(__name__)


class Left(BaseException):
    """Leaves the trainer's loop between two epochs; nothing that it may catch."""


def train_by_own_loop(spec: RunSpec, folder: RunFolder, world: World, fencing_token: int) -> TrainingEnd:
    """Train from the newest state until the run is trained, stopped or paused. There is one worker.

    Raises ConfigError for a folder of another run and where the class does not do as nnU-Net's; what the class raises.
    """
    assert world.world_size == 1
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()  # else the trainer would take itself for one of several, on CUDA
    plan, newest = model_config(spec), newest_everywhere(folder, world)
    if newest is not None and newest.run_key != spec.run_key:
        raise ConfigError(f"state: {folder.state} holds states of {newest.run_key}, not of {spec.run_key}. Move them away.")
    log_start(spec, plan, world.world_size)
    reached = progress_from(newest, spec.schedule)
    opened: Callable[[Any], StateWriter] = partial(writer_with_axes, spec, folder, plan, fencing_token, newest)
    if reached.is_trained(spec.schedule.epochs):
        opened(None)  # for its links
        return "TRAINED"
    if newest is not None and (end := end_asked_for(folder)) is not None:
        return end
    configure_kernels(world.device, deterministic=False)
    if spec.compile and world.device.type == "cuda":
        check_compiler()
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(torch_seed(spec.seed, reached.epochs_done))
        trainer = made_trainer(spec, world.device, Path(scratch), goes_on=newest is not None)
        if newest is not None:
            _restore(spec, folder, trainer, newest)
        watched = WatchedLoop(spec, folder, world, plan, fencing_token, trainer, Path(scratch), opened, reached)
        return watched.run()


def torch_seed(seed: int, epochs_done: int) -> int:
    """Of a start after so many epochs, for torch's generators, which take numbers below 2^64. Pure."""
    return (seed * 100_003 + epochs_done) % 2**64


def _restore(spec: RunSpec, folder: RunFolder, trainer: Any, newest: Committed) -> None:
    load_state(trainer, spec.own.named["trainer"], folder.state / f"{newest.stem}.pth")
    log.info("%s continues in epoch %d, of fencing token %d", newest.run_key, newest.epochs_done, newest.fencing_token)


@dataclass
class Lap:
    """One part of an epoch, training or validation: seconds in steps and of waiting for their batches."""

    began: float = math.nan
    ended: float = math.nan
    steps: int = 0
    waited_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Seconds from its beginning to the end of its last step; NaN where it had none."""
        return self.ended - self.began


@dataclass
class WatchedLoop:
    """A trainer whose loop we watch: what it has reached, and the writer of its states."""

    spec: RunSpec
    folder: RunFolder
    world: World
    plan: ModelConfig
    fencing_token: int
    trainer: Any
    scratch: Path
    opened: Callable[[Any], StateWriter]
    """Makes the writer, given the axes that prediction mirrors."""
    reached: TrainingProgress
    writer: StateWriter | None = None
    end: AskedEnd | None = None
    """How it was asked to end with the epoch."""
    laps: dict[SplitName, Lap] = field(default_factory=dict)
    """Of the epoch in flight."""
    _began_unix: float = 0.0
    _began: float = 0.0
    _last: float = 0.0
    """When the newest step ended, or the epoch began."""

    def __post_init__(self) -> None:
        self._heartbeats = Heartbeats(self.folder, self.world, self.fencing_token)

    def run(self) -> TrainingEnd:
        """Have it train; returns when its last state is durable."""
        self._hook()
        try:
            with children_bound(), contextlib.suppress(Left):
                self.trainer.run_training()
        except Exception as err:
            if type(err).__module__.startswith("nnfleet_own_"):  # no other process could load it
                raise RuntimeError(fault_text(err, self.spec.own.named["trainer"])) from err
            raise
        finally:
            _close_loaders(self.trainer)
        if self.writer is not None:
            self.writer.drain()
        if self.reached.is_trained(self.spec.schedule.epochs):
            return "TRAINED"
        if self.end is not None:
            return self.end
        raise ConfigError(
            f"trainers: run_training of {self.spec.trainer} ended after {self.reached.epochs_done} of {self.spec.schedule.epochs} epochs "
            "that it closed with on_epoch_end. Call it after each epoch, and train num_epochs of them."
        )

    def _hook(self) -> None:
        """The trainer's methods are replaced on this one object, which calls them by `self`; its class stays as it is."""
        trainer = self.trainer
        trainer.output_folder = str(self.folder.root)
        trainer.save_checkpoint = _nothing
        trainer.logger.plot_progress_png = _nothing  # the publisher draws it, from what is committed
        trainer.on_train_start = partial(self._started, trainer.on_train_start)
        trainer.on_epoch_start = partial(self._epoch_started, trainer.on_epoch_start)
        trainer.train_step = partial(self._step, "train", trainer.train_step)
        trainer.validation_step = partial(self._step, "val", trainer.validation_step)
        trainer.on_epoch_end = partial(self._epoch_ended, trainer.on_epoch_end)

    def _started(self, own: Callable[[], None]) -> None:
        own()
        self.writer = self.opened(self.trainer.inference_allowed_mirroring_axes)

    def _epoch_started(self, own: Callable[[], None]) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.world.device)
        self.laps = {"train": Lap(), "val": Lap()}
        self._began = self._last = time.perf_counter()
        self._began_unix = time.time()
        own()

    def _step(self, split: SplitName, own: Callable[[Any], Any], batch: Any) -> Any:
        """One step, whose results nnU-Net copies to the CPU: so the time between two steps is that of waiting for a batch."""
        lap, before = self.laps[split], self._last
        lap.began = before if lap.steps == 0 else lap.began
        lap.waited_s += time.perf_counter() - before
        result = own(batch)
        lap.steps += 1
        lap.ended = self._last = time.perf_counter()
        self._heartbeats.send(split, self.reached.epochs_done, lap.steps - 1)
        return result

    def _epoch_ended(self, own: Callable[[], None]) -> None:
        """Commit the epoch; leaves the loop where the run is to stop, to pause or to end early."""
        own()
        assert self.writer is not None
        epoch, epochs = self.reached.epochs_done, self.spec.schedule.epochs
        row = self._row(epoch)
        self._check_finite(row)
        best, is_best = updated(self.reached.best_policy, row.pseudo_dice_mean, epoch)
        row = row.model_copy(update={"ema_pseudo_dice": best.ema})
        asked = asked_of(self.folder, self.spec.run_key, self.world, epoch)
        reached = TrainingProgress((*self.reached.history, row), best, early_end=self.reached.early_end)
        self.reached = with_early_end(reached, asked, self.spec)
        self.writer.commit(self.reached, is_best, self._tensors)
        log.info("%s", describe(row, is_best, self.spec.loader.placement))
        is_over = self.reached.is_trained(epochs)
        if is_over:
            self.writer.drain()  # its end looks for checkpoint_latest.pth, which that commit removes
        self.end = asked.end
        if asked.end or (is_over and self.reached.epochs_done < epochs):
            raise Left

    def _tensors(self) -> dict[str, Any]:
        code = self.spec.own.named["trainer"]
        return kept_of(self.trainer, code, self.scratch / "checkpoint_latest.pth")

    def _row(self, epoch: int) -> EpochRow:
        """What is kept of an epoch, from its logger; raises ConfigError where that lacks something."""
        train, val = self.laps["train"], self.laps["val"]
        device, waited_s = self.world.device, train.waited_s + val.waited_s
        dice = tuple(float(value) for value in self._logged("dice_per_class_or_region", epoch))
        return EpochRow(
            epoch=epoch,
            fencing_token=self.fencing_token,
            started_unix=self._began_unix,
            ended_unix=time.time(),
            train_loss=float(self._logged("train_losses", epoch)),
            val_loss=float(self._logged("val_losses", epoch)),
            pseudo_dice=dice,
            pseudo_dice_mean=float(self._logged("mean_fg_dice", epoch)),
            ema_pseudo_dice=None,
            learning_rate=float(self._logged("lrs", epoch)),
            world_size=1,
            epoch_s=time.perf_counter() - self._began,
            train_s=train.total_s,
            val_s=val.total_s,
            wait_data_s=waited_s,
            save_s=self.writer.held_s if self.writer else 0.0,
            longest_wait_s=waited_s,
            loaders=self.spec.loader.actors,
            samples_per_s=self.plan.global_batch * train.steps / train.total_s if train.steps else math.nan,
            gpu_memory_gib=torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0,
            system=node_load(device),
            device=device_kind(device),
        )

    def _logged(self, key: str, epoch: int) -> Any:
        values = self.trainer.logger.get_value(key, None)
        if len(values) != epoch + 1:
            raise ConfigError(
                f"trainers: {self.spec.trainer} logged {len(values)} values of {key} in {epoch + 1} epochs. Log one in each, as nnU-Net's "
                "trainer does: it is what the run is followed by."
            )
        return values[epoch]

    def _check_finite(self, row: EpochRow) -> None:
        """Raise DivergedError where an epoch without a loss has left weights that are no numbers."""
        weights = self.trainer.network.parameters()
        if math.isfinite(row.train_loss + row.val_loss) or all(bool(weight.isfinite().all()) for weight in weights):
            return
        raise DivergedError(
            f"training: diverged in epoch {row.epoch}: train loss {row.train_loss:g}, val loss {row.val_loss:g} at learning rate "
            f"{row.learning_rate:.3g}, weights hold NaN or infinity. Look for NaN or huge values in the images, or change "
            f"{self.spec.trainer}."
        )


def _nothing(*_: Any, **__: Any) -> None:
    """In place of files that nnU-Net's trainer writes onto their final names."""


def _close_loaders(trainer: Any) -> None:
    """End the processes that prepare batches; those of a loop that ended by itself are gone."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        finish = getattr(loader, "_finish", None)
        if finish is not None:
            finish()
