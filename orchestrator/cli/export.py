"""`nnfleet export`: a model folder for nnU-Net out of run folders or MLflow."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Model

if TYPE_CHECKING:
    from orchestrator.export.model import Exported


def export(
    model: Model,
    target: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder to make the model folder in, or an earlier export to add to.", show_default=False)
    ],
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="FOLDER", help="Take it from the run folders below this one. Default: nnUNet_results."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            metavar="URI",
            help="Take it from this MLflow server. Default, where no run folder is seen here: MLFLOW_TRACKING_URI, else the local one.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a model with all its folds as one nnU-Net model folder, verified by SHA-256."""
    from orchestrator import api

    with working("Copying and verifying ..."):
        exported = api.export(model, target, tracking_uri, results)
    for sentence in exported.left:
        note(sentence)
    if as_json:
        checkpoints = {fold: [f"checkpoint_{name}.pth" for name in names] for fold, names in exported.folds.items()}
        print_json({"folder": str(exported.folder), "folds": checkpoints})
        return
    say(f"Verified model folder: {exported.folder}")
    if unfinished := [fold for fold, names in exported.folds.items() if "final" not in names]:
        note(f"Only with the best checkpoint so far: fold {', '.join(unfinished)}. Export again when its training has ended.")
    option = "" if exported.checkpoint == "final" else " --checkpoint best"
    say(f"Predict with it, as `nnfleet predict{option}` does: {predict_command(exported)}")
    say("Without a GPU add: -device cpu")


def predict_command(exported: "Exported") -> str:
    """nnU-Net's command that predicts with the folds of a model folder as an ensemble, as `nnfleet predict` does."""
    model = f"-m {shlex.quote(str(exported.folder))} -f {' '.join(exported.predicting)} -chk checkpoint_{exported.checkpoint}.pth"
    return f"nnUNetv2_predict_from_modelfolder {model} -i INPUT -o OUTPUT"
