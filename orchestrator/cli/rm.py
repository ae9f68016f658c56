"""`nnfleet rm`: remove runs that are not needed any more."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import console, note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, SomeRuns
from orchestrator.errors import ConfigError
from orchestrator.run.names import NoSuchRun

if TYPE_CHECKING:
    from orchestrator.resume.removal import Removable

REMOVED_BEFORE = "The MLflow run of one that was removed before is deleted in MLflow's pages: nnfleet ui."
STAYS = " Their MLflow runs, with curves and checkpoints, stay: --mlflow puts them into MLflow's bin too, and only with this removal."


def rm(
    runs: SomeRuns,
    mlflow: Annotated[
        bool,
        typer.Option(
            "--mlflow",
            help="Also put their MLflow runs and their models' cross-validations into MLflow's bin, which later is done in its pages.",
        ),
    ] = False,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FOLDER", help="Folder that holds the runs. Default: nnUNet_results of this shell.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Remove runs from nnUNet_results for good: checkpoints, validation and all. They are listed with their sizes before; runs that have
    not ended are refused.
    """
    from orchestrator import api

    with working("Reading run folders ..."):
        try:
            found = api.removable(runs, results, cluster)
        except NoSuchRun as err:
            if not mlflow:
                raise
            raise ConfigError(f"{err} {REMOVED_BEFORE}") from err
    for model in sorted({model for run in found for model in run.second_stages}):
        note(f"Warning: {model} was trained on segmentations of these runs and predicts no new images without their weights.")
    if not yes:
        _ask_about(found, mlflow=mlflow)
    with working("Removing ..."):
        removed = api.remove([run.run_key for run in found], results, cluster, mlflow=mlflow)
    if as_json:
        print_json([run.model_dump(mode="json") for run in removed])
        return
    for run in removed:
        say(f"removed {_line(run)}")
    for folder in _crossvals(removed):
        say(f"removed {folder}")
    if not mlflow and any(run.mlflow_run_id for run in removed):
        note("Their MLflow runs stay, with curves and checkpoints. Before the same is trained again, delete them in MLflow's pages:")
        for run in removed:
            if run.mlflow_run_id:
                note(f"- {run.address}: {run.mlflow_url or run.mlflow_run_id}")


def _ask_about(found: Sequence["Removable"], *, mlflow: bool) -> None:
    """Go on only if the user means it. Raises ConfigError where nobody can be asked."""
    for run in found:
        note(_line(run))
    for folder in _crossvals(found):
        note(f"{folder}  (a cross-validation with what is removed)")
    count = "1 run" if len(found) == 1 else f"{len(found)} runs"
    size = size_text(sum(run.size_bytes for run in found))
    what = f"{count} ({size} on the disk){' and their MLflow runs' if mlflow else ''}"
    stays = "" if mlflow or not any(run.mlflow_run_id for run in found) else STAYS
    if not console(stderr=True).is_terminal:
        raise ConfigError(
            f"rm: {what} would be removed, and there is no terminal to ask at.{stays} `nnfleet rm --yes` removes without a question."
        )
    if stays:
        note(stays.strip())
    typer.confirm(f"Remove {what}, for good?", abort=True, err=True)


def _line(run: "Removable") -> str:
    return f"{run.address}  {run.state.value}  {run.epochs_done}/{run.epochs} epochs  {size_text(run.size_bytes)}  {run.run_folder}"


def _crossvals(runs: Sequence["Removable"]) -> list[Path]:
    """What is removed besides the run folders, each once."""
    return list(dict.fromkeys(folder for run in runs for folder in run.crossvals))


def size_text(size_bytes: int) -> str:
    """`1.2 GB`, as disks are sold."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes / 1e3:.1f} kB"
