"""nnU-Net's sliding window, whose tiles are added class by class on a CPU: the same bits without copies of a tile or of all logits.

Adding a tile in float32 to logits in float16, PyTorch makes a float32 copy of both; the search for infinite values makes one of a byte per
logit. Done class by class, each is as large as one class.

C class, Z Y X voxels. Source: nnunetv2/inference/predict_from_raw_data.py (`_internal_predict_sliding_window_return_logits`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from torch import Tensor

Tile = tuple[slice, ...]
"""Of a padded case: all channels, and the voxels of a tile along each axis; in 2D the index of its slice first."""


class ClassByClassPredictor(nnUNetPredictor):  # type: ignore[misc]
    """nnU-Net's predictor. On another device than a CPU it is nnU-Net's own in everything."""

    @torch.inference_mode()
    def _internal_predict_sliding_window_return_logits(self, data: Tensor, slicers: Sequence[Tile], do_on_device: bool = True) -> Any:
        if self.device.type != "cpu":
            return super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)
        patch_ZYX = tuple(self.configuration_manager.patch_size)
        gaussian_ZYX = compute_gaussian(patch_ZYX, sigma_scale=1 / 8, value_scaling_factor=10, device=self.device)
        logits_CZYX = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]), dtype=torch.half)
        weights_ZYX = torch.zeros(data.shape[1:], dtype=torch.half)
        for tile in slicers:
            predicted_BCZYX = self._internal_maybe_mirror_and_predict(data[tile][None].contiguous())
            for sums_ZYX, predicted_ZYX in zip(logits_CZYX, predicted_BCZYX[0], strict=True):
                sums_ZYX[tile[1:]] += predicted_ZYX.mul_(gaussian_ZYX)
            weights_ZYX[tile[1:]] += gaussian_ZYX
        for sums_ZYX in logits_CZYX:
            if bool(sums_ZYX.div_(weights_ZYX).isinf().any()):
                raise RuntimeError("infinite logits: the sums of overlapping tiles exceed 16 bits. Were the weights trained to an end?")
        return logits_CZYX
