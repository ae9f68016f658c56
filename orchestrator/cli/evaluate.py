"""`nnfleet evaluate`: a held-out test set, predicted by a model's folds together and scored."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.foreground import following_a_test_set
from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, Model, Results, TestCheckpoint, TestCpus, TestImages, TestWorkers
from orchestrator.cli.train_options import Cpu, Device
from orchestrator.cli.worker_options import own_words, worker_options

if TYPE_CHECKING:
    from orchestrator.validation.held_out_events import HeldOutEvent


def evaluate(
    model: Model,
    images: TestImages,
    labels: Annotated[Path | None, typer.Option("--labels", metavar="FOLDER", help="Their labels, <case>.nii.gz; else no scores.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FOLDER", help="New folder, or that of the same test set; default: beside the folds.")
    ] = None,
    checkpoint: TestCheckpoint = "final",
    num_workers: TestWorkers = None,
    device: Device = None,
    cpu: Cpu = False,
    cpus: TestCpus = None,
    results: Results = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Predict a held-out test set with all folds of a model as an ensemble, and score it; finished cases are kept.

    Ctrl-C and SIGTERM stop it; a closed terminal leaves it at work. The same command again follows or continues it.
    """
    from orchestrator import api

    workers = worker_options(num_workers, cpu, cpus, device)
    with following_a_test_set(cluster) as on_job, own_words(), working("Predicting ..."):
        ended = api.evaluate(
            *(model, images, labels, output),
            checkpoint=checkpoint,
            results=results,
            cluster=cluster,
            workers=workers,
            on_wait=note,
            on_job=on_job,
        )
    show(ended, as_json=as_json)


def show(ended: "HeldOutEvent", *, as_json: bool) -> None:
    """Print how a test set ended."""
    for sentence in ended.left:
        note(sentence)
    if as_json:
        print_json(ended.model_dump(mode="json", exclude={"event", "exit_code"}))
        return
    say(f"{ended.message}.")
    say(f"Predictions: {ended.output}")
    if ended.undelivered:
        note(f"Not in MLflow: {ended.undelivered}.")
    if ended.unrecorded:
        note(f"Not for `nnfleet compare`: {ended.unrecorded}.")
