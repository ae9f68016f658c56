"""One case of a held-out test set: predict, write, score where it has labels, record."""

import time
from pathlib import Path

from trainers.contract.held_out import HeldOut
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import SCORING, CaseResult, ClassMetrics
from trainers.data.segmentation_file import SegmentationFile
from trainers.errors import DataError
from trainers.storage.files import sha256_of, write_json_atomic
from trainers.validation.case_metrics import case_metrics
from trainers.validation.inference import EnsemblePredictor, read_back
from trainers.validation.spacing import Spacing


def done_case(predictor: EnsemblePredictor, held: HeldOut, output: RunFolder, case_id: str) -> CaseResult:
    """Bring one case up to date. Its result file appears last, so it vouches for the prediction; one that is there is scored alone.

    Without labels the result has no metrics. Raises DataError for images or labels that cannot be read or do not fit, StorageError.
    """
    started = time.perf_counter()
    case, key, labels_stat = held.cases[case_id], held.key_of(case_id), held.labels_stat(case_id)
    result_file = output.cases(held.checkpoint) / f"{case_id}.json"
    before = read_result(output, held.checkpoint, case_id)
    if before is not None and before.checkpoint_sha256 == key and Path(before.prediction_file).is_file():
        file, spacing, seconds = Path(before.prediction_file), predictor.spacing_of(case_id, case.images), before.seconds
        found = predictor.read_segmentation(file)
    else:
        result_file.unlink(missing_ok=True)  # what it vouched for is about to be replaced
        file, spacing = predictor.predict(case_id, case.images, output.root)
        found = read_back(predictor, file)
        seconds = time.perf_counter() - started
    result = CaseResult(
        case_id=case_id,
        checkpoint_sha256=key,
        reference_file="" if case.labels is None else str(case.labels),
        reference_stat=labels_stat,
        image_sha256=() if case.labels is None else tuple(sha256_of(image) for image in case.images),
        reference_sha256="" if case.labels is None else sha256_of(case.labels),
        prediction_file=str(file),
        surface_tolerance_mm=held.spec.validation.surface_tolerance_mm,
        scoring=SCORING,
        no_distances=spacing.why_unknown,
        metrics={} if case.labels is None else _scored(predictor, case.labels, found, spacing),
        seconds=seconds,
    )
    write_json_atomic(result_file, result.model_dump())
    return result


def _scored(predictor: EnsemblePredictor, labels: Path, prediction: SegmentationFile, spacing: Spacing) -> dict[str, ClassMetrics]:
    reference, found = predictor.read_segmentation(labels).values_ZYX, prediction.values_ZYX
    if reference.shape != found.shape:
        raise DataError(
            f"labels: {labels} has the shape {reference.shape}, its image {found.shape}. Put the labels of this very image there."
        )
    return case_metrics(reference, found, spacing.mm_ZYX, predictor.labels, predictor.spec.validation.surface_tolerance_mm)
