"""The figures of a comparison, as PNG bytes. Drawn with matplotlib's objects alone (no pyplot); it is imported on first use."""

import io
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.compare.answer import Answer, fold_dice
from orchestrator.compare.models import TrainedModel
from orchestrator.statistics.pairs import Comparison
from orchestrator.statistics.ranks import RankStability, Scheme
from orchestrator.statistics.table import DICE, CaseScores
from orchestrator.statistics.verdict import better

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c510a", "#000000")
"""Distinguishable with the common colour blindnesses (Okabe and Ito)."""
MAX_PAIRS = 20
SEED = 0
LEGEND_COLUMNS = 2
DPI = 150
"""Sharp enough on paper."""


def color_of(place: int) -> str:
    """Of the model at this place of the answer."""
    return COLORS[place % len(COLORS)]


def scores_figure(answer: Answer) -> bytes:
    """Every case of every model: its mean Dice over classes, with the box of the quartiles."""
    scores = answer.table.case_scores(DICE)
    order = [scores.models.index(model.name) for model in answer.models]
    values = [scores.values[row][np.isfinite(scores.values[row])] for row in order]
    figure = _figure(8, 1.2 + 0.5 * len(order))
    panel = figure.subplots()
    _draw_cases(panel, [model.name for model in answer.models], values)
    panel.set_xlabel("Dice of a case, mean over classes (points)")
    return _png(figure)


def classes_figure(model: TrainedModel) -> bytes:
    """Every case of one model in each class: its Dice, with the box of the quartiles."""
    names = list(model.results[0].metrics)
    dice = [np.array([100 * result.metrics[name].dice for result in model.results]) for name in names]
    figure = _figure(8, 1.2 + 0.5 * len(names))
    panel = figure.subplots()
    _draw_cases(panel, names, [values[np.isfinite(values)] for values in dice])
    panel.set_xlabel("Dice of a case (points)")
    return _png(figure)


def _draw_cases(panel: "Axes", names: Sequence[str], values: Sequence[NDArray[np.float64]]) -> None:
    """A row for each name, the first on top: the box of its quartiles, and a dot for each value."""
    places = np.arange(len(names), 0, -1)
    panel.boxplot(values, positions=places, orientation="horizontal", widths=0.55, showfliers=False, medianprops={"color": "black"})
    spread = np.random.default_rng(SEED)
    for row, (place, dots) in enumerate(zip(places, values, strict=True)):
        panel.plot(dots, place + spread.uniform(-0.18, 0.18, dots.size), "o", ms=3.5, alpha=0.6, mec="none", color=color_of(row))
    panel.set_yticks(places, [_folded(name) for name in names])
    panel.grid(axis="x", alpha=0.3)


def differences_figure(pairs: Sequence[Comparison]) -> bytes:
    """Mean differences of pairs with their 95 % intervals, and the smallest difference that could have been detected."""
    shown = pairs[:MAX_PAIRS]
    figure = _figure(8, 1.3 + 0.42 * len(shown))
    panel = figure.subplots()
    for place, found in zip(range(len(shown), 0, -1), shown, strict=True):
        mean, (low, high), _ = found.b_minus_a
        if math.isfinite(found.detectable):
            panel.barh(place, 2 * found.detectable, left=-found.detectable, height=0.6, color="0.9", zorder=0)
        if math.isfinite(low):
            panel.plot([low, high], [place, place], color="#0072b2" if better(found) else "0.45", lw=2.5)
        panel.plot(mean, place, "o", color="#0072b2" if better(found) else "0.45", ms=7)
    panel.axvline(0, color="black", lw=1)
    panel.use_sticky_edges = False  # else a bar that cannot be detected ends at the frame, as if it were cut off
    panel.autoscale_view()
    panel.set_yticks(range(len(shown), 0, -1), [f"{_folded(found.b)}\nminus {_folded(found.a)}" for found in shown], fontsize=8)
    panel.set_xlabel(f"mean difference in {shown[0].metric.unit}")
    panel.grid(axis="x", alpha=0.3)
    return _png(figure)


def ranks_figure(stability: dict[Scheme, RankStability]) -> bytes:
    """How often each model has which rank under resampled patients: the area of a disc is the share."""
    models = next(iter(stability.values())).models
    figure = _figure(3.2 * len(stability) + 1.5, 1.5 + 0.5 * len(models))
    panels = np.atleast_1d(figure.subplots(1, len(stability), sharey=True))
    for panel, (scheme, found) in zip(panels, stability.items(), strict=True):
        for row in range(len(models)):
            for rank, share in enumerate(found.shares[row], start=1):
                panel.scatter(rank, row + 1, s=520 * share, color=color_of(len(models) - 1 - row), alpha=0.85, lw=0)
            panel.plot(found.ranks[row], row + 1, "x", color="black", ms=6)
        panel.set(title=scheme, xlabel="rank (1: best)", xlim=(0.5, len(models) + 0.5), ylim=(0.4, len(models) + 0.6))
        panel.set_xticks(range(1, len(models) + 1))
        panel.grid(alpha=0.2)
    panels[0].set_yticks(range(1, len(models) + 1), list(map(_folded, models)))
    return _png(figure)


