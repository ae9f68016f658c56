"""The augmentation of nnUNetTrainer, nnU-Net 2.8.1 (training/nnUNetTrainer/nnUNetTrainer.py, get_training_transforms)."""

from typing import Any

from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from trainers.data.affine import AffineTransform
from trainers.data.filters import FittingBlur
from trainers.data.intensities import FastLowResolution, RetainingGamma
from trainers.data.recipes.cascade import disturbed
from trainers.data.recipes.stages import Inputs, Pipeline, Spatial, Stage, finishing, interpolation, masking, mirroring


def training(inputs: Inputs) -> Pipeline:
    """Spatial transform, intensities, mirroring; each with nnU-Net's probability per sample."""
    return Pipeline(
        inputs.geometry.loader_patch,
        _spatial(inputs),
        (
            *_intensities(inputs),
            *mirroring(inputs),
            *masking(inputs),
            *finishing(inputs, disturbed(inputs, p_per_label=0.5)),
        ),
    )


def _spatial(inputs: Inputs) -> Spatial:
    geometry = inputs.geometry
    transform = AffineTransform(
        geometry.patch[1:] if geometry.dummy_2d else geometry.patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=0,
        p_rotation=0.2,
        rotation=geometry.rotation_rad,
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False,
        border_mode_seg="constant",
        padding_value_seg=-1,
        **interpolation(inputs),
    )
    return Spatial(transform, geometry.dummy_2d)


def _intensities(inputs: Inputs) -> tuple[Stage, ...]:
    # benchmark=True, which nnU-Net sets for the blur, would choose its algorithm by timing: other bits in every process
    noise = GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True)
    blur = FittingBlur(blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5)
    brightness = MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1)
    contrast = ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, synchronize_channels=False, p_per_channel=1)
    low_resolution = FastLowResolution(
        scale=(0.5, 1),
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=inputs.low_resolution_ignores,
        allowed_channels=None,
        p_per_channel=0.5,
    )
    return (
        Stage("noise", RandomTransform(noise, apply_probability=0.1)),
        Stage("blur", RandomTransform(blur, apply_probability=0.2)),
        Stage("brightness", RandomTransform(brightness, apply_probability=0.15)),
        Stage("contrast", RandomTransform(contrast, apply_probability=0.15)),
        Stage("low_resolution", RandomTransform(low_resolution, apply_probability=0.25)),
        Stage("gamma_inverted", RandomTransform(_gamma(inverted=1), apply_probability=0.1)),
        Stage("gamma", RandomTransform(_gamma(inverted=0), apply_probability=0.3)),
    )


def _gamma(inverted: int) -> Any:
    return RetainingGamma(
        gamma=BGContrast((0.7, 1.5)), p_invert_image=inverted, synchronize_channels=False, p_per_channel=1, p_retain_stats=1
    )
