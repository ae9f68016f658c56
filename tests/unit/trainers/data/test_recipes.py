"""Recipes: the same transforms as nnU-Net's, structure, parameters and results within rounding."""

import itertools
import pkgutil
import random
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from tests.nnunet_reference import variant_class
from trainers.contract.trainer_table import TRAINERS, Recipe
from trainers.data.affine import AffineTransform, resampled, touched_box
from trainers.data.batches import SplitName
from trainers.data.dataset import geometry
from trainers.data.recipes import Box, Inputs, Pipeline, pipeline
from trainers.data.recipes.da5_classic import BatchOfOne

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["nnUNetTrainer", "nnUNetTrainerDA5"]
PATCHES = {"3d": (24, 20, 24), "dummy_2d": (8, 32, 32), "2d": (32, 24), "all_sides_differ": (20, 24, 28)}
NOT_COMPARED = {"benchmark", "benchmark_use_fft", "_grid_cache"}
REGIONS = ((1, 2, 3), (2, 3), (3,))
VARIANTS = list(itertools.product(NAMES, PATCHES, [None, REGIONS], [None, 4], [(False, False), (True, False)]))


def inputs(trainer: str, patch: str, regions: Any, ignore_label: int | None, masked: tuple[bool, ...]) -> Inputs:
    size = PATCHES[patch]
    scales = ((1.0,) * len(size), (0.5,) * len(size))
    return Inputs(geometry(size, TRAINERS[trainer]), scales, masked, regions, ignore_label)


def composed_by_nnunet(name: str, split: str, given: Inputs, **cascaded: Any) -> Any:
    """nnU-Net's list for the same inputs; its blur is told not to choose its algorithm by timing."""
    trainer = variant_class(name)
    regions = None if given.regions is None else [r if len(r) > 1 else r[0] for r in given.regions]
    common: dict[str, Any] = {"regions": regions, "ignore_label": given.ignore_label, **cascaded}
    scales = [list(scale) for scale in given.scales]
    if split == "val":
        return trainer.get_validation_transforms(scales, **common)
    shape = given.geometry
    composed = trainer.get_training_transforms(
        list(shape.patch),
        shape.rotation_rad,
        scales,
        shape.mirror_axes or None,
        shape.dummy_2d,
        use_mask_for_norm=list(given.use_mask_for_norm),
        **common,
    )
    for transform in composed.transforms:
        if type(getattr(transform, "transform", None)).__name__ == "GaussianBlurTransform":
            transform.transform.benchmark = False
    return composed


def flattened(ours: Pipeline) -> list[Any]:
    return [*(ours.spatial.transforms if ours.spatial else []), *(stage.transform for stage in ours.stages)]


def described(value: Any) -> Any:
    """A transform as nested plain values; functions by what they give for a fixed seed."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [described(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(int(item) for item in value)
    if value is torch.mean or value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.number):
        return float(value)
    if callable(value) and hasattr(value, "__code__"):
        return value.__name__ if value.__module__.startswith("batchgeneratorsv2") else sampled(value)
    return library_name(type(value)), {key: described(item) for key, item in vars(value).items() if key not in NOT_COMPARED}


def library_name(kind: type) -> str:
    """The library's class, also of one that is derived from it here."""
    return next((base.__name__ for base in kind.__mro__ if base.__module__.startswith("batchgeneratorsv2")), kind.__name__)


def sampled(function: Callable[..., float]) -> list[float]:
    np.random.seed(3)
    arguments = ((30, 40, 50), 1)[: function.__code__.co_argcount]
    return [function(*arguments) for _ in range(20)]


@pytest.mark.parametrize(("trainer", "patch", "regions", "ignore_label", "masked"), VARIANTS)
def test_transforms_are_those_of_nnunet(trainer: str, patch: str, regions: Any, ignore_label: int | None, masked: tuple[bool, ...]) -> None:
    check_transforms(trainer, inputs(trainer, patch, regions, ignore_label, masked))


