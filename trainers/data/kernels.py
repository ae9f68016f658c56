"""The hot kernel of augmentation: labels at the points of a sampling grid, bit-equal to batchgeneratorsv2 and several times faster.

batchgeneratorsv2's SpatialTransform interpolates one indicator image per label over the whole patch and takes the best label.
Between voxels that all have one label the answer is that label, and such points are nearly all: only the others go to the library.
"""

import copy
from typing import Any

import torch

_MIXED = torch.iinfo(torch.int16).min
"""Marks a cell whose corners have different labels, or lie outside."""


def resampled_labels(transform: Any, labels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """What `transform._apply_to_segmentation(labels, grid=grid)` gives.

    labels: int16 (C, [Z,] Y, X); grid: (*patch, axes), normalised as torch's grid_sample takes it, last axis first.
    transform: a SpatialTransform with linear labels, zeros or constant outside, align_corners=False.
    """
    assert transform.mode_seg == "bilinear", "labels are resampled linearly per label"
    assert not transform.align_corners, "cells are found for align_corners=False"
    assert transform.border_mode_seg in ("zeros", "constant"), "outside has a label of its own"
    shape = labels.shape[1:]
    cells_CN = _cells(labels).flatten(1)
    points = _cell_of_points(grid, shape).flatten()
    outside_matters = transform._may_reach_outside(grid, shape)
    result = torch.empty((len(labels), *grid.shape[:-1]), dtype=labels.dtype)
    for channel in range(len(labels)):
        found = cells_CN[channel].index_select(0, points)
        mixed = torch.nonzero(found == _MIXED).flatten()
        if len(mixed):
            found[mixed] = _by_library(transform, labels[channel : channel + 1], grid.flatten(0, -2)[mixed], outside_matters)
        result[channel] = found.view(grid.shape[:-1])
    return result


def _cells(labels: torch.Tensor) -> torch.Tensor:
    """The label of each cell between neighbouring voxels whose corners share it, else _MIXED; with a ring of _MIXED around."""
    least = greatest = labels
    for axis in range(1, labels.ndim):
        length = labels.shape[axis] - 1
        least = torch.minimum(least.narrow(axis, 0, length), least.narrow(axis, 1, length))
        greatest = torch.maximum(greatest.narrow(axis, 0, length), greatest.narrow(axis, 1, length))
    cells = torch.full((len(labels), *(n + 1 for n in labels.shape[1:])), _MIXED, dtype=labels.dtype)
    cells[(slice(None), *(slice(1, -1) for _ in labels.shape[1:]))] = torch.where(least == greatest, least, _MIXED)
    return cells


def _cell_of_points(grid: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Flat index into one channel of `_cells` for each point of the grid.

    A point on the border of two cells may fall to either: the voxels that it touches belong to both.
    """
    index = torch.zeros(grid.shape[:-1], dtype=torch.int64)
    for axis, size in enumerate(shape):
        voxel = grid[..., len(shape) - 1 - axis].add(1).mul_(size / 2).sub_(0.5)
        index.mul_(size + 1).add_(voxel.floor_().add_(1).clamp_(0, size).to(torch.int64))
    return index


def _by_library(transform: Any, labels: torch.Tensor, points_N: torch.Tensor, outside_matters: bool) -> torch.Tensor:
    """The library's own answer for single points (N, axes) of one channel: as a patch that is one row of N voxels."""
    row = (*(1 for _ in range(points_N.shape[-1] - 1)), len(points_N))
    same = copy.copy(transform)
    same.patch_size = row
    same._may_reach_outside = lambda *_: outside_matters  # as for the whole patch, so that the same branches are taken
    answer: torch.Tensor = same._apply_to_segmentation(labels, grid=points_N.view(*row, -1))
    return answer.flatten()
