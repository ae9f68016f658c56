"""`nnfleet diff`: in what two runs differ."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import EXIT_DIFFERENT, console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Run

if TYPE_CHECKING:
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
    from orchestrator.cli.tables import plain_table

    say(f"first:  {found.first}")
    say(f"second: {found.second}")
    if found.are_equal:
        say("They are equal in all that was compared.")
        return
    out = console()
    drawn = plain_table("", "what", "first", "second", width=out.width)
    part = ""
    for row in found.differences:
        drawn.add_row("" if row.part == part else row.part, row.what, row.first, row.second)
        part = row.part
    out.print(drawn)
