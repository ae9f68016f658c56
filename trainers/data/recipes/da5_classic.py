"""DA5 as nnU-Net had it up to 2.6.4: the same list as `da5`, from batchgenerators, with images interpolated by cubic splines.

Source: nnunetv2/training/nnUNetTrainer/variants/data_augmentation/nnUNetTrainerDA5.py of nnU-Net 2.6.4.
Its transforms work on numpy batches (B, C, [Z,] Y, X); here on batches of one, so that each sample has its own streams.
"""

import warnings
from typing import Any

import numpy as np
import torch
from batchgenerators.transforms.color_transforms import BrightnessTransform, ContrastAugmentationTransform, GammaTransform
from batchgenerators.transforms.local_transforms import BrightnessGradientAdditiveTransform, LocalGammaTransform
from batchgenerators.transforms.noise_transforms import (
    BlankRectangleTransform,
    GaussianBlurTransform,
    GaussianNoiseTransform,
    MedianFilterTransform,
    SharpeningTransform,
)
from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
from batchgenerators.transforms.spatial_transforms import MirrorTransform, Rot90Transform, SpatialTransform, TransposeAxesTransform
from batchgenerators.transforms.utility_transforms import OneOfTransform
from nnunetv2.training.data_augmentation.custom_transforms.transforms_for_dummy_2d import Convert2DTo3DTransform, Convert3DTo2DTransform

from trainers.data.recipes.cascade import disturbed_classically
from trainers.data.recipes.da5 import exchangeable_axes, gradient_strength, kernel_width, local_gamma, rectangle_sizes
from trainers.data.recipes.stages import Inputs, Pipeline, Sample, Stage, finishing, masking


class BatchOfOne:
    """batchgenerators' transforms, one after the other, on a single sample of tensors."""

    def __init__(self, *transforms: Any) -> None:
        """`transforms` take and give dicts with `data` and `seg`, numpy arrays with a batch axis."""
        self.transforms = transforms

    def __call__(self, *, image: torch.Tensor, segmentation: torch.Tensor) -> Sample:
        """Labels go through as float32, as they did in nnU-Net, and are whole numbers again afterwards."""
        batch: dict[str, Any] = {"data": image.numpy()[None], "seg": segmentation.numpy()[None].astype(np.float32)}
        with warnings.catch_warnings():
            # BlankRectangleTransform (batchgenerators 0.25.5) calls numpy's random_integers
            warnings.filterwarnings("ignore", "This function is deprecated. Please call randint", DeprecationWarning)
            for transform in self.transforms:
                batch = transform(**batch)
        return {
            "image": torch.from_numpy(np.ascontiguousarray(batch["data"][0], dtype=np.float32)),
            "segmentation": torch.from_numpy(np.ascontiguousarray(batch["seg"][0], dtype=np.int16)),
        }


def training(inputs: Inputs) -> Pipeline:
    """The loader's whole crop is read for every sample: parameters of batchgenerators' spatial transform cannot be drawn ahead."""
    return Pipeline(
        inputs.geometry.loader_patch,
        None,
        (
            _spatial(inputs),
            *_axis_swaps(inputs.geometry.patch),
            *_intensities(inputs),
            Stage("mirror", BatchOfOne(MirrorTransform(inputs.geometry.mirror_axes))),
            *_local(inputs.geometry.patch),
            *masking(inputs),
            *finishing(inputs, disturbed_classically(inputs)),
        ),
    )


def _spatial(inputs: Inputs) -> Stage:
    geometry = inputs.geometry
    transform = SpatialTransform(
        geometry.patch[1:] if geometry.dummy_2d else geometry.patch,
        patch_center_dist_from_border=None,
        do_elastic_deform=False,
        do_rotation=True,
        angle_x=geometry.rotation_rad,
        angle_y=geometry.rotation_rad,
        angle_z=geometry.rotation_rad,
        p_rot_per_axis=0.5,
        do_scale=True,
        scale=(0.7, 1.43),
        border_mode_data="constant",
        border_cval_data=0,
        order_data=3,
        border_mode_seg="constant",
        border_cval_seg=-1,
        order_seg=1,
        random_crop=False,
        p_el_per_sample=0.2,
        p_scale_per_sample=0.2,
        p_rot_per_sample=0.4,
        independent_scale_for_each_axis=True,
    )
    around = (Convert3DTo2DTransform(), transform, Convert2DTo3DTransform()) if geometry.dummy_2d else (transform,)
    return Stage("spatial", BatchOfOne(*around))


