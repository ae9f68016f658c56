"""The two sides of `benchmarks/validation.py`: one fold's full validation by ours and by nnU-Net's trainer, with the same weights."""

import contextlib
import json
import multiprocessing
import multiprocessing.dummy
import resource
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel
import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module  # noqa: N813 - a module

from tests.random_model import random_run
from tests.toy import PLANS, Toy, nnunet_environment, toy_dataset
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.validation.export import Exporter
from trainers.validation.inference import CasePredictor
from trainers.validation.one_case import validate_case

NAME = "validated"
"""Of the configuration that both sides validate."""


@dataclass(frozen=True)
class Network:
    """A U-Net, its patch, and the raw cases, so many times as long as the toy's along each axis (about 34 x 40 x 40 voxels)."""

    features: tuple[int, ...]
    convolutions: int
    patch: int
    scale: int
    spacing_mm: float = 1.25
    """Of the preprocessed cases; the raw ones have 1 mm."""


NETWORKS = {
    "tiny": Network((4, 8, 16), 1, 24, 1),
    "small": Network((8, 16, 32), 1, 32, 2),
    "middle": Network((32, 64, 128, 256), 2, 64, 2),
}


class Stopwatch:
    """CPU and wall seconds of parts of a validation, in whatever thread they run."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = defaultdict(float)
        self.wall: dict[str, float] = defaultdict(float)
        self._started: dict[str, tuple[float, float]] = {}

    def start(self, part: str) -> None:
        """A part begins."""
        self._started[part] = time.thread_time(), time.perf_counter()

    def stop(self, part: str) -> None:
        """It ends."""
        cpu, wall = self._started[part]
        self.cpu[part] += time.thread_time() - cpu
        self.wall[part] += time.perf_counter() - wall

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted as `part`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.start(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(part)

        return call

    def hook(self, network: torch.nn.Module) -> None:
        """Count the forward passes of a network."""
        network.register_forward_pre_hook(lambda *_: self.start("forwards"))
        network.register_forward_hook(lambda *_: self.stop("forwards"))


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


@contextlib.contextmanager
def threads_for_processes() -> Iterator[None]:
    """nnU-Net's pools have threads."""
    with mock.patch.object(multiprocessing, "get_context", return_value=multiprocessing.dummy):
        yield


