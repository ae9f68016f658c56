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


class CaseReader:
    """Reads label files and raw images of a dataset with the reader that its plans name."""

    def __init__(self, model: TrainedModel, raw: Path | None) -> None:
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        plans = load_plans(model.folder, "plans")
        self._reader = recursive_find_reader_writer_by_name(str(plans.content["image_reader_writer"]))()
        self._images = None if raw is None else raw / model.spec.dataset / "imagesTr"

    def read(self, case_id: str, models: Sequence[TrainedModel]) -> CaseVolumes:
        """The files of one case. Raises what the reader raises for a file that is gone or broken."""
        results = {model.name: result_of(model, case_id) for model in models}
        truth = read_segmentation(Path(next(iter(results.values())).reference_file), self._reader)
        predictions = {name: read_segmentation(Path(found.prediction_file), self._reader).values_ZYX for name, found in results.items()}
        dice = {name: found.dice_mean for name, found in results.items()}
        return CaseVolumes(truth.values_ZYX, predictions, self._image(case_id, truth), truth.spacing_ZYX, dice)

    def _image(self, case_id: str, like: SegmentationFile) -> npt.NDArray[Any] | None:
        files = sorted(self._images.glob(f"{case_id}_0000.*")) if self._images is not None else []
        if not files:
            return None
        values: npt.NDArray[Any] = np.asarray(self._reader.read_images([str(files[0])])[0])[0]
        return values if values.shape == like.values_ZYX.shape else None


def result_of(model: TrainedModel, case_id: str) -> CaseResult:
    """The result of a case that the model has."""
    return next(result for result in model.results if result.case_id == case_id)


def has_files(case_id: str, models: Sequence[TrainedModel]) -> bool:
    """False where a label file or a prediction is gone: they lie in nnUNet_preprocessed and in the run folders."""
    results = [result_of(model, case_id) for model in models]
    return all(Path(path).is_file() for result in results for path in (result.reference_file, result.prediction_file))
