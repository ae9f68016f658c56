"""Ray Train's trainer with policies of ours in its controller, and without what a run of ours has no use for."""

from collections.abc import Mapping
from typing import Any

from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Each has an actor of 110 MB on the head for as long as a run trains. Ours reads no Ray Datasets. The cleaner removes the placement group
of a controller that died in a job that goes on; ours ends then, and Ray removes what belonged to a job that has ended."""


class GangTrainer(DataParallelTrainer):
    """Trains with a gang of workers under `policies`: what follows a failure (`failure_policy`), and how many workers there are
    (`scaling_policy`); Ray's own for those that are not named. Imports no torch, nor does the controller."""

    def __init__(self, *arguments: Any, policies: Mapping[str, Any], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._policies = policies

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]

    def _initialize_and_run_controller(self, **named: Any) -> Any:
        return super()._initialize_and_run_controller(**{**named, **self._policies})
