"""The first stage of a cascade whose second stage nnU-Net trained or began: the segmentations that it left, as they lie there now."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.dataset.previous_stage import sources_of
from orchestrator.dataset.problems import listed
from orchestrator.errors import DataError
from orchestrator.imported.trained_fold import FoldName
from trainers.contract.cascade import model_folder_name, predictions_of
from trainers.contract.commits import EpochRow
from trainers.contract.run_spec import PreviousStage
from trainers.data.case_files import previous_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeftSegmentations:
    """What a first stage left for a fold of the second."""

    folder: Path
    cases: tuple[str, ...]
    """Of the fold, training and validation."""
    record: PreviousStage
    """Without the cases whose segmentation is missing or damaged."""

    @property
    def lack(self) -> str:
        """In words, what is not there; '' where all is."""
        missing = sorted(set(self.cases) - self.record.sources.keys())
        if not missing:
            return ""
        return f"{self.folder} lacks the segmentation of {listed(missing)} by {self.record.configuration!r}, or it is damaged"


def left_for(name: FoldName, model_folder: Path, stage: str, cases: Sequence[str], caches: Path) -> LeftSegmentations | None:
    """What `stage` left for the fold `name` of `model_folder`, in its model folder beside it; None for one that stands alone.

    `caches`: folder of results that remembers readings. Raises StorageError.
    """
    if not stage:
        return None
    folder = predictions_of(model_folder.parent / model_folder_name(name.trainer, name.plans, stage), name.configuration)
    sources = sources_of(folder, cases, caches)
    return LeftSegmentations(folder, tuple(cases), PreviousStage(configuration=stage, sources=dict(sorted(sources.items()))))


def require_all(left: LeftSegmentations | None) -> None:
    """Raise DataError where a training cannot go on for want of a segmentation."""
    if left is not None and left.lack:
        raise DataError(
            f"import: {left.lack}, and training sees those of all cases. Bring them back, or let nnU-Net make them again: nnUNetv2_train "
            f"with --val of each fold of {left.record.configuration!r}."
        )


def warn_of_lack(left: LeftSegmentations | None) -> None:
    """Of a training that has ended, which needs none of them."""
    if left is not None and left.lack:
        log.warning("%s: the run is imported without a record of those", left.lack)


def warn_of_younger(left: LeftSegmentations | None, history: Sequence[EpochRow]) -> None:
    """What a training saw was there when it began: what is younger is a copy of it, or something else."""
    if left is None or not history:
        return
    files = [previous_file(left.folder, case) for case in left.record.sources]
    younger = [file.name for file in files if file.stat().st_mtime > history[0].started_unix]
    if younger:
        log.warning(
            "%d of %d segmentations in %s are younger than the beginning of the training that saw them, %s for example. As copies they are "
            "the same; made anew since, they are others than those it was trained on, and the run's record names the new ones",
            *(len(younger), len(files), left.folder, younger[0]),
        )