@dataclass(frozen=True)
class Sides:
    """A dataset and a run whose final checkpoint both sides validate."""

    toy: Toy
    spec: RunSpec
    folder: RunFolder

    @classmethod
    def made(cls, base: Path, network: Network, cases: int) -> "Sides":
        """Write, plan and preprocess the dataset below `base`, and make the checkpoints."""
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        toy = toy_dataset(base, cases=3 * cases, scale=network.scale)
        with nnunet_environment(base):
            preprocess(toy, network)
        spec, folder = random_run(toy, base / "ours", NAME)
        sides = cls(toy, spec, folder)
        with sides._nnunet() as trainer:
            trainer.initialize()
            trainer.network.load_state_dict(torch.load(folder.checkpoint("final"), weights_only=True)["network_weights"])
            trainer.inference_allowed_mirroring_axes = (0, 1, 2)
            trainer.save_checkpoint(str(base / "nnunet.pth"))
        return sides

    def measured(self, side: str) -> dict[str, dict[str, float]]:
        """CPU and wall seconds of one side's validation in parts."""
        watch = Stopwatch()
        shutil.rmtree(self.folder.validation("final"), ignore_errors=True)
        shutil.rmtree(self.folder.cases("final"), ignore_errors=True)
        cpu, wall = cpu_s(), time.perf_counter()
        if side == "ours":
            self._ours(watch)
        else:
            self._theirs(watch, has_threads=side == "nnunet with threads")
        watch.cpu["total"], watch.wall["total"] = cpu_s() - cpu, time.perf_counter() - wall
        for spent in (watch.cpu, watch.wall):
            spent["rest"] = spent["total"] - spent["forwards"] - spent["export"]
        return {"cpu": dict(watch.cpu), "wall": dict(watch.wall)}

    def _ours(self, watch: Stopwatch) -> None:
        with mock.patch.object(Exporter, "write", watch.timed("export", Exporter.write)):
            predictor = CasePredictor(self.spec, self.folder.checkpoint("final"), "cpu")
            watch.hook(predictor._predictor.network)
            for case in self.spec.val_cases:
                validate_case(predictor, self.folder, "final", case)

    def _theirs(self, watch: Stopwatch, *, has_threads: bool) -> None:
        with self._nnunet() as trainer, contextlib.ExitStack() as patches:
            if has_threads:
                export = watch.timed("export", trainer_module.export_prediction_from_logits)
                patches.enter_context(threads_for_processes())
                patches.enter_context(mock.patch.object(trainer_module, "export_prediction_from_logits", export))
            trainer.load_checkpoint(str(self.toy.base / "nnunet.pth"))
            watch.hook(trainer.network)
            trainer.perform_actual_validation()

    @contextlib.contextmanager
    def _nnunet(self) -> Iterator[Any]:
        """nnU-Net's trainer."""
        plans, dataset_json = (json.loads((self.toy.preprocessed / name).read_text()) for name in (f"{PLANS}.json", "dataset.json"))
        with nnunet_environment(self.toy.base):
            yield trainer_module.nnUNetTrainer({**plans, "continue_training": False}, NAME, 0, dataset_json, torch.device("cpu"))

    def agreement(self) -> tuple[float, float]:
        """Share of equal labels, and the largest difference of a Dice, over all cases of the last validation of each side."""
        with self._nnunet() as trainer:
            theirs = Path(trainer.output_folder) / "validation"
        summary = json.loads((theirs / "summary.json").read_text())
        dice = {Path(case["prediction_file"]).name: case["metrics"] for case in summary["metric_per_case"]}
        equal, differences = [], []
        self.measured("ours")
        for case in self.spec.val_cases:
            files = (folder / f"{case}.nii.gz" for folder in (self.folder.validation("final"), theirs))
            mine, other = (np.asarray(nibabel.load(file).dataobj) for file in files)
            equal.append(float((mine == other).mean()))
            result = read_result(self.folder, "final", case)
            assert result is not None
            values = zip(result.metrics.values(), dice[f"{case}.nii.gz"].values(), strict=True)
            differences += [abs(own.dice - their["Dice"]) for own, their in values]
        return float(np.mean(equal)), float(np.nanmax(differences))


def preprocess(toy: Toy, network: Network) -> None:
    """Add the configuration to the plans, and preprocess all cases for it with nnU-Net's own code."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    path = toy.preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    stages, architecture = len(network.features), plans["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(network.features),
        "strides": [[1] * 3, *[[2] * 3] * (stages - 1)],
        "kernel_sizes": [[3] * 3] * stages,
        "n_conv_per_stage": [network.convolutions] * stages,
        "n_conv_per_stage_decoder": [network.convolutions] * (stages - 1),
    }
    plans["configurations"][NAME] = {
        **plans["configurations"]["3d_fullres"],
        "data_identifier": f"{PLANS}_{NAME}",
        "patch_size": [network.patch] * 3,
        "spacing": [network.spacing_mm] * 3,
        "architecture": architecture,
    }
    path.write_text(json.dumps(plans, indent=1))
    manager, dataset_json = PlansManager(plans), json.loads((toy.raw / "dataset.json").read_text())
    folder = toy.preprocessed / f"{PLANS}_{NAME}"
    folder.mkdir()
    for case_id, files in get_filenames_of_train_images_and_targets(str(toy.raw), dataset_json).items():
        target, configuration = str(folder / case_id), manager.get_configuration(NAME)
        DefaultPreprocessor(verbose=False).run_case_save(target, files["images"], files["label"], manager, configuration, dataset_json)
