"""An augmentation of the user's own: transforms in the place of nnU-Net's, each with a random stream of its own; docs/trainers.md."""

from collections.abc import Callable
from typing import Any

from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from trainers.contract.own_code import call_own, fault_text
from trainers.contract.run_spec import OwnCode
from trainers.data.recipes.cascade import moved
from trainers.data.recipes.stages import Inputs, Pipeline, Sample, Stage, finishing, masking
from trainers.errors import ConfigError


def training(inputs: Inputs, code: OwnCode) -> Pipeline:
    """The user's transforms between the cut out of the case and nnU-Net's targets. Raises ConfigError where they cannot be made.

    They see a crop of the network's patch or, where the first is a SpatialTransform, of nnU-Net's margin around it.
    """
    transforms = call_own("recipe", code, inputs=inputs)
    if not isinstance(transforms, list | tuple) or not all(map(callable, transforms)):
        raise ConfigError(f"recipe: {code.name} returned {type(transforms).__name__}. Return a list of transforms.")
    stages = [Stage(f"own_{index}", _Explained(transform, code)) for index, transform in enumerate(transforms)]
    has_margin = bool(transforms) and isinstance(transforms[0], SpatialTransform)
    crop = inputs.geometry.loader_patch if has_margin else inputs.geometry.patch
    return Pipeline(crop, None, (*stages, *masking(inputs), *finishing(inputs, moved(inputs))))


class _Explained:
    """A transform whose errors name the user's function and line."""

    def __init__(self, transform: Callable[..., Any], code: OwnCode) -> None:
        self.transform, self.code = transform, code

    def __call__(self, **sample: Any) -> Sample:
        """The sample as the transform leaves it."""
        try:
            made = self.transform(**sample)
        except Exception as err:
            where = fault_text(err, self.code)
            raise ConfigError(f"recipe: {type(self.transform).__name__} of {self.code.name} failed: {where}.") from err
        if not isinstance(made, dict) or not {"image", "segmentation"} <= set(made):
            raise ConfigError(
                f"recipe: {type(self.transform).__name__} of {self.code.name} returned no dict with `image` and `segmentation`, as it got."
            )
        return made
