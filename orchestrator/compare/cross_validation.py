"""The cross-validation of one model: every case as the fold predicts it that was not trained on it, read from the model folder."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.compare.models import TrainedModel, ValidatedFold, read_fold
from orchestrator.compare.unlike import differences
from orchestrator.run.outcome import read_outcome
from orchestrator.tracking.end_state import final_state
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName
from trainers.errors import DataError

log = logging.getLogger(__name__)
CHECKPOINT: CheckpointName = "final"
"""What nnU-Net validates. Best checkpoints are chosen on the cases that they would be judged by."""

UnderWay = Callable[[RunFolder], bool]
"""Whether a fold that is not validated may still come to be, so that the result of the others has to wait."""


@dataclass(frozen=True)
class CrossValidation:
    """The folds of a model folder that are validated, two at least, and why the others are not among them."""

    model: TrainedModel
    lacking: Mapping[str, str]
    """Fold that has a folder -> why its cases are not in it."""

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds whose cases are in it, by number."""
        return tuple(sorted((str(fold.spec.fold) for fold in self.model.folds), key=int))


def fold_folders(model_folder: Path) -> dict[str, RunFolder]:
    """Number of a fold -> its folder, by number. `fold_all` was trained on every case that it validates, and is none of them."""
    numbers = [path.name.removeprefix("fold_") for path in model_folder.glob("fold_*") if path.is_dir()]
    return {number: RunFolder(model_folder / f"fold_{number}") for number in sorted(filter(str.isdecimal, numbers), key=int)}


def cross_validation(model_folder: Path) -> CrossValidation | str:
    """The cross-validation of the final checkpoints in a model folder, or why there is none. Raises StorageError, OSError."""
    folds: list[ValidatedFold] = []
    lacking: dict[str, str] = {}
    for number, folder in fold_folders(model_folder).items():
        found = _validated(folder)
        if isinstance(found, str):
            lacking[number] = found
        else:
            folds.append(found)
    if len(folds) < 2:
        return f"{len(folds)} of the folds in {model_folder} are validated: there is no cross-validation of fewer than two"
    model = TrainedModel(folds[0].spec.model, tuple(folds))
    unlike = differences([model])
    return "; ".join(unlike) if unlike else CrossValidation(model, lacking)


def _validated(folder: RunFolder) -> ValidatedFold | str:
    if not folder.spec_file.exists():
        return "it was not trained by nnfleet"
    try:
        spec = folder.spec()
        folder.check_is_own(spec)
    except DataError as err:
        return str(err)
    return read_fold(folder, spec, CHECKPOINT)


def has_not_ended(folder: RunFolder) -> bool:
    """True for a run of ours without an end; what nnU-Net trained is never under way."""
    return folder.spec_file.exists() and final_state(read_outcome(folder)) is None


def publishable(model_folder: Path, is_under_way: UnderWay = has_not_ended) -> CrossValidation | None:
    """The cross-validation of a model folder as it may go to MLflow; None while a fold is under way, and where there is none.

    Raises StorageError, OSError.
    """
    found = cross_validation(model_folder)
    if isinstance(found, str):
        log.info("no cross-validation goes to MLflow: %s", found)
        return None
    folders = fold_folders(model_folder)
    return None if any(is_under_way(folders[number]) for number in found.lacking) else found
