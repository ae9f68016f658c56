"""Augmentation recipes: what happens to a sample between the case file and the network."""

import functools

from trainers.dataset import SplitName
from trainers.recipes import da5, default
from trainers.recipes.stages import Inputs, Pipeline, Sample, Spatial, Stage, finishing, inputs_of
from trainers.spec.names import Recipe

__all__ = ["Inputs", "Pipeline", "Sample", "Spatial", "Stage", "inputs_of", "pipeline"]


@functools.lru_cache(maxsize=16)
def pipeline(recipe: Recipe, split: SplitName, inputs: Inputs) -> Pipeline:
    """The pipeline of a recipe, which keeps no state of samples; validation samples are only cropped, without a margin."""
    if split == "val":
        return Pipeline(inputs.geometry.patch, None, finishing(inputs))
    if recipe == "da5_classic":
        from trainers.recipes import da5_classic  # batchgenerators and its imports: only who asks for them waits for them

        return da5_classic.training(inputs)
    return {"default": default.training, "da5": da5.training}[recipe](inputs)
