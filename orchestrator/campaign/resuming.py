"""Which runs a resume continues, and its plan: the same for the campaign and for whoever submits it."""

from collections.abc import Sequence
from pathlib import Path

from orchestrator.campaign.planning import never_fits
from orchestrator.experiment.plan import PlanReport, Queue, plan_of_runs
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.resume.resume_check import with_reachable_server
from orchestrator.resume.unfinished import Choice, choose, find_runs, of_one_server
from trainers.contract.run_spec import RunSpec
from trainers.errors import ClusterError


def chosen(results: Path, names: Sequence[str], tracking_uri: str, *, only_failed: bool, is_filter: bool = False) -> Choice:
    """The runs below a results folder that are continued: the named ones, else what was cut off, or of these what failed. Raises
    ConfigError.

    `tracking_uri`: in the place of a local MLflow server that does not answer. `is_filter`: as `choose` has it.
    """
    found, damaged = find_runs(results)
    reachable = [with_reachable_server(run, tracking_uri) for run in found]
    return of_one_server(choose(reachable, damaged, names, results, only_failed=only_failed, is_filter=is_filter))


def plan_of_resume(
    specs: Sequence[RunSpec], left: Sequence[str], nodes: Sequence[NodeResources], queue: Queue | None, cluster: str, *, raises: bool
) -> PlanReport:
    """The plan of runs that go on; one that the cluster can never hold is left too. With `raises` that is a ClusterError instead."""
    report = plan_of_runs("resume", specs, nodes, queue, cluster=cluster, left=left)
    never = never_fits(report)
    if never and raises:
        raise ClusterError("\n".join(["cluster: it can never hold", *never, "Bring its nodes back, or submit with less under `workers`."]))
    if not never:
        return report
    more = [f"{text} It does not fit this cluster: submit its experiment with less." for text in never]
    fitting = [row.spec for row in report.rows if row.fits != "never"]
    return plan_of_runs("resume", fitting, nodes, queue, cluster=cluster, left=[*left, *more])
