"""Network, optimizer, loss and scaler of one rank, and the two things done with a batch: a training step and an evaluation.

Schedule, clipping, mixed precision and compilation are nnU-Net's
(nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py: train_step, validation_step, _do_i_compile;
variants/lr_schedule/).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainers.contract.early_end import EarlyEnd
from trainers.contract.plans import Labels
from trainers.contract.run_spec import Schedule
from trainers.contract.trainer_table import Rate
from trainers.data.batches import Batch
from trainers.network.hand_over import HandOver
from trainers.network.model import plain_state_dict
from trainers.network.optimizer import load_state, state_of

MAX_GRADIENT_NORM = 12.0
POLY_EXPONENT = 0.9
WARMUP_EPOCHS = 50
"""Epochs in which nnUNetTrainer_warmup increases the learning rate."""
Targets = list[torch.Tensor]


@dataclass
class Learner:
    """Everything of a rank that training changes. `network` is what is called (compiled, DDP); `plain` the bare module inside."""

    plain: nn.Module
    network: nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    loss: Callable[..., torch.Tensor]
    """Outputs and targets -> the rank's share of the loss, see `SegmentationLoss`."""
    labels: Labels
    schedule: Schedule
    device: torch.device
    global_batch: int
    world_size: int
    fencing_token: int
    dropout_seed: int | None = None
    """Where a network with dropout draws from, of this rank; None for a network that draws nothing."""
    curve: Rate = "poly"
    """How the learning rate goes."""
    on_device: HandOver = field(init=False)
    """Images and targets of a batch on this rank's device."""

    def __post_init__(self) -> None:
        self.on_device = HandOver(self.device)

    def start_epoch(self, epoch: int, early_end: EarlyEnd | None = None) -> float:
        """Set and return nnU-Net's learning rate of `epoch`, a function of the epoch alone, so that a resume cannot shift it.

        With an early end it is annealed from where the schedule had it when that took effect.
        """
        if early_end is not None and early_end.anneals(epoch):
            rate = early_end.rate(epoch, learning_rate(self.schedule, early_end.anneal_from, self.curve))
        else:
            rate = learning_rate(self.schedule, epoch, self.curve)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def start_iteration(self, epoch: int, iteration: int) -> None:
        """Make what dropout draws in one training step a function of seed, rank, epoch and iteration, so that a resume cannot shift it."""
        if self.dropout_seed is not None:
            torch.manual_seed(int(np.random.SeedSequence((self.dropout_seed, epoch, iteration)).generate_state(1, np.uint64)[0]))

    def step(self, batch: Batch) -> torch.Tensor:
        """One optimizer step on this rank's part of a global batch. Returns the detached loss; its mean over ranks is the batch's loss.

        Nothing in it waits for a GPU, not even for whether the scaler found an overflow, if the optimizer is a fused one.
        """
        images_BCZYX, targets = self.on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.network(images_BCZYX), targets)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Loss, full-resolution logits and their target for one validation batch. To be called without gradients."""
        images_BCZYX, targets = self.on_device(batch)
        with self.autocast():
            outputs = as_list(self._inner()(images_BCZYX))
            loss = self.loss(outputs, targets)
        return loss.detach(), outputs[0], targets[0]

    def warm_up(self, images_BCZYX: torch.Tensor, targets: Targets) -> None:
        """Two passes whose gradients are thrown away and whose buffers are restored.

        DDP rearranges its gradient buckets after the first backward pass, which changes the order of sums over three or more ranks.
        Done at every start, fresh or resumed, the first real step already uses the final order and a resumed run keeps its bits.
        """
        self.network.train()
        buffers = {name: buffer.clone() for name, buffer in self.plain.named_buffers()}
        for _ in range(2):
            with self.autocast():
                loss = self.loss(self.network(images_BCZYX), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in self.plain.named_buffers():
                buffer.copy_(buffers[name])

    def tensors(self) -> dict[str, Any]:
        """The changing part of a checkpoint, by nnU-Net's keys; the tensors are the live ones."""
        return {
            "network_weights": plain_state_dict(self.plain),
            "optimizer_state": state_of(self.optimizer),
            "grad_scaler_state": self.scaler.state_dict() if self.scaler.is_enabled() else None,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `tensors` gave."""
        self.plain.load_state_dict(checkpoint["network_weights"])
        load_state(self.optimizer, checkpoint["optimizer_state"])
        if self.scaler.is_enabled() and checkpoint["grad_scaler_state"] is not None:
            self.scaler.load_state_dict(checkpoint["grad_scaler_state"])

    def is_finite(self) -> bool:
        """True while the weights are finite numbers, on all ranks alike; momenta then are too: each step adds them to the weights."""
        return all(bool(torch.isfinite(weight).all()) for weight in self.plain.parameters())

    def is_state_finite(self) -> bool:
        """True while what is saved is: the weights, and the running statistics, of which each rank has its own. For rank 0 alone."""
        return self.is_finite() and all(bool(torch.isfinite(buffer).all()) for buffer in self.plain.buffers())

    def peak_memory_gib(self) -> float:
        """Largest GPU memory that this rank has held so far; 0 on CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 2**30 if self.device.type == "cuda" else 0.0

    def _inner(self) -> nn.Module:
        return self.network.module if isinstance(self.network, DistributedDataParallel) else self.network

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")


def learning_rate(schedule: Schedule, epoch: int, curve: Rate = "poly") -> float:
    """nnU-Net's learning rate of an epoch: initial_lr * (1 - epoch / epochs)^0.9, or another trainer's curve."""
    start, epochs = schedule.initial_lr, schedule.epochs
    if curve == "cosine":
        return start * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if curve == "warmup" and epoch < WARMUP_EPOCHS:
        return start / WARMUP_EPOCHS * (1 + epoch)
    before = WARMUP_EPOCHS if curve == "warmup" else 0
    return float(start * (1 - (epoch - before) / (epochs - before)) ** POLY_EXPONENT)


def as_list(outputs: Any) -> Targets:
    """Deep supervision gives a list; a network without it gives one tensor."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]