def significance_figure(pairs: Sequence[Comparison], models: Sequence[str]) -> bytes:
    """Which model is significantly better than which: blue where the row is, red where the column is, with p after Holm."""
    labels = [textwrap.fill(name, 24) for name in models]
    widest, highest = (max(map(measure, labels)) for measure in (_width, _height))
    figure = _figure(0.5 + widest + 0.8 * len(models), 0.6 + widest + 0.6 * len(models) + highest)
    panel = figure.subplots()
    picture = np.full((len(models), len(models)), np.nan)
    for found in pairs:
        a, b = models.index(found.a), models.index(found.b)
        winner = better(found)
        picture[a, b], picture[b, a] = (0.0, 0.0) if winner is None else (1.0, -1.0) if winner == found.a else (-1.0, 1.0)
        for row, column in ((a, b), (b, a)):
            panel.text(column, row, f"{found.p_holm:.2g}", ha="center", va="center", fontsize=8)
    panel.imshow(np.ma.masked_invalid(picture), cmap="RdBu", vmin=-2, vmax=2)
    panel.set_xticks(range(len(models)), labels, rotation=90, fontsize=8)
    panel.set_yticks(range(len(models)), labels, fontsize=8)
    return _png(figure)


def _width(label: str) -> float:
    """Inches of a folded label at font size 8, roughly."""
    return 0.075 * max(map(len, label.splitlines()))


def _height(label: str) -> float:
    """Inches, likewise."""
    return 0.14 * len(label.splitlines())


def scatter_figure(scores: CaseScores, a: str, b: str) -> bytes:
    """Two models case by case; above the diagonal `b` is better."""
    x, y = scores.values[scores.models.index(a)], scores.values[scores.models.index(b)]
    both = np.isfinite(x) & np.isfinite(y)
    figure = _figure(4, 4)
    panel = figure.subplots()
    low = min(x[both].min(initial=100.0), y[both].min(initial=100.0))
    margin = 0.05 * (100 - low) + 0.5
    limits = (low - margin, min(100.0, max(x[both].max(initial=0), y[both].max(initial=0)) + margin))
    panel.plot(limits, limits, color="0.5", lw=1)
    panel.plot(x[both], y[both], "o", ms=5, alpha=0.7, color="#0072b2", mec="none")
    panel.set(xlim=limits, ylim=limits, aspect="equal", xlabel=_folded(f"{a} (Dice points)"), ylabel=_folded(f"{b} (Dice points)"))
    panel.grid(alpha=0.3)
    return _png(figure)


def curves_figure(models: Sequence[TrainedModel]) -> bytes:
    """The smoothed pseudo-Dice of every fold over its epochs."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(8, 4 + _legend_height(models))
    panel = figure.subplots()
    for place, model in enumerate(models):
        for number, fold in enumerate(model.folds):
            emas = [math.nan if row.ema_pseudo_dice is None else row.ema_pseudo_dice for row in fold.history]
            label = model.name if number == 0 else None
            panel.plot([row.epoch for row in fold.history], emas, color=color_of(place), lw=1.3, alpha=0.8, label=label)
    panel.set(xlabel="epoch", ylabel="EMA pseudo-Dice (patches)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    _legend_below(figure, LEGEND_COLUMNS)
    return _png(figure)


def cheap_figure(models: Sequence[TrainedModel]) -> bytes:
    """The smoothed pseudo-Dice of a fold's weights against their Dice of whole cases."""
    figure = _figure(4.4, 4 + LEGEND_COLUMNS * _legend_height(models))
    panel = figure.subplots()
    for place, model in enumerate(models):
        points = [(fold.ema_pseudo_dice, fold_dice(fold.results)) for fold in model.folds if fold.ema_pseudo_dice is not None]
        if points:
            panel.plot(*zip(*points, strict=True), "o", ms=7, color=color_of(place), label=model.name)
    _diagonal(panel)
    panel.set(xlabel="EMA pseudo-Dice (patches)", ylabel="full Dice (whole cases)")
    panel.grid(alpha=0.3)
    _legend_below(figure, 1)
    return _png(figure)


def _legend_height(models: Sequence[TrainedModel]) -> float:
    """Inches that the names of these models take below a wide panel."""
    return 0.22 * math.ceil(len(models) / LEGEND_COLUMNS)


def _legend_below(figure: "Figure", columns: int) -> None:
    """Names of models below the panel: within it they would hide what is drawn."""
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _folded(text: str) -> str:
    """In lines that fit beside a panel."""
    return textwrap.fill(text, 38)


def _diagonal(panel: "Axes") -> None:
    low, high = min(panel.get_xlim()[0], panel.get_ylim()[0]), max(panel.get_xlim()[1], panel.get_ylim()[1])
    panel.plot([low, high], [low, high], color="0.5", lw=1, zorder=0)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