def check_transforms(trainer: str, given: Inputs) -> None:
    splits: tuple[SplitName, ...] = ("train", "val")
    for split in splits:
        reference = [described(transform) for transform in composed_by_nnunet(trainer, split, given).transforms]
        assert [described(transform) for transform in flattened(pipeline(TRAINERS[trainer].recipe, split, given))] == reference


def seed_all(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)


def raw_sample(given: Inputs, seed: int) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(seed)
    crop = given.geometry.loader_patch
    return {
        "image": torch.from_numpy(generator.normal(size=(2, *crop)).astype(np.float32)),
        "segmentation": torch.from_numpy(generator.integers(-1, 5, (1, *crop)).astype(np.int16)),
    }


@pytest.mark.parametrize("trainer", NAMES)
@pytest.mark.parametrize("patch", ["3d", "dummy_2d", "2d"])
def test_samples_are_nnunets_for_the_same_draws(trainer: str, patch: str) -> None:
    check_samples(trainer, inputs(trainer, patch, REGIONS, 4, (True, False)), seeds=60)


def transformed(steps: Pipeline, sample: dict[str, Any]) -> dict[str, Any]:
    """A whole crop after the spatial transform."""
    assert steps.spatial is not None
    return steps.spatial.apply(sample, steps.spatial.draw(2, steps.crop), steps.crop, Box((0,) * len(steps.crop), steps.crop))


def check_samples(trainer: str, given: Inputs, seeds: int) -> None:
    ours, reference = pipeline(TRAINERS[trainer].recipe, "train", given), composed_by_nnunet(trainer, "train", given)
    for seed in range(seeds):
        seed_all(seed)
        expected = reference(**raw_sample(given, seed))
        seed_all(seed)
        sample: dict[str, Any] = raw_sample(given, seed)
        if ours.spatial is not None:
            sample = transformed(ours, sample)
        for stage in ours.stages:
            sample = stage(sample)
        assert_nearly(sample["image"], expected["image"])
        for ours_at_scale, theirs in zip(sample["segmentation"], expected["segmentation"], strict=True):
            assert (ours_at_scale.shape, ours_at_scale.dtype) == (theirs.shape, theirs.dtype)
            assert (ours_at_scale != theirs).float().mean() <= 1e-5


@pytest.mark.parametrize("patch", PATCHES)
def test_da5_classic_has_the_stages_of_da5(patch: str) -> None:
    """Its list in nnU-Net 2.6.4 is that of 2.8.1; only there the spatial transform is an ordinary stage."""
    given = inputs("nnUNetTrainerDA5_classic", patch, None, None, (True, False))
    classic, newer = pipeline("da5_classic", "train", given), pipeline("da5", "train", given)
    assert [stage.name for stage in classic.stages] == ["spatial", *(stage.name for stage in newer.stages)]
    spatial = next(t for t in classic.stages[0].transform.transforms if type(t).__name__ == "SpatialTransform")  # type: ignore[attr-defined]
    assert (spatial.order_data, spatial.order_seg, spatial.border_cval_seg) == (3, 1, -1)
    assert classic.crop == given.geometry.loader_patch


def test_da5_classic_agrees_with_da5_where_nothing_random_is_applied() -> None:
    """With every probability at 0 both only crop, remove -1 and make targets."""
    given = inputs("nnUNetTrainerDA5", "3d", None, None, (True, False))
    outputs = []
    for recipe in ("da5", "da5_classic"):
        sample: dict[str, Any] = raw_sample(given, 0)
        steps = pipeline.__wrapped__(recipe, "train", given)  # a pipeline of its own, since it is changed here
        if steps.spatial is not None:
            steps.spatial.transform.p_rotation = steps.spatial.transform.p_scaling = 0
            sample = transformed(steps, sample)
        for stage in steps.stages:
            if stage.name == "spatial":
                assert isinstance(stage.transform, BatchOfOne)
                stage.transform.transforms[0].p_rot_per_sample = stage.transform.transforms[0].p_scale_per_sample = 0
            if stage.name in ("spatial", "mask", "remove_label", "downsample"):
                sample = stage(sample)
        outputs.append(sample)
    assert torch.equal(outputs[0]["image"], outputs[1]["image"])
    assert all(torch.equal(a, b) for a, b in zip(outputs[0]["segmentation"], outputs[1]["segmentation"], strict=True))


