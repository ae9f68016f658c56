"""`nnfleet predict`: images without labels, predicted by a model's folds together."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.evaluate import show
from orchestrator.cli.foreground import following_a_test_set
from orchestrator.cli.output import note, working
from orchestrator.cli.parameters import AsJson, Cluster, Model, Results, TestCheckpoint, TestCpus, TestImages, TestWorkers
from orchestrator.cli.train_options import Cpu, Device
from orchestrator.cli.worker_options import own_words, worker_options


def predict(
    model: Model,
    images: TestImages,
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="New folder, or one that this command has begun.")],
    checkpoint: TestCheckpoint = "final",
    num_workers: TestWorkers = None,
    device: Device = None,
    cpu: Cpu = False,
    cpus: TestCpus = None,
    results: Results = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Predict images with all folds of a model as an ensemble, as nnUNetv2_predict does; finished cases are kept.

    Ctrl-C and SIGTERM stop it; a closed terminal leaves it at work. The same command again follows or continues it.
    """
    from orchestrator import api

    workers = worker_options(num_workers, cpu, cpus, device)
    with following_a_test_set(cluster) as on_job, own_words(), working("Predicting ..."):
        ended = api.predict(
            *(model, images, output),
            checkpoint=checkpoint,
            results=results,
            cluster=cluster,
            workers=workers,
            on_wait=note,
            on_job=on_job,
        )
    show(ended, as_json=as_json)
