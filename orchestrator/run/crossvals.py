"""Those of nnU-Net's cross-validation folders that nnfleet made, and their end when a fold in them goes."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.run.aside import move_aside
from trainers.contract.run_folder import CROSSVAL_PREFIX
from trainers.errors import NnfleetError
from trainers.storage.files import read_json

log = logging.getLogger(__name__)

MARK = "nnfleet.json"
"""Tells a folder that was made here from one that nnU-Net made, which is never touched."""
OURS = frozenset({MARK, "summary.json", "plans.json", "dataset.json"})
"""What such a folder holds besides the predictions."""


def own_crossvals(model_folder: Path) -> list[Path]:
    """Those that nnfleet made."""
    return sorted(mark.parent for mark in model_folder.glob(f"{CROSSVAL_PREFIX}*/{MARK}"))


def crossvals_with(model_folder: Path, fold: object) -> list[Path]:
    """Those of them that hold predictions of a fold."""
    return [folder for folder in own_crossvals(model_folder) if str(fold) in folder.name.removeprefix(CROSSVAL_PREFIX).split("_")]


def drop_crossval(model_folder: Path, fold: object) -> None:
    """Remove what holds the predictions of a fold that are about to go or to be replaced, and what a killed job left half made or half
    removed."""
    remove_crossvals(crossvals_with(model_folder, fold))
    for left in model_folder.glob(f".{CROSSVAL_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


def remove_crossvals(folders: Sequence[Path]) -> list[Path]:
    """Remove such folders: they hold nothing that is not in the folds. Returns those that are removed; a WARNING names each that is not.

    Each is renamed first: without its mark, half a folder would count as nnU-Net's for good.
    """
    removed = []
    for folder in folders:
        gone = folder.with_name(f".{folder.name}.gone-{time.time_ns()}")
        try:
            if retire(folder, gone):
                removed.append(folder)
        except FileNotFoundError:
            continue  # another job removed it
        except OSError as err:
            log.warning("%s cannot be removed: %s. Delete it: a fold of it is not the same any more.", folder, err.strerror or err)
        shutil.rmtree(gone, ignore_errors=True)
    return removed


def retire(folder: Path, gone: Path) -> bool:
    """Rename such a folder in one step to `gone`, which may be deleted; one with files of others is kept beside its place (False).

    Raises OSError.
    """
    if others := _files_of_others(folder):
        kept = move_aside(folder, "kept", time.time())
        log.warning("%s holds files that nnfleet did not make (%s): it is kept as %s", folder, ", ".join(others), kept)
        return False
    folder.rename(gone)
    return True


def _files_of_others(folder: Path) -> list[str]:
    """What is neither ours nor a prediction that the summary names; all but ours where the summary cannot be read. Raises OSError."""
    summary = folder / "summary.json"
    predictions: set[str] = set()
    try:
        if summary.is_file():
            predictions = {Path(case["prediction_file"]).name for case in read_json(summary, "summary")["metric_per_case"]}
    except (NnfleetError, KeyError, TypeError) as err:
        log.warning("%s does not name its predictions: %s", summary, err)
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in OURS | predictions and not name.startswith(".nfs")]
