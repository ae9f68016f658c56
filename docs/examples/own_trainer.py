"""A trainer of your own: `trainers: own_trainer:nnUNetTrainerAdamWStep`. nnU-Net's, with another optimizer and a learning rate in steps."""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerAdamWStep(nnUNetTrainer):  # noqa: N801 # as nnU-Net names trainers
    """Trains with AdamW; the learning rate is a tenth in the last third of the epochs. Mirrors nothing."""

    def __init__(self, plans: dict[str, Any], configuration: str, fold: int, dataset_json: dict[str, Any], device: torch.device) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.initial_lr = 1e-3

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net calls it once, and the scheduler at the start of each epoch with the epoch's number."""
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, Steps(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802 # nnU-Net's name
        """What it mirrors in training, nnU-Net mirrors in predictions."""
        rotation, dummy_2d, patch, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch, ()


class Steps:
    """A learning rate that is a function of the epoch alone, so that a restart goes on with it: nnU-Net saves no scheduler."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, epochs: int) -> None:
        self.optimizer, self.initial_lr, self.epochs = optimizer, initial_lr, epochs

    def step(self, epoch: int) -> None:
        """Set the learning rate of `epoch`, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * (0.1 if 3 * epoch >= 2 * self.epochs else 1.0)
