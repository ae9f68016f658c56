"""`nnfleet export`: a model folder for nnU-Net out of run folders or MLflow."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Model

if TYPE_CHECKING:
    from orchestrator.export.model import Exported

OPTIMISTIC = "it is of an epoch that was chosen on its own validation fold. The final checkpoint stays the fair one."


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
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            metavar="winner|candidate_<epoch>",
            help="Add the weights of a candidate (`validation: {candidates: K}`), which are optimistic, to best and final. "
            "`winner`: the one of the highest full Dice.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a model with all its folds as one nnU-Net model folder, verified by SHA-256."""
    from orchestrator import api

    with working("Copying and verifying ..."):
        exported = api.export(model, target, tracking_uri, results, checkpoint)
    for sentence in exported.left:
        note(sentence)
    if as_json:
        checkpoints, optimistic = (
            {fold: [f"checkpoint_{name}.pth" for name in names] for fold, names in found.items()}
            for found in (exported.folds, exported.optimistic)
        )
        more = {name: value for name in ("early_end", "previous_stage") if (value := getattr(exported, name))}
        print_json({"folder": str(exported.folder), "folds": checkpoints, "optimistic": optimistic, **more})
        return
    say(f"Verified model folder: {exported.folder}")
    if exported.previous_stage:
        first = f"{exported.previous_stage}, too.{stage_command(exported)}"
        note(f"It is the second stage of a cascade: export and predict with its first stage, {first}")
    if unfinished := [fold for fold, names in exported.folds.items() if "final" not in names]:
        note(f"Only with the best checkpoint so far: fold {', '.join(unfinished)}. Export again when its training has ended.")
    if exported.early_end:
        note(f"Not the full schedule: ended early, as asked, {exported.early_end}.")
    if exported.candidate:
        note(f"checkpoint_{exported.candidate}.pth is optimistic: {OPTIMISTIC}")
        say(f"Predict with it: {predict_command(exported)}")
        say("Without a GPU add: -device cpu")
        return
    option = "" if exported.checkpoint == "final" else " --checkpoint best"
    say(f"Predict with it, as `nnfleet predict{option}` does: {predict_command(exported)}")
    say("Without a GPU add: -device cpu")


def stage_command(exported: "Exported") -> str:
    """How the first stage of a cascade is exported too, as the end of a line; empty where its model is not known."""
    if not exported.previous_model:
        return ""
    beside = exported.folder.with_name(f"{exported.folder.name}-{exported.previous_stage}")
    return f"\nExport it: {shlex.join(['nnfleet', 'export', exported.previous_model, str(beside)])}"


def predict_command(exported: "Exported") -> str:
    """nnU-Net's command that predicts with the folds of a model folder as an ensemble, as `nnfleet predict` does."""
    model = f"-m {shlex.quote(str(exported.folder))} -f {' '.join(exported.predicting)} -chk checkpoint_{exported.checkpoint}.pth"
    stage = f" -prev_stage_predictions PREDICTIONS_OF_{exported.previous_stage}" if exported.previous_stage else ""
    return f"nnUNetv2_predict_from_modelfolder {model} -i INPUT -o OUTPUT{stage}"
