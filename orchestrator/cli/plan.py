"""`nnfleet plan`: exactly what `submit` would send."""

import os
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.nnunet_habits import unread
from orchestrator.cli.output import console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, ExperimentFile
from orchestrator.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from orchestrator.experiment.plan import PlanReport, PlanRow

WIDE = 120
"""Terminal width from which on all columns of a plan are shown."""
FIT_STYLES = {"now": "green", "later": "yellow", "never": "red"}


def plan(experiment: ExperimentFile, cluster: Cluster = None, as_json: AsJson = False) -> None:
    """Show the runs of an experiment, what each asks for, and whether it fits the cluster now, later or never."""
    import json

    from orchestrator import api
    from orchestrator.experiment.model import load_experiment

    wanted = load_experiment(experiment)
    for sentence in unread(os.environ, wanted):
        note(sentence)
    with working("Reading data and cluster ..."):
        report = api.plan(wanted, cluster)
    if as_json:
        print_json(json.loads(report.to_json()))
    else:
        show_plan(report)
    if report.n_never:
        raise typer.Exit(ClusterError.exit_code)  # as submit would end


def show_plan(report: "PlanReport") -> None:
    """Print a plan: its table on stdout, its warnings on stderr."""
    for warning in report.warnings:
        note(f"Warning: {warning}")
    if report.preprocesses:
        count = len(report.awaited)
        say(f"Preprocessed first, by nnU-Net: {'; '.join(report.preprocesses)}.")
        say(f"Then {'1 run is' if count == 1 else f'{count} runs are'} planned, and named by key: {_first_and_last(report)}.")
        if report.never_awaited:
            say(f"The cluster can never hold {'it: it' if count == 1 else 'them: each'} {report.never_awaited}")
        if campaign := report.preprocessed_by:
            say(
                f"Campaign {campaign} preprocesses this dataset already: that is waited for, and nothing is preprocessed twice. "
                f"`nnfleet status` shows how far it is, `nnfleet stop --campaign {campaign}` ends it."
            )
        return
    out = console()
    out.print(plan_table(report, out.width))
    finished = f", {report.n_finished} finished and skipped" if report.n_finished else ""
    place = f" Results lie on {report.file_system}." if report.file_system else ""
    runs = "1 run" if len(report.rows) == 1 else f"{len(report.rows)} runs"
    say(f"{runs}: {report.n_now} fit now, {report.n_later} later, {report.n_never} never{finished}.{place}")
    for line in filter(None, (followed_line(report), estimate_line(report), *limit_lines(report), *report.halving, storage_line(report))):
        say(line)


def _first_and_last(report: "PlanReport") -> str:
    """The addresses of the runs that are planned later, from the first to the last."""
    addresses = [run.address for run in report.awaited]
    return addresses[0] if len(addresses) == 1 else f"{addresses[0]} to {addresses[-1]}"


def followed_line(report: "PlanReport") -> str:
    """Which campaigns are at work on runs of the plan already."""
    if not report.followed:
        return ""
    who = f"Campaign {report.followed[0]} is" if len(report.followed) == 1 else f"Campaigns {', '.join(report.followed)} are"
    return f"{who} at work on runs of this plan already: these are followed, and nothing is trained twice."


def estimate_line(report: "PlanReport") -> str:
    """What the training of the open runs is expected to take, or that it is not known."""
    rows = [row for row in report.rows if row.progress.stage in ("new", "continues")]
    known = [row for row in rows if row.training_s is not None]
    if not rows:
        return ""
    if not known:
        unknown = "Expected duration: not known; no epoch of these models was measured on as many such workers below nnUNet_results."
        return f"{unknown}{_published(rows)}"
    hours = [(row.training_s or 0.0) / 3600 for row in known]
    gpu_hours = sum(row.gpu_hours or 0.0 for row in known)
    cost = f", {gpu_hours:.1f} GPU-hours in all{_price(report, gpu_hours)}" if gpu_hours else ""
    rest = f" Of {len(rows) - len(known)} other runs it is not known." if len(known) < len(rows) else ""
    span = _span(min(hours), max(hours))
    runs = "1 run" if len(known) == 1 else f"{len(known)} runs"
    where = " and ".join(sorted({row.measured_on for row in known if row.measured_on}))
    measured = f"measured before{f' on {where}' if where else ''}"
    memory = max((row.gpu_memory_gib or 0.0 for row in known), default=0.0)
    peak = f" At its peak a worker took {memory:.1f} GiB of its GPU's memory." if memory else ""
    text = f"Expected training, by epochs that were {measured}: {span} a run ({runs}){cost}; validation comes on top."
    return f"{text}{rest}{_error(report)}{peak}"


