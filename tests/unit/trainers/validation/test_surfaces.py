"""Surface distances and surface Dice: MONAI stands beside, and memory follows the surface."""

import itertools
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from trainers.validation.surfaces import element_areas, surface_metrics

MEASURE = """
import resource
import numpy as np
from trainers.validation.surfaces import surface_metrics

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def two_corners(size):
    mask = np.zeros((size, size, size), bool)
    mask[4:9, 4:9, 4:9] = mask[-9:-4, -9:-4, -9:-4] = True
    return mask

surface_metrics(two_corners(20), two_corners(20), (1.0, 1.0, 1.0), 1.0)
mask = two_corners(SIZE)
mask ^= mask[::-1]
mask |= two_corners(SIZE)
before = peak()
surface_metrics(mask, two_corners(SIZE), (1.0, 1.0, 1.0), 1.0)
print((peak() - before) / mask.size)
"""


def monai_metrics(reference: Any, prediction: Any, spacing: tuple[float, ...], tolerance_mm: float) -> tuple[float, float]:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    y, y_pred = torch.from_numpy(reference)[None, None], torch.from_numpy(prediction)[None, None]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)  # MONAI 1.6 calls itself by an old argument
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=list(spacing))
        nsd = compute_surface_dice(y_pred, y, [tolerance_mm], include_background=True, spacing=list(spacing), use_subvoxels=True)
    return float(hd95[0, 0]), float(nsd[0, 0])


def monai_areas(spacing: tuple[float, ...]) -> Any:
    from monai.metrics.utils import get_code_to_measure_table

    return get_code_to_measure_table(spacing)[0].numpy()


def masks(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> tuple[Any, Any]:
    """Two non-empty masks; all kinds but 'blobs' touch the faces of the volume."""
    if kind == "full":
        return np.ones(shape, bool), rng.random(shape) < 0.9
    if kind == "voxels":
        reference, prediction = np.zeros(shape, bool), np.zeros(shape, bool)
        reference.flat[rng.integers(reference.size)] = prediction.flat[[0, -1]] = True
        return reference, prediction
    noise = rng.random((2, *shape)) < rng.uniform(0.05, 0.95)
    if kind == "noise":
        noise.reshape(2, -1)[:, 0] = True  # never empty
        return noise[0], noise[1]
    inner = np.zeros(shape, bool)
    inner[tuple(slice(size // 4, -(size // 4) or None) for size in shape)] = True
    return inner, np.roll(inner, 1, axis=-1) | noise[0] & inner


SHAPES = [(7, 9, 11), (1, 12, 10), (12, 1, 6), (6, 6, 6), (3, 17, 5), (12, 15), (1, 30), (9, 8)]
SPACINGS = [(1.0, 1.0, 1.0), (5.0, 0.5, 0.5), (0.1, 0.3, 0.7), (0.7, 3.0, 2.5)]


def test_values_are_monais() -> None:
    """One test, so that one process pays for MONAI's import. Its quantile is interpolated in 32 bits: 1e-5 apart at most."""
    rng = np.random.default_rng(0)
    for shape, kind, spacing in itertools.product(SHAPES, ("noise", "blobs", "voxels", "full"), SPACINGS):
        mm = spacing[-len(shape) :]
        tolerance_mm = float(rng.choice([0.0, 1.0, 2 * mm[-1], 3 * mm[0]]))  # whole numbers of voxels lie on the tolerance itself
        reference, prediction = masks(rng, shape, kind)
        expected_hd95, expected_nsd = monai_metrics(reference, prediction, mm, tolerance_mm)
        hd95, nsd = surface_metrics(reference, prediction, mm, tolerance_mm)
        assert hd95 == pytest.approx(expected_hd95, rel=1e-5), (shape, kind, mm)
        assert nsd == pytest.approx(expected_nsd, rel=1e-6), (shape, kind, mm, tolerance_mm)
    for other in (*SPACINGS, (3.0, 2.0), (0.4, 0.9)):
        np.testing.assert_allclose(element_areas(other), monai_areas(other), rtol=1e-6)


def test_memory_follows_the_surface_and_not_the_volume() -> None:
    """A few voxels in opposite corners: MONAI's way takes 80 bytes for every voxel between them."""
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE.replace("SIZE", "160")], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert float(measured) < 5
