"""An augmentation of your own: `recipe: own_recipe:light`. Rotation, noise, and a transform that is written here."""

from typing import Any

import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform


def dimmed(image: torch.Tensor, segmentation: torch.Tensor) -> dict[str, torch.Tensor]:
    """A transform gets image (C, [Z,] Y, X) and segmentation (1, [Z,] Y, X), and returns both."""
    return {"image": image * (0.8 + 0.2 * torch.rand(1)), "segmentation": segmentation}


def light(inputs: Any) -> list[Any]:
    """Called once per loader. As its first transform is a SpatialTransform, samples have nnU-Net's margin for its rotation."""
    geometry = inputs.geometry
    rotated = SpatialTransform(
        geometry.patch,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.5,
        rotation=geometry.rotation_rad,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    noise = RandomTransform(GaussianNoiseTransform(noise_variance=(0, 0.05)), apply_probability=0.2)
    return [rotated, noise, dimmed, MirrorTransform(allowed_axes=geometry.mirror_axes)]
