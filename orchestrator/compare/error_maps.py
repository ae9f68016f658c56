"""Where models are wrong: the worst, a median and the best case of the leading model, for every model side by side.

Per case the three planes through the place with most errors. Green: right; red: falsely predicted; blue: missed; a class taken for another
one counts as false. The raw image lies beneath where nnUNet_raw holds it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from orchestrator.compare.models import TrainedModel
from trainers.contract.plans import load_plans
from trainers.data.segmentation_file import SegmentationFile, read_segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, FALSE, MISSED = (0.2, 0.75, 0.3, 0.55), (0.9, 0.1, 0.1, 0.7), (0.1, 0.3, 0.95, 0.7)
PLANES = ("axial", "coronal", "sagittal")


class CaseReader:
    """Reads label files and raw images of a dataset with the reader that its plans name."""

    def __init__(self, model: TrainedModel, raw: Path | None) -> None:
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        plans = load_plans(model.folder, "plans")
        self._reader = recursive_find_reader_writer_by_name(str(plans.content["image_reader_writer"]))()
        self._images = None if raw is None else raw / model.spec.dataset / "imagesTr"

    def labels(self, path: Path) -> SegmentationFile:
        """A label file."""
        return read_segmentation(path, self._reader)

    def image(self, case_id: str, like: SegmentationFile) -> npt.NDArray[Any] | None:
        """The first channel of the raw image; None where it is not there or of another shape."""
        files = sorted(self._images.glob(f"{case_id}_0000.*")) if self._images is not None else []
        if not files:
            return None
        values: npt.NDArray[Any] = np.asarray(self._reader.read_images([str(files[0])])[0])[0]
        return values if values.shape == like.values_ZYX.shape else None


def shown_cases(model: TrainedModel, others: Sequence[TrainedModel]) -> dict[str, str]:
    """Worst, median and best case of `model` by mean Dice among those that all models have, with what they are; fewer if it has fewer."""
    common = set.intersection(*({result.case_id for result in each.results} for each in (model, *others)))
    ranked = [result.case_id for result in sorted(model.results, key=lambda r: (r.dice_mean, r.case_id)) if result.case_id in common]
    if not ranked:
        return {}
    chosen = {ranked[-1]: "best", ranked[(len(ranked) - 1) // 2]: "median", ranked[0]: "worst"}  # of few cases the worst is shown
    return {case: chosen[case] for case in dict.fromkeys(ranked) if case in chosen}


def error_map(case_id: str, models: Sequence[TrainedModel], reader: CaseReader) -> bytes:
    """One case: a row per model, a column per plane. Raises what the reader raises for a file that is gone or broken."""
    from matplotlib.figure import Figure

    results = {model.name: next(result for result in model.results if result.case_id == case_id) for model in models}
    truth = reader.labels(Path(next(iter(results.values())).reference_file))
    predictions = {name: reader.labels(Path(result.prediction_file)).values_ZYX for name, result in results.items()}
    image = reader.image(case_id, truth)
    place = _place_of_errors(truth.values_ZYX, list(predictions.values()))
    planes = range(3) if truth.values_ZYX.shape[0] > 1 else range(1)
    figure = Figure(figsize=(3.1 * len(planes) + 1, 2.9 * len(models)), layout="constrained", facecolor="white")
    grid = figure.subplots(len(models), len(planes), squeeze=False)
    for row, (name, prediction) in enumerate(predictions.items()):
        for plane in planes:
            index: list[Any] = [slice(None)] * 3
            index[plane] = place[plane]
            cut = tuple(index)
            spacing = [s for axis, s in enumerate(truth.spacing_ZYX) if axis != plane]
            _draw(grid[row, plane], truth.values_ZYX[cut], prediction[cut], None if image is None else image[cut], spacing)
            if row == 0:
                grid[row, plane].set_title(f"{PLANES[plane]}, {place[plane] + 1} of {truth.values_ZYX.shape[plane]}", fontsize=9)
        grid[row, 0].set_ylabel(f"{name}\nDice {results[name].dice_mean:.3f}", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _place_of_errors(truth: npt.NDArray[Any], predictions: Sequence[npt.NDArray[Any]]) -> tuple[int, int, int]:
    """Per axis the slice with most voxels at which a prediction is wrong; where none is, with most foreground."""
    wrong = np.zeros(truth.shape, dtype=np.int32)
    for prediction in predictions:
        wrong += prediction != truth
    counted = wrong if wrong.any() else (truth > 0).astype(np.int32)
    z, y, x = (int(counted.sum(axis=tuple(a for a in range(3) if a != axis)).argmax()) for axis in range(3))
    return z, y, x


def _draw(
    panel: "Axes", truth: npt.NDArray[Any], prediction: npt.NDArray[Any], image: npt.NDArray[Any] | None, spacing: Sequence[float]
) -> None:
    aspect = spacing[0] / spacing[1] if spacing[1] > 0 else 1.0
    low, high = np.percentile(image, (1, 99)) if image is not None else (0.0, 1.0)
    background = np.zeros(truth.shape) if image is None else image
    panel.imshow(background, cmap="gray", aspect=aspect, vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    colors = np.zeros((*truth.shape, 4))
    colors[(truth > 0) & (prediction == truth)] = RIGHT
    colors[(prediction > 0) & (prediction != truth)] = FALSE
    colors[(truth > 0) & (prediction == 0)] = MISSED
    panel.imshow(colors, aspect=aspect, interpolation="nearest")
    panel.set_xticks([])
    panel.set_yticks([])


def error_maps(models: Sequence[TrainedModel], raw: Path | None) -> Mapping[str, bytes]:
    """Title -> PNG. Files that are gone leave their case out: the predictions lie in the run folders, the labels in nnUNet_preprocessed."""
    shown = {case: what for case, what in shown_cases(models[0], models[1:]).items() if all(map(Path.is_file, _files(case, models)))}
    if not shown:
        return {}
    reader = CaseReader(models[0], raw)
    return {f"{what} case of {models[0].name}: {case}": error_map(case, models, reader) for case, what in shown.items()}


def _files(case_id: str, models: Sequence[TrainedModel]) -> list[Path]:
    results = [result for model in models for result in model.results if result.case_id == case_id]
    return [Path(path) for result in results for path in (result.reference_file, result.prediction_file)]
