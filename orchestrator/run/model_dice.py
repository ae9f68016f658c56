"""The full Dice of a model: over the cases of all its folds, from the numbers that each fold's validation has left in its run folder."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName
from trainers.contract.summary import nan_mean


def dice_over_cases(run_folders: Sequence[Path], checkpoint: CheckpointName) -> float | None:
    """Mean foreground Dice over the cases of all these folds, per class and then over the classes, as nnU-Net takes it of a
    cross-validation. None where a fold's numbers are not to be seen here.
    """
    folds = [_classes(RunFolder(folder), checkpoint) for folder in run_folders]
    if not all(folds):
        return None
    by_class = {name: [fold[name] for fold in folds if name in fold] for name in folds[0]}
    return nan_mean(_over_cases(parts) for parts in by_class.values())


def _over_cases(folds: Sequence[tuple[float, int]]) -> float:
    """Mean over all cases of a class from means over those of each fold."""
    counted = [(dice, cases) for dice, cases in folds if cases]
    total = sum(cases for _, cases in counted)
    return math.fsum(dice * cases for dice, cases in counted) / total if total else math.nan


def _classes(folder: RunFolder, checkpoint: CheckpointName) -> dict[str, tuple[float, int]]:
    """Mean Dice and number of cases with a Dice, per class; empty where they cannot be read."""
    try:
        content = json.loads(folder.extended_summary(checkpoint).read_text())["classes"]
        return {str(name): (float(each["dice"]), int(each["n_dice"])) for name, each in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
