"""Options and arguments that several verbs share."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        "-c",
        metavar="ADDRESS",
        help="Jobs address of a Ray cluster (http://head:8265). Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else the local one.",
    ),
]
Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Run key, a unique beginning of it, 17/3d_fullres/nnUNetTrainer/0, or an MLflow run id."),
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="Only these: by run key, address or MLflow run id; 17, 17/3d_fullres or '17/*/nnUNetTrainerDA5' means all that match.",
        show_default=False,
    ),
]
SomeRuns = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="By run key, address or MLflow run id; 17/3d_fullres/nnUNetTrainer means all its folds.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="17/3d_fullres/nnUNetTrainer means all its folds; one fold by its address, run key or MLflow run id.",
        show_default=False,
    ),
]
TestImages = Annotated[
    Path, typer.Option("--images", metavar="FOLDER", help="Test images, <case>_0000.nii.gz and so on, as the cluster sees them.")
]
TestWorkers = Annotated[
    int | None,
    typer.Option(
        "--num-workers", "--num-gpus", "-num_gpus", min=1, help="Workers, a case each. Default: as many as fit now, one at least."
    ),
]
TestCpus = Annotated[
    int | None,
    typer.Option("--cpus", min=1, help="CPU cores per worker. Default: 8, or what the cluster has of them for each.", show_default=False),
]
TestCheckpoint = Annotated[Literal["final", "best"], typer.Option("--checkpoint", help="Which weights of each fold predict.")]
Results = Annotated[Path | None, typer.Option("--results", metavar="FOLDER", help="Folder that holds the runs; default: nnUNet_results.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Move the folders of other runs aside (replaced-fold_0-...) and start anew; deletes nothing.")
]
Priority = Annotated[
    int | None,
    typer.Option(
        "--priority", min=0, max=100, help="Place in the queue; 100 goes first. Default: the file's, else 50.", show_default=False
    ),
]
User = Annotated[
    str | None,
    typer.Option("--user", metavar="NAME", help="Whose share of the cluster it takes. Default: your login name.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for scripts.")]
ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment file.", show_default=False)]


def cluster_option(cluster: str | None) -> str:
    """What a suggested command needs to reach the same cluster: ` --cluster ADDRESS`, or nothing."""
    return f" --cluster {shlex.quote(cluster)}" if cluster else ""
