"""Logits to labels on the original grid, beside nnU-Net's own export of the same logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from torch.utils._python_dispatch import TorchDispatchMode

from tests.export_case import CUBE, THIN, Shape, case, exporter, logits_of, nnunets
from tests.nnunet_beside import KINDS
from trainers.validation.export import Exporter
from trainers.validation.resampling import SLAB_VOXELS, resampled, resampling_of


def share_equal(ours: Exporter, logits: torch.Tensor, properties: dict[str, Any]) -> float:
    """Part of the voxels with the same label; everything else of the array must be the same."""
    mine, theirs = ours.segmentation(logits, properties), nnunets(ours, logits, properties)
    assert mine is not None
    assert (mine.shape, mine.dtype, mine.strides) == (theirs.shape, theirs.dtype, theirs.strides)
    assert len(np.unique(theirs)) > 1
    return float((mine == theirs).mean())


GRIDS = [
    pytest.param((20, 30, 28), (30, 45, 42), CUBE, CUBE, {}, id="finer"),
    pytest.param((30, 45, 42), (19, 33, 29), CUBE, CUBE, {}, id="coarser"),
    pytest.param((30, 40, 36), (37, 29, 36), CUBE, CUBE, {}, id="mixed"),
    pytest.param((9, 40, 70), (17, 65, 129), CUBE, CUBE, {}, id="one-voxel-beyond-a-part"),
    pytest.param((12, 40, 40), (12, 60, 60), THIN, THIN, {}, id="own-z-that-stays"),
    pytest.param((12, 40, 40), (19, 60, 60), THIN, THIN, {}, id="own-z-nearest"),
    pytest.param((19, 40, 40), (12, 31, 27), CUBE, THIN, {}, id="own-z-of-the-original"),
    pytest.param((12, 40, 40), (19, 60, 60), THIN, THIN, {"order_z": 1}, id="own-z-linear"),
    pytest.param((12, 40, 40), (19, 40, 40), THIN, THIN, {}, id="own-z-alone"),
    pytest.param((40, 40, 12), (60, 60, 19), THIN[::-1], THIN[::-1], {}, id="own-z-is-the-last-axis"),
    pytest.param((40, 12, 40), (60, 19, 60), (0.7, 3.0, 0.7), (0.7, 3.0, 0.7), {}, id="own-z-is-the-middle-axis"),
    pytest.param((12, 40, 40), (19, 60, 60), THIN, THIN, {"force_separate_z": False}, id="no-own-z-by-force"),
    pytest.param((12, 40, 40), (19, 60, 60), (1.1, 1.0, 1.0), CUBE, {"force_separate_z": True}, id="own-z-by-force"),
    pytest.param((12, 40, 40), (19, 60, 60), THIN, THIN, {"separate_z_anisotropy_threshold": 9}, id="other-threshold"),
    pytest.param((20, 30, 28), (30, 45, 42), CUBE, CUBE, {"order": 0}, id="nearest"),
    pytest.param((12, 40, 40), (12, 61, 57), (0.7, 0.7), THIN, {}, id="2d"),
    pytest.param((1, 80, 80), (1, 121, 100), (0.7, 0.7), (999.0, 0.5, 0.5), {}, id="2d-one-slice"),
    pytest.param((5, 80, 80), (1, 120, 1), CUBE, CUBE, {}, id="to-one-voxel"),
]


@pytest.mark.parametrize(("shape", "original", "spacing", "original_spacing", "options"), GRIDS)
def test_labels_are_nnunets_on_every_grid(
    shape: Shape, original: Shape, spacing: tuple[float, ...], original_spacing: tuple[float, ...], options: dict[str, Any]
) -> None:
    assert share_equal(exporter(spacing=spacing, **options), logits_of(3, shape), case(original, original_spacing)) >= 0.9999


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_resampled", [True, False])
def test_labels_are_nnunets_of_every_kind_cropped_and_transposed(kind: str, is_resampled: bool) -> None:
    ours, original = exporter(KINDS[kind], transpose=[2, 0, 1]), (30, 36, 33)
    properties = case(original, (0.9, 0.8, 1.1), margins=(2, 3))
    logits = logits_of(3, (24, 28, 26) if is_resampled else original)
    assert share_equal(ours, logits, properties) >= (0.9999 if is_resampled else 1.0)


@pytest.mark.parametrize("count", [118, 255, 256])
def test_labels_are_nnunets_with_many_classes(count: int) -> None:
    kind = {"labels": {"background": 0, **{f"class {value}": value for value in range(1, count)}}}
    assert share_equal(exporter(kind), logits_of(count, (9, 10, 8)), case((13, 15, 12))) >= 0.9999


def test_region_values_may_fall_and_exceed_a_byte() -> None:
    values = {f"part {value}": value for value in range(1, 300)}
    kind = {"labels": {"background": 0, **values, "whole": [1, 299]}, "regions_class_order": [*range(299, 0, -1), 299]}
    assert share_equal(exporter(kind), logits_of(300, (4, 6, 5)), case((6, 9, 7))) >= 0.9999


def test_equal_logits_give_the_first_label_and_no_region() -> None:
    for kind, expected in (("labels", 0), ("regions", 0)):
        found = exporter(KINDS[kind]).segmentation(torch.zeros((3, 8, 9, 10), dtype=torch.half), case((12, 13, 14)))
        assert found is not None
        assert np.unique(found).tolist() == [expected]


def test_a_region_begins_at_the_very_logit_of_nnunets() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.half)
    every = every[every.isfinite()][: 2**15 + 2**14].reshape(1, 32, 48, 32)
    ours = exporter({"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [1]})
    assert share_equal(ours, every, case((32, 48, 32))) == 1


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("resample_torch_fornnunet", {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}),
    ("resample_data_or_seg_to_shape", {"order": 3}),
    ("resample_data_or_seg_to_shape", {"is_seg": True}),
]


@pytest.mark.parametrize(("function", "options"), OTHERS)
def test_nnunet_itself_exports_where_plans_resample_otherwise(tmp_path: Path, function: str, options: dict[str, Any]) -> None:
    ours, properties = exporter(function=function, **options), case((9, 12, 12))
    logits = logits_of(3, (6, 8, 8)).round()
    assert ours.segmentation(logits, properties) is None
    assert_files_are_nnunets(ours, logits, properties, tmp_path)


@pytest.mark.parametrize("kind", ["labels", "regions"])
def test_logits_that_are_no_numbers_are_exported_by_nnunet_itself(tmp_path: Path, kind: str) -> None:
    ours, properties, logits = exporter(KINDS[kind]), case((9, 12, 12)), logits_of(3, (6, 8, 8))
    logits[1, 2, 3, 4] = torch.nan
    assert ours.segmentation(logits, properties) is None
    assert_files_are_nnunets(ours, logits, properties, tmp_path)


@pytest.mark.parametrize("keeps_probabilities", [False, True])
def test_files_are_nnunets(tmp_path: Path, keeps_probabilities: bool) -> None:
    ours, properties = exporter(KINDS["ignore"], transpose=[1, 0, 2]), case((9, 12, 12), (0.9, 0.8, 1.1), margins=(1, 1))
    assert_files_are_nnunets(ours, logits_of(3, (9, 12, 12)), properties, tmp_path, keeps_probabilities=keeps_probabilities)


def assert_files_are_nnunets(
    ours: Exporter, logits: torch.Tensor, properties: dict[str, Any], base: Path, *, keeps_probabilities: bool = False
) -> None:
    for folder in ("mine", "theirs"):
        (base / folder).mkdir()
    ours.write(logits, properties, str(base / "mine" / "case"), keeps_probabilities=keeps_probabilities)
    arguments = (properties, ours.configuration, ours.plans, ours.dataset_json, str(base / "theirs" / "case"), keeps_probabilities, 1)
    export_prediction_from_logits(logits, *arguments)
    names = sorted(file.name for file in (base / "theirs").iterdir())
    assert names == ["case.nii.gz"] if not keeps_probabilities else ["case.nii.gz", "case.npz", "case.pkl"]
    for name in names:
        assert (base / "mine" / name).read_bytes() == (base / "theirs" / name).read_bytes()


class LargestOfFloats(TorchDispatchMode):
    """Notes the largest floating-point tensor that torch makes; views of `given` are none."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given = given.untyped_storage().data_ptr()
        self.voxels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_floating_point() and result.untyped_storage().data_ptr() != self.given:
            self.voxels = max(self.voxels, result.numel())
        return result


