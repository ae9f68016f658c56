"""`nnfleet plan`: exactly what `submit` would send."""

from typing import TYPE_CHECKING

from orchestrator.cli.output import console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, ExperimentFile

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.plan import PlanReport

FIT_STYLES = {"now": "green", "later": "yellow", "never": "red"}


def plan(experiment: ExperimentFile, cluster: Cluster = None, as_json: AsJson = False) -> None:
    """Show the runs of an experiment, what each asks for, and whether it fits the cluster now, later or never."""
    import json

    from orchestrator import api
    from orchestrator.experiment import load_experiment

    wanted = load_experiment(experiment)
    with working("Reading data and cluster ..."):
        report = api.plan(wanted, cluster)
    if as_json:
        print_json(json.loads(report.to_json()))
        return
    show_plan(report)


def show_plan(report: "PlanReport") -> None:
    """Print a plan: its table on stdout, its warnings on stderr."""
    for warning in report.warnings:
        note(f"Warning: {warning}")
    console().print(plan_table(report))
    finished = f", {report.n_finished} finished and skipped" if report.n_finished else ""
    say(f"{len(report.rows)} runs: {report.n_now} fit now, {report.n_later} later, {report.n_never} never{finished}.")


def plan_table(report: "PlanReport") -> "Table":
    """One row per run: what it is, what it asks for, and when it fits and why."""
    from rich.text import Text

    from orchestrator.cli.tables import plain_table

    table = plain_table(
        "run",
        ">seed",
        ">cases",
        ">epochs",
        ">workers",
        ">batch per rank",
        "resources",
        "standing",
        "fits",
        title=f"Plan of {report.experiment}",
    )
    for row in report.rows:
        fits = Text(row.fits, style=FIT_STYLES[row.fits])
        table.add_row(
            row.address,
            str(row.seed),
            f"{row.n_train}+{row.n_val}",
            f"{row.epochs} x {row.iterations}",
            str(row.workers),
            batch_text(row.batch_per_rank),
            row.resources,
            row.standing.text,
            fits.append(f": {row.because}", style="default"),
        )
    return table


def batch_text(batch_per_rank: tuple[int, ...]) -> str:
    """`2` where all ranks have the same, else `2,1`."""
    return str(batch_per_rank[0]) if len(set(batch_per_rank)) == 1 else ",".join(map(str, batch_per_rank))
