"""`nnfleet drill`: kill parts of a toy training on the user's own cluster and see that nothing is lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import console, note, print_json, say
from orchestrator.cli.parameters import AsJson, Cluster

if TYPE_CHECKING:
    from orchestrator.cli.fitted_table import FittedTable
    from orchestrator.drill.order import DrillEvent, Report

EXIT_LOST = 8
"""Something was lost."""


def drill(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[worker|node|driver|tracking]...", help="What to kill; default: worker driver.", show_default=False),
    ] = None,
    cluster: Cluster = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="A folder that the cluster's nodes see; default: nnUNet_results.", show_default=False),
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="One GPU per worker; else the toy run takes CPUs only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; a node may be killed even if other people's work runs on it.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the toy run's folder and its MLflow experiment.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a toy run, kill parts of it, and report how long recovery took and what was lost (expected: nothing)."""
    from orchestrator import api

    wanted = parts or []
    if "node" in wanted and not yes:
        typer.confirm("A whole node will be killed, with everything of Ray's that runs on it. Go on?", abort=True, err=True)
    report = api.drill(wanted, cluster, folder, gpus=gpus, is_sure=yes, keeps=keep, on_event=_note)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _show(report)
    if not report.is_nothing_lost:
        raise typer.Exit(EXIT_LOST)


def _note(event: "DrillEvent") -> None:
    match event.event:
        case "phase":
            note(f"{event.text.capitalize()} ...")
        case "struck":
            note(f"Killed: {event.part}, {event.what}.")
        case "strike":
            seconds = event.strike.recovery_s
            note("It did not recover in time." if seconds is None else f"Recovered after {seconds:.1f} s.")


def _show(report: "Report") -> None:
    console().print(strikes_table(report))
    for text in report.differences:
        say(f"Differs from the undisturbed run: {text}")
    if report.is_nothing_lost:
        say(f"Nothing was lost: weights (SHA-256 {report.weights_sha256[:12]}) and curves equal those of the undisturbed run.")
    for text in report.stays:
        note(f"Left behind: {text}")


def strikes_table(report: "Report") -> "FittedTable":
    """A row for each part that was killed."""
    from orchestrator.cli.tables import plain_table

    table = plain_table("killed", "what", "when", ">recovered after", ">epochs redone", "lost")
    for strike in report.strikes:
        seconds = "-" if strike.recovery_s is None else f"{strike.recovery_s:.1f} s"
        table.add_row(strike.part, strike.what, strike.moment, seconds, str(strike.epochs_redone), strike.lost or "nothing")
    return table
