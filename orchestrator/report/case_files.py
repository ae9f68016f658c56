"""One case of several models, read for pictures: truth, predictions and raw image on one grid. Axes: Z Y X voxels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.compare.models import TrainedModel
from trainers.contract.plans import load_plans
from trainers.contract.summary import CaseResult
from trainers.data.segmentation_file import SegmentationFile, read_segmentation

Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class CaseVolumes:
    """A case as its files hold it."""

    truth_ZYX: Labels
    predictions_ZYX: dict[str, Labels]
    """Of each model."""
    image_ZYX: npt.NDArray[Any] | None
    """The first channel of the raw image; None where it is not there or has another shape."""
    spacing_ZYX: tuple[float, ...]
    dice: dict[str, float]
    """Of each model; mean over classes."""

    @property
    def place_of_errors(self) -> tuple[int, int, int]:
        """Per axis the slice with most voxels at which a prediction is wrong; where none is, with most foreground."""
        wrong = np.zeros(self.truth_ZYX.shape, dtype=np.int32)
        for prediction in self.predictions_ZYX.values():
            wrong += prediction != self.truth_ZYX
        counted = wrong if wrong.any() else (self.truth_ZYX > 0).astype(np.int32)
        z, y, x = (int(counted.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3))
        return z, y, x


@dataclass(frozen=True)
class Unreadable:
    """A file of a case that is there and cannot be shown."""

    what: str
    """`label file`, `raw image`, or `prediction of` a model."""
    path: Path
    reason: str


class CaseReader:
    """Reads label files and raw images of a dataset with the reader that its plans name."""

    def __init__(self, model: TrainedModel, raw: Path | None) -> None:
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        plans = load_plans(model.folder, "plans")
        self._reader = recursive_find_reader_writer_by_name(str(plans.content["image_reader_writer"]))()
        self._images = None if raw is None else raw / model.spec.dataset / "imagesTr"

    def read(self, case_id: str, models: Sequence[TrainedModel]) -> tuple[CaseVolumes | None, list[Unreadable]]:
        """The files of one case, and those that cannot be read: without an image it is shown all the same, without labels it is not."""
        results = {model.name: result_of(model, case_id) for model in models}
        faults: list[Unreadable] = []
        truth = self._labels("label file", Path(next(iter(results.values())).reference_file), faults)
        predictions = {}
        for name, found in results.items():
            if prediction := self._labels(f"prediction of {name}", Path(found.prediction_file), faults, like=truth):
                predictions[name] = prediction.values_ZYX
        if truth is None or len(predictions) < len(results):
            return None, faults
        dice = {name: found.dice_mean for name, found in results.items()}
        image = self._image(case_id, truth, faults)
        return CaseVolumes(truth.values_ZYX, predictions, image, truth.spacing_ZYX, dice), faults

    def _labels(self, what: str, path: Path, faults: list[Unreadable], like: SegmentationFile | None = None) -> SegmentationFile | None:
        try:
            found = read_segmentation(path, self._reader)
        except Exception as err:  # each reader raises its library's own kinds
            faults.append(Unreadable(what, path, _reason(err)))
            return None
        if like is not None and found.values_ZYX.shape != like.values_ZYX.shape:
            faults.append(Unreadable(what, path, f"its shape is {found.values_ZYX.shape}, that of the labels {like.values_ZYX.shape}"))
            return None
        return found

    def _image(self, case_id: str, like: SegmentationFile, faults: list[Unreadable]) -> npt.NDArray[Any] | None:
        files = sorted(self._images.glob(f"{case_id}_0000.*")) if self._images is not None else []
        if not files:
            return None
        try:
            values: npt.NDArray[Any] = np.asarray(self._reader.read_images([str(files[0])])[0])[0]
        except Exception as err:  # as above
            faults.append(Unreadable("raw image", files[0], _reason(err)))
            return None
        return values if values.shape == like.values_ZYX.shape else None


def _reason(error: Exception) -> str:
    """What a library says of a file, on one line."""
    return " ".join(f"{error}".split())[:200].rstrip(".") or type(error).__name__


def result_of(model: TrainedModel, case_id: str) -> CaseResult:
    """The result of a case that the model has."""
    return next(result for result in model.results if result.case_id == case_id)


def has_files(case_id: str, models: Sequence[TrainedModel]) -> bool:
    """False where a label file or a prediction is gone: they lie in nnUNet_preprocessed and in the run folders."""
    results = [result_of(model, case_id) for model in models]
    return all(Path(path).is_file() for result in results for path in (result.reference_file, result.prediction_file))
