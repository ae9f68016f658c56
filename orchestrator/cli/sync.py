"""`nnfleet sync`: MLflow brought up to date from run folders."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster
from orchestrator.errors import TrackingError


def sync(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Only these: run key, address or MLflow run id; 17 or 17/3d_fullres means all below it.")
    ] = "",
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FOLDER", help="nnUNet_results of the runs. Default: the shell's, or the named cluster's."),
    ] = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Deliver what run folders hold and MLflow lacks, and end in MLflow the runs whose jobs are gone."""
    from orchestrator import api

    with working("Delivering ..."):
        runs = api.sync(run, results, cluster)
    if as_json:
        print_json([item.model_dump(mode="json") for item in runs])
    else:
        for item in runs:
            say(item.line)
        if not runs:
            say("No run folders here.")
    if any(item.lacking for item in runs):
        raise typer.Exit(TrackingError.exit_code)
