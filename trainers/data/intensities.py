"""Gamma and low resolution of batchgeneratorsv2 with compiled passes: same draws, results within rounding."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform

from trainers.data.kernels.intensities import lower_resolution, scale_about, scaled_moments

_LEAST = 1e-7
"""What ranges and deviations are divided by at least (the library's eps)."""


class RetainingGamma(GammaTransform):  # type: ignore[misc]
    """A power of the values within their range, after which their mean and deviation are as before."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        assert self.p_retain_stats == 1, "mean and deviation are always kept"
        for index, channel in enumerate(params["apply_to_channel"].tolist()):
            values = img[channel].contiguous()
            _raise(values, float(params["gamma"][index]), -1 if params["invert_image"][index] else 1)
            img[channel] = values
        return img


def _raise(values: torch.Tensor, exponent: float, sign: int) -> None:
    """In place; `sign` is -1 where the negative image is meant."""
    flat = values.view(-1).numpy()
    mean, deviation, low, high = _scaled(flat, sign, 0.0)
    extent = high - low
    scale_about(flat, np.float32(low), np.float32(1 / max(extent, _LEAST)), np.float32(0))
    values.pow_(exponent)  # torch's is vectorised
    found, deviation_now, _, _ = _scaled(flat, extent, low)
    scale_about(flat, np.float32(found), np.float32(sign * deviation / max(deviation_now, _LEAST)), np.float32(sign * mean))


def _scaled(flat: npt.NDArray[np.float32], factor: float, offset: float) -> list[float]:
    """Scale values in place; their mean, deviation, least and greatest then."""
    moments = np.empty(4)
    scaled_moments(flat, np.float32(factor), np.float32(offset), moments)
    found: list[float] = moments.tolist()
    return found


class FastLowResolution(SimulateLowResolutionTransform):  # type: ignore[misc]
    """Sampled at fewer places, at one at least along each axis (the library fails at none), and interpolated linearly between them."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        shape = img.shape[1:]
        for channel, scales in zip(params["apply_to_channel"], params["scales"], strict=True):
            coarse = [1] * (3 - len(shape)) + [max(1, round(size * scale.item())) for size, scale in zip(shape, scales, strict=True)]
            volume = img[channel].contiguous().numpy().reshape(-1, *shape[-2:])
            found = np.empty_like(volume)
            lower_resolution(volume, *coarse, found)
            img[channel] = torch.from_numpy(found.reshape(shape))
        return img
