"""Transforms of batchgeneratorsv2 that fail where an axis has a few voxels, made to fit: same draws, same bits where the library works.

Where it fails (batchgeneratorsv2 0.3.6, and nnU-Net with it): a blur reflects half its kernel, so its axis must be longer than that;
sharpening drops axes of one voxel.
"""

from typing import Any

import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform

_TRUNCATE = 6.0
"""Length of a blur's kernel in standard deviations: the library's default."""


class FittingBlur(GaussianBlurTransform):  # type: ignore[misc]
    """A Gaussian blur whose kernel has at most 2 n - 1 voxels along an axis of n, what its reflection gives: one voxel stays as it is."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        assert not self.synchronize_channels, "each channel is blurred for itself"
        assert not self.benchmark, "an algorithm chosen by timing has other bits in every process"
        for channel, sigmas in zip(torch.nonzero(params["apply_to_channel"]).flatten(), params["sigmas"], strict=True):
            part = img[channel : channel + 1]
            for axis, sigma in enumerate(sigmas):
                longest = 2 * img.shape[axis + 1] - 1
                part = blur_dimension(part, sigma, axis, truncate=min(_TRUNCATE, (longest - 0.5) / sigma))
            img[channel : channel + 1] = part
        return img


class FittingSharpening(SharpeningTransform):  # type: ignore[misc]
    """Sharpening of images that may have axes of one voxel: doubled they change nothing, since the library repeats the border too."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        if 1 not in img.shape[1:]:
            return super()._apply_to_image(img, **params)  # type: ignore[no-any-return]
        doubled = img.repeat(1, *(2 if size == 1 else 1 for size in img.shape[1:]))
        sharpened = super()._apply_to_image(doubled, **params)
        return sharpened[tuple(slice(size) for size in img.shape)].contiguous()  # type: ignore[no-any-return]
