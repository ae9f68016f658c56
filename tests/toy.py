"""Small real datasets: made, planned and preprocessed by nnU-Net's own code in this process, in seconds.

Intensities follow the labels, so that a few epochs of a tiny network learn something.
"""

import contextlib
import io
import json
import multiprocessing.dummy
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np

from orchestrator.dataset.case_readings import labels_of_cases
from orchestrator.dataset.digest import data_digest
from trainers.contract.plans import Split, load_dataset_json, load_plans, load_splits, split_for
from trainers.contract.run_spec import LoaderSpec, RunSpec, Schedule, WorkerSpec

Kind = Literal["labels", "regions", "ignore"]
PLANS = "nnUNetPlans"
_NUMBERS: dict[Kind, int] = {"labels": 901, "regions": 902, "ignore": 903}
_LABELS: dict[Kind, dict[str, int | list[int]]] = {
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "regions": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "ignore": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
}


@dataclass(frozen=True)
class Toy:
    """A dataset below `base`: its name and its three folders of dataset level (<nnUNet_raw>/<name> and so on)."""

    base: Path
    name: str
    raw: Path
    preprocessed: Path
    results: Path

    def env(self) -> dict[str, str]:
        """nnU-Net's environment variables for this dataset."""
        return environment(self.base)


def environment(base: Path) -> dict[str, str]:
    """nnU-Net's environment variables for folders below `base`, with few processes."""
    folders = {name: str(base / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return {**folders, "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}


@contextlib.contextmanager
def nnunet_environment(base: Path) -> Iterator[None]:
    """Run nnU-Net's code on folders below `base`, without its prints and warnings; restores the environment.

    Threads list its files in place of forked processes: a process forked beside Ray's threads may hang on a lock that one of them held.
    """
    before = dict(os.environ)
    os.environ.update(environment(base))
    try:
        from nnunetv2.utilities import utils  # reads the environment

        with (
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
            mock.patch.object(utils, "Pool", multiprocessing.dummy.Pool),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def toy_dataset(base: Path, kind: Kind = "labels", *, cases: int = 6, channels: int = 1, anisotropic: bool = False, scale: int = 1) -> Toy:
    """Make a dataset of `cases` volumes with 3 folds, planned and preprocessed for 3D and 2D, with toy configurations added.

    `regions` have a zero margin (nnU-Net then normalises inside the mask only); `anisotropic` has thick slices (dummy 2D).
    The last case lacks the lesion (for regions: core and enhancing). Volumes are `scale` times as long along each axis.
    """
    number = _NUMBERS[kind] + (10 if anisotropic else 0) + 20 * (channels - 1)
    name = f"Dataset{number}_Toy{kind.capitalize()}{'Thick' if anisotropic else ''}{channels}"
    toy = Toy(base, name, *(base / root / name for root in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")))
    for folder in (toy.raw / "imagesTr", toy.raw / "labelsTr", toy.preprocessed / "gt_segmentations", toy.results):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(cases):
        _write_case(toy, kind, index, index == cases - 1, channels, anisotropic, scale)
    content = {
        "channel_names": {str(c): "CT" if c == 0 and kind == "labels" else f"MR{c}" for c in range(channels)},
        "labels": _LABELS[kind],
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **({"regions_class_order": [1, 2, 3]} if kind == "regions" else {}),
    }
    (toy.raw / "dataset.json").write_text(json.dumps(content, indent=1))
    with nnunet_environment(base):
        _extract_fingerprint(toy, content)
        _plan(toy)
        _preprocess(toy)
    _write_splits(toy, cases)
    return toy


def toy_spec(
    toy: Toy,
    configuration: str = "toy_3d",
    trainer: str = "nnUNetTrainer",
    fold: int | Literal["all"] = 0,
    seed: int = 0,
    **overrides: Any,
) -> RunSpec:
    """A run of `toy` on the CPU with a very short schedule; `overrides` replace fields of the RunSpec."""
    all_cases = tuple(sorted(p.name.removesuffix(".nii.gz") for p in (toy.preprocessed / "gt_segmentations").iterdir()))
    split = split_for(load_splits(toy.preprocessed), fold, all_cases, toy.name)
    fields: dict[str, Any] = {
        "run_key": f"toy-{toy.name}-{configuration}-{trainer}-f{fold}-s{seed}",
        "dataset": toy.name,
        "preprocessed_folder": toy.preprocessed,
        "model_folder": toy.results / f"{trainer}__{PLANS}__{configuration}",
        "plans": PLANS,
        "configuration": configuration,
        "trainer": trainer,
        "fold": fold,
        "seed": seed,
        "train_cases": split.train,
        "val_cases": split.val,
        "data_digest": _digest(toy, configuration, split),
        "schedule": Schedule(epochs=2, train_iterations=3, val_iterations=2),
        "workers": WorkerSpec(count=1, gpus=0, cpus=1),
        "loader": LoaderSpec(actors=1, prefetch=2),
    }
    return RunSpec(**{**fields, **overrides})


def _digest(toy: Toy, configuration: str, split: Split) -> str:
    """The digest that a plan of this run would carry."""
    plans, dataset_json = load_plans(toy.preprocessed, PLANS), load_dataset_json(toy.preprocessed)
    cases = sorted({*split.train, *split.val})
    labels = labels_of_cases(toy.preprocessed, cases, ".nii.gz", str(plans.content["image_reader_writer"]), toy.results)
    return data_digest(plans, configuration, dataset_json, split, {case: label.sha256 for case, label in labels.items()})


def _write_case(toy: Toy, kind: Kind, index: int, lacks_lesion: bool, channels: int, anisotropic: bool, scale: int) -> None:
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    rng = np.random.default_rng(1000 * _NUMBERS[kind] + index)
    shape = (12, 44 + 2 * index, 48) if anisotropic else (32 + index % 3, 36 + 2 * index, 40)
    shape = (shape[0] * scale, shape[1] * scale, shape[2] * scale)
    labels_ZYX = _labels(rng, shape, kind, lacks_lesion)
    spacing_mm = (1.0, 1.0, 3.5) if anisotropic else (1.0, 1.0, 1.25 if index == 1 else 1.0)
    for channel in range(channels):
        contrast = np.array([20.0, 90.0, 160.0, 230.0]) * (1 if channel % 2 == 0 else -0.5) + 200
        values_ZYX = contrast[np.where(labels_ZYX == 255, 0, labels_ZYX)] + rng.normal(0, 12, shape)
        if kind == "regions":
            values_ZYX[_margin(shape)] = 0
        image = sitk.GetImageFromArray(values_ZYX.astype(np.float32))
        image.SetSpacing(spacing_mm)
        sitk.WriteImage(image, str(toy.raw / "imagesTr" / f"toy_{index:03d}_{channel:04d}.nii.gz"))
    if kind == "ignore":  # annotated in a few slabs only
        labels_ZYX[rng.random(shape[0]) < 0.6] = 3
    image = sitk.GetImageFromArray(labels_ZYX.astype(np.uint8))
    image.SetSpacing(spacing_mm)
    for folder in (toy.raw / "labelsTr", toy.preprocessed / "gt_segmentations"):
        sitk.WriteImage(image, str(folder / f"toy_{index:03d}.nii.gz"))


def _labels(rng: np.random.Generator, shape: tuple[int, ...], kind: Kind, lacks_lesion: bool) -> np.ndarray[Any, np.dtype[np.int16]]:
    """An ellipsoid (1) near the middle with a smaller one (2, for regions with a core of 3) inside."""
    grid = np.meshgrid(*(np.arange(s) for s in shape), indexing="ij")
    centre = [s * rng.uniform(0.42, 0.58) for s in shape]

    def inside(radius: float) -> Any:
        return sum(((g - c) / (s * radius)) ** 2 for g, c, s in zip(grid, centre, shape, strict=True)) < 1

    labels_ZYX = np.zeros(shape, np.int16)
    labels_ZYX[inside(0.28)] = 1
    if not lacks_lesion:
        labels_ZYX[inside(0.17)] = 2
        if kind == "regions":
            labels_ZYX[inside(0.11)] = 3
    return labels_ZYX


def _margin(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True outside an ellipsoid that leaves about two thirds of the box's extent: zero background of a skull-stripped scan."""
    grid = np.meshgrid(*(np.linspace(-1, 1, s) for s in shape), indexing="ij")
    return np.asarray(sum((g / 0.8) ** 2 for g in grid) > 1)


def _extract_fingerprint(toy: Toy, dataset_json: dict[str, Any]) -> None:
    """`DatasetFingerprintExtractor.run` without its pool of spawned processes."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    extractor = DatasetFingerprintExtractor(toy.name, 1)
    results = [extractor.analyze_case(c["images"], c["label"], SimpleITKIO, 2000) for c in extractor.dataset.values()]
    intensities = {}
    for channel in range(len(dataset_json["channel_names"])):
        values = np.concatenate([r[2][channel] for r in results])
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        intensities[channel] = {
            "mean": float(values.mean()),
            "median": float(median),
            "std": float(values.std()),
            "min": float(values.min()),
            "max": float(values.max()),
            "percentile_99_5": float(high),
            "percentile_00_5": float(low),
        }
    fingerprint = {
        "spacings": [list(map(float, r[1])) for r in results],
        "shapes_after_crop": [list(map(int, r[0])) for r in results],
        "foreground_intensity_properties_per_channel": intensities,
        "median_relative_size_after_cropping": float(np.median([r[4] for r in results])),
    }
    (toy.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def _plan(toy: Toy) -> None:
    """Plan with nnU-Net's planner, then add the toy configurations, each inheriting from nnU-Net's own."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    ExperimentPlanner(toy.name).plan_experiment()
    path = toy.preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    one, two = [1, 1, 1], [2, 2, 2]
    plans["configurations"] |= {
        "toy_3d": _small(plans, "3d_fullres", [24, 24, 24], 2, [one, two, two], [[3, 3, 3]] * 3),
        "toy_aniso": _small(plans, "3d_fullres", [8, 32, 32], 2, [one, [1, 2, 2], two], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]),
        "toy_2d": _small(plans, "2d", [32, 32], 4, [[1, 1], [2, 2], [2, 2]], [[3, 3]] * 3),
    }
    path.write_text(json.dumps(plans, indent=1))


def _small(plans: dict[str, Any], parent: str, patch: list[int], batch: int, strides: list[Any], kernels: list[Any]) -> dict[str, Any]:
    architecture = json.loads(json.dumps(plans["configurations"][parent]["architecture"]))
    architecture["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "strides": strides,
        "kernel_sizes": kernels,
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
    }
    return {"inherits_from": parent, "patch_size": patch, "batch_size": batch, "architecture": architecture}


def _preprocess(toy: Toy) -> None:
    """`DefaultPreprocessor.run` without its pool of spawned processes."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    plans = PlansManager(str(toy.preprocessed / f"{PLANS}.json"))
    dataset_json = json.loads((toy.preprocessed / "dataset.json").read_text())
    dataset = get_filenames_of_train_images_and_targets(str(toy.raw), dataset_json)
    for name in ("3d_fullres", "2d"):
        configuration = plans.get_configuration(name)
        folder = toy.preprocessed / configuration.data_identifier
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for case_id, files in dataset.items():
            DefaultPreprocessor(verbose=False).run_case_save(
                str(folder / case_id), files["images"], files["label"], plans, configuration, dataset_json
            )


def _write_splits(toy: Toy, cases: int) -> None:
    """Three folds (two for fewer than 3 cases); validation cases are taken in turn."""
    ids = [f"toy_{index:03d}" for index in range(cases)]
    folds = min(3, max(2, cases))
    splits = [{"train": [c for i, c in enumerate(ids) if i % folds != f], "val": ids[f::folds]} for f in range(folds)]
    (toy.preprocessed / "splits_final.json").write_text(json.dumps(splits, indent=1))
