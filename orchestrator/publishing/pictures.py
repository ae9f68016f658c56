"""Pictures of a run, as PNG bytes: progress.png in nnU-Net's arrangement, and overlays of segmentations.

Drawn with matplotlib's objects alone (no pyplot), so threads can draw at the same time; matplotlib is imported on first use.
Axes of arrays: Z Y X voxels.
"""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainers.contract.commits import EpochRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#42d4f4",
    "#f032e6",
    "#ffe119",
    "#bfef45",
    "#fabed4",
    "#469990",
    "#dcbeff",
    "#9a6324",
)
MAX_LEGEND_CLASSES = 12
OVERLAY_HEIGHT_IN = 5.2


def progress_png(history: Sequence[EpochRow]) -> bytes:
    """Losses and pseudo-Dice, epoch times and learning rate over the epochs: nnU-Net's progress.png for a committed history."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 16), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(2.2, 1, 1))
    epochs = [row.epoch for row in history]
    _draw_losses(panels[0], epochs, history)
    _draw_times(panels[1], epochs, history)
    panels[2].plot(epochs, [row.learning_rate for row in history], color="tab:blue", lw=2.5, **_marks(epochs))
    panels[2].set(xlabel="epoch", ylabel="learning rate")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure, dpi=80)


def _draw_losses(panel: "Axes", epochs: Sequence[int], history: Sequence[EpochRow]) -> None:
    marks = _marks(epochs)
    lines = panel.plot(epochs, [row.train_loss for row in history], color="tab:blue", label="training loss", lw=2.5, **marks)
    lines += panel.plot(epochs, [row.val_loss for row in history], color="tab:red", label="validation loss", lw=2.5, **marks)
    panel.set(ylabel="loss", title=_title(history))
    dice_panel = panel.twinx()
    emas = [np.nan if row.ema_pseudo_dice is None else row.ema_pseudo_dice for row in history]
    means = [row.pseudo_dice_mean for row in history]
    lines += dice_panel.plot(epochs, means, color="tab:green", ls=":", label="pseudo-Dice (patches)", lw=2, **marks)
    lines += dice_panel.plot(epochs, emas, color="tab:green", label="pseudo-Dice, smoothed", lw=3, **marks)
    best = int(np.nanargmax(emas)) if np.isfinite(emas).any() else None
    if best is not None:
        lines += dice_panel.plot(
            epochs[best], emas[best], "*", color="gold", mec="black", ms=16, label=f"best: {emas[best]:.4f} in epoch {epochs[best]}"
        )
    dice_panel.set_ylabel("pseudo-Dice")
    dice_panel.set_ylim(0, 1.02)
    panel.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=len(lines), frameon=False)


def _draw_times(panel: "Axes", epochs: Sequence[int], history: Sequence[EpochRow]) -> None:
    marks = _marks(epochs)
    panel.plot(epochs, [row.epoch_s for row in history], color="tab:blue", label="epoch", lw=2.5, **marks)
    panel.plot(epochs, [row.wait_data_s for row in history], color="tab:orange", label="of that: waiting for data", lw=2, **marks)
    restarts = [row.epoch for before, row in pairwise(history) if row.fencing_token != before.fencing_token]
    for number, epoch in enumerate(restarts):
        panel.axvline(epoch - 0.5, color="gray", ls="--", lw=1, label="resumed" if number == 0 else None)
    panel.set_ylabel("seconds")
    panel.set_ylim(0, 1.3 * max([row.epoch_s for row in history], default=1.0) or 1.0)  # room for the legend
    panel.legend(loc="upper right", ncols=3)


def _title(history: Sequence[EpochRow]) -> str:
    if not history:
        return "no epoch yet"
    last = history[-1]
    return f"{len(history)} epochs, {last.world_size} worker{'s' if last.world_size > 1 else ''}, {last.samples_per_s:.3g} samples/s"


def _marks(epochs: Sequence[int]) -> dict[str, Any]:
    """Points are marked while they are few: a line of one point cannot be seen."""
    return {"marker": "o", "ms": 5} if len(epochs) <= 20 else {}


def overlay(
    image_ZYX: NDArray[Any],
    truth_ZYX: NDArray[Any],
    prediction_ZYX: NDArray[Any],
    class_names: Sequence[str],
    title: str,
    spacing_mm: Sequence[float],
) -> bytes:
    """One slice with the contours of truth (solid) and prediction (dashed).

    `image_ZYX` any real type; `truth_ZYX` and `prediction_ZYX` integers of the same shape, where value i + 1 is `class_names[i]`.
    The slice is the one with most foreground in both together. `spacing_mm` per axis. A 2D image counts as one slice.
    """
    from matplotlib.figure import Figure

    image, truth, prediction = (np.asarray(a)[None] if np.ndim(a) == 2 else np.asarray(a) for a in (image_ZYX, truth_ZYX, prediction_ZYX))
    z = busiest_slice(truth, prediction)
    rows, columns = image.shape[1:]
    aspect = float(spacing_mm[-2]) / float(spacing_mm[-1])
    width = OVERLAY_HEIGHT_IN * min(2.5, max(0.5, columns / (rows * aspect)))
    figure = Figure(figsize=(2 * width + 1.9, OVERLAY_HEIGHT_IN), layout="constrained", facecolor="white")
    plain, drawn = figure.subplots(1, 2)
    for panel in (plain, drawn):
        panel.imshow(image[z], cmap="gray", aspect=aspect, interpolation="nearest", **grey_window(image[z]))
        panel.set_axis_off()
    limits = drawn.axis()
    shown = _draw_contours(drawn, truth[z], prediction[z], class_names)
    drawn.axis(limits)
    figure.suptitle(f"{title}, slice {z + 1} of {len(image)}", fontsize=11)
    _legend(figure, shown)
    return _png(figure, dpi=100)


def busiest_slice(truth_ZYX: NDArray[Any], prediction_ZYX: NDArray[Any]) -> int:
    """Index of the slice with most voxels that are foreground in truth or prediction; the middle one when there is none."""
    counts = ((truth_ZYX > 0) | (prediction_ZYX > 0)).sum(axis=(1, 2))
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def grey_window(slice_YX: NDArray[Any]) -> dict[str, float]:
    """Grey levels from the 1st to the 99th percentile of what is not the darkest value (air, padding)."""
    bright = slice_YX[slice_YX > slice_YX.min()]
    low, high = np.percentile(bright if bright.size else slice_YX, (1, 99))
    return {"vmin": float(low), "vmax": float(max(high, low + 1e-6))}


def _draw_contours(panel: "Axes", truth_YX: NDArray[Any], prediction_YX: NDArray[Any], class_names: Sequence[str]) -> list[tuple[str, str]]:
    shown = []
    for index, name in enumerate(class_names):
        color = COLORS[index % len(COLORS)]
        if draw_contours(panel, truth_YX == index + 1, prediction_YX == index + 1, color):
            shown.append((name, color))
    return shown


def draw_contours(panel: "Axes", truth_YX: NDArray[np.bool_], prediction_YX: NDArray[np.bool_], color: str, scale: float = 1.0) -> bool:
    """The contours of one class, solid in the truth and dashed in the prediction; False where it is in neither."""
    masks = ((truth_YX, "solid", 2.2), (prediction_YX, (0, (3, 2)), 1.6))
    for mask, style, width in masks:
        if mask.any():
            # a border of one voxel closes contours that touch the edge of the image
            padded = np.pad(mask.astype(np.float32), 1)
            places = [np.arange(-1, size + 1) for size in mask.shape]
            panel.contour(places[1], places[0], padded, levels=[0.5], colors=[color], linestyles=[style], linewidths=[scale * width])
    return any(mask.any() for mask, *_ in masks)


def _legend(figure: "Figure", shown: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="black", lw=2.2, label="truth"),
        Line2D([], [], color="black", lw=1.6, ls=(0, (3, 2)), label="prediction"),
    ]
    handles += [Line2D([], [], color=color, lw=6, label=name) for name, color in shown[:MAX_LEGEND_CLASSES]]
    if len(shown) > MAX_LEGEND_CLASSES:
        handles.append(Line2D([], [], color="none", label=f"and {len(shown) - MAX_LEGEND_CLASSES} more"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=10, handlelength=2.4)


def _png(figure: "Figure", dpi: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
