"""batchgeneratorsv2's SpatialTransform where it rotates and scales: its draws, and its interpolation by compiled kernels.

The library lays out a grid of sampling points and resamples one indicator image per label; here the points follow from the matrix.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from trainers.data.kernels.spatial import resample_2d, resample_3d

_SLACK = 0.01
"""Voxels by which rounding in float32 may move a point of a crop of a few thousand voxels."""


class AffineTransform(SpatialTransform):  # type: ignore[misc]
    """The library's transform, which draws its parameters without laying out the grid that they stand for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As the library's. Elastic deformation, which no recipe of nnU-Net has, would need its grid."""
        super().__init__(*args, **kwargs)
        assert self.p_elastic_deform == 0, "the kernels know matrices alone"
        assert not self.random_crop, "a patch is cut about the crop's middle"
        assert not self.align_corners, "points are found for align_corners=False"
        assert self.padding_mode_image == "zeros", "outside the image is 0"
        assert self.border_mode_seg in ("zeros", "constant"), "outside has a label of its own"
        assert self.seg_tiebreak == "nearest", "ties are the nearest voxel's"

    def _get_base_grid_clone(self) -> torch.Tensor:
        """One point in place of the patch's."""
        axes = len(self.patch_size)
        return torch.zeros((*(1 for _ in range(axes)), axes))


_SLICES = 4
"""That many slices of 400 x 400 stay in the second cache while a row of each is made."""


def touched_box(affine: npt.NDArray[Any], patch: Sequence[int], crop: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lower corner and size of the part of a crop that a patch takes values from; at least one voxel."""
    reach = np.abs(affine) @ [(n - 1) / 2 for n in patch]
    lows = [max(0, min(n - 1, math.floor((n - 1) / 2 - r - _SLACK))) for n, r in zip(crop, reach, strict=True)]
    highs = [min(n, math.floor((n - 1) / 2 + r + _SLACK) + 2) for n, r in zip(crop, reach, strict=True)]
    return tuple(lows), tuple(high - low for low, high in zip(lows, highs, strict=True))


def resampled(
    image: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int16],
    transform: AffineTransform,
    affine: npt.NDArray[Any],
    crop: Sequence[int],
    origin: Sequence[int],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]:
    """Image (C, ...) and labels (N, ...) of the patch, all turned alike, from a box at `origin` of a crop of the shape `crop`."""
    patch = tuple(transform.patch_size)
    outside = np.int16(transform.padding_value_seg if transform.border_mode_seg == "constant" else 0)
    found, found_labels = np.empty((len(image), *patch), np.float32), np.empty((len(labels), *patch), np.int16)
    rules = (transform.mode_image == "nearest", transform.mode_seg == "nearest", outside)
    where = (np.ascontiguousarray(affine, np.float32), np.asarray(crop, np.int64), np.asarray(origin, np.int64))
    if len(patch) == 2:
        nothing, no_labels = image[:0], labels[:0]
        for few in _few(len(image)):
            resample_2d(image[few], no_labels, *where, *rules, found[few], found_labels[:0])
        for few in _few(len(labels)):
            resample_2d(nothing, labels[few], *where, *rules, found[:0], found_labels[few])
    else:
        resample_3d(image, labels[0], *where, *rules, found, found_labels[0])
        for more, found_more in zip(labels[1:], found_labels[1:], strict=True):
            resample_3d(image[:0], more, *where, *rules, found[:0], found_more)
    return found, found_labels


def _few(count: int) -> list[slice]:
    """All of `count` slices, some at a time."""
    return [slice(start, start + _SLICES) for start in range(0, count, _SLICES)]
