"""The augmentation of nnUNetTrainerDA5, nnU-Net 2.8.1 (training/nnUNetTrainer/variants/data_augmentation/nnUNetTrainerDA5.py)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.brightness import BrightnessAdditiveTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.local.brightness_gradient import BrightnessGradientAdditiveTransform
from batchgeneratorsv2.transforms.local.local_gamma import LocalGammaTransform
from batchgeneratorsv2.transforms.noise.blank_rectangle import BlankRectangleTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.transpose import TransposeAxesTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform

from trainers.data.affine import AffineTransform
from trainers.data.filters import FastMedian, FittingBlur, FittingSharpening
from trainers.data.intensities import FastLowResolution, RetainingGamma
from trainers.data.recipes.cascade import disturbed
from trainers.data.recipes.stages import Inputs, Pipeline, Spatial, Stage, finishing, interpolation, masking, mirroring


def training(inputs: Inputs) -> Pipeline:
    """Spatial transform, quarter turns, intensities, mirroring, local intensities; nnU-Net's probabilities per sample."""
    return Pipeline(
        inputs.geometry.loader_patch,
        _spatial(inputs),
        (
            *_axis_swaps(inputs.geometry.patch),
            *_intensities(inputs),
            *mirroring(inputs),
            *_local(inputs.geometry.patch),
            *masking(inputs),
            *finishing(inputs, disturbed(inputs, p_per_label=1)),
        ),
    )


def _spatial(inputs: Inputs) -> Spatial:
    geometry = inputs.geometry
    transform = AffineTransform(
        geometry.patch[1:] if geometry.dummy_2d else geometry.patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.4,
        rotation=geometry.rotation_rad,
        p_rot_per_axis=0.5,
        p_scaling=0.2,
        scaling=(0.7, 1.43),
        p_synchronize_scaling_across_axes=0,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=-1,
        **interpolation(inputs),
    )
    return Spatial(transform, geometry.dummy_2d)


def exchangeable_axes(patch: tuple[int, ...]) -> list[int]:
    """The axes that share the most common size of a patch; none when all sizes differ."""
    counts = [patch.count(size) for size in patch]
    return [axis for axis, count in enumerate(counts) if count == max(counts)] if max(counts) > 1 else []


def _axis_swaps(patch: tuple[int, ...]) -> tuple[Stage, ...]:
    axes = set(exchangeable_axes(patch))
    if not axes:
        return ()
    turn = Rot90Transform(num_axis_combinations=1, num_rot_per_combination=(0, 1, 2, 3), allowed_axes=axes)
    return (
        Stage("rot90", RandomTransform(turn, apply_probability=0.5)),
        Stage("transpose", RandomTransform(TransposeAxesTransform(allowed_axes=axes), apply_probability=0.5)),
    )


def _intensities(inputs: Inputs) -> tuple[Stage, ...]:
    median = FastMedian((2, 8), p_same_for_each_channel=0, p_per_channel=0.5)
    blur = FittingBlur((0.3, 1.5), synchronize_channels=False, synchronize_axes=True, p_per_channel=0.5)
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    brightness = BrightnessAdditiveTransform(mu=0, sigma=0.5, synchronize_channels=False, p_per_channel=0.5)
    low_resolution = FastLowResolution(
        scale=(0.25, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=inputs.low_resolution_ignores,
        p_per_channel=0.5,
    )
    return (
        Stage("median_or_blur", _one_of(0.2, median, blur)),
        Stage("noise", RandomTransform(noise, apply_probability=0.1)),
        Stage("brightness", RandomTransform(brightness, apply_probability=0.1)),
        Stage("contrast", _one_of(0.2, _contrast(preserve_range=True), _contrast(preserve_range=False))),
        Stage("low_resolution", RandomTransform(low_resolution, apply_probability=0.15)),
        Stage("gamma_inverted", RandomTransform(_inverted_gamma(), apply_probability=0.1)),
        # nnU-Net lists the inverted gamma twice and no other; kept
        Stage("gamma_inverted_again", RandomTransform(_inverted_gamma(), apply_probability=0.1)),
    )


def _one_of(probability: float, *transforms: Any) -> Any:
    """One of them, drawn uniformly, is then applied with `probability`."""
    return OneOfTransform([RandomTransform(transform, apply_probability=probability) for transform in transforms])


def _contrast(preserve_range: bool) -> Any:
    return ContrastTransform(
        contrast_range=BGContrast((0.5, 2)), preserve_range=preserve_range, synchronize_channels=False, p_per_channel=0.5
    )


def _inverted_gamma() -> Any:
    return RetainingGamma(gamma=BGContrast((0.7, 1.5)), p_invert_image=1, synchronize_channels=False, p_per_channel=1, p_retain_stats=1)


def _local(patch: tuple[int, ...]) -> tuple[Stage, ...]:
    rectangles = BlankRectangleTransform(
        rectangle_size=[[least, max(limit, least + 1)] for least, limit in rectangle_sizes(patch)],
        rectangle_value=torch.mean,
        num_rectangles=(1, 5),
        force_square=False,
        p_per_channel=0.5,
    )
    gradient = BrightnessGradientAdditiveTransform(
        scale=kernel_width,
        loc=(-0.5, 1.5),
        max_strength=gradient_strength,
        mean_centered=False,
        same_for_all_channels=False,
        p_per_channel=0.5,
    )
    gamma = LocalGammaTransform(scale=kernel_width, loc=(-0.5, 1.5), gamma=local_gamma, same_for_all_channels=False, p_per_channel=0.5)
    sharpening = FittingSharpening(strength=(0.1, 1), p_same_for_each_channel=0, p_per_channel=0.5)
    return (
        Stage("rectangles", RandomTransform(rectangles, apply_probability=0.4)),
        Stage("brightness_gradient", RandomTransform(gradient, apply_probability=0.3)),
        Stage("local_gamma", RandomTransform(gamma, apply_probability=0.3)),
        Stage("sharpening", RandomTransform(sharpening, apply_probability=0.2)),
    )


def rectangle_sizes(patch: tuple[int, ...]) -> list[list[int]]:
    """Least and greatest side of a blanked rectangle for each axis, voxels; of an axis below 6 voxels one voxel.

    Here the greatest is never drawn, so there must be one more; batchgenerators' draws it.
    """
    return [[max(1, size // 10), max(1, size // 3)] for size in patch]


def kernel_width(shape: Sequence[int], axis: int) -> float:
    """Width of a local Gaussian, voxels: log-uniform between a sixth of the axis (at least one voxel) and all of it."""
    return float(np.exp(np.random.uniform(np.log(max(1, shape[axis] // 6)), np.log(shape[axis]))))


def gradient_strength(_image: Any, _kernel: Any) -> float:
    """Peak of the brightness gradient: 1 to 5 in either direction."""
    return np.random.uniform(-5, -1) if np.random.uniform() < 0.5 else np.random.uniform(1, 5)


def local_gamma() -> float:
    """Exponent of the local gamma: brighter or darker with equal probability."""
    return np.random.uniform(0.01, 0.8) if np.random.uniform() < 0.5 else np.random.uniform(1.5, 4)