def _axis_swaps(patch: tuple[int, ...]) -> tuple[Stage, ...]:
    axes = exchangeable_axes(patch)
    if not axes:
        return ()
    return (
        Stage("rot90", BatchOfOne(Rot90Transform((0, 1, 2, 3), axes=axes, p_per_sample=0.5))),
        Stage("transpose", BatchOfOne(TransposeAxesTransform(axes, p_per_sample=0.5))),
    )


def _intensities(inputs: Inputs) -> tuple[Stage, ...]:
    median = MedianFilterTransform((2, 8), same_for_each_channel=False, p_per_sample=0.2, p_per_channel=0.5)
    blur = GaussianBlurTransform((0.3, 1.5), different_sigma_per_channel=True, p_per_sample=0.2, p_per_channel=0.5)
    brightness = BrightnessTransform(0, 0.5, per_channel=True, p_per_sample=0.1, p_per_channel=0.5)
    low_resolution = SimulateLowResolutionTransform(
        zoom_range=(0.25, 1),
        per_channel=True,
        p_per_channel=0.5,
        order_downsample=0,
        order_upsample=3,
        p_per_sample=0.15,
        ignore_axes=inputs.low_resolution_ignores,
    )
    return (
        Stage("median_or_blur", BatchOfOne(OneOfTransform([median, blur]))),
        Stage("noise", BatchOfOne(GaussianNoiseTransform(p_per_sample=0.1))),
        Stage("brightness", BatchOfOne(brightness)),
        Stage("contrast", BatchOfOne(OneOfTransform([_contrast(preserve_range=True), _contrast(preserve_range=False)]))),
        Stage("low_resolution", BatchOfOne(low_resolution)),
        Stage("gamma_inverted", BatchOfOne(_inverted_gamma())),
        # nnU-Net listed the inverted gamma twice and no other; kept
        Stage("gamma_inverted_again", BatchOfOne(_inverted_gamma())),
    )


def _contrast(preserve_range: bool) -> Any:
    return ContrastAugmentationTransform(
        contrast_range=(0.5, 2), preserve_range=preserve_range, per_channel=True, p_per_sample=0.2, p_per_channel=0.5
    )


def _inverted_gamma() -> Any:
    return GammaTransform((0.7, 1.5), invert_image=True, per_channel=True, retain_stats=True, p_per_sample=0.1)


def _local(patch: tuple[int, ...]) -> tuple[Stage, ...]:
    rectangles = BlankRectangleTransform(
        rectangle_sizes(patch),
        rectangle_value=np.mean,
        num_rectangles=(1, 5),
        force_square=False,
        p_per_sample=0.4,
        p_per_channel=0.5,
    )
    gradient = BrightnessGradientAdditiveTransform(
        kernel_width,
        (-0.5, 1.5),
        max_strength=gradient_strength,
        mean_centered=False,
        same_for_all_channels=False,
        p_per_sample=0.3,
        p_per_channel=0.5,
    )
    gamma = LocalGammaTransform(kernel_width, (-0.5, 1.5), local_gamma, same_for_all_channels=False, p_per_sample=0.3, p_per_channel=0.5)
    sharpening = SharpeningTransform(strength=(0.1, 1), same_for_each_channel=False, p_per_sample=0.2, p_per_channel=0.5)
    return (
        *(
            [] if 1 in patch else [Stage("rectangles", BatchOfOne(rectangles))]
        ),  # batchgenerators finds them no place in an axis of one voxel
        Stage("brightness_gradient", BatchOfOne(gradient)),
        Stage("local_gamma", BatchOfOne(gamma)),
        Stage("sharpening", BatchOfOne(sharpening)),
    )
