"""`nnfleet import`: what nnU-Net itself trained, as runs that are compared beside ours."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson
from orchestrator.errors import DataError


def import_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="nnUNet_results/DatasetNNN_Name/Trainer__Plans__configuration: all its folds; or one fold_K in it.",
            show_default=False,
        ),
    ],
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FOLDER", help="Link it into this nnUNet_results. Default: it becomes a run where it lies."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri", metavar="URI", help="Send it to this MLflow server. Default: MLFLOW_TRACKING_URI, else the local one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in what nnU-Net itself trained and validated, to compare it beside our runs. Changes none of its files."""
    from orchestrator import api

    with working("Reading and scoring ..."):
        folds = api.import_folder(folder, results, tracking_uri)
    if as_json:
        print_json([fold.model_dump(mode="json") for fold in folds])
    else:
        for fold in folds:
            say(fold.line)
    if any(fold.lacking for fold in folds):
        raise typer.Exit(DataError.exit_code)
