"""Scores of one predicted case against its reference: nnU-Net's counts and Dice, and surface distances in millimetres.

Z Y X voxels of the original grid, in the reader's axis order; spacing in the same order.
Source: nnunetv2/evaluation/evaluate_predictions.py (`compute_metrics`).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from trainers.contract.lesions import Lesions
from trainers.contract.plans import Labels
from trainers.contract.summary import ClassMetrics
from trainers.errors import DataError
from trainers.validation.lesions import lesions_of
from trainers.validation.surfaces import Mask, surface_metrics

Volume = npt.NDArray[Any]
Box = tuple[slice, ...]


def case_metrics(
    reference_ZYX: Volume,
    prediction_ZYX: Volume,
    spacing_ZYX: tuple[float, ...] | None,
    labels: Labels,
    tolerance_mm: float,
    *,
    count_lesions: bool = False,
) -> dict[str, ClassMetrics]:
    """Score every class of `labels.foreground`. Voxels whose reference is the ignore label count for nothing.

    Both volumes hold label values. A volume of one slice is scored in its plane. Without a spacing HD95 and surface Dice are NaN.
    NaN policy: see `trainers/contract/summary.py`. `count_lesions`: see `trainers/validation/lesions.py`; of a predicted
    lesion counts what lies outside the ignore label, each part of it alone.
    Raises DataError when the shapes differ.
    """
    if reference_ZYX.shape != prediction_ZYX.shape:
        raise DataError(
            f"reference and prediction differ in shape: {reference_ZYX.shape} and {prediction_ZYX.shape}. "
            "gt_segmentations and the preprocessed cases are of different images: preprocess the dataset anew."
        )
    num_values = max(labels.values) + 1
    reference, prediction = _whole_numbers(reference_ZYX, num_values), _whole_numbers(prediction_ZYX, num_values)
    if labels.ignore_label is not None:
        ignored = reference == labels.ignore_label
        reference[ignored] = prediction[ignored] = num_values + 1  # a value that belongs to no class
    pairs = _pair_counts(reference, prediction, num_values + 2)
    total = int(pairs.sum()) - int(pairs[num_values + 1].sum())
    boxes = ndimage.find_objects(reference + 1, num_values), ndimage.find_objects(prediction + 1, num_values)
    found = {
        name: _class_metrics(values, reference, prediction, spacing_ZYX, tolerance_mm, pairs, total, boxes)
        for name, values in labels.foreground.items()
    }
    if not count_lesions:
        return found
    lesions = {name: _lesions(labels.foreground[name], reference, prediction, boxes) for name in found}
    return {name: metrics.model_copy(update={"lesions": lesions[name]}) for name, metrics in found.items()}


def _whole_numbers(volume: Volume, num_values: int) -> npt.NDArray[np.int32]:
    """A copy as integers; every value that no label has becomes `num_values`."""
    whole = np.rint(volume).astype(np.int32)
    whole[(whole < 0) | (whole > num_values) | (whole != volume)] = num_values
    return whole


def _pair_counts(reference: npt.NDArray[np.int32], prediction: npt.NDArray[np.int32], n: int) -> npt.NDArray[np.int64]:
    """Voxels per (reference value, prediction value), shape (n, n): one pass for all classes, slice by slice for the sake of memory."""
    counts = np.zeros(n * n, np.int64)
    for in_reference, in_prediction in zip(reference, prediction, strict=True):
        counts += np.bincount((in_reference * n + in_prediction).ravel(), minlength=n * n)
    return counts.reshape(n, n)


def _class_metrics(
    values: tuple[int, ...],
    reference: npt.NDArray[np.int32],
    prediction: npt.NDArray[np.int32],
    spacing: tuple[float, ...] | None,
    tolerance_mm: float,
    pairs: npt.NDArray[np.int64],
    total: int,
    boxes: tuple[list[Box | None], list[Box | None]],
) -> ClassMetrics:
    own = sorted(set(values))
    in_reference, in_prediction = int(pairs[own].sum()), int(pairs[:, own].sum())
    tp = int(pairs[np.ix_(own, own)].sum())
    fp, fn = in_prediction - tp, in_reference - tp
    nothing = tp + fp + fn == 0
    hd95_mm, nsd = math.nan, math.nan if nothing or spacing is None else 0.0
    if in_reference and in_prediction and spacing is not None:
        box = union_box([side[value] for side in boxes for value in own])
        masks = _mask(reference[box], own), _mask(prediction[box], own)
        if len(reference) == 1:  # asked of the volume: a class may lie in one slice of many, and that one is no plane
            masks, spacing = (masks[0][0], masks[1][0]), spacing[1:]
        hd95_mm, nsd = surface_metrics(*masks, spacing, tolerance_mm)
    return ClassMetrics(
        tp=tp,
        fp=fp,
        fn=fn,
        tn=total - tp - fp - fn,
        dice=math.nan if nothing else 2 * tp / (2 * tp + fp + fn),
        iou=math.nan if nothing else tp / (tp + fp + fn),
        hd95_mm=hd95_mm,
        nsd=nsd,
    )


def _lesions(
    values: tuple[int, ...],
    reference: npt.NDArray[np.int32],
    prediction: npt.NDArray[np.int32],
    boxes: tuple[list[Box | None], list[Box | None]],
) -> Lesions:
    own = sorted(set(values))
    present = [side[value] for side in boxes for value in own if side[value] is not None]
    if not present:
        return Lesions(num_true=0, num_detected=0, num_false=0, dice=math.nan)
    box = union_box(present)
    return lesions_of(_mask(reference[box], own), _mask(prediction[box], own))


def union_box(boxes: list[Box | None]) -> Box:
    """The smallest box around all boxes: outside of it nothing is set, so surface metrics inside are those of the whole volume."""
    present = [box for box in boxes if box is not None]
    return tuple(slice(min(side.start for side in axis), max(side.stop for side in axis)) for axis in zip(*present, strict=True))


def _mask(volume: npt.NDArray[np.int32], values: list[int]) -> Mask:
    mask: Mask = volume == values[0]
    for value in values[1:]:
        mask |= volume == value
    return mask
