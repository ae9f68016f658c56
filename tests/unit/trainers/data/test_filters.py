"""Filters beside the library's; patches with axes of a few voxels, where no sample fails."""

from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.noise.median_filter import MedianFilterTransform
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform

from tests.unit.trainers.data.test_recipes import assert_nearly, seed_all
from trainers.contract.trainer_table import TrainerSettings
from trainers.data.dataset import geometry
from trainers.data.filters import FastMedian, FittingBlur, FittingSharpening
from trainers.data.recipes import Box, Inputs, pipeline
from trainers.data.recipes.da5 import kernel_width, rectangle_sizes

pytestmark = pytest.mark.usefixtures("one_thread")
THIN = [*((size, 12, 10) for size in range(1, 7)), (12, 1, 10), (12, 3, 10), (2, 3, 20), (4, 4, 4)]
THIN_2D = [*((size, 12) for size in range(1, 7)), (12, 1), (12, 4), (2, 2)]


def apply_always(transform: Any) -> None:
    """Probabilities of a transform and of those within it become 1, so that a few samples meet every one."""
    for name in ("apply_probability", "p_per_channel", "p_per_sample", "p_rotation", "p_scaling"):
        if hasattr(transform, name):
            setattr(transform, name, 1)
    inner = getattr(transform, "transform", None)
    for part in (*getattr(transform, "transforms", ()), *getattr(transform, "list_of_transforms", ()), *([inner] if inner else [])):
        apply_always(part)


def image_of(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32))


@pytest.mark.parametrize("recipe", ["default", "da5", "da5_classic"])
@pytest.mark.parametrize("patch", [*THIN, *THIN_2D], ids=str)
def test_no_sample_of_a_thin_patch_fails(recipe: Any, patch: tuple[int, ...]) -> None:
    shape = geometry(patch, TrainerSettings(recipe))
    steps = pipeline.__wrapped__(recipe, "train", Inputs(shape, ((1.0,) * len(patch),), (True, False), None, None))
    for step in (*([steps.spatial.transform] if steps.spatial else []), *(stage.transform for stage in steps.stages)):
        apply_always(step)
    for seed in range(8):
        labels = np.random.default_rng(seed).integers(-1, 5, (1, *steps.crop)).astype(np.int16)
        sample: dict[str, Any] = {"image": image_of(steps.crop, seed), "segmentation": torch.from_numpy(labels)}
        seed_all(seed)
        if steps.spatial is not None:
            whole = Box((0,) * len(steps.crop), steps.crop)
            sample = steps.spatial.apply(sample, steps.spatial.draw(2, steps.crop), steps.crop, whole)
        for stage in steps.stages:
            sample = stage(sample)
        assert sample["image"].shape == (2, *patch)
        assert torch.isfinite(sample["image"]).all()
        assert sample["segmentation"][0].shape == (1, *patch)


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 9, 9), (4, 9, 9), (5, 9, 9), (8, 24, 24), (2, 12), (4, 12), (16, 20)], ids=str)
def test_a_blur_is_the_librarys_wherever_the_library_can(shape: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"blur_sigma": (0.3, 1.5), "synchronize_channels": False, "synchronize_axes": False, "p_per_channel": 0.5}
    outcomes = set()
    for seed in range(40):
        seed_all(seed)
        ours = FittingBlur(**options)(image=image_of(shape, seed))["image"]
        seed_all(seed)
        try:
            expected = GaussianBlurTransform(**options)(image=image_of(shape, seed))["image"]
        except RuntimeError:
            outcomes.add("fails")
        else:
            outcomes.add("works")
            assert_nearly(ours, expected, 1e-6)
    assert outcomes == ({"works"} if min(shape) >= 5 else {"works", "fails"})


def test_a_blur_of_one_voxel_changes_nothing_along_its_axis() -> None:
    blur = FittingBlur(blur_sigma=1.0, synchronize_channels=False, synchronize_axes=True, p_per_channel=1)
    image = image_of((1, 14, 14), 0)
    plane = GaussianBlurTransform(blur_sigma=1.0, synchronize_channels=False, synchronize_axes=True, p_per_channel=1)
    expected = plane(image=image[:, 0].clone())["image"]
    assert torch.allclose(blur(image=image.clone())["image"][:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 9, 10), (2, 9, 9), (16, 20)], ids=str)
def test_sharpening_is_the_librarys(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        results = []
        for kind in (FittingSharpening, SharpeningTransform):
            seed_all(seed)
            results.append(kind(strength=(0.1, 1), p_same_for_each_channel=0, p_per_channel=0.5)(image=image_of(shape, seed))["image"])
        assert_nearly(results[0], results[1], 1e-6)


@pytest.mark.parametrize("shape", [(8, 9, 10), (3, 4, 20), (2, 2, 2), (1, 7, 9), (16, 20), (3, 5), (28, 16, 16)], ids=str)
def test_a_median_is_the_librarys_number_for_number(shape: tuple[int, ...]) -> None:
    """Also of constants, of both zeros, of numbers that often repeat, and of a few that lie far away."""
    for seed, size in enumerate(range(2, 8)):
        image = image_of(shape, seed)
        image[0] = (torch.round(image[0]), image[0] * 1e30, torch.zeros(shape), -torch.abs(image[0]), image[0] ** 9, image[0])[seed]
        results = [kind(size, 0, 1)(image=image.clone())["image"] for kind in (FastMedian, MedianFilterTransform)]
        assert torch.equal(*results)


def test_sharpening_of_one_slice_is_that_of_the_plane() -> None:
    image = image_of((14, 1, 13), 0)
    sharpened = FittingSharpening(strength=0.5)(image=image.clone())["image"]
    expected = SharpeningTransform(strength=0.5)(image=image[:, :, 0].clone())["image"]
    assert torch.allclose(sharpened[:, :, 0], expected, atol=1e-5)


def test_sizes_of_rectangles_and_widths_are_nnunets_from_six_voxels_on() -> None:
    """Worked by hand from nnU-Net's rule: a tenth to a third of an axis, a sixth of it to all of it."""
    assert rectangle_sizes((6, 20, 128)) == [[1, 2], [2, 6], [12, 42]]
    assert rectangle_sizes((1, 3, 5)) == [[1, 1], [1, 1], [1, 1]]
    recipe = pipeline("da5", "train", Inputs(geometry((4, 6, 20), TrainerSettings("da5")), ((1.0,) * 3,), (False,), None, None))
    rectangles: Any = next(stage.transform for stage in recipe.stages if stage.name == "rectangles")
    assert isinstance(rectangles.transform, BlankRectangleTransform)
    assert rectangles.transform.rectangle_size == [[1, 2], [1, 2], [2, 6]]
    for size in (6, 13, 96):
        np.random.seed(size)
        expected = np.exp(np.random.uniform(np.log(size // 6), np.log(size)))
        np.random.seed(size)
        assert kernel_width((size, 9), 0) == expected
    assert all(1 <= kernel_width((4, 9), 0) <= 4 for _ in range(50))
    assert kernel_width((1, 9), 0) == 1