def _published(rows: "Sequence[PlanRow]") -> str:
    """What nnU-Net's authors report of such plans, where they do."""
    known = [row for row in rows if row.published_h is not None and row.published_gb is not None]
    if not known:
        return ""
    hours, memory_gb = [row.published_h or 0.0 for row in known], max(row.published_gb or 0.0 for row in known)
    runs = "" if len(known) == len(rows) else f" of {len(known)} of these runs"
    return (
        f" By what nnU-Net's authors report of such plans, the training{runs} takes {_span(min(hours), max(hours))} each on one A100, "
        f"and {memory_gb:g} GB of the GPU's memory."
    )


def _span(least_h: float, most_h: float) -> str:
    """Durations in hours, short ones in minutes."""
    unit, per_hour = ("h", 1) if most_h >= 1 else ("min", 60)
    least, most = least_h * per_hour, most_h * per_hour
    return f"{least:.1f} {unit}" if most - least < 0.1 else f"{least:.1f} to {most:.1f} {unit}"


def _price(report: "PlanReport", gpu_hours: float) -> str:
    price = report.cost_per_gpu_hour
    return "" if price is None else f" (cost: {gpu_hours * price:.2f}, at {price:g} per GPU-hour)"


def _error(report: "PlanReport") -> str:
    """How wrong such expectations were."""
    errors = report.estimate_errors
    if not errors:
        return " How wrong such an expectation is was not recorded for these models yet."
    last = "the last run" if len(errors) == 1 else f"the last {len(errors)} runs"
    return f" Such expectations were within {max(map(abs, errors)):.0%} in {last}."


def limit_lines(report: "PlanReport") -> list[str]:
    """What is expected to limit the training of the open runs, a line for each sentence, with the models that it is about."""
    models: dict[str, list[str]] = {}
    for row in report.rows:
        if row.limit_text and row.progress.stage in ("new", "continues"):
            models.setdefault(row.limit_text, []).append(row.spec.model)
    named = {text: list(dict.fromkeys(found)) for text, found in models.items()}
    return [f"Expected of {', '.join(found)}, by epochs that were measured before: {text}" for text, found in named.items()]


def storage_line(report: "PlanReport") -> str:
    """What the folders of the runs will take on the disk, or that it is not known."""
    sizes = [row.disk_bytes / 1e9 for row in report.rows if row.disk_bytes is not None]
    if not sizes:
        return "Disk: not known for these networks." if report.rows else ""
    span = f"{min(sizes):.3f} GB" if max(sizes) - min(sizes) < 0.001 else f"{min(sizes):.3f} to {max(sizes):.3f} GB"
    total = f"{sum(sizes):.1f} GB in all, " if len(sizes) > 1 else ""
    rest = f" Of {len(report.rows) - len(sizes)} other runs it is not known." if len(sizes) < len(report.rows) else ""
    runs = "1 run" if len(sizes) == 1 else f"{len(sizes)} runs"
    return f"Disk: {span} a run ({runs}), {total}its validation's predictions included.{rest}"


def plan_table(report: "PlanReport", width: int) -> "RenderableType":
    """One row per run: what it is, what it asks for, when it fits; below once per model why runs do not fit now."""
    from rich.console import Group
    from rich.text import Text

    from orchestrator.cli.models import by_reason
    from orchestrator.cli.tables import plain_table

    columns = ["run", ">seed", ">cases", ">epochs", ">workers", ">batch per rank", "resources", "progress", "fits"]
    shown = columns if width >= WIDE else ["run", "resources", "progress", "fits"]
    table = plain_table(*shown, title=f"Plan of {report.experiment}")
    for row in report.rows:
        cells: dict[str, str | Text] = {
            "run": row.address,
            ">seed": str(row.seed),
            ">cases": f"{row.n_train}+{row.n_val}",
            ">epochs": f"{row.epochs} x {row.iterations}",
            ">workers": f"{row.workers}-{row.most_workers}" if row.most_workers else str(row.workers),
            ">batch per rank": " to ".join(batch_text(sizes) for sizes in (row.batch_per_rank, row.batch_per_rank_of_most) if sizes),
            "resources": row.resources,
            "progress": row.progress.text,
            "fits": Text("-") if row.progress.stage == "finished" else Text(row.fits, style=FIT_STYLES[row.fits]),
        }
        table.add_row(*[cells[column] for column in shown])
    held = [row for row in report.rows if row.fits != "now"]
    reasons = by_reason([row.address for row in held], [f"{row.fits}: {row.because}" for row in held])
    return Group(table, *([Text()] if reasons else []), *(Text(line, style="dim") for line in reasons))


def batch_text(batch_per_rank: tuple[int, ...]) -> str:
    """`2` where all ranks have the same, else `2,1`."""
    return str(batch_per_rank[0]) if len(set(batch_per_rank)) == 1 else ",".join(map(str, batch_per_rank))
