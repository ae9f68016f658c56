"""From labels to targets as batchgeneratorsv2 makes them, without its copies: the same values."""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform


class OutsideIsBackground(RemoveLabelTransform):  # type: ignore[misc]
    """Label -1, the lowest there is, becomes 0."""

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        assert (self.label_value, self.set_to, self.segmentation_channels) == (-1, 0, None), "only the outside is removed"
        return segmentation.clamp_(min=0)


class Regions(ConvertSegmentationToRegionsTransform):  # type: ignore[misc]
    """A mask (R, [Z,] Y, X) for each region, looked up by label."""

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        labels = segmentation[self.channel_in_seg].numpy()
        is_in = self._is_in(max(1, int(labels.max()) + 1))
        masks = np.empty((len(is_in), *labels.shape), bool)
        for table, mask in zip(is_in, masks, strict=True):
            np.take(table, labels, out=mask, mode="clip")
        return torch.from_numpy(masks)

    def _is_in(self, length: int) -> npt.NDArray[np.bool_]:
        return np.stack([np.isin(np.arange(length), region.numpy()) for region in self.regions])


class Downsampling(DownsampleSegForDSTransform):  # type: ignore[misc]
    """The nearest voxel of each target's, read where it lies."""

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> list[torch.Tensor]:
        whole = segmentation.numpy()
        return [segmentation if all(s == 1 for s in scale) else torch.from_numpy(_coarser(whole, scale)) for scale in self.ds_scales]


def _coarser(labels: npt.NDArray[Any], scale: list[float]) -> npt.NDArray[Any]:
    """Labels (R, [Z,] Y, X) at a scale."""
    for axis, factor in enumerate(scale):
        size = labels.shape[axis + 1]
        wanted = _nearest(size, round(size * factor))
        labels = labels[(slice(None),) * (axis + 1) + (wanted,)]
    return np.ascontiguousarray(labels)


@functools.lru_cache(maxsize=64)
def _nearest(size: int, wanted: int) -> Any:
    """Which voxels of an axis torch's `nearest-exact` takes; as a slice where they are evenly spaced."""
    ratio = np.float32(size) / np.float32(wanted)
    places = np.minimum(np.floor((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * ratio).astype(int), size - 1)
    steps = np.unique(np.diff(places))
    if len(steps) > 1:
        return places
    step = int(steps[0]) if len(steps) else 1
    return slice(int(places[0]), int(places[-1]) + 1, step)
