"""nnU-Net's `crossval_results_folds_<folds>` of a model folder: predictions of all folds with one summary.json over their cases.

As nnunetv2/evaluation/accumulate_cv_results.py makes it, but from the results of the cases that are stored already: nothing is read or
scored again. The predictions are second names (hard links) of those in the folds, so they take no space; where a file system makes no
links, the folder holds none, and nnU-Net adds them when it wants them. Of one model at most one such folder of ours exists.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.compare.cross_validation import CrossValidation, cross_validation
from orchestrator.run.crossvals import MARK, own_crossvals, remove_crossvals, retire
from trainers.contract.plans import Labels
from trainers.contract.run_folder import CROSSVAL_PREFIX, crossval_name
from trainers.contract.summary import CaseResult, summarise, summary_bytes
from trainers.storage.faults import storing
from trainers.storage.files import NO_LINKS, fsync_folder, write_atomic, write_json_atomic

log = logging.getLogger(__name__)


def refresh_crossval(model_folder: Path) -> Path | None:
    """Make nnU-Net's folder of a cross-validation once every fold in a model folder is validated; None while that is not so.

    One that is up to date is left as it is; one that covers other folds, or earlier predictions, is replaced. Raises StorageError, OSError.
    """
    found = cross_validation(model_folder)
    if isinstance(found, str) or found.lacking:
        log.info("no %s* in %s: %s", CROSSVAL_PREFIX, model_folder, found if isinstance(found, str) else found.lacking)
        return None
    target = model_folder / crossval_name(found.folds)
    if target.exists() and not (target / MARK).is_file():
        log.info("%s was made by nnU-Net and is left as it is", target)
        return None
    if not _is_current(target, found):
        _replace(target, found)
    remove_crossvals([folder for folder in own_crossvals(model_folder) if folder != target])
    return target


def by_file_name(results: Sequence[CaseResult]) -> list[CaseResult]:
    """The order of the cases in a cross-validation's summary."""
    return sorted(results, key=lambda result: Path(result.prediction_file).name)


def crossval_summary(results: Sequence[CaseResult], labels: Labels, predictions: Path | None) -> dict[str, Any]:
    """nnU-Net's summary of a cross-validation, its cases by the names of their files. Pure.

    `predictions`: the folder that holds them all; None where they lie with their folds.
    """
    ordered = by_file_name(results)
    if predictions is None:
        return summarise(ordered, labels)
    placed = [result.model_copy(update={"prediction_file": str(predictions / Path(result.prediction_file).name)}) for result in ordered]
    return summarise(placed, labels)


def _is_current(target: Path, found: CrossValidation) -> bool:
    """True when the folder holds these very predictions, or none, and their summary."""
    results = found.model.results
    links = [target / Path(result.prediction_file).name for result in results]
    if has_predictions := any(link.exists() for link in links):
        pairs = zip(links, results, strict=True)
        if not all(link.exists() and os.path.samefile(link, result.prediction_file) for link, result in pairs):
            return False
    expected = summary_bytes(crossval_summary(results, found.model.labels, target if has_predictions else None))
    summary = target / "summary.json"
    return summary.is_file() and summary.read_bytes() == expected


def _replace(target: Path, found: CrossValidation) -> None:
    """Build the folder beside its place and rename it; of two jobs that do so at once, one is enough."""
    with storing(target), tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True) as place:
        built = Path(place) / "new"
        _build(built, target, found)
        if target.exists():
            retire(target, Path(place) / "old")
        try:
            built.rename(target)
        except OSError:
            if not (target / MARK).is_file():
                raise
        fsync_folder(target.parent)


def _build(folder: Path, target: Path, found: CrossValidation) -> None:
    folder.mkdir(mode=0o755)
    for name in ("dataset.json", "plans.json"):
        shutil.copy(target.parent / name, folder / name)
    results = found.model.results
    is_linked = _link_all([Path(result.prediction_file) for result in results], folder)
    write_atomic(folder / "summary.json", summary_bytes(crossval_summary(results, found.model.labels, target if is_linked else None)))
    checkpoints = {str(fold.spec.fold): fold.results[0].checkpoint_sha256 for fold in found.model.folds}
    write_json_atomic(folder / MARK, {"checkpoints_sha256": checkpoints, "predictions": "links" if is_linked else "in the folds"})


def _link_all(files: Sequence[Path], folder: Path) -> bool:
    """Give every file a second name in `folder`; False, and none is there, where its file system makes no links."""
    try:
        for file in files:
            os.link(file, folder / file.name)
    except OSError as err:
        if err.errno not in NO_LINKS:
            raise
        for file in files:
            (folder / file.name).unlink(missing_ok=True)
        return False
    return True
