"""Augmentation recipes: what happens to a sample between the case file and the network."""

import functools
import importlib

from trainers.contract.run_spec import OwnCode
from trainers.contract.trainer_table import Recipe
from trainers.data.batches import SplitName
from trainers.data.recipes.stages import Box, Inputs, Pipeline, Sample, Spatial, Stage, inputs_of

__all__ = ["Box", "Inputs", "Pipeline", "Sample", "Spatial", "Stage", "inputs_of", "pipeline"]


@functools.lru_cache(maxsize=16)
def pipeline(recipe: Recipe, split: SplitName, inputs: Inputs, own: OwnCode | None = None) -> Pipeline:
    """The pipeline of a recipe, or of the user's `own`, which keeps no state of samples; validation samples are only cropped, without a
    margin. Raises ConfigError for a recipe of the user's that cannot be made."""
    if own is not None and split == "train":
        from trainers.data.recipes.own import training

        return training(inputs, own)
    name = "no_augmentation" if split == "val" else recipe
    module = importlib.import_module(f"trainers.data.recipes.{name}")  # only who asks for a recipe waits for what it imports
    made: Pipeline = module.training(inputs)
    return made
