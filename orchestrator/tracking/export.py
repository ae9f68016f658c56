"""From MLflow to a folder that nnU-Net's own tools read: `nnUNetv2_predict_from_modelfolder -m <folder> -f <fold>`."""

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import CheckpointError, ConfigError, DataError
from orchestrator.tracking.address import refuse_credentials
from orchestrator.tracking.checkpoint_store import download_checkpoint, published
from orchestrator.tracking.client import Tracker
from trainers.contract.files import read_json, temporary_folder
from trainers.contract.run_spec import CheckpointName

MODEL_FILES = ("plans.json", "dataset.json")
LARGEST_MODEL_FILE = 256 << 20
"""Bytes; plans and dataset.json of thousands of cases have a few MiB."""


def export_model(run: str, target: Path, tracking_uri: str) -> Path:
    """Make `target` an nnU-Net model folder with the run's published checkpoints and return it.

    It holds plans.json, dataset.json and fold_<k>/checkpoint_{best,final}.pth; final only if the run has ended. Each checkpoint is
    checked against its SHA-256. The folder appears complete or not at all. `run`: see `Tracker.find_run`.
    Raises ConfigError for an unknown run, one without a checkpoint or a target that is not empty or cannot be made, CheckpointError,
    TrackingError.
    """
    target = target.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"export: {target} exists and is not an empty folder. Name a folder that does not exist yet.")
    refuse_credentials(tracking_uri, "export: --tracking-uri")
    tracker = Tracker(tracking_uri)
    tracker.ping()
    run_id = tracker.find_run(run)
    present = _published_names(tracker, run, run_id)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"export: {target.parent} cannot be made: {err}. Name a folder that you may write.") from err
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        model = Path(folder) / "model"
        _fill(tracker, run_id, present, model)
        model.rename(target)  # replaces an empty folder
    return target


def _published_names(tracker: Tracker, run: str, run_id: str) -> list[CheckpointName]:
    """The checkpoints that MLflow holds of a run. Raises ConfigError when there is none: nothing is damaged, it is too early."""
    names: tuple[CheckpointName, ...] = ("best", "final")
    present = [name for name in names if published(tracker, run_id, name) is not None]
    if not present:
        raise ConfigError(
            f"export: run {run} at {tracker.uri} has no published checkpoint yet. "
            "Wait for its first epochs, or resume it if it has stopped."
        )
    return present


def fold_in(tags: Mapping[str, str]) -> str:
    """The fold that a run's tags name: `0` or `all`. Raises CheckpointError for what would not be one folder inside the model folder."""
    fold = tags.get("nnfleet.fold", "0")
    if not re.fullmatch(r"\d+|all", fold, re.ASCII):
        raise CheckpointError(
            f"export: the run's tag nnfleet.fold is {fold!r}, neither a number nor `all`. Nothing was written; correct the tag."
        )
    return fold


def _fill(tracker: Tracker, run_id: str, names: list[CheckpointName], model: Path) -> None:
    fold = fold_in(tracker.tags(run_id))
    for name in names:
        download_checkpoint(tracker, run_id, name, model / f"fold_{fold}" / f"checkpoint_{name}.pth")
    sizes = tracker.list_files(run_id)
    missing = sorted(set(MODEL_FILES) - set(sizes))
    if missing:
        raise CheckpointError(
            f"export: run {run_id} at {tracker.uri} has no {' and no '.join(missing)} among its artifacts. Let its training job start once."
        )
    with temporary_folder("nnfleet-export-") as folder:
        for file in MODEL_FILES:
            if (sizes[file] or 0) > LARGEST_MODEL_FILE:
                raise CheckpointError(f"export: {file} of run {run_id} at {tracker.uri} has {sizes[file]} bytes: it is no file of nnU-Net.")
            local = tracker.download(run_id, file, folder)
            try:
                read_json(local, f"export: {file} of run {run_id}")
            except DataError as err:
                raise CheckpointError(str(err)) from err
            shutil.move(local, model / file)
