"""`nnfleet logs`: the training log of a run, and what its jobs print."""

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import note, write
from orchestrator.cli.parameters import Cluster, Run

if TYPE_CHECKING:
    from orchestrator.run.status import RunStatus


def logs(
    run: Run,
    cluster: Cluster = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and print new lines.")] = False,
    earlier: Annotated[
        bool, typer.Option("--all", help="All its training logs, and what Ray has of all its jobs, each below its name.")
    ] = False,
) -> None:
    """Print the training log of a run, then what its validation job printed; after `down` or a reboot from the run folder."""
    from orchestrator import api

    statuses: list[RunStatus] = []

    def found(status: "RunStatus") -> None:
        statuses.append(status)
        if follow and status.state == "QUEUED":
            note(f"{status.address} is QUEUED: {status.reason or 'its campaign has not read it yet.'} Its log follows when it starts.")

    is_empty = True
    for part in api.logs(run, cluster, follow, earlier, found):
        is_empty = False
        write(part)
    if is_empty:
        status = next((item for item in api.status(cluster) if item.run_key == statuses[0].run_key), statuses[0]) if follow else statuses[0]
        note(f"{status.address} is {status.state} and no job of it has printed anything here. {status.reason}".rstrip())
