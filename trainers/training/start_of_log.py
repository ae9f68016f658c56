"""The first lines of a training log: what is trained, as nnU-Net says it at the start of its own."""

import json
import logging
from typing import Any

from trainers.contract.commits import Committed
from trainers.contract.run_spec import RunSpec
from trainers.contract.trainer_table import ROUNDING_VERSION
from trainers.training.assemble import ModelConfig

log = logging.getLogger(__name__)


def log_start(spec: RunSpec, plan: ModelConfig, world_size: int) -> None:
    """Write them."""
    for line in start_of_log(spec, plan.plans, plan.configuration, world_size):
        log.info("%s", line)


def log_rounding(newest: Committed | None) -> None:
    """Warn where the epochs so far were computed with other last bits."""
    if newest is not None and newest.rounding_version != ROUNDING_VERSION:
        log.warning(
            "The epochs up to %d were rounded by the kernels of another version (%d, now %d): from here on samples have the same draws, "
            "and samples and steps are equal within rounding, but the run's bits are not those of a run under one version.",
            newest.epochs_done,
            newest.rounding_version,
            ROUNDING_VERSION,
        )


def start_of_log(spec: RunSpec, plans: dict[str, Any], configuration: dict[str, Any], world_size: int) -> list[str]:
    """The run and its schedule, configuration, plans without their configurations, and the sizes of the split; no case is named. Pure."""
    schedule = spec.schedule
    settings = {key: value for key, value in plans.items() if key != "configurations"}
    return [
        f"Run {spec.run_key}: {spec.dataset}, {spec.configuration}, {spec.trainer}, {spec.plans}, fold {spec.fold}, seed {spec.seed}.",
        *([spec.continued.text] if spec.continued else []),
        *([spec.inexactness] if spec.inexactness else []),
        f"{schedule.epochs} epoch{'s' * (schedule.epochs != 1)} of {schedule.train_iterations} training and "
        f"{schedule.val_iterations} validation iterations; "
        f"the batch of {configuration.get('batch_size')} is split over {world_size} worker{'s' * (world_size != 1)}.",
        f"This is the configuration used by this training: {spec.configuration} {json.dumps(configuration)}",
        f"These are the global settings of {spec.plans}: {json.dumps(settings)}",
        f"This split has {len(spec.train_cases)} training and {len(spec.val_cases)} validation cases.",
    ]
