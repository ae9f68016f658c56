"""A toy dataset with both stages of nnU-Net's cascade, and segmentations of its first stage, written by nnU-Net's own code."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.nnunet_reference import managers
from tests.toy import PLANS, Toy, nnunet_environment, toy_spec
from trainers.contract.cascade import previous_predictions
from trainers.contract.run_spec import RunSpec

FIRST, SECOND = "toy_lowres", "toy_cascade"
_SPACING_MM = [1.6, 1.6, 1.6]


def with_cascade(toy: Toy, base: Path) -> Toy:
    """A copy of a 3D toy below `base` whose plans have the two stages as nnU-Net names them, both preprocessed."""
    shutil.copytree(toy.base, base, dirs_exist_ok=True, ignore=shutil.ignore_patterns("nnUNet_results"))
    copy = replace(toy, base=base, raw=base / "nnUNet_raw" / toy.name, preprocessed=base / "nnUNet_preprocessed" / toy.name)
    copy = replace(copy, results=base / "nnUNet_results" / toy.name)
    copy.results.mkdir(parents=True, exist_ok=True)
    path = copy.preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    second = "toy_aniso" if "Thick" in toy.name else "toy_3d"
    first = {"inherits_from": "toy_3d", "data_identifier": f"{PLANS}_{FIRST}", "patch_size": [16, 16, 16]}
    plans["configurations"] |= {
        FIRST: {**first, "spacing": _SPACING_MM, "next_stage": SECOND},
        SECOND: {"inherits_from": second, "previous_stage": FIRST},
    }
    path.write_text(json.dumps(plans, indent=1))
    with nnunet_environment(base):
        _preprocess(copy)
    return copy


def _preprocess(toy: Toy) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    plans = PlansManager(str(toy.preprocessed / f"{PLANS}.json"))
    dataset_json = json.loads((toy.preprocessed / "dataset.json").read_text())
    configuration = plans.get_configuration(FIRST)
    folder = toy.preprocessed / configuration.data_identifier
    folder.mkdir()
    for case_id, files in get_filenames_of_train_images_and_targets(str(toy.raw), dataset_json).items():
        arguments = (str(folder / case_id), files["images"], files["label"], plans, configuration, dataset_json)
        DefaultPreprocessor(verbose=False).run_case_save(*arguments)


def cascade_spec(toy: Toy, trainer: str = "nnUNetTrainer", **overrides: Any) -> RunSpec:
    """A run of the second stage."""
    return toy_spec(toy, SECOND, trainer, **overrides)


def predict_first_stage(spec: RunSpec, dataset_class: Any = None) -> Path:
    """Segmentations of all cases of a second stage's run where it looks for them: its labels moved by two voxels, with an error of its
    own in each case. Returns their folder. `dataset_class`: nnU-Net's, by which they are written; that of blosc2 files unless named.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    kind = dataset_class or nnUNetDatasetBlosc2
    configuration, labels = managers(spec)
    folder = previous_predictions(spec, configuration.previous_stage_name)
    folder.mkdir(parents=True, exist_ok=True)
    data_folder = str(spec.preprocessed_folder / configuration.data_identifier)
    for number, case_id in enumerate(sorted({*spec.train_cases, *spec.val_cases})):
        _, seg, _, _ = nnUNetDatasetBlosc2(data_folder, [case_id]).load_case(case_id)
        found_ZYX = np.roll(np.maximum(seg[:][0], 0), 2, axis=2).astype(np.uint8)
        found_ZYX[found_ZYX > max(labels.foreground_labels)] = 0  # no prediction has the ignore label
        found_ZYX[1:4, 2 + number : 6 + number, 3:5] = 1 + number % len(labels.foreground_labels)
        kind.save_seg(found_ZYX, os.fspath(folder / case_id))
    return folder
