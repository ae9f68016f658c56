"""Filters of batchgeneratorsv2 as compiled kernels: same draws, results within rounding, and no fault where an axis has a few voxels.

There the library fails (batchgeneratorsv2 0.3.6, and nnU-Net with it): a blur reflects half its kernel, so its axis must be longer than
that; sharpening drops axes of one voxel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, _build_kernel
from batchgeneratorsv2.transforms.noise.median_filter import MedianFilterTransform
from batchgeneratorsv2.transforms.noise.sharpen import SharpeningTransform

from trainers.data.kernels.filters import blur, median, sharpen

_TRUNCATE = 6.0
"""Length of a blur's kernel in standard deviations: the library's default."""
_UNCHANGED = np.ones(1, np.float32)

Volume = npt.NDArray[np.float32]
"""One channel, (Z, Y, X); an image of two axes is one slice."""


def _filter(image: torch.Tensor, channel: int, kernel: Callable[[Volume, Volume], None]) -> None:
    """Put what `kernel` makes of a channel in its place; it is given the channel and an array for the result."""
    source = np.ascontiguousarray(image[channel].numpy())
    volume = source.reshape(-1, *source.shape[-2:])
    result = np.empty_like(volume)
    kernel(volume, result)
    image[channel] = torch.from_numpy(result.reshape(source.shape))


class FittingBlur(GaussianBlurTransform):  # type: ignore[misc]
    """A Gaussian blur whose kernel has at most 2 n - 1 voxels along an axis of n, what its reflection gives: one voxel stays as it is."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        assert not self.synchronize_channels, "each channel is blurred for itself"
        assert not self.benchmark, "an algorithm chosen by timing has other bits in every process"
        for channel, sigmas in zip(torch.nonzero(params["apply_to_channel"]).flatten().tolist(), params["sigmas"], strict=True):
            weights = [_weights(sigma, size) for sigma, size in zip(sigmas, img.shape[1:], strict=True)]
            along = [_UNCHANGED] * (3 - len(weights)) + weights
            _filter(img, channel, lambda volume, result, along=along: blur(volume, *along, result))  # type: ignore[misc]
        return img


def _weights(sigma: float, size: int) -> npt.NDArray[np.float32]:
    """The library's kernel for an axis of `size` voxels."""
    found: npt.NDArray[np.float32] = _build_kernel(sigma, truncate=min(_TRUNCATE, (2 * size - 1.5) / sigma)).numpy()
    return found


class FittingSharpening(SharpeningTransform):  # type: ignore[misc]
    """Sharpening of images that may have axes of one voxel, which change nothing: the border is repeated."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        assert self.p_clamp_intensities == 0, "intensities are not clamped to their range"
        for channel, strength in enumerate(params["strengths"]):
            if params["apply_channel"][channel]:
                weight = np.float32(strength)
                _filter(img, channel, lambda volume, result, weight=weight: sharpen(volume, weight, img.ndim == 3, result))  # type: ignore[misc]
        return img


class FastMedian(MedianFilterTransform):  # type: ignore[misc]
    """scipy's median filter, number for number."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        for channel, size in enumerate(params["filter_sizes"]):
            if params["apply_channel"][channel]:
                _filter(img, channel, lambda volume, result, size=size: median(volume, size, img.ndim == 3, result))  # type: ignore[misc]
        return img
