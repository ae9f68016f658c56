"""What a second stage of nnU-Net's cascade does with the previous stage's segmentation: the second channel of `segmentation` becomes one
0/1 channel of the image per foreground label, behind the image's own, and in training these are disturbed.

nnU-Net's transforms shuffle the list of their channels in place, so their draws depend on all samples before; here each begins anew.
Sources: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, .../nnUNetTrainerDA5.py (get_training_transforms, get_validation_transforms);
for `da5_classic` the latter of nnU-Net 2.6.4.
"""

import warnings
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from trainers.data.recipes.stages import Inputs, Sample, Stage

STREL_SIZE = (1, 8)
"""Radius of the ball that labels are grown or shrunk by, voxels."""
LARGEST_REMOVED = 0.15
"""A component that covers this share of the patch or more stays."""
P_OPERATOR, P_REMOVAL = 0.4, 0.2


def moved(inputs: Inputs) -> tuple[Stage, ...]:
    """The previous stage's segmentation into the image; nothing where there is none."""
    if not inputs.previous_labels:
        return ()
    move = MoveSegAsOneHotToDataTransform(source_channel_idx=1, all_labels=list(inputs.previous_labels), remove_channel_from_source=True)
    return (Stage("previous_stage", move),)


def disturbed(inputs: Inputs, p_per_label: float) -> tuple[Stage, ...]:
    """The same in training: labels are grown or shrunk and components of them removed, each label with `p_per_label`."""
    if not inputs.previous_labels:
        return ()
    from trainers.data.recipes.cascade_labels import BinaryOperator, ComponentRemoval  # scikit-image, which other runs do not need

    operator = BinaryOperator(channels_of(inputs), strel_size=STREL_SIZE, p_per_label=p_per_label)
    removal = ComponentRemoval(
        channels_of(inputs),
        fill_with_other_class_p=0,
        dont_do_if_covers_more_than_x_percent=LARGEST_REMOVED,
        p_per_label=p_per_label,
    )
    return (
        *moved(inputs),
        Stage("previous_stage_operator", RandomTransform(operator, apply_probability=P_OPERATOR)),
        Stage("previous_stage_removal", RandomTransform(removal, apply_probability=P_REMOVAL)),
    )


def channels_of(inputs: Inputs) -> list[int]:
    """The channels of the previous stage's labels, counted from the image's last."""
    return list(range(-len(inputs.previous_labels), 0))


def disturbed_classically(inputs: Inputs) -> tuple[Stage, ...]:
    """As `disturbed`, by the transforms that nnU-Net's DA5 had up to 2.6.4, which work on numpy batches (here of one)."""
    if not inputs.previous_labels:
        return ()
    return (
        *moved(inputs),
        Stage("previous_stage_operator", _Classic(inputs, "operator")),
        Stage("previous_stage_removal", _Classic(inputs, "removal")),
    )


class _Classic:
    """One of nnU-Net's former transforms, made anew for each sample: it shuffles the list of its channels."""

    def __init__(self, inputs: Inputs, kind: str) -> None:
        self.inputs, self.kind = inputs, kind

    def made(self) -> Any:
        from nnunetv2.training.data_augmentation.custom_transforms import cascade_transforms as former

        channels = channels_of(self.inputs)
        if self.kind == "operator":
            return former.ApplyRandomBinaryOperatorTransform(channels, P_OPERATOR, key="data", strel_size=STREL_SIZE, p_per_label=1)
        return former.RemoveRandomConnectedComponentFromOneHotEncodingTransform(
            channels, "data", P_REMOVAL, fill_with_other_class_p=0, dont_do_if_covers_more_than_x_percent=LARGEST_REMOVED
        )

    def __call__(self, *, image: torch.Tensor, segmentation: torch.Tensor) -> Sample:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`binary_", FutureWarning)  # scikit-image 0.26 deprecates what they call
            found = self.made()(data=image.numpy()[None])["data"][0]
        return {"image": torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)), "segmentation": segmentation}
