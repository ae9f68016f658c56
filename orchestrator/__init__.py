"""What runs on the laptop and the head node: experiment, plan, jobs, campaign, tracking and the command line. No torch at module level.

For Python, the verbs of the command line are the functions of `orchestrator.api`:

    from orchestrator import api, load_experiment
    submission = api.submit(load_experiment("experiment.yaml"))
    statuses = api.wait(submission.campaign_id)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator import api
    from orchestrator.api import Submission
    from orchestrator.experiment import Experiment, load_experiment, single_training
    from orchestrator.plan import PlanReport
    from orchestrator.run_status import RunStatus
    from orchestrator.services import Services

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "PlanReport",
    "RunStatus",
    "Services",
    "Submission",
    "__version__",
    "api",
    "load_experiment",
    "single_training",
]
_HOMES = {
    "Submission": "api",
    "Experiment": "experiment",
    "load_experiment": "experiment",
    "single_training": "experiment",
    "PlanReport": "plan",
    "RunStatus": "run_status",
    "Services": "services",
}


def __getattr__(name: str) -> Any:
    """Load a part when it is first asked for: importing the package costs nothing."""
    if name == "api":
        return import_module("orchestrator.api")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"orchestrator.{_HOMES[name]}"), name)
