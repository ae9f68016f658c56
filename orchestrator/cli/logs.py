"""`nnfleet logs`: what the jobs of a run print."""

from typing import Annotated

import typer

from orchestrator.cli.output import write
from orchestrator.cli.parameters import Cluster, Run


def logs(
    run: Run, cluster: Cluster = None, follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay and print new lines.")] = False
) -> None:
    """Print the log of a run's training job, then of its validation job."""
    from orchestrator import api

    for part in api.logs(run, cluster, follow):
        write(part)
