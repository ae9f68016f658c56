"""A case that a reader scrolls through in the report: its voxels as PNG strips, each below a limit, drawn by `slice_viewer.js`.

A strip holds all slices (Z) below one another, one byte a voxel: grey levels of the image, or places of label values. The volume is cropped
to what anybody labelled with a margin, and thinned out where it is still too large: every n-th voxel, so labels stay labels.
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.publishing.pictures import COLORS, grey_window
from orchestrator.report.case_files import CaseVolumes

MAX_BYTES = 1_000_000
"""Of one viewer within the page."""
MAX_VOXELS = 1_500_000
MAX_ROWS = 30_000
"""Of a strip: browsers draw pictures of 65,535 rows at most, and some fewer."""
MARGIN = 8
"""Voxels around what was labelled."""
SCRIPT = Path(__file__).parent / "slice_viewer.js"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SliceViewer:
    """What the page holds of one case."""

    caption: str
    shape: tuple[int, ...]
    """Z, Y, X of the strips."""
    spacing_mm: tuple[float, ...]
    start: tuple[int, ...]
    """Z, Y, X of the place that is shown first."""
    strips: dict[str, str]
    """`image`, `truth` and the models -> PNG in base64."""

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return sum(map(len, self.strips.values()))

    @property
    def models(self) -> list[str]:
        """Whose predictions it shows."""
        return [name for name in self.strips if name not in ("image", "truth")]

    @property
    def colors(self) -> str:
        """Of labels, for the script."""
        return " ".join(COLORS)


def slice_viewer(case: CaseVolumes, caption: str) -> SliceViewer:
    """The viewer of a case. Every axis is thinned out alike, the finest first, until it is small enough."""
    box = labelled_box(case)
    steps = [1, 1, 1]
    while True:
        found = _viewer(case, caption, box, steps)
        if found is not None and (found.size <= MAX_BYTES or max(found.shape) == 1):
            return found
        sizes = [s.stop - s.start for s in box]
        axes = [axis for axis in range(3) if steps[axis] < sizes[axis]]
        steps[min(axes, key=lambda axis: steps[axis] * case.spacing_ZYX[axis])] += 1


def labelled_box(case: CaseVolumes) -> tuple[slice, ...]:
    """What anybody labelled, with a margin; everything where nobody labelled anything."""
    labelled = np.logical_or.reduce([case.truth_ZYX > 0, *(prediction > 0 for prediction in case.predictions_ZYX.values())])
    box = []
    for axis, size in enumerate(labelled.shape):
        used = np.flatnonzero(labelled.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, int(used[0]) - MARGIN), min(size, int(used[-1]) + 1 + MARGIN)) if used.size else slice(0, size))
    return tuple(box)


def _viewer(case: CaseVolumes, caption: str, box: tuple[slice, ...], steps: list[int]) -> SliceViewer | None:
    """None for a volume that is too large to be tried."""
    thinned = tuple(slice(part.start, part.stop, step) for part, step in zip(box, steps, strict=True))
    truth = case.truth_ZYX[thinned]
    if max(truth.shape) > 1 and (truth.size > MAX_VOXELS or truth.shape[0] * truth.shape[1] > MAX_ROWS):
        return None
    predictions = {name: values[thinned] for name, values in case.predictions_ZYX.items()}
    known = np.unique(np.concatenate([[0], np.unique(truth), *map(np.unique, predictions.values())]))
    strips = {"image": _png(_grey(case.image_ZYX, thinned, truth.shape)), "truth": _png(_places(truth, known))}
    strips |= {name: _png(_places(values, known)) for name, values in predictions.items()}
    start = (
        min(max(0, place - part.start) // step, size - 1)
        for place, part, step, size in zip(case.place_of_errors, box, steps, truth.shape, strict=True)
    )
    spacing = tuple(spacing * step for spacing, step in zip(case.spacing_ZYX, steps, strict=True))
    return SliceViewer(caption, truth.shape, spacing, tuple(start), strips)


def _grey(image: npt.NDArray[Any] | None, thinned: tuple[slice, ...], shape: tuple[int, ...]) -> Bytes:
    if image is None:
        return np.zeros(shape, dtype=np.uint8)
    values = np.asarray(image[thinned], dtype=np.float64)
    window = grey_window(values)
    scaled = (values - window["vmin"]) / (window["vmax"] - window["vmin"])
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), dtype=np.uint8)


def _places(labels: npt.NDArray[Any], known: npt.NDArray[Any]) -> Bytes:
    """Among the label values that occur, so that any values fit into a byte; background is 0."""
    return np.asarray(np.minimum(np.searchsorted(known, labels), 255), dtype=np.uint8)


def _png(values_ZYX: Bytes) -> str:
    from PIL import Image

    z, y, x = values_ZYX.shape
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values_ZYX).reshape(z * y, x)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()
