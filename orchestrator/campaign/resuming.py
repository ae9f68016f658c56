"""Which runs a resume continues, and its plan: the same for the campaign and for whoever submits it."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.campaign.planning import never_fits
from orchestrator.experiment.plan import PlanReport, Queue, plan_of_runs
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.resume.resume_check import with_reachable_server
from orchestrator.resume.unfinished import Choice, choose, find_runs, of_one_server
from trainers.contract.run_spec import RunSpec
from trainers.errors import NeverFits


def chosen(
    results: Path, names: Sequence[str], tracking_uri: str, at_work: Collection[str], *, only_failed: bool, is_filter: bool = False
) -> Choice:
    """The runs below a results folder that are continued: the named ones, else what was cut off, or of these what failed. Raises
    ConfigError.

    `tracking_uri`: in the place of a local MLflow server that does not answer. `at_work`: keys of the runs that living campaigns go on
    with; only a name takes these up. `is_filter`: as `choose` has it.
    """
    found, damaged = find_runs(results)
    reachable = [with_reachable_server(run, tracking_uri) for run in found]
    choice = choose(reachable, damaged, names, results, only_failed=only_failed, is_filter=is_filter)
    return of_one_server(choice if names and not is_filter else _without(at_work, choice))


def _without(at_work: Collection[str], choice: Choice) -> Choice:
    """Leave the runs that living campaigns go on with, in one sentence for them all."""
    cut_off = tuple(run for run in choice.taken if run.spec.run_key not in at_work)
    if not (num := len(choice.taken) - len(cut_off)):
        return choice
    sentence = f"{'1 run' if num == 1 else f'{num} runs'} on which living campaigns are at work: nnfleet status --watch"
    return replace(choice, taken=cut_off, left=(sentence, *choice.left))


def plan_of_resume(
    specs: Sequence[RunSpec], left: Sequence[str], nodes: Sequence[NodeResources], queue: Queue | None, cluster: str, *, raises: bool
) -> PlanReport:
    """The plan of runs that go on; one that the cluster can never hold is left too. With `raises` that is an error, NeverFits, instead."""
    report = plan_of_runs("resume", specs, nodes, queue, cluster=cluster, left=left)
    never = never_fits(report)
    if never and raises:
        raise NeverFits("\n".join(["cluster: it can never hold", *never, "Bring its nodes back, or submit with less under `workers`."]))
    if not never:
        return report
    more = [f"{text} It does not fit this cluster: submit its experiment with less." for text in never]
    fitting = [row.spec for row in report.rows if row.fits != "never"]
    return plan_of_runs("resume", fitting, nodes, queue, cluster=cluster, left=[*left, *more])
