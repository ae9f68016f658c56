"""The validation that nnU-Net made of a fold, scored as ours: from its predictions and the reference labels of the dataset as it is now.

nnU-Net's own Dice of every case, in validation/summary.json, must come out again: else labels or predictions have changed since.
"""

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

from orchestrator.dataset.problems import listed
from orchestrator.errors import DataError
from trainers.contract.names import shown
from trainers.contract.plans import Labels
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.summary import SCORING, CaseResult, class_keys
from trainers.data.case_files import read_properties
from trainers.data.segmentation_file import SegmentationFile, read_segmentation
from trainers.storage.faults import find_outage
from trainers.storage.files import read_json
from trainers.validation.case_metrics import case_metrics
from trainers.validation.spacing import noted_spacing

TOLERANCE = 1e-6
MOST_THREADS = 8
Dice = dict[str, float]
"""Key of a class in summary.json -> Dice."""


@dataclass(frozen=True)
class ScoredData:
    """What the cases of a fold are scored with."""

    labels: Labels
    ending: str
    reader: str
    """nnU-Net's name of the reader of the plans."""
    folder: Path
    """Of the preprocessed cases of the configuration."""


def dice_of_summary(folder: RunFolder, ending: str) -> dict[str, Dice]:
    """Case -> Dice of each class, by nnU-Net's summary.json. Raises DataError where there is none, or none that can be read."""
    path = folder.summary("final")
    if not path.is_file():
        raise DataError(
            f"import: {path} does not exist: nnU-Net has not validated this fold. Run the same nnUNetv2_train with --val, then import it."
        )
    content = read_json(path, "nnU-Net's summary.json")
    try:
        return dict(_case_dice(case, ending) for case in content["metric_per_case"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:  # the last of a whole number beyond all floats
        raise DataError(f"import: {path} is no summary.json of nnU-Net's: {err!r}. Run nnUNetv2_train with --val again.") from err


def _case_dice(case: Mapping[str, Any], ending: str) -> tuple[str, Dice]:
    name = re.split(r"[/\\]", case["prediction_file"])[-1]
    if not name.endswith(ending):
        raise ValueError(f"prediction_file {shown(name)} does not end in {ending}")
    return name.removesuffix(ending), {str(key): float(values["Dice"]) for key, values in case["metrics"].items()}


def check_cases(spec: RunSpec, validated: Mapping[str, Dice], folder: RunFolder) -> None:
    """Raise DataError unless nnU-Net validated exactly the cases that the split holds back in this fold."""
    mine, theirs = set(spec.val_cases), set(validated)
    parts = [(theirs - mine, "it validated also"), (mine - theirs, "it lacks")]
    if different := [f"{words} {listed(sorted(cases))}" for cases, words in parts if cases]:
        raise DataError(
            f"import: {folder.summary('final')} is of other cases than fold {spec.fold} of {spec.preprocessed_folder}/splits_final.json: "
            f"{', '.join(different)}. Import it beside the split that it was trained by: trained on other cases, it cannot be compared."
        )


def score_fold(folder: RunFolder, spec: RunSpec, data: ScoredData, checkpoint_sha256: str, predictions: Path) -> list[CaseResult]:
    """Score every case of a fold, in the order of the split. `predictions`: where the predictions will lie for the run.

    Raises DataError for files that are missing or cannot be read, and where nnU-Net's own Dice does not come out; StorageError.
    """
    validated = dice_of_summary(folder, data.ending)
    check_cases(spec, validated, folder)

    def score(case: str) -> CaseResult:
        return _scored(folder, spec, data, case, checkpoint_sha256, predictions)

    with ThreadPoolExecutor(min(MOST_THREADS, cpu_count() or 1)) as threads:
        results = list(threads.map(score, spec.val_cases))
    check_dice(results, validated, data.labels, folder.summary("final"))
    return results


def check_dice(results: Sequence[CaseResult], validated: Mapping[str, Dice], labels: Labels, path: Path) -> None:
    """Raise DataError, naming cases, unless every Dice is nnU-Net's."""
    keys = class_keys(labels)
    for result in results:
        theirs = sorted(validated[result.case_id])
        if set(keys.values()) != set(theirs):
            raise DataError(
                f"import: {path} has the classes {listed(theirs)}, dataset.json has {listed(sorted(keys.values()))}. "
                "Bring the dataset back by which it was trained; models of other labels cannot be compared."
            )
    other = [
        f"{result.case_id} ({name}: {validated[result.case_id][key]:.6f}, now {result.metrics[name].dice:.6f})"
        for result in results
        for name, key in keys.items()
        if not _is_same(result.metrics[name].dice, validated[result.case_id][key])
    ]
    if other:
        raise DataError(
            f"import: {path} has another Dice than its predictions have with the labels in gt_segmentations: {listed(other)}. Labels or "
            "predictions have changed since. Bring the old ones back, or validate again by nnUNetv2_train with --val."
        )


def _is_same(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= TOLERANCE or (math.isnan(ours) and math.isnan(theirs))


def _scored(folder: RunFolder, spec: RunSpec, data: ScoredData, case: str, checkpoint_sha256: str, predictions: Path) -> CaseResult:
    reference_file = spec.preprocessed_folder / "gt_segmentations" / f"{case}{data.ending}"
    prediction_file = folder.validation("final") / f"{case}{data.ending}"
    reference, prediction = (_read(file, data.reader, case) for file in (reference_file, prediction_file))
    spacing = noted_spacing(read_properties(data.folder, case), data.reader)
    tolerance_mm = spec.validation.surface_tolerance_mm
    try:
        metrics = case_metrics(reference.values_ZYX, prediction.values_ZYX, spacing.mm_ZYX, data.labels, tolerance_mm)
    except DataError as err:
        raise DataError(f"import: case {case} ({prediction_file}): {err}") from err
    return CaseResult(
        case_id=case,
        checkpoint_sha256=checkpoint_sha256,
        reference_file=str(reference_file),
        prediction_file=str(predictions / prediction_file.name),
        surface_tolerance_mm=tolerance_mm,
        scoring=SCORING,
        no_distances=spacing.why_unknown,
        metrics=metrics,
        seconds=0.0,  # nnU-Net does not record it
    )


def _read(path: Path, reader: str, case: str) -> SegmentationFile:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    try:
        return read_segmentation(path, recursive_find_reader_writer_by_name(reader)())
    except Exception as err:  # image libraries raise whatever they like
        find_outage(err, [path])
        why = str(err).strip().splitlines()[-1:] or [type(err).__name__]
        raise DataError(
            f"import: case {case}: {path} cannot be read: {why[0][:300] if path.is_file() else 'it is missing'}. Restore the file, or "
            "validate again by nnUNetv2_train with --val."
        ) from err
