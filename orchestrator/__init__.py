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
    from orchestrator.cluster.local_services import Services
    from orchestrator.experiment.model import Experiment, load_experiment, single_training
    from orchestrator.experiment.plan import PlanReport
    from orchestrator.run.status import RunStatus

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
    "Experiment": "experiment.model",
    "load_experiment": "experiment.model",
    "single_training": "experiment.model",
    "PlanReport": "experiment.plan",
    "RunStatus": "run.status",
    "Services": "cluster.local_services",
}


def __getattr__(name: str) -> Any:
    """Load a part when it is first asked for: importing the package costs nothing."""
    if name == "api":
        return import_module("orchestrator.api")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"orchestrator.{_HOMES[name]}"), name)
