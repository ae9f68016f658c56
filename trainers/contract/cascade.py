"""The two stages of nnU-Net's cascade: what plans call them, and where the first leaves its predictions for the second.

A configuration with `previous_stage` sees, beside the image, that stage's segmentation of the case as one channel per foreground label.
Source: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (folder_with_segs_from_previous_stage, perform_actual_validation).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.contract.plans import Labels, num_input_channels
from trainers.contract.run_spec import RunSpec

PREDICTED = "predicted_next_stage"
"""nnU-Net's folder in the model folder of the first stage; in it one folder per next stage, in that one file per case."""


def previous_stage(configuration: Mapping[str, Any]) -> str:
    """The configuration whose segmentations a resolved configuration needs; '' for one that stands alone."""
    return str(configuration.get("previous_stage") or "")


def next_stages(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """The configurations that need the segmentations of this one."""
    named = configuration.get("next_stage") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def network_channels(configuration: Mapping[str, Any], dataset_json: dict[str, Any], labels: Labels) -> int:
    """Channels that the network takes: those of the image, and of a second stage one per foreground label."""
    return num_input_channels(dataset_json) + (len(labels.foreground_values) if previous_stage(configuration) else 0)


def model_folder_name(trainer: str, plans: str, configuration: str, variant: str = "", seed: int = 0) -> str:
    """nnU-Net's name of a model folder, with what it does not know behind it."""
    return f"{trainer}__{plans}__{configuration}{f'__{variant}' if variant else ''}{f'__seed{seed}' if seed else ''}"


def first_stage_folder(spec: RunSpec, stage: str) -> Path:
    """The model folder of the first stage of a run: of the same trainer, plans, variant and seed."""
    return spec.model_folder.parent / model_folder_name(spec.trainer, spec.plans, stage, spec.variant, spec.seed)


def predictions_of(model_folder: Path, next_stage: str) -> Path:
    """Where a first stage leaves its segmentations of all cases for `next_stage`."""
    return model_folder / PREDICTED / next_stage


def previous_predictions(spec: RunSpec, stage: str) -> Path:
    """Where a run of the second stage finds the segmentations of `stage`."""
    return predictions_of(first_stage_folder(spec, stage), spec.configuration)
