"""Trainings that nnU-Net began and did not end: by its own trainer on given batches, and as folders written without a training."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from tests.nnunet_folder import DEBUG, START_UNIX
from tests.nnunet_reference import built_trainer
from tests.toy import Toy, nnunet_environment
from trainers.contract.plans import labels_of, load_dataset_json, load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, Schedule
from trainers.data.batches import Batch, Preparation, SplitName
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.network.model import build_network
from trainers.network.optimizer import sgd
from trainers.training.assemble import assemble, model_config, newest_everywhere, progress_from, restore, state_writer, warm_up
from trainers.training.loop import train
from trainers.training.mid_epoch import MidEpochSaver
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


def begun_fold(toy: Toy, results: Path, emas: list[float], trainer: str = "nnUNetTrainer", **debug: str) -> Path:
    """A fold after as many epochs as there are values, of three; its best checkpoint is of the epoch with the largest. Returns its folder.

    The weights are random, and so are the momenta.
    """
    model = results / toy.name / f"{trainer}__nnUNetPlans__toy_3d"
    root = model / "fold_0"
    root.mkdir(parents=True)
    shutil.copy(toy.preprocessed / "nnUNetPlans.json", model / "plans.json")
    shutil.copy(toy.preprocessed / "dataset.json", model / "dataset.json")
    (root / "debug.json").write_text(json.dumps(DEBUG | {"num_epochs": str(EPOCHS)} | debug))
    for name, count in (("latest", len(emas)), ("best", emas.index(max(emas)) + 1)):
        torch.save(begun_checkpoint(toy, emas[:count], trainer, seed=count), root / f"checkpoint_{name}.pth")
    return root


def begun_checkpoint(toy: Toy, emas: list[float], trainer: str = "nnUNetTrainer", seed: int = 1) -> dict[str, Any]:
    """What nnU-Net saves at the end of an epoch."""
    plans, dataset_json = load_plans(toy.preprocessed, "nnUNetPlans"), load_dataset_json(toy.preprocessed)
    torch.manual_seed(seed)
    network = build_network(plans.configuration("toy_3d"), 1, labels_of(dataset_json).num_heads)
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
        "init_args": {"plans": plans.content, "configuration": "toy_3d", "fold": 0, "dataset_json": dataset_json},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


class OwnBatches:
    """Batches of a run, made in this process."""

    def __init__(self, spec: RunSpec) -> None:
        self.wait_s, self.preparation, self.loaders = 0.0, Preparation(), 1
        self._spec, self._data = spec, open_dataset(spec)

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        schedule, positions = self._spec.schedule, range(model_config(self._spec).global_batch)
        count = schedule.train_iterations if split == "train" else schedule.val_iterations
        return (make_batch(self._data, self._spec, split, epoch, number, positions) for number in range(first_iteration, count))


def trained_alone(folder: RunFolder, fencing_token: int) -> str:
    """Train a run from its newest state to its end in this process, as one worker does; returns how it ended."""
    spec = folder.spec()
    plan, newest = model_config(spec), newest_everywhere(folder, ALONE)
    learner = assemble(spec, plan, ALONE, fencing_token)
    restore(spec, folder, learner, newest)
    writer = state_writer(spec, folder, plan, fencing_token, newest)
    warm_up(learner, plan, ALONE)
    saver = MidEpochSaver(spec, folder, ALONE, learner, writer)
    return train(spec, folder, ALONE, learner, OwnBatches(spec), saver, progress_from(newest, spec.schedule))
