"""Where models are wrong in one case: two rows for each model, a column for each plane through the place with most errors.

First the contours of truth and prediction, then the error map. Green: right; red: falsely predicted; blue: missed; a class that is
predicted as another one counts as false. The raw image lies beneath where nnUNet_raw holds it.
"""

import io
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from orchestrator.publishing.pictures import COLORS, draw_contours, grey_window
from orchestrator.report.case_files import CaseVolumes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, FALSE, MISSED = (0.2, 0.75, 0.3, 0.55), (0.9, 0.1, 0.1, 0.7), (0.1, 0.3, 0.95, 0.7)
PLANES = ("axial", "coronal", "sagittal")


class Cut(NamedTuple):
    """One plane of a case, with one model's prediction."""

    image: npt.NDArray[Any] | None
    truth: npt.NDArray[Any]
    prediction: npt.NDArray[Any]
    aspect: float


def error_map(case: CaseVolumes) -> bytes:
    """The picture, as PNG."""
    from matplotlib.figure import Figure

    place = case.place_of_errors
    planes = range(3) if case.truth_ZYX.shape[0] > 1 else range(1)
    figure = Figure(figsize=(3.1 * len(planes) + 1, 5.4 * len(case.predictions_ZYX)), layout="constrained", facecolor="white")
    grid = figure.subplots(2 * len(case.predictions_ZYX), len(planes), squeeze=False)
    for row, name in enumerate(case.predictions_ZYX):
        for plane in planes:
            cut = _cut(case, name, plane, place[plane])
            _draw_contours(grid[2 * row, plane], cut)
            _draw_errors(grid[2 * row + 1, plane], cut)
        grid[2 * row, 0].set_ylabel(f"{name}\nDice {case.dice[name]:.3f}", fontsize=8)
        grid[2 * row + 1, 0].set_ylabel("errors", fontsize=8)
    for plane in planes:
        grid[0, plane].set_title(f"{PLANES[plane]}, {place[plane] + 1} of {case.truth_ZYX.shape[plane]}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _cut(case: CaseVolumes, model: str, plane: int, place: int) -> Cut:
    """Coronal and sagittal planes are turned upside down: the first slice of most images is the lowest."""
    first, second = (spacing for axis, spacing in enumerate(case.spacing_ZYX) if axis != plane)

    def taken(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        plain: npt.NDArray[Any] = np.take(values, place, axis=plane)
        return plain if plane == 0 else plain[::-1]

    image = None if case.image_ZYX is None else taken(case.image_ZYX)
    aspect = first / second if second > 0 else 1.0
    return Cut(image, taken(case.truth_ZYX), taken(case.predictions_ZYX[model]), aspect)


def _draw_contours(panel: "Axes", cut: Cut) -> None:
    _draw_image(panel, cut)
    limits = panel.axis()
    for value in np.union1d(cut.truth, cut.prediction):
        if value > 0:
            color = COLORS[(int(value) - 1) % len(COLORS)]
            draw_contours(panel, cut.truth == value, cut.prediction == value, color, scale=0.5)
    panel.axis(limits)


def _draw_errors(panel: "Axes", cut: Cut) -> None:
    _draw_image(panel, cut)
    colors = np.zeros((*cut.truth.shape, 4))
    colors[(cut.truth > 0) & (cut.prediction == cut.truth)] = RIGHT
    colors[(cut.prediction > 0) & (cut.prediction != cut.truth)] = FALSE
    colors[(cut.truth > 0) & (cut.prediction == 0)] = MISSED
    panel.imshow(colors, aspect=cut.aspect, interpolation="nearest")


def _draw_image(panel: "Axes", cut: Cut) -> None:
    background = np.zeros(cut.truth.shape) if cut.image is None else cut.image
    window = grey_window(background)
    panel.imshow(background, cmap="gray", aspect=cut.aspect, interpolation="nearest", vmin=window["vmin"], vmax=window["vmax"])
    panel.set_xticks([])
    panel.set_yticks([])
