"""Trainings that nnU-Net began and did not end: by its own trainer on given batches, and as folders written without a training."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.nnunet_folder import DEBUG, START_UNIX
from tests.nnunet_reference import built_trainer
from tests.own_batches import OwnBatches
from tests.toy import Toy, nnunet_environment
from trainers.contract.plans import labels_of, load_dataset_json, load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Schedule
from trainers.data.batches import Batch
from trainers.network.model import build_network
from trainers.network.optimizer import sgd
from trainers.training.rank import train_rank
from trainers.training.world import World

EPOCHS = 3
ALONE = World(global_rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


def nnunets_trainer(toy: Toy, results: Path, configuration: str = "toy_3d") -> Any:
    """nnU-Net's own trainer of a fold, for EPOCHS short epochs, with its network and optimizer."""
    trainer = built_trainer("nnUNetTrainer", toy, results, configuration)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = EPOCHS, 2, 1
    with nnunet_environment(toy.base):
        trainer.initialize()
    return trainer


def nnunets_steps(trainer: Any, batches: list[Batch]) -> float:
    """Steps of nnU-Net's at the beginning of its epoch; returns the learning rate."""
    trainer.network.train()
    trainer.lr_scheduler.step(trainer.current_epoch)
    for batch in batches:
        targets = [torch.from_numpy(target.copy()) for target in batch.targets]
        trainer.train_step({"data": torch.from_numpy(batch.images.copy()), "target": targets})
    return float(trainer.optimizer.param_groups[0]["lr"])


def logged(emas: list[float]) -> dict[str, Any]:
    """nnU-Net's lists of epochs whose smoothed pseudo-Dice these are."""
    means = [emas[0], *((new - 0.9 * old) / 0.1 for old, new in pairwise(emas))]
    count = len(emas)
    return {
        "mean_fg_dice": means,
        "ema_fg_dice": emas,
        "dice_per_class_or_region": [[mean, mean] for mean in means],
        "train_losses": [-0.1 * epoch for epoch in range(count)],
        "val_losses": [-0.2 * epoch for epoch in range(count)],
        "lrs": [0.01] * count,
        "epoch_start_timestamps": [START_UNIX + 10 * epoch for epoch in range(count)],
        "epoch_end_timestamps": [START_UNIX + 10 * epoch + 8 for epoch in range(count)],
    }


def begun_fold(
    toy: Toy, results: Path, emas: list[float], trainer: str = "nnUNetTrainer", configuration: str = "toy_3d", **debug: str
) -> Path:
    """A fold after as many epochs as there are values, of three; its best checkpoint is of the epoch with the largest. Returns its folder.

    The weights are random, and so are the momenta.
    """
    model = results / toy.name / f"{trainer}__nnUNetPlans__{configuration}"
    root = model / "fold_0"
    root.mkdir(parents=True)
    shutil.copy(toy.preprocessed / "nnUNetPlans.json", model / "plans.json")
    shutil.copy(toy.preprocessed / "dataset.json", model / "dataset.json")
    (root / "debug.json").write_text(json.dumps(DEBUG | {"num_epochs": str(EPOCHS)} | debug))
    for name, count in (("latest", len(emas)), ("best", emas.index(max(emas)) + 1)):
        torch.save(begun_checkpoint(toy, emas[:count], trainer, configuration, seed=count), root / f"checkpoint_{name}.pth")
    return root


def begun_checkpoint(
    toy: Toy, emas: list[float], trainer: str = "nnUNetTrainer", configuration: str = "toy_3d", seed: int = 1
) -> dict[str, Any]:
    """What nnU-Net saves at the end of an epoch."""
    plans, dataset_json = load_plans(toy.preprocessed, "nnUNetPlans"), load_dataset_json(toy.preprocessed)
    torch.manual_seed(seed)
    network = build_network(plans.configuration(configuration), 1, labels_of(dataset_json).num_heads)
    optimizer = sgd(network, Schedule())
    for weight in network.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": logged(emas),
        "_best_ema": max(emas),
        "current_epoch": len(emas),
        "init_args": {"plans": plans.content, "configuration": configuration, "fold": 0, "dataset_json": dataset_json},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def trained_alone(folder: RunFolder, fencing_token: int, killed_at: tuple[int, int] | None = None) -> str:
    """Train a run from its newest state to its end in this process, as one worker does; returns how it ended."""
    spec = folder.spec()
    return train_rank(spec, folder, ALONE, fencing_token, lambda positions, *_: OwnBatches(spec, positions, killed_at))
