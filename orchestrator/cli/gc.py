"""`nnfleet gc`: free the space of what ended runs hold and nobody needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, Runs
from orchestrator.cli.rm import size_text
from orchestrator.errors import NnfleetError

if TYPE_CHECKING:
    from orchestrator.resume.garbage import Garbage


def gc(
    runs: Runs = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Free it; else it is only shown.")] = False,
    mlflow: Annotated[bool, typer.Option("--mlflow", help="Also replaced checkpoints among MLflow's artifacts.")] = False,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FOLDER", help="Folder that holds the runs. Default: nnUNet_results of this shell.")
    ] = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Show what ended runs hold that nobody needs, in GB per run, and with --yes free it: earlier states of finished runs, replaced bests,
    what kills left half written. What a run needs to continue, and all final and best checkpoints, stay.
    """
    from orchestrator import api

    with working("Reading run folders ..."):
        found, left, failed = api.garbage(runs or (), results, cluster, mlflow=mlflow)
    if yes:
        with working("Freeing ..."):
            found, kept = api.free(found)
        failed += kept
    for sentence in left:
        note(f"Left: {sentence}")
    for sentence in failed:
        note(f"Failed: {sentence}")
    if as_json:
        print_json([{**each.model_dump(mode="json"), "size_bytes": each.size_bytes} for each in found])
    else:
        _show(found, is_freed=yes)
    if failed:
        raise typer.Exit(NnfleetError.exit_code)


NAMES = {"states": "earlier states", "bests": "replaced bests", "uploads": "second names of dead uploads"}
"""What the kinds are called where what stays, as the newest state and the best checkpoint, has such a name too."""


def _show(found: "Sequence[Garbage]", *, is_freed: bool) -> None:
    holding = [each for each in found if each.size_bytes]
    for each in holding:
        say(f"{each.address}  {_gb(each.size_bytes)} of {_gb(each.held_bytes + sum(each.uploads.values()))}: {_kinds(each)}")
    total = f"{_gb(sum(each.size_bytes for each in holding))} in {len(holding)} of {len(found)} runs"
    say(f"Freed {total}." if is_freed else f"{total} can be freed{'' if not holding else ': nnfleet gc --yes'}.")


def _kinds(garbage: "Garbage") -> str:
    sizes = [*garbage.sizes.items(), ("MLflow", sum(garbage.uploads.values()))]
    return ", ".join(f"{NAMES.get(kind, kind)} {size_text(size)}" for kind, size in sizes if size)


def _gb(size_bytes: int) -> str:
    """`0.012 GB`: of all runs in one unit, so that they are compared at a glance."""
    return f"{size_bytes / 1e9:.3f} GB"
