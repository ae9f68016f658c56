"""`nnfleet import`: what nnU-Net itself trained, or began, as runs of ours."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson
from orchestrator.cli.train import fitted
from orchestrator.cli.train_options import Cpu, Cpus, Device, NumWorkers
from orchestrator.cli.worker_options import worker_options
from orchestrator.errors import ConfigError, DataError


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
    continues: Annotated[
        bool,
        typer.Option("--continue", help="Of a training that has not ended: make it a run that `nnfleet resume` goes on with, beside it."),
    ] = False,
    num_workers: NumWorkers = None,
    device: Device = None,
    cpu: Cpu = False,
    cpus: Cpus = None,
    as_json: AsJson = False,
) -> None:
    """Take in what nnU-Net itself trained and validated, to compare it beside our runs, or what it began, to finish it. Changes none of its
    files.
    """
    from orchestrator import api

    asked = worker_options(num_workers, cpu, cpus, device)
    if asked and not continues:
        raise ConfigError("import: workers are for a training that goes on here: --continue. What nnU-Net has finished is only read.")
    with working("Reading and scoring ..."):
        folds = api.import_folder(folder, results, tracking_uri, continues=continues, workers=_workers(asked) if continues else None)
    if as_json:
        print_json([fold.model_dump(mode="json") for fold in folds])
    else:
        for fold in folds:
            say(fold.line)
    if any(fold.lacking for fold in folds):
        raise typer.Exit(DataError.exit_code)


def _workers(asked: dict[str, int]) -> dict[str, int]:
    """Those of the run, as `nnfleet train` chooses them."""
    from orchestrator import api
    from trainers.contract.run_spec import WorkerSpec

    if not api.is_local():
        return asked
    machine = api.this_machine().total
    workers, changes = fitted(asked, WorkerSpec(), int(machine["CPU"]), int(machine["GPU"]))
    if changes:
        note(changes)
    return workers