@pytest.mark.parametrize("kind", ["labels", "regions"])
@pytest.mark.parametrize("original", [(40, 90, 150), (20, 70, 130), (17, 60, 100)])
def test_no_copy_of_a_class_is_larger_than_a_slab(kind: str, original: Shape) -> None:
    ours, logits = exporter(KINDS[kind]), logits_of(3, (30, 70, 130))
    with LargestOfFloats(logits) as largest:
        assert ours.segmentation(logits, case(original)) is not None
    assert 0 < largest.voxels <= 1.2 * SLAB_VOXELS  # with the input planes that two slabs share


IN_32_BITS: list[tuple[tuple[float, ...], dict[str, Any]]] = [(CUBE, {}), (THIN, {}), (THIN, {"order_z": 1})]


@pytest.mark.parametrize(("spacing", "options"), IN_32_BITS)
def test_resampled_values_are_the_librarys(spacing: tuple[float, ...], options: dict[str, Any]) -> None:
    """In 32 bits, where the rounding to 16 hides no difference: torch holds a neighbour's distance in as many, the libraries in 64."""
    function = exporter(**options).configuration.resampling_fn_probabilities
    logits = torch.randn((1, 14, 16, 17), generator=torch.Generator().manual_seed(1))
    theirs = resample_data_or_seg_to_shape(logits, (16, 23, 29), spacing, spacing, **function.keywords)
    resampling = resampling_of(function, (14, 16, 17), (16, 23, 29), spacing, spacing)
    assert resampling is not None
    found = torch.cat([resampled(logits[0], slab, resampling) for slab in resampling.slabs])
    np.testing.assert_allclose(found.numpy(), theirs[0], atol=1e-5, rtol=0)
