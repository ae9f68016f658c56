"""`nnfleet export`: a model folder for nnU-Net out of MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Run


def export(
    run: Run,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make the model folder in.", show_default=False)],
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", metavar="URI", help="MLflow server; default: the local one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy a run's model from MLflow as an nnU-Net model folder, verified by its SHA-256."""
    from orchestrator import api

    with working("Copying and verifying ..."):
        folder = api.export(run, target, tracking_uri)
    if as_json:
        checkpoints = sorted(path.name for path in (folder / f"fold_{fold_of(folder)}").glob("checkpoint_*.pth"))
        print_json({"folder": str(folder), "fold": fold_of(folder), "checkpoints": checkpoints})
        return
    say(f"Verified model folder: {folder}")
    if not (folder / f"fold_{fold_of(folder)}" / "checkpoint_final.pth").exists():
        note("The run has no final checkpoint in MLflow yet: this is its best one so far. Export it again when it has ended.")
    say(f"Predict with it: nnUNetv2_predict_from_modelfolder -m {folder} -f {fold_of(folder)} -chk checkpoint_best.pth -i INPUT -o OUTPUT")
    say("Without a GPU add: -device cpu")


def fold_of(folder: Path) -> str:
    """The fold in a model folder: `0` or `all`; the first when there are several."""
    return next((path.name.removeprefix("fold_") for path in sorted(folder.glob("fold_*"))), "0")
