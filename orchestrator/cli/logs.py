"""`nnfleet logs`: what the jobs of a run print."""

from typing import Annotated

import typer

from orchestrator.cli.output import note, write
from orchestrator.cli.parameters import Cluster, Run


def logs(
    run: Run,
    cluster: Cluster = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and print new lines.")] = False,
    earlier: Annotated[bool, typer.Option("--all", help="Also the jobs before the newest training job, each below its name.")] = False,
) -> None:
    """Print the log of a run's newest training job, then of its validation job."""
    from orchestrator import api
    from orchestrator.run.status import match

    if follow:
        found = match(run, api.status(cluster))
        if found.state == "QUEUED":
            note(f"{found.address} is QUEUED: {found.reason or 'its campaign has not looked at it yet.'} Its log follows when it starts.")
    is_empty = True
    for part in api.logs(run, cluster, follow, earlier):
        is_empty = False
        write(part)
    if is_empty:
        found = match(run, api.status(cluster))
        note(f"{found.address} is {found.state} and no job of it has printed anything here. {found.reason}".rstrip())
