"""nnU-Net itself, run beside ours: its trainers' rules, its data loader, and its trainers as objects."""

import contextlib
import functools
import json
import multiprocessing.dummy
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.toy import PLANS, Toy, nnunet_environment
from trainers.contract.run_spec import RunSpec

PATCHES = [(128, 128, 128), (96, 160, 160), (40, 56, 40), (20, 320, 256), (24, 24, 24), (8, 32, 32), (512, 512), (96, 160), (33, 47, 65)]


@functools.cache
def trainer_class(name: str) -> Any:
    """nnU-Net's trainer class, for its static methods and for methods called on a fake."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
    return {"nnUNetTrainer": nnUNetTrainer, "nnUNetTrainerDA5": nnUNetTrainerDA5}[name]


def geometry_of_nnunet(patch: tuple[int, ...], trainer: str) -> tuple[Any, ...]:
    """Rotation range, dummy 2D, loader patch and mirror axes as nnU-Net's trainer computes them."""
    fake = SimpleNamespace(configuration_manager=SimpleNamespace(patch_size=list(patch)), print_to_log_file=lambda *_, **__: None)
    rules: tuple[Any, ...] = trainer_class(trainer).configure_rotation_dummyDA_mirroring_and_inital_patch_size(fake)
    return rules


def managers(spec: RunSpec) -> tuple[Any, Any]:
    """nnU-Net's configuration manager and label manager of a run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    plans = PlansManager(str(spec.preprocessed_folder / f"{spec.plans}.json"))
    dataset_json = json.loads((spec.preprocessed_folder / "dataset.json").read_text())
    return plans.get_configuration(spec.configuration), plans.get_label_manager(dataset_json)


def loader_of_nnunet(spec: RunSpec, split: str, transforms: Any = None, batch_size: int | None = None) -> Any:
    """nnU-Net's data loader for a run, as nnUNetTrainer.get_dataloaders makes it."""
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    configuration, label_manager = managers(spec)
    trainer = "nnUNetTrainer" if spec.recipe == "default" else "nnUNetTrainerDA5"
    patch = configuration.patch_size
    loader_patch = geometry_of_nnunet(tuple(patch), trainer)[2] if split == "train" else patch
    cases = list(spec.train_cases if split == "train" else spec.val_cases)
    folder = spec.preprocessed_folder / configuration.data_identifier
    return nnUNetDataLoader(
        nnUNetDatasetBlosc2(str(folder), cases),
        batch_size or configuration.batch_size,
        loader_patch,
        patch,
        label_manager,
        oversample_foreground_percent=spec.schedule.foreground_oversampling,
        transforms=transforms,
    )


@functools.cache
def variant_class(name: str) -> Any:
    """nnU-Net's trainer class of a name, found as its commands find it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        return recursive_find_trainer_class_by_name(name)


def built_trainer(name: str, toy: Toy, results: Path, configuration: str = "toy_3d", fold: int = 0) -> Any:
    """nnU-Net's own trainer object on the CPU, as its command makes it; its files go to `results`."""
    plans = json.loads((toy.preprocessed / f"{PLANS}.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((toy.preprocessed / "dataset.json").read_text())
    kind = variant_class(name)
    with nnunet_environment(toy.base):
        os.environ.update({"nnUNet_results": str(results)})
        trainer = kind(plans, configuration, fold, dataset_json, torch.device("cpu"))
    trainer.print_to_log_file = lambda *_, **__: None
    return trainer


def trained_by_nnunet(toy: Toy, results: Path, configuration: str = "toy_3d", fold: int = 0, stops_after: int = 0) -> Path:
    """Train a fold for two short epochs with nnU-Net's own trainer on the CPU and validate it; returns the fold's folder.

    `stops_after`: it is to have three, saves after each, and is left after so many.

    The loader runs in this process, and threads take the place of its pools of spawned processes.
    """
    trainer = built_trainer("nnUNetTrainer", toy, results, configuration, fold)
    del trainer.print_to_log_file  # its log is read
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, 2, 1
    with _threads_for_processes(), nnunet_environment(toy.base):
        os.environ.update({"nnUNet_results": str(results), "nnUNet_n_proc_DA": "0"})
        if stops_after:
            _begin_training(trainer, stops_after)
        else:
            trainer.run_training()
            trainer.perform_actual_validation()
    return Path(trainer.output_folder)


@contextlib.contextmanager
def _threads_for_processes() -> Iterator[None]:
    """In place of the pools that nnU-Net's trainer and evaluation spawn."""
    from nnunetv2.evaluation import evaluate_predictions

    pools = SimpleNamespace(get_context=lambda _: multiprocessing.dummy)
    modules = [sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"], evaluate_predictions]
    before = [module.multiprocessing for module in modules]
    try:
        for module in modules:
            vars(module)["multiprocessing"] = pools
        yield
    finally:
        for module, pool in zip(modules, before, strict=True):
            vars(module)["multiprocessing"] = pool


def validated_by_nnunet(toy: Toy, results: Path, configuration: str, checkpoint: Path, fold: int = 0) -> Path:
    """The full validation of nnU-Net's own trainer with the weights of a checkpoint; returns the fold's folder."""
    weights = torch.load(checkpoint, weights_only=True)["network_weights"]
    trainer = built_trainer("nnUNetTrainer", toy, results, configuration, fold)
    with _threads_for_processes(), nnunet_environment(toy.base):
        os.environ.update({"nnUNet_results": str(results)})
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        trainer.network.load_state_dict(weights)
        trainer.perform_actual_validation()
    return Path(trainer.output_folder)


def _begin_training(trainer: Any, stops_after: int) -> None:
    """nnU-Net's run_training, left at the end of an epoch."""

    class Left(Exception):
        pass

    trainer.num_epochs, trainer.save_every = 3, 1
    ends = trainer.on_epoch_end

    def end() -> None:
        ends()
        if trainer.current_epoch == stops_after:
            raise Left

    trainer.on_epoch_end = end
    with contextlib.suppress(Left):
        trainer.run_training()
