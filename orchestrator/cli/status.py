"""`nnfleet status`: the state of every run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import console, note, print_json, say
from orchestrator.cli.parameters import AsJson, Cluster, Runs
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.run.status import RunStatus

INTERVAL_S = 2.0
PAUSE_FACTOR = 4.0
"""Seconds of pause per second that an answer took: campaigns with long logs are polled less often."""


def status(
    runs: Runs = None,
    cluster: Cluster = None,
    campaign: Annotated[str | None, typer.Option("--campaign", metavar="ID", help="Only the runs of this campaign.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FOLDER",
            help="Show orphaned runs below it: cut off, and followed by no campaign. Default: nnUNet_results.",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Stay, with live progress bars, until every run has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state, epoch, EMA pseudo-Dice and time left of each run."""
    from orchestrator import api

    if watch and as_json:
        raise ConfigError("status: --json prints one document and ends, --watch stays. Name one of them; a script polls with --json.")
    if watch:
        _watch(cluster, campaign, runs or [])
        return
    seen = api.snapshot(cluster, campaign, results)
    statuses = _named([*seen.statuses, *seen.orphaned], runs or [])
    if seen.outage:
        note(seen.outage)
    if as_json:
        print_json([item.model_dump(mode="json") for item in statuses])
    elif not statuses:
        say(
            "The cluster has no runs: nothing was submitted since it started, or it is down. Finished runs are in MLflow "
            "(`nnfleet ui`) and in nnUNet_results. `nnfleet resume` continues what was cut off; `nnfleet resume RUN`, or the experiment "
            "submitted again, also what was stopped or has failed."
        )
    else:
        from orchestrator.cli.tables import result_table
        from orchestrator.cli.watch import watch_view

        out = console()
        out.print(watch_view(statuses, out.width))
        if validated := [item for item in statuses if item.full_dice]:
            out.print()
            out.print(result_table(validated, out.width))


def _named(statuses: "list[RunStatus]", runs: list[str]) -> "list[RunStatus]":
    """The runs of these names, in their order; all if there are no names. Raises ConfigError for a name that means none."""
    from orchestrator.run.status import match_all

    return match_all(runs, statuses) if runs else statuses


def _watch(cluster: str | None, campaign: str | None, runs: list[str]) -> None:
    import time

    from orchestrator import api
    from orchestrator.cli.tables import worst_exit_code
    from orchestrator.cli.watch import Watch

    with Watch() as watch:
        looks = api.looks(cluster, campaign)
        while True:
            began = time.monotonic()
            watch(_named(next(looks), runs))
            if all(item.state.is_final for item in watch.statuses):
                break
            time.sleep(INTERVAL_S + PAUSE_FACTOR * (time.monotonic() - began))
    raise typer.Exit(worst_exit_code(watch.statuses))
