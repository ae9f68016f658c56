"""Those of nnU-Net's cross-validation folders that nnfleet made, and their end when a fold in them goes."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from trainers.contract.run_folder import CROSSVAL_PREFIX

MARK = "nnfleet.json"
"""Tells a folder that was made here from one that nnU-Net made, which is never touched."""


def own_crossvals(model_folder: Path) -> list[Path]:
    """Those that nnfleet made."""
    return sorted(mark.parent for mark in model_folder.glob(f"{CROSSVAL_PREFIX}*/{MARK}"))


def crossvals_with(model_folder: Path, fold: object) -> list[Path]:
    """Those of them that hold predictions of a fold."""
    return [folder for folder in own_crossvals(model_folder) if str(fold) in folder.name.removeprefix(CROSSVAL_PREFIX).split("_")]


def drop_crossval(model_folder: Path, fold: object) -> None:
    """Remove what holds the predictions of a fold that are about to go or to be replaced, and what a killed job left half made."""
    remove_crossvals(crossvals_with(model_folder, fold))
    remove_crossvals(list(model_folder.glob(f".{CROSSVAL_PREFIX}*")))


def remove_crossvals(folders: Sequence[Path]) -> None:
    """Remove such folders, as far as they can be: they hold nothing that is not in the folds."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