def blobs(shape: tuple[int, ...], channels: int, labels: list[int], seed: int) -> torch.Tensor:
    """Smooth random labels, some of them touching the border."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, channels, *(max(2, n // 6) for n in shape)), generator=generator)
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    smooth = torch.nn.functional.interpolate(coarse, shape, mode=mode, align_corners=True)[0]
    return torch.tensor(labels, dtype=torch.int16)[(smooth * len(labels)).long().clamp(0, len(labels) - 1)]


CROPS = [((38, 35, 38), (24, 20, 24), 1), ((19, 45, 40), (6, 30, 30), 2), ((37, 41), (32, 32), 1), ((37, 37), (32, 32), 5)]


@pytest.mark.parametrize("labels", [[2], [0, 1], [-1, 0], [0, 1, 2], [-1, 0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("modes", [("bilinear", "bilinear"), ("bilinear", "nearest"), ("nearest", "nearest")], ids="-".join)
@pytest.mark.parametrize(("crop", "patch", "channels"), CROPS, ids=str)
def test_patches_are_resampled_as_by_the_library(
    crop: tuple[int, ...], patch: tuple[int, ...], channels: int, modes: tuple[str, str], labels: list[int]
) -> None:
    """Rotated, scaled so far that the patch leaves the crop, and on grids that hit voxels and borders exactly; read whole or in part."""
    options: dict[str, Any] = {
        "p_rotation": 0.8,
        "rotation": (-3, 3),
        "p_scaling": 0.8,
        "scaling": (0.5, 2.0),
        "p_synchronize_scaling_across_axes": 0.5,
        "border_mode_seg": "constant",
        "padding_value_seg": -1,
        "mode_image": modes[0],
        "mode_seg": modes[1],
    }
    library, ours = SpatialTransform(patch, 0, False, **options), AffineTransform(patch, 0, False, **options)
    for seed in range(20):
        for transform in (library, ours):
            if seed % 5 == 0:  # quarter turns and halves: ties
                transform.rotation, transform.scaling = np.pi / 2 * (seed % 2), (0.5, 1, 2)[seed // 5 % 3]
        image = torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, *crop)).astype(np.float32))
        given = blobs(crop, channels if len(crop) == 2 else 1, labels, seed)
        seed_all(seed)
        expected = library.get_parameters(image=image)
        seed_all(seed)
        parameters = ours.get_parameters(image=image)
        if expected["grid"] is None:
            assert parameters["affine"] is None
            continue
        values, classes = library._apply_to_image(image, **expected), library._apply_to_segmentation(given, **expected)
        assert np.array_equal(parameters["affine"], expected["affine"])
        origin, size = touched_box(parameters["affine"], patch, crop)
        box = (slice(None), *(slice(low, low + n) for low, n in zip(origin, size, strict=True)))
        for part, start in ((np.s_[:], (0,) * len(crop)), (box, origin)):
            cut = [np.ascontiguousarray(array.numpy()[part]) for array in (image, given)]
            found = resampled(cut[0], cut[1], ours, parameters["affine"], crop, start)
            assert_nearly(found[0], values.numpy())
            assert np.mean(found[1] != classes.numpy()) <= 1e-5


def assert_nearly(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal within rounding, relative to the greatest value."""
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= tolerance * max(1.0, np.abs(np.asarray(expected)).max())


def test_every_recipe_has_its_module_its_scales_and_a_trainer() -> None:
    import trainers.data.recipes as package
    from trainers.data.dataset import _SCALE_RANGE

    named = set(get_args(Recipe))
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)} - {"stages", "cascade", "cascade_labels", "own"}
    assert named == modules == set(_SCALE_RANGE) == {settings.recipe for settings in TRAINERS.values()}
