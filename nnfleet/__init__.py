"""The verbs of nnfleet for scripts and notebooks, where an experiment may be a file, a dict or an `Experiment`.

    import nnfleet

    campaign = nnfleet.submit({"dataset": 4, "configurations": "3d_fullres", "folds": [0, 1, 2, 3, 4]})
    for run in nnfleet.wait(campaign.campaign_id):
        print(run.address, run.state, run.full_dice)
    print(nnfleet.compare(["4"]).answer.verdict)

Everything else is that of `orchestrator.api`, which holds the documentation of each verb; every error is an `NnfleetError`.
"""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from orchestrator import Experiment, PlanReport, RunStatus, Submission, __version__, api
from orchestrator.api import (
    compare,
    diff,
    down,
    drill,
    evaluate,
    export,
    free,
    garbage,
    import_folder,
    logs,
    place,
    predict,
    publish_report,
    queue,
    removable,
    remove,
    resume,
    status,
    stop,
    sync,
    up,
    validate,
    wait,
    write_report,
)
from orchestrator.errors import NnfleetError
from orchestrator.experiment.model import experiment_from

__all__ = [
    "Experiment",
    "NnfleetError",
    "PlanReport",
    "RunStatus",
    "Submission",
    "__version__",
    "compare",
    "diff",
    "down",
    "drill",
    "evaluate",
    "export",
    "free",
    "garbage",
    "import_folder",
    "logs",
    "place",
    "plan",
    "predict",
    "publish_report",
    "queue",
    "removable",
    "remove",
    "resume",
    "status",
    "stop",
    "submit",
    "sync",
    "up",
    "validate",
    "wait",
    "write_report",
]

AnyExperiment = Experiment | Mapping[str, Any] | str | PathLike[str]
"""An experiment, its keys, or the path of its file."""


def plan(experiment: AnyExperiment, cluster: str | None = None) -> PlanReport:
    """What `submit` would send; see `orchestrator.api.plan`."""
    return api.plan(experiment_from(experiment), cluster)


def submit(
    experiment: AnyExperiment, cluster: str | None = None, on_wait: Callable[[str], None] | None = None, *, replaces: bool = False
) -> Submission:
    """Start a campaign and return once it owns its runs; see `orchestrator.api.submit`."""
    return api.submit(experiment_from(experiment), cluster, on_wait=on_wait, replaces=replaces)
