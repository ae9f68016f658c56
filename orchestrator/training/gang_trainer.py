"""A TorchTrainer that takes policies of ours into Ray Train's controller."""

from collections.abc import Mapping
from typing import Any

from ray.train.torch import TorchTrainer


class GangTrainer(TorchTrainer):
    """Trains with a gang of workers under `policies`: what follows a failure (`failure_policy`), and how many workers there are
    (`scaling_policy`); Ray's own for those that are not named."""

    def __init__(self, *arguments: Any, policies: Mapping[str, Any], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._policies = policies

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        return super()._initialize_and_run_controller(**{**named, **self._policies})  # type: ignore[misc] # Train v2 has it, the annotation is of v1
