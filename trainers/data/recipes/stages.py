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
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform

from trainers.data.affine import AffineTransform, resampled, touched_box
from trainers.data.dataset import Geometry, TrainingData
from trainers.data.targets import Downsampling, OutsideIsBackground, Regions

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
    draws: bool = True
    """False for what is the same for every sample: its stream need not be seeded."""

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample; the tensors handed in may be changed."""
        return self.transform(**sample)


@dataclass(frozen=True)
class Box:
    """A part of the loader's crop; lower corner within the crop and size, voxels."""

    origin: tuple[int, ...]
    size: tuple[int, ...]


class Spatial:
    """Rotates, scales and cuts the network's patch out of the loader's crop; in dummy 2D within slices.

    Parameters are drawn before any voxel is read, so that only the part of the crop that they touch need be read.
    """

    def __init__(self, transform: AffineTransform, dummy_2d: bool) -> None:
        """`transform`: batchgeneratorsv2's SpatialTransform, which draws parameters and holds the rules of interpolation."""
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

    def touched(self, parameters: dict[str, Any], crop: tuple[int, ...]) -> Box:
        """The part of a crop of the shape `crop` that the transform reads."""
        if parameters["affine"] is None:
            return self._middle(crop)
        slices, plane = self._split(crop)
        origin, size = touched_box(parameters["affine"], self.transform.patch_size, plane)
        return Box((*(0 for _ in slices), *origin), (*slices, *size))

    def _middle(self, crop: tuple[int, ...]) -> Box:
        """The patch as nnU-Net cuts it out of a crop where neither rotation nor scaling was drawn."""
        slices, plane = self._split(crop)
        patch = tuple(self.transform.patch_size)
        return Box((*(0 for _ in slices), *(c // 2 - p // 2 for c, p in zip(plane, patch, strict=True))), (*slices, *patch))

    def _split(self, crop: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axis along which slices are transformed one by one, in dummy 2D, and the others."""
        slices = len(crop) - len(self.transform.patch_size)
        return crop[:slices], crop[slices:]

    def apply(self, sample: Sample, parameters: dict[str, Any], crop: tuple[int, ...], box: Box) -> Sample:
        """Transform the part `box` of a crop of the shape `crop` with parameters that `draw` gave; `touched` need be in the box."""
        if parameters["affine"] is not None:
            return self._resampled(sample, parameters, crop, box)
        wanted = self._middle(crop)
        low = [want - have for want, have in zip(wanted.origin, box.origin, strict=True)]
        cut = (slice(None), *(slice(at, at + size) for at, size in zip(low, wanted.size, strict=True)))
        return {name: part[cut].contiguous() for name, part in sample.items()}

    def _resampled(self, sample: Sample, parameters: dict[str, Any], crop: tuple[int, ...], box: Box) -> Sample:
        axes = len(self.transform.patch_size)
        image, labels = sample["image"], sample["segmentation"]
        values, classes = resampled(
            image.reshape(-1, *image.shape[-axes:]).numpy(),
            labels.reshape(-1, *labels.shape[-axes:]).numpy(),
            self.transform,
            parameters["affine"],
            crop[-axes:],
            box.origin[-axes:],
        )
        patch = self.transform.patch_size
        return {
            "image": torch.from_numpy(values.reshape(*image.shape[:-axes], *patch)),
            "segmentation": torch.from_numpy(classes.reshape(*labels.shape[:-axes], *patch)),
        }


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
    stages = [Stage("remove_label", OutsideIsBackground(-1, 0), draws=False), *previous]
    if inputs.regions is not None:
        ignored = [] if inputs.ignore_label is None else [inputs.ignore_label]
        stages.append(Stage("regions", Regions(regions=[*inputs.regions, *ignored], channel_in_seg=0), draws=False))
    stages.append(Stage("downsample", Downsampling(ds_scales=[list(scale) for scale in inputs.scales]), draws=False))
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
    return (Stage("mask", MaskImageTransform(apply_to_channels=channels, channel_idx_in_seg=0, set_outside_to=0), draws=False),)
