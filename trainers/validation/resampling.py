"""nnU-Net's default resampling of logits, axis by axis: the matrix that its libraries apply to each axis, cut into small parts.

Interpolation of order 0 or 1 is separable, so `resize` and `map_coordinates`, applied to an identity, give their own weights. A part
holds the weights of a few output voxels on the few input voxels that they come from, so its products stay in the CPU's cache.

C class, Z Y X voxels. Source: nnunetv2/preprocessing/resampling/default_resampling.py (`resample_data_or_seg`).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis, resample_data_or_seg_to_shape
from scipy.ndimage import map_coordinates
from skimage.transform import resize
from torch import Tensor

PART_ZYX = (16, 64, 128)
"""Output voxels of a part along each axis at most: half a megabyte of a class in float32."""
Floats = Sequence[float]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AxisPart:
    """Some output voxels of an axis, and how they are made."""

    out: slice
    source: slice
    """The input voxels that they come from."""
    weights: Tensor | None
    """(output, input) float32; None where the axis stays as it is."""

    @property
    def growth(self) -> float:
        """Output voxels per input voxel."""
        return 1.0 if self.weights is None else self.weights.shape[0] / self.weights.shape[1]


AxisParts = tuple[list[AxisPart], list[AxisPart], list[AxisPart]]


def parts_of(function: Any, old: Sequence[int], new: Sequence[int], old_spacing: Floats, new_spacing: Floats) -> AxisParts | None:
    """What `function` does to logits of the shape `old` that become `new`, part by part along Z, Y and X.

    `function`: `ConfigurationManager.resampling_fn_probabilities`. None where that is another one than nnU-Net's default, or is asked
    for splines of a higher order, whose values are clipped.
    """
    options = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False, **function.keywords}
    if function.func is not resample_data_or_seg_to_shape or options.pop("is_seg"):
        return None
    order, order_z = options.pop("order"), options.pop("order_z")
    if not {order, order_z} <= {0, 1}:
        return None
    has_own_z, z = determine_do_sep_z_and_axis(current_spacing=old_spacing, new_spacing=new_spacing, **options)
    matrices: list[Weights | None] = []
    for axis in range(3):
        if old[axis] == new[axis]:
            matrices.append(None)
        elif has_own_z and axis == z:
            matrices.append(_of_z(old[axis], new[axis], order_z))
        else:
            matrices.append(_of_plane(old[axis], new[axis], order))
    of_z, of_y, of_x = (_cut(*axis) for axis in zip(matrices, new, PART_ZYX, strict=True))
    return of_z, of_y, of_x


def _of_plane(old: int, new: int, order: int) -> Weights:
    """Weights (new, old) of an axis that nnU-Net resizes with the others."""
    return np.asarray(resize(np.eye(old), (new, old), order, mode="edge", anti_aliasing=False))


def _of_z(old: int, new: int, order: int) -> Weights:
    """Weights (new, old) of the axis of low resolution that nnU-Net resamples after the planes."""
    rows, columns = np.mgrid[:new, :old]
    return np.asarray(map_coordinates(np.eye(old), [old / new * (rows + 0.5) - 0.5, columns], order=order, mode="nearest"))


def _cut(weights: Weights | None, length: int, most: int) -> list[AxisPart]:
    """Parts of an axis, all of nearly the same length."""
    edges = np.linspace(0, length, -(-length // most) + 1).round().astype(int).tolist()
    return [_part(weights, slice(start, stop)) for start, stop in itertools.pairwise(edges)]


def _part(weights: Weights | None, out: slice) -> AxisPart:
    if weights is None:
        return AxisPart(out, out, None)
    used = np.flatnonzero(weights[out].any(axis=0))
    source = slice(int(used[0]), int(used[-1]) + 1)
    return AxisPart(out, source, torch.from_numpy(np.ascontiguousarray(weights[out, source], dtype=np.float32)))


def resampled(logits_ZYX: Tensor, parts: tuple[AxisPart, AxisPart, AxisPart]) -> Tensor:
    """One part of a class, float32, rounded to the type of the logits as nnU-Net's are: which voxels are equal depends on that."""
    z, y, x = parts
    values = logits_ZYX[z.source, y.source, x.source].to(torch.float32)
    for axis in sorted(range(3), key=lambda axis: parts[axis].growth):  # what shrinks first leaves least to do
        weights = parts[axis].weights
        if weights is not None:
            values = _PRODUCTS[axis](weights, values)
    return values.to(logits_ZYX.dtype).to(torch.float32)


def _along_z(weights: Tensor, values_ZYX: Tensor) -> Tensor:
    return torch.mm(weights, values_ZYX.flatten(1)).view(-1, *values_ZYX.shape[1:])


def _along_y(weights: Tensor, values_ZYX: Tensor) -> Tensor:
    return torch.bmm(weights.expand(len(values_ZYX), -1, -1), values_ZYX)


def _along_x(weights: Tensor, values_ZYX: Tensor) -> Tensor:
    return torch.mm(values_ZYX.flatten(0, 1), weights.T).view(*values_ZYX.shape[:2], -1)


_PRODUCTS = (_along_z, _along_y, _along_x)
