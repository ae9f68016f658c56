"""What nnU-Net's authors report of trainings with the presets of its planners, for runs of which nothing was measured yet.

Source: nnU-Net's documentation/resenc_presets.md: hours of 1000 epochs of 250 iterations on one A100 (PCIe, 40 GB), and the GPU memory that
nvidia-smi showed, over six datasets of 3D images.
"""

import math
from dataclasses import dataclass

from trainers.contract.plans import Plans
from trainers.contract.run_spec import RunSpec, Schedule

REPORTED = "3d_fullres"
"""The configuration that the reports are of."""
LEAST_VOXELS = 2_000_000
"""Of a batch; a usual one holds two patches of about 128^3, and the steps of smaller ones cost less than those that are reported."""
ITERATIONS = Schedule().epochs * Schedule().train_iterations


@dataclass(frozen=True)
class Published:
    """Of one training on one GPU: hours of nnU-Net's own number of epochs, and GB of GPU memory."""

    planner: str
    hours: float
    memory_gb: float


PRESETS = {
    "nnUNetPlans": Published("ExperimentPlanner", 9, 7.7),
    "nnUNetResEncUNetMPlans": Published("nnUNetPlannerResEncM", 12, 9.1),
    "nnUNetResEncUNetLPlans": Published("nnUNetPlannerResEncL", 35, 22.7),
    "nnUNetResEncUNetXLPlans": Published("nnUNetPlannerResEncXL", 66, 36.6),
}
"""By the name of the plans. nnU-Net asks for another name where they are made for other GPU memory."""


def published_of(spec: RunSpec, plans: Plans) -> Published | None:
    """What is reported of a run's plans; None on CPUs, for other configurations, plans, sizes or planners, small
    batches, and parts of the user's own."""
    found = PRESETS.get(spec.plans)
    is_alike = spec.workers.gpus and not spec.own.named and spec.batch_size is None and spec.patch_size is None
    if found is None or not is_alike or plans.content.get("experiment_planner_used") != found.planner:
        return None
    settings = plans.configuration(spec.configuration)
    voxels = int(settings["batch_size"]) * math.prod(settings["patch_size"])
    return found if spec.configuration == REPORTED and voxels >= LEAST_VOXELS else None


def published_hours(found: Published, spec: RunSpec, epochs: int) -> float:
    """The reported hours, of so many epochs of a run. Pure."""
    return found.hours * epochs * spec.schedule.train_iterations / ITERATIONS
