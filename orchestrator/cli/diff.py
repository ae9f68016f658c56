"""`nnfleet diff`: in what two runs differ."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import EXIT_DIFFERENT, console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Run

if TYPE_CHECKING:
    from orchestrator.cli.fitted_table import FittedTable
    from orchestrator.compare.run_differences import RunDiff


def diff(
    first: Run,
    second: Run,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FOLDER", help="Folder that holds the runs; default: nnUNet_results.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show in what two runs differ: data, split, plans, settings, schedule, code, libraries, hardware, restarts. Exit code 1: they do."""
    from orchestrator import api

    with working("Reading runs ..."):
        found = api.diff(first, second, results)
    for sentence in found.unknown:
        note(f"Not compared: {sentence}")
    if as_json:
        print_json({**asdict(found), "are_equal": found.are_equal})
    else:
        show(found)
    if not found.are_equal:
        raise typer.Exit(EXIT_DIFFERENT)


def show(found: "RunDiff") -> None:
    """Print the two runs, and a row for each thing in which they differ."""
    say(f"first:  {found.first}")
    say(f"second: {found.second}")
    if found.are_equal:
        say("They are equal in all that was compared.")
        return
    console().print(differences_table(found))


def differences_table(found: "RunDiff") -> "FittedTable":
    """A row for each thing in which two runs differ, below the part of them that it belongs to."""
    from orchestrator.cli.tables import plain_table

    drawn = plain_table("", "what", "first", "second")
    part = ""
    for row in found.differences:
        drawn.add_row("" if row.part == part else row.part, row.what, row.first, row.second)
        part = row.part
    return drawn
