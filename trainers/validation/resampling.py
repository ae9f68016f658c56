"""nnU-Net's default resampling of logits, slab by slab: some planes of the output, and the few planes of the input that they come from.

Interpolation of order 0 or 1 is separable. Planes are torch's bilinear interpolation, which takes the same neighbours as `resize` of
nnU-Net's libraries; along the axis that the planes are stacked on, `resize` and `map_coordinates`, applied to an identity, give their
own weights. A slab of a class stays in the CPU's cache.

C class, Z Y X voxels; A the axis that planes are stacked on, H W those of a plane.
Source: nnunetv2/preprocessing/resampling/default_resampling.py (`resample_data_or_seg`).
"""

import itertools
import math
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
from torch.nn.functional import interpolate

SLAB_VOXELS = 2**17
"""Voxels of a slab of one class, half a megabyte in float32, where that is not less than `LEAST_PLANES`."""
LEAST_PLANES = 4
Floats = Sequence[float]
Weights = npt.NDArray[np.float64]
MODES = {0: "nearest-exact", 1: "bilinear"}
"""Order of the interpolation in a plane -> its name in torch."""


@dataclass(frozen=True)
class Slab:
    """Some output planes, and how they are made."""

    out: slice
    source: slice
    """The input planes that they come from."""
    weights: Tensor | None
    """(output, input) float32; None where the axis stays as it is."""

    @property
    def shrinks(self) -> bool:
        """True where there are fewer output planes than input planes."""
        return self.weights is not None and self.weights.shape[0] < self.weights.shape[1]


@dataclass(frozen=True)
class Resampling:
    """What becomes of a class: planes stacked on `axis` become planes of the size `plane_HW`, interpolated by `mode` of torch's."""

    axis: int
    plane_HW: tuple[int, int]
    mode: str
    slabs: tuple[Slab, ...]


def resampling_of(function: Any, old: Sequence[int], new: Sequence[int], old_spacing: Floats, new_spacing: Floats) -> Resampling | None:
    """What `function` does to logits of the shape `old` that become `new`.

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
    axis = int(z) if has_own_z else 0
    weights = None
    if old[axis] != new[axis]:
        weights = _of_z(old[axis], new[axis], order_z) if has_own_z else _of_plane(old[axis], new[axis], order)
    height, width = (size for other, size in enumerate(new) if other != axis)
    largest = max(height * width, math.prod(old) // new[axis])  # voxels that an output plane has, or comes from
    most = max(LEAST_PLANES, SLAB_VOXELS // largest)
    return Resampling(axis, (height, width), MODES[order], tuple(_cut(weights, new[axis], most)))


def _of_plane(old: int, new: int, order: int) -> Weights:
    """Weights (new, old) of an axis that nnU-Net resizes with the others."""
    return np.asarray(resize(np.eye(old), (new, old), order, mode="edge", anti_aliasing=False))


def _of_z(old: int, new: int, order: int) -> Weights:
    """Weights (new, old) of the axis of low resolution that nnU-Net resamples after the planes."""
    rows, columns = np.mgrid[:new, :old]
    return np.asarray(map_coordinates(np.eye(old), [old / new * (rows + 0.5) - 0.5, columns], order=order, mode="nearest"))


def _cut(weights: Weights | None, length: int, most: int) -> list[Slab]:
    """Slabs of at most so many planes, all of nearly the same number."""
    edges = np.linspace(0, length, -(-length // most) + 1).round().astype(int).tolist()
    return [_slab(weights, slice(start, stop)) for start, stop in itertools.pairwise(edges)]


def _slab(weights: Weights | None, out: slice) -> Slab:
    if weights is None:
        return Slab(out, out, None)
    used = np.flatnonzero(weights[out].any(axis=0))
    source = slice(int(used[0]), int(used[-1]) + 1)
    return Slab(out, source, torch.from_numpy(np.ascontiguousarray(weights[out, source], dtype=np.float32)))


def resampled(logits_AHW: Tensor, slab: Slab, resampling: Resampling) -> Tensor:
    """One slab of a class, float32, rounded to the type of the logits as nnU-Net's are: which voxels are equal depends on that."""
    values_AHW = logits_AHW[slab.source].to(torch.float32)
    if slab.shrinks:  # what leaves least to do comes first
        values_AHW = _planes_resized(_stack_resized(values_AHW, slab), resampling)
    else:
        values_AHW = _stack_resized(_planes_resized(values_AHW, resampling), slab)
    return values_AHW.to(logits_AHW.dtype).to(torch.float32)


def _planes_resized(values_AHW: Tensor, resampling: Resampling) -> Tensor:
    if values_AHW.shape[1:] == resampling.plane_HW:
        return values_AHW
    return interpolate(values_AHW[None], size=resampling.plane_HW, mode=resampling.mode)[0]


def _stack_resized(values_AHW: Tensor, slab: Slab) -> Tensor:
    return values_AHW if slab.weights is None else torch.mm(slab.weights, values_AHW.flatten(1)).view(-1, *values_AHW.shape[1:])
