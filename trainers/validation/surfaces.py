"""Hausdorff distance and surface Dice of two masks in millimetres, in memory that grows with their surfaces and not with the volume.

HD95 is taken between boundary voxels (set, with a face to one that is not), surface Dice between surface elements, weighted by area as in
Nikolov et al., 2018 (arXiv:1809.04430): an element lies where 2 x 2 x 2 voxels (2 x 2 in a plane) are neither all set nor all not. Outside
the volume nothing is set. The values are those of MONAI's `compute_hausdorff_distance` and `compute_surface_dice`, which need 80 to 150
bytes per voxel, and 4 seconds to import; both stand beside in the tests.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int32]
"""Grid positions, (points, axes)."""
Spacing = tuple[float, ...]
"""Millimetres along each axis."""


def surface_metrics(reference: Mask, prediction: Mask, spacing: Spacing, tolerance_mm: float) -> tuple[float, float]:
    """HD95 in millimetres and normalised surface Dice of two non-empty masks of one shape, in space or in a plane."""
    return hd95_mm(reference, prediction, spacing), surface_dice(reference, prediction, spacing, tolerance_mm)


def hd95_mm(reference: Mask, prediction: Mask, spacing: Spacing) -> float:
    """95th percentile of the distances between the boundary voxels, the larger of both directions."""
    a, b = boundary_voxels(reference), boundary_voxels(prediction)
    return max(float(np.percentile(distances_mm(*pair, spacing), 95)) for pair in ((a, b), (b, a)))


def surface_dice(reference: Mask, prediction: Mask, spacing: Spacing, tolerance_mm: float) -> float:
    """Part of both surfaces' area that lies within the tolerance of the other surface, 0 to 1."""
    elements = surface_elements(reference), surface_elements(prediction)
    correct_mm2, complete_mm2 = 0.0, 0.0
    for (own, codes), (other, _) in (elements, elements[::-1]):
        area_mm2 = element_areas(spacing)[codes]
        is_near = distances_mm(own, other, spacing) <= np.float32(tolerance_mm)
        correct_mm2 += float(area_mm2[is_near].sum())
        complete_mm2 += float(area_mm2.sum())
    return correct_mm2 / complete_mm2


def distances_mm(own: Points, other: Points, spacing: Spacing) -> npt.NDArray[np.float32]:
    """From each point of `own` to the nearest of `other`. 32 bits, so that three voxels of 0.1 mm are no more than 0.3 mm."""
    tree = KDTree(other * np.asarray(spacing), leafsize=32)
    parts = np.array_split(own, len(own) // 2**20 + 1)  # a query's own copies are those of one part
    return np.concatenate([tree.query(part * np.asarray(spacing))[0].astype(np.float32) for part in parts])


def boundary_voxels(mask: Mask) -> Points:
    """Voxels of the mask with at least one face to a voxel outside of it."""
    found = []
    for start, slab in _slabs(mask, 3):
        boundary = (slab ^ ndimage.binary_erosion(slab))[1]
        found.append(_points(start, boundary))
    return np.concatenate(found)


def surface_elements(mask: Mask) -> tuple[Points, npt.NDArray[np.uint8]]:
    """Where the surface passes between voxels, and there the code of the voxels around: one bit each, the first corner's the highest."""
    found, codes = [], []
    for start, slab in _slabs(mask, 2):
        code = _neighbour_codes(slab)[0]
        on_surface = (code != 0) & (code != 2 ** (2**mask.ndim) - 1)
        found.append(_points(start, on_surface))
        codes.append(code[on_surface])
    return np.concatenate(found), np.concatenate(codes)


def _slabs(mask: Mask, thickness: int) -> Iterator[tuple[int, Mask]]:
    """Every `thickness` neighbouring slices along the first axis of the mask, which is one unset voxel wider on all sides here."""
    padded = np.pad(mask, 1)
    return ((start, padded[start : start + thickness]) for start in range(len(padded) - thickness + 1))


def _points(first: int, in_slice: Mask) -> Points:
    within = np.argwhere(in_slice).astype(np.int32)
    return np.insert(within, 0, first, axis=1)


def _neighbour_codes(slab: Mask) -> npt.NDArray[np.uint8]:
    codes = np.zeros([size - 1 for size in slab.shape], np.uint8)
    for corner in itertools.product((0, 1), repeat=slab.ndim):
        window = tuple(slice(at, at + size) for at, size in zip(corner, codes.shape, strict=True))
        codes <<= 1
        codes |= slab[window]
    return codes


@lru_cache(maxsize=8)
def element_areas(spacing: Spacing) -> npt.NDArray[np.float64]:
    """Area in mm2 (in a plane: length in mm) of the surface element of every code, (256,) or (16,)."""
    if len(spacing) == 2:
        y, x = spacing
        half = float(np.hypot(y, x)) / 2
        return np.array([0, half, half, x, half, y, 2 * half, half, half, 2 * half, y, half, x, half, half, 0])
    return np.array([_marching_cube_area(code, spacing) for code in range(256)])


def _marching_cube_area(code: int, spacing: Spacing) -> float:
    """Area that marching cubes lay around the corners set; more than four set count as those that are not."""
    from skimage.measure import marching_cubes, mesh_surface_area

    code = min(code, 255 - code, key=int.bit_count)
    if code == 0:
        return 0.0
    corners: Any = np.array([code >> bit & 1 for bit in range(7, -1, -1)], np.float32).reshape(2, 2, 2)
    vertices, faces, *_ = marching_cubes(corners, 0.5, spacing=spacing, method="lorensen")
    return float(mesh_surface_area(vertices, faces))
