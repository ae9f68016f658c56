"""The full validation of one case: predict, write, score, record. What a validation worker does for each case that it is given."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from trainers.contract.cascade import has_next_stages_due
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WeightsName
from trainers.contract.summary import SCORING, CaseResult
from trainers.data.segmentation_file import SegmentationFile
from trainers.errors import DataError
from trainers.storage.files import write_json_atomic
from trainers.validation.case_metrics import case_metrics
from trainers.validation.inference import CasePredictor, read_back


def validate_case(predictor: CasePredictor, folder: RunFolder, name: WeightsName, case_id: str) -> CaseResult:
    """Predict and score one case with the checkpoint that `predictor` holds. Its result file appears last, so it vouches for the rest.

    Writes <validation folder>/<case><ending>, probabilities beside it where the run keeps them, and cases/<name>/<case>.json, each whole or
    not at all. Where the same weights have predicted the case before, that prediction is scored anew: by another tolerance or rule.
    Raises DataError for a case that cannot be read or scored, StorageError when the prediction was not stored whole.
    """
    started = time.perf_counter()
    reference_file = predictor.reference_file(case_id)
    reference = predictor.read_segmentation(reference_file)
    prediction = _stored_prediction(predictor, folder, name, case_id) or _predicted(predictor, folder, name, case_id)
    asked, spacing = predictor.spec.validation, predictor.original_spacing(case_id)
    volumes = reference.values_ZYX, prediction.segmentation.values_ZYX
    try:
        metrics = case_metrics(*volumes, spacing.mm_ZYX, predictor.labels, asked.surface_tolerance_mm, count_lesions=asked.lesions)
    except DataError as err:
        raise DataError(f"case {case_id} ({reference_file}): {err}") from err
    result = CaseResult(
        case_id=case_id,
        checkpoint_sha256=predictor.checkpoint_sha256,
        reference_file=str(reference_file),
        prediction_file=str(prediction.file),
        surface_tolerance_mm=asked.surface_tolerance_mm,
        scoring=SCORING,
        no_distances=spacing.why_unknown,
        metrics=metrics,
        seconds=time.perf_counter() - started if prediction.seconds is None else prediction.seconds,
    )
    write_json_atomic(folder.cases(name) / f"{case_id}.json", result.model_dump())
    return result


@dataclass(frozen=True)
class Prediction:
    """A label file that is there and what it holds."""

    file: Path
    segmentation: SegmentationFile
    seconds: float | None = None
    """What the case took when it was predicted; None where that is now."""


def _stored_prediction(predictor: CasePredictor, folder: RunFolder, name: WeightsName, case_id: str) -> Prediction | None:
    """What the same weights have predicted before, as a stored result vouches for; None where there is none, or it is gone or damaged."""
    before = read_result(folder, name, case_id)
    if before is None or before.checkpoint_sha256 != predictor.checkpoint_sha256:
        return None
    if not folder.has_probabilities_due(name, predictor.spec, case_id):
        return None
    if not has_next_stages_due(predictor.spec, name, case_id, predictor.checkpoint_sha256):
        return None
    file = Path(before.prediction_file)
    try:
        return Prediction(file, predictor.read_segmentation(file), before.seconds)
    except DataError:
        return None


def _predicted(predictor: CasePredictor, folder: RunFolder, name: WeightsName, case_id: str) -> Prediction:
    result_file = folder.cases(name) / f"{case_id}.json"
    for file in (result_file, *folder.probabilities(name, case_id)):  # what it vouched for is about to be replaced
        file.unlink(missing_ok=True)
    file = predictor.predict(case_id, folder.validation(name), predictor.spec.next_stages if name == "final" else ())
    return Prediction(file, read_back(predictor, file))


@dataclass(frozen=True)
class CasePicture:
    """What a picture of a validated case shows, on the original grid. The image is one slice, the busiest, repeated without copies."""

    image_ZYX: npt.NDArray[np.float32]
    truth_ZYX: npt.NDArray[np.int32]
    """Label values; the ignore label counts as background."""
    prediction_ZYX: npt.NDArray[np.int32]
    value_names: list[str]
    """Names of the label values from 1 on; for regions the region that the value is written for."""
    spacing_ZYX: tuple[float, ...]


def case_picture(predictor: CasePredictor, case_id: str, prediction_file: Path) -> CasePicture:
    """Image, reference and prediction of a case; the image's slice is the one with most foreground in either (else the middle one)."""
    reference = predictor.read_segmentation(predictor.reference_file(case_id))
    truth = reference.values_ZYX.astype(np.int32)
    prediction = predictor.read_segmentation(prediction_file).values_ZYX.astype(np.int32)
    labels = predictor.labels
    if labels.ignore_label is not None:
        truth[truth == labels.ignore_label] = 0
    counts = ((truth > 0) | (prediction > 0)).sum(axis=(1, 2))
    z = int(counts.argmax()) if counts.any() else len(counts) // 2
    image = np.broadcast_to(original_slice(predictor, case_id, z), truth.shape)
    values = labels.regions_class_order or [v[0] for v in labels.foreground.values()]
    names = dict(zip(values, labels.foreground, strict=True))
    spacing = predictor.original_spacing(case_id).mm_ZYX or reference.spacing_ZYX
    return CasePicture(image, truth, prediction, [names.get(v, f"label {v}") for v in range(1, max(values) + 1)], spacing)


def original_slice(predictor: CasePredictor, case_id: str, z: int) -> npt.NDArray[np.float32]:
    """Slice `z` (Y, X) of the original grid, interpolated from the preprocessed image's first channel; raw images are not needed.

    Inverts nnU-Net's order transpose, crop, resample; what was cropped away shows the image's lowest value.
    """
    image, properties = predictor.image_and_properties(case_id)
    axes = list(predictor.plans.transpose_forward)
    shape_before = [int(s) for s in properties["shape_before_cropping"]]  # in transposed order
    original_shape = [shape_before[axes.index(axis)] for axis in range(3)]
    grid = np.meshgrid([z], *(np.arange(s) for s in original_shape[1:]), indexing="ij")
    cropped_shape, box = properties["shape_after_cropping_and_before_resampling"], properties["bbox_used_for_cropping"]
    coordinates = []
    for place, axis in enumerate(axes):
        scale = image.shape[place] / int(cropped_shape[place])
        coordinates.append((grid[axis] - int(box[place][0]) + 0.5) * scale - 0.5)
    values = ndimage.map_coordinates(image, coordinates, order=1, mode="constant", cval=float(image.min()))
    return np.asarray(values[0], dtype=np.float32)
