"""The two stages of nnU-Net's cascade: what plans call them, and where the first leaves its predictions for the second.

A configuration with `previous_stage` sees, beside the image, that stage's segmentation of the case as one channel per foreground label.
Source: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (folder_with_segs_from_previous_stage, perform_actual_validation).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainers.contract.plans import Labels, num_input_channels
from trainers.contract.records import Record
from trainers.contract.run_spec import RunSpec, WeightsName
from trainers.storage.faults import reading

log = logging.getLogger(__name__)

PREDICTED = "predicted_next_stage"
"""nnU-Net's folder in the model folder of the first stage; in it one folder per next stage, in that one file per case."""

PART_PREFIX = ".part-"
"""Start of the names of temporary folders among predictions: leftovers of a killed process may be deleted."""


class NextStageRecord(Record):
    """`predicted_next_stage/<configuration>/nnfleet/<case>.json`: which weights made the segmentation of a case, written after it."""

    run_key: str = ""
    checkpoint_sha256: str = ""
    """Of the first stage's final checkpoint."""
    file: str = ""
    """Name of the segmentation's file."""
    sha256: str = ""
    """Of its bytes."""
    size_bytes: int = -1


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


def first_stage_folder(spec: RunSpec, stage: str, model_folder: Path | None = None) -> Path:
    """The model folder of the first stage of a run: of the same trainer, plans, variant and seed; of a run that nnU-Net trained or began,
    nnU-Net's own: beside the run's where it lay there, wherever both are now.

    `model_folder`: where that of the run lies now; default: where it was planned.
    """
    beside, origin = (model_folder or spec.model_folder).parent, spec.imported or spec.continued
    if origin is None:
        return beside / model_folder_name(spec.trainer, spec.plans, stage, spec.variant, spec.seed)
    theirs = origin.folder.parent.parent
    place = beside if theirs == spec.model_folder.parent else theirs  # results are moved whole
    return place / model_folder_name(spec.trainer, spec.plans, stage)


def predictions_of(model_folder: Path, next_stage: str) -> Path:
    """Where a first stage leaves its segmentations of all cases for `next_stage`."""
    return model_folder / PREDICTED / next_stage


def previous_predictions(spec: RunSpec, stage: str) -> Path:
    """Where a run of the second stage finds the segmentations of `stage`."""
    return predictions_of(first_stage_folder(spec, stage), spec.configuration)


def part_prefix(spec: RunSpec) -> str:
    """Start of the names of a run's temporary folders among segmentations for a next stage: those of other folds may be at work."""
    return f"{PART_PREFIX}{spec.fold}-"


def record_of(folder: Path, case_id: str) -> Path:
    """The file of a case's `NextStageRecord` in a folder of segmentations for a next stage."""
    return folder / "nnfleet" / f"{case_id}.json"


def read_record(folder: Path, case_id: str) -> NextStageRecord | None:
    """The record of a case whose segmentation is still the file that it was written for (by its size); None where there is none.

    Raises StorageError where the disk is away.
    """
    path = record_of(folder, case_id)
    try:
        with reading(path):
            record = NextStageRecord.model_validate(json.loads(path.read_bytes()))
            return record if (folder / Path(record.file).name).stat().st_size == record.size_bytes else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, ValidationError) as err:
        log.warning("the record of a first stage's segmentation in %s cannot be read (%s): it counts as missing", path, err)
        return None


def has_next_stages_due(spec: RunSpec, name: WeightsName, case_id: str, checkpoint_sha256: str) -> bool:
    """True unless these weights are to leave a case's segmentation for a next stage and it is not there: the final ones alone do."""
    if name != "final":
        return True
    records = (read_record(predictions_of(spec.model_folder, stage), case_id) for stage in spec.next_stages)
    return all(record is not None and record.checkpoint_sha256 == checkpoint_sha256 for record in records)
