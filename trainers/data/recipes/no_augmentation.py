"""No augmentation: validation samples, and those of nnUNetTrainerNoDA (nnunetv2/training/nnUNetTrainer: get_validation_transforms)."""

from trainers.data.recipes.cascade import moved
from trainers.data.recipes.stages import Inputs, Pipeline, finishing


def training(inputs: Inputs) -> Pipeline:
    """The network's patch, cut without a margin, and its targets."""
    return Pipeline(inputs.geometry.patch, None, finishing(inputs, moved(inputs)))
