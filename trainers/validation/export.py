"""From logits to a label file on the original grid, as nnU-Net's export writes it, without a full-size copy of any class.

Slab by slab the classes are resampled (`resampling.py`) and the largest is kept; a softmax, which changes no order, is left out. Where
plans name another resampling or handling of labels than nnU-Net's own, and where probabilities are kept, nnU-Net's export does it.

Labels equal nnU-Net's in at least 99.99 % of the voxels: a tie within a rounding of float16 may fall otherwise. nnU-Net interpolates in
float64 and rounds once to float16; here weights and products are float32, and then rounded to float16. Without resampling all are equal.

C class, Z Y X voxels. Source: nnunetv2/inference/export_prediction.py (`export_prediction_from_logits`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from trainers.network.arg_max import index_type, running_arg_max, times
from trainers.validation.resampling import Resampling, Slab, resampled, resampling_of


class _NotANumberError(Exception):
    """A slab of the logits is NaN or infinite."""


@dataclass(frozen=True)
class Exporter:
    """Writes the predictions of one model. `threads`: how many nnU-Net's own export may use."""

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    threads: int = 1

    def write(self, logits_CZYX: Tensor, properties: dict[str, Any], target: str, *, keeps_probabilities: bool = False) -> None:
        """Write `target` + file ending, and with `keeps_probabilities` nnU-Net's `target`.npz and `target`.pkl."""
        segmentation = None if keeps_probabilities else self.segmentation(logits_CZYX, properties)
        if segmentation is None:
            arguments = (properties, self.configuration, self.plans, self.dataset_json, target, keeps_probabilities, self.threads)
            export_prediction_from_logits(logits_CZYX, *arguments)
            return
        self.plans.image_reader_writer_class().write_seg(segmentation, target + self.dataset_json["file_ending"], properties)

    def segmentation(self, logits_CZYX: Tensor, properties: dict[str, Any]) -> npt.NDArray[Any] | None:
        """Labels on the original grid, in the order of its axes; None where that is for nnU-Net's own code to do."""
        cropped = self._labels(logits_CZYX, self._resampling(logits_CZYX, properties), _new_shape(properties))
        return None if cropped is None else self._uncropped(cropped.numpy(), properties)

    def on_grid(self, logits_CZYX: Tensor, properties: dict[str, Any], shape_ZYX: Sequence[int]) -> npt.NDArray[Any]:
        """Labels on another grid of `shape_ZYX` voxels over the same preprocessed case: a second stage's of a cascade."""
        spacing, _ = self._spacings(properties)
        function = self.configuration.resampling_fn_probabilities
        found = self._labels(logits_CZYX, resampling_of(function, logits_CZYX.shape[1:], shape_ZYX, spacing, spacing), shape_ZYX)
        if found is None:
            labels = self.plans.get_label_manager(self.dataset_json)
            found = torch.as_tensor(labels.convert_logits_to_segmentation(function(logits_CZYX, list(shape_ZYX), spacing, spacing)))
        return found.numpy().astype(self._dtype())

    def _labels(self, logits_CZYX: Tensor, resampling: Resampling | None, shape_ZYX: Sequence[int]) -> Tensor | None:
        labels = self.plans.get_label_manager(self.dataset_json)
        if resampling is None or type(labels) is not LabelManager:
            return None
        found = torch.empty(tuple(shape_ZYX), dtype=index_type(max(_values(labels))))
        logits_CAHW, found_AHW = logits_CZYX.movedim(resampling.axis + 1, 1), found.movedim(resampling.axis, 0)
        try:
            with torch.inference_mode():
                for slab in resampling.slabs:
                    found_AHW[slab.out] = _labels_of_slab(logits_CAHW, slab, resampling, labels)
        except _NotANumberError:
            return None
        return found

    def _resampling(self, logits_CZYX: Tensor, properties: dict[str, Any]) -> Resampling | None:
        spacing, original = self._spacings(properties)
        function = self.configuration.resampling_fn_probabilities
        return resampling_of(function, logits_CZYX.shape[1:], _new_shape(properties), spacing, original)

    def _spacings(self, properties: dict[str, Any]) -> tuple[list[float], list[float]]:
        """Of the preprocessed case and of the original one, Z Y X in the plans' order."""
        original = [properties["spacing"][axis] for axis in self.plans.transpose_forward]
        spacing = list(self.configuration.spacing)
        if len(spacing) != len(_new_shape(properties)):  # slices keep their distance
            spacing = [original[0], *spacing]
        return spacing, original

    def _dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if len(self.plans.get_label_manager(self.dataset_json).foreground_labels) < 255 else np.uint16

    def _uncropped(self, cropped: npt.NDArray[Any], properties: dict[str, Any]) -> npt.NDArray[Any]:
        whole = np.zeros(properties["shape_before_cropping"], dtype=self._dtype())
        whole[tuple(slice(*edges) for edges in properties["bbox_used_for_cropping"])] = cropped
        return whole.transpose(self.plans.transpose_backward)


def _values(labels: LabelManager) -> list[int]:
    """The values that a prediction may hold."""
    return [0, *labels.regions_class_order] if labels.has_regions else list(labels.all_labels)


def _new_shape(properties: dict[str, Any]) -> list[int]:
    """Shape (Z, Y, X) of what preprocessing kept of the case, on the original grid."""
    return [int(size) for size in properties["shape_after_cropping_and_before_resampling"]]


def _labels_of_slab(logits_CAHW: Tensor, slab: Slab, resampling: Resampling, labels: LabelManager) -> Tensor:
    classes = (_finite(resampled(logits_AHW, slab, resampling)) for logits_AHW in logits_CAHW)
    return _overlaid(classes, labels.regions_class_order) if labels.has_regions else running_arg_max(classes, len(logits_CAHW))


def _finite(values: Tensor) -> Tensor:
    """The same values; what is not finite would spread further by the weights than by nnU-Net's interpolation."""
    if not bool(values.sum().isfinite()):
        raise _NotANumberError
    return values


def _overlaid(regions: Iterable[Tensor], values: Sequence[int]) -> Tensor:
    """`values`, each where its region is more probable than not; a later one replaces those before."""
    found: Tensor | None = None
    dtype = index_type(max(values))
    for region, value in zip(regions, values, strict=True):
        is_in = torch.sigmoid(region) > 0.5
        added = times(is_in, value, dtype)
        found = added if found is None else found.mul_(times(~is_in, 1, dtype)).add_(added)
    assert found is not None
    return found
