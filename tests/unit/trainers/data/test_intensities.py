"""Intensity transforms beside the library's, for the same draws."""

from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from tests.unit.trainers.data.test_filters import image_of
from tests.unit.trainers.data.test_recipes import assert_nearly, seed_all
from trainers.data.intensities import FastLowResolution, RetainingGamma

SHAPES = [(8, 9, 10), (28, 16, 17), (1, 7, 9), (33, 20), (2, 2)]


def images(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Two channels: one of any values, and in turn values far from 0, a constant, a transposed layout and large values."""
    image = image_of(shape, seed)
    image[1] = (image[1] + 100, torch.full(shape, 3.5), image[1], image[1] * 1e4)[seed % 4]
    return image.transpose(1, 2).contiguous().transpose(1, 2) if seed % 4 == 2 else image


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inverted", [0, 1])
def test_gamma_is_the_librarys(shape: tuple[int, ...], inverted: int) -> None:
    options: dict[str, Any] = {"p_invert_image": inverted, "synchronize_channels": False, "p_per_channel": 0.8, "p_retain_stats": 1}
    for seed in range(12):
        results = []
        for kind in (RetainingGamma, GammaTransform):
            seed_all(seed)
            results.append(kind(gamma=BGContrast((0.7, 1.5)), **options)(image=images(shape, seed))["image"])
        assert_nearly(*results)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ignored", [None, (0,)])
def test_a_low_resolution_is_the_librarys(shape: tuple[int, ...], ignored: Any) -> None:
    options: dict[str, Any] = {"scale": (0.3, 1), "synchronize_channels": False, "synchronize_axes": False, "p_per_channel": 0.8}
    if shape[0] < 3 and ignored is None:
        ignored = tuple(axis for axis, size in enumerate(shape) if size < 3)  # the library fails where no voxel is left of an axis
    for seed in range(12):
        results = []
        for kind in (FastLowResolution, SimulateLowResolutionTransform):
            seed_all(seed)
            results.append(kind(ignore_axes=ignored, **options)(image=images(shape, seed))["image"])
        assert_nearly(*results)
