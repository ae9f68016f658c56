"""The figures of a comparison of models with long names: nothing is cut off, and no legend hides what is drawn."""

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator.compare import figures
from orchestrator.compare.answer import Answer
from orchestrator.compare.choice import compared
from tests.validated_model import validated_model

FOLDS = [["a", "b", "c"], ["d", "e", "f"]]
TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerDA5_classic")
DRAWN: dict[str, Callable[[Answer], bytes]] = {
    "scores": figures.scores_figure,
    "classes": lambda answer: figures.classes_figure(answer.models[0]),
    "differences": lambda answer: figures.differences_figure(answer.pooled["dice"]),
    "significance": lambda answer: figures.significance_figure(answer.pooled["dice"], [model.name for model in answer.models]),
    "ranks": lambda answer: figures.ranks_figure(dict(answer.stability)),
    "curves": lambda answer: figures.curves_figure(answer.models),
    "pseudo-Dice": lambda answer: figures.cheap_figure(answer.models),
}


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    base = tmp_path_factory.mktemp("models")
    for place, trainer in enumerate(TRAINERS):
        scores = {case: 0.5 + 0.1 * place + 0.01 * (number % (place + 2)) for number, case in enumerate("abcdef")}
        settings: dict[str, Any] = {
            "trainer": trainer,
            "configuration": "3d_fullres" if place else "3d_cascade_fullres",
            "variant": "a_long_variant",
        }
        validated_model(base, scores, FOLDS, epochs=5, model_folder=base / "results" / "Dataset901_Toy" / f"m{place}", **settings)
    return compared(base / "results", (), "final").answer


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_is_cut_off_and_no_legend_lies_on_a_panel(answer: Answer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "_png", kept.append)
    DRAWN[name](answer)
    [figure] = kept
    canvas: Any = FigureCanvasAgg(figure)  # it is not typed
    canvas.draw()
    parts: list[Artist] = [*figure.axes, *figure.legends]
    drawn = [box for part in parts if (box := part.get_tightbbox(canvas.get_renderer())) is not None]
    assert len(drawn) == len(parts)
    assert all(box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.width + 1 and box.y1 < figure.bbox.height + 1 for box in drawn)
    legends = [*figure.legends, *filter(None, (panel.get_legend() for panel in figure.axes))]
    panels = [panel.get_window_extent() for panel in figure.axes]
    assert not [legend for legend in legends for panel in panels if panel.overlaps(legend.get_window_extent())]


def test_bars_of_what_cannot_be_detected_end_within_the_panel(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "_png", kept.append)
    figures.differences_figure(answer.pooled["dice"])
    [panel] = kept[0].axes
    assert panel.patches
    assert panel.get_xlim()[0] < min(bar.get_window_extent().transformed(panel.transData.inverted()).x0 for bar in panel.patches)
