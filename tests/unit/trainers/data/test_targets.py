"""Targets: value for value those of the library's transforms."""

from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from trainers.data.targets import Downsampling, OutsideIsBackground, Regions

SHAPES = [(1, 12, 16, 20), (1, 7, 33, 30), (1, 1, 9, 5), (1, 28, 17), (3, 20, 24, 8)]


def labels_of(shape: tuple[int, ...], least: int = 0) -> torch.Tensor:
    return torch.randint(least, 5, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("factors", [(1, 0.5, 0.25), (0.5, 1, 1 / 3), (1 / 8, 0.2, 0.7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int16, torch.bool], ids=str)
def test_coarser_targets_are_the_librarys(shape: tuple[int, ...], factors: tuple[float, ...], dtype: Any) -> None:
    axes = len(shape) - 1
    scales = [[1.0] * axes, list(factors[:axes]), [0.5] * axes]
    scales = [scale for scale in scales if all(round(n * s) for n, s in zip(shape[1:], scale, strict=True))]
    given = labels_of(shape).to(dtype)
    ours, expected = (kind(scales)(segmentation=given.clone())["segmentation"] for kind in (Downsampling, DownsampleSegForDSTransform))
    assert [part.dtype for part in ours] == [part.dtype for part in expected]
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("regions", [[(1, 2, 3), (2, 3), 3], [(1, 4), 2, 4], [(9,)]], ids=str)
def test_regions_are_the_librarys(regions: list[Any]) -> None:
    given = labels_of((1, 8, 9, 10))
    for labels in (given, torch.zeros_like(given)):
        results = [kind(regions)(segmentation=labels)["segmentation"] for kind in (Regions, ConvertSegmentationToRegionsTransform)]
        assert results[0].dtype == results[1].dtype
        assert torch.equal(*results)


def test_outside_becomes_background_as_in_the_library() -> None:
    results = [kind(-1, 0)(segmentation=labels_of((1, 8, 9), -1))["segmentation"] for kind in (OutsideIsBackground, RemoveLabelTransform)]
    assert torch.equal(*results)
    assert results[0].min() == 0
