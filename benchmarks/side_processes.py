"""What epochs of two sides in turn need: loader processes that are suspended while the other side is measured, nnU-Net's validation."""

import os
import signal
from collections.abc import Iterable
from typing import Any

import psutil
import torch


def children() -> list[int]:
    """Process ids of all living descendants."""
    return [p.pid for p in psutil.Process().children(recursive=True)]


def suspend(pids: Iterable[int]) -> None:
    """SIGSTOP to each."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def resume(pids: Iterable[int]) -> None:
    """SIGCONT to each."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def validate_by_nnunet(trainer: Any) -> None:
    """The validation of an epoch, as in nnUNetTrainer.run_training."""
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        steps = [trainer.validation_step(next(trainer.dataloader_val)) for _ in range(trainer.num_val_iterations_per_epoch)]
        trainer.on_validation_epoch_end(steps)
