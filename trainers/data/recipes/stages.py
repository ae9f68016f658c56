"""What a recipe is: the step that cuts the network's patch out of a larger crop, then named stages, each with a random stream of its own.

A sample is a dict: `image` float32 tensor (C, [Z,] Y, X), `segmentation` int16 tensor (1, [Z,] Y, X), in the end a list of targets.
Of a second stage of a cascade `segmentation` has two channels until `cascade.moved`: the labels, and the previous stage's.
Transforms draw from the global generators of numpy, torch and Python; whoever calls a stage seeds those for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from trainers.data.dataset import Geometry, TrainingData
from trainers.data.kernels import resampled_labels

Sample = dict[str, Any]
Transform = Callable[..., Sample]


@dataclass(frozen=True)
class Inputs:
    """What a recipe depends on."""

    geometry: Geometry
    scales: tuple[tuple[float, ...], ...]
    """Deep-supervision targets, finest first."""
    use_mask_for_norm: tuple[bool, ...]
    regions: tuple[tuple[int, ...], ...] | None
    """Label values of each region in the order of the network's outputs; None for plain labels."""
    ignore_label: int | None
    previous_labels: tuple[int, ...] = ()
    """Foreground labels of the previous stage's segmentation, which lies in channel 1 of `segmentation`; empty: no second stage."""

    @property
    def low_resolution_ignores(self) -> tuple[int, ...] | None:
        """Axes that the low-resolution transform leaves alone: thick slices, and what is one voxel long."""
        patch = self.geometry.patch
        return tuple(axis for axis, size in enumerate(patch) if size == 1 or (axis == 0 and self.geometry.dummy_2d)) or None


def inputs_of(data: TrainingData) -> Inputs:
    """What a recipe has to know of a dataset."""
    regions = tuple(data.labels.foreground.values()) if data.labels.has_regions else None
    previous = data.labels.foreground_values if data.previous_folder else ()
    return Inputs(data.geometry, data.scales, data.use_mask_for_norm, regions, data.labels.ignore_label, previous)


@dataclass(frozen=True)
class Stage:
    """A transform with the name of its random stream; the name is part of what a seed means and never changes."""

    name: str
    transform: Transform

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample; the tensors handed in may be changed."""
        return self.transform(**sample)


class Spatial:
    """Rotates, scales and cuts the network's patch out of the loader's crop; in dummy 2D within slices.

    Parameters are drawn before any voxel is read: where they amount to a plain centre crop, the margin need not be read at all.
    """

    def __init__(self, transform: Any, dummy_2d: bool) -> None:
        """`transform`: batchgeneratorsv2's SpatialTransform."""
        self.transform = transform
        self.dummy_2d = dummy_2d

    @property
    def transforms(self) -> list[Any]:
        """The same step as nnU-Net lists it."""
        return [Convert3DTo2DTransform(), self.transform, Convert2DTo3DTransform()] if self.dummy_2d else [self.transform]

    def draw(self, channels: int, crop: tuple[int, ...]) -> dict[str, Any]:
        """Draw the parameters for an image of `channels` and the spatial shape `crop` as the library does (it only asks for the shape)."""
        shape = (channels * crop[0], *crop[1:]) if self.dummy_2d else (channels, *crop)
        parameters: dict[str, Any] = self.transform.get_parameters(image=torch.empty(1).expand(shape))
        return parameters

    @staticmethod
    def is_crop(parameters: dict[str, Any]) -> bool:
        """True when neither rotation nor scaling was drawn."""
        return parameters["grid"] is None

    def apply(self, sample: Sample, parameters: dict[str, Any]) -> Sample:
        """Transform a sample with parameters that `draw` gave."""
        if not self.dummy_2d:
            return self._applied(sample, parameters)
        folded = Convert3DTo2DTransform()(**sample)
        return dict(Convert2DTo3DTransform()(**self._applied(folded, parameters)))

    def _applied(self, sample: Sample, parameters: dict[str, Any]) -> Sample:
        if parameters["grid"] is None:
            return dict(self.transform.apply(sample, **parameters))
        image = self.transform._apply_to_image(sample["image"], **parameters)
        return {**sample, "image": image, "segmentation": self._labels(sample["segmentation"], parameters)}

    def _labels(self, labels: torch.Tensor, parameters: dict[str, Any]) -> torch.Tensor:
        if self.transform.mode_seg == "bilinear":
            return resampled_labels(self.transform, labels, parameters["grid"])
        found: torch.Tensor = self.transform._apply_to_segmentation(labels, **parameters)
        return found


@dataclass(frozen=True)
class Pipeline:
    """Everything that happens to a sample of one split. `crop`: voxels to cut from the case, without `spatial` for the first stage."""

    crop: tuple[int, ...]
    spatial: Spatial | None
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        assert len(set(names)) == len(names), f"two stages would share a random stream: {names}"


def finishing(inputs: Inputs, previous: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """From labels to targets: -1 (outside) becomes background, regions become channels with the ignore mask last, one per scale.

    `previous`: what a second stage of a cascade does with the previous stage's segmentation, which leaves `segmentation` by it.
    """
    stages = [Stage("remove_label", RemoveLabelTransform(-1, 0)), *previous]
    if inputs.regions is not None:
        ignored = [] if inputs.ignore_label is None else [inputs.ignore_label]
        stages.append(Stage("regions", ConvertSegmentationToRegionsTransform(regions=[*inputs.regions, *ignored], channel_in_seg=0)))
    stages.append(Stage("downsample", DownsampleSegForDSTransform(ds_scales=[list(scale) for scale in inputs.scales])))
    return tuple(stages)


def interpolation(inputs: Inputs) -> dict[str, str]:
    """How SpatialTransform finds the values between voxels."""
    nearest = inputs.geometry.nearest
    return {
        "mode_image": "nearest" if nearest == "all" else "bilinear",
        "mode_seg": "bilinear" if nearest == "nothing" else "nearest",
    }


def mirroring(inputs: Inputs) -> tuple[Stage, ...]:
    """Flips along the trainer's axes; nothing where it has none."""
    axes = inputs.geometry.mirror_axes
    return (Stage("mirror", MirrorTransform(allowed_axes=axes)),) if axes else ()


def masking(inputs: Inputs) -> tuple[Stage, ...]:
    """Keep the outside of the nonzero mask at 0 in channels that were normalised inside it."""
    channels = [index for index, masked in enumerate(inputs.use_mask_for_norm) if masked]
    if not channels:
        return ()
    return (Stage("mask", MaskImageTransform(apply_to_channels=channels, channel_idx_in_seg=0, set_outside_to=0)),)
