"""The report of a comparison: one HTML file that needs nothing else, its pictures within."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.compare.answer import Answer, sources_text, whole
from orchestrator.compare.figures import (
    cheap_figure,
    curves_figure,
    differences_figure,
    ranks_figure,
    scatter_figure,
    scores_figure,
    significance_figure,
)
from orchestrator.compare.tables import TextTable, classes_table, groups_table, models_table, number, pairs_table
from orchestrator.statistics.pairs import ALPHA, POWER, Comparison
from orchestrator.statistics.ranks import RESAMPLES
from orchestrator.statistics.seeds import Agreement
from orchestrator.statistics.table import DICE, HD95, NSD
from orchestrator.statistics.verdict import sentence
from trainers.storage.files import write_atomic

TEMPLATE = Path(__file__).parent / "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """For a data address."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Section:
    """One part of the report."""

    title: str
    lines: tuple[str, ...] = ()
    table: TextTable | None = None
    figures: tuple[Picture, ...] = ()


def write_report(answer: Answer, error_maps: Mapping[str, bytes], target: Path) -> None:
    """Write the report, whole or not at all."""
    write_atomic(target, html(answer, error_maps).encode())


def html(answer: Answer, error_maps: Mapping[str, bytes]) -> str:
    """The page. `error_maps`: title -> PNG."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    title = f"{answer.dataset}: {len(answer.models)} models, {answer.checkpoint} checkpoints"
    return template.render(
        title=title, verdict=answer.verdict, notes=answer.notes, basis=basis(answer), sections=_sections(answer, error_maps)
    )


def basis(answer: Answer) -> str:
    """What the numbers are of."""
    patients = len(set(answer.table.patients))
    unit = "each case is a patient" if patients == len(answer.table.cases) else f"{patients} patients are the unit"
    return (
        f"Full validation of whole cases on the original grid; every case is predicted by the fold that was not trained on it. "
        f"{len(answer.table.cases)} cases, {unit}. Dice: mean over the cases of all folds per class, then over classes, as nnU-Net's "
        f"cross-validation. Intervals: 95 % (Student's t of the paired differences). Test: Wilcoxon's signed rank, two-sided, adjusted by "
        f"Holm over all pairs, for single classes over the pairs of all classes together, at {ALPHA:g}. "
        f"Detectable: the smallest difference found with a probability of {POWER:.0%} at this size."
    )


def _sections(answer: Answer, error_maps: Mapping[str, bytes]) -> list[Section]:
    dice = Picture("Dice of every case.", scores_figure(answer))
    sections = [Section("Models", (sources_text(answer.models),), models_table(answer), (dice,))]
    pairs = answer.pooled[DICE.name]
    if pairs:
        sections += [_pairs_section(answer, pairs), *_stability_section(answer)]
        sections += [
            _metric_section(answer, answer.pooled[metric.name], title) for metric, title in ((HD95, "HD95"), (NSD, "Surface Dice"))
        ]
    sections.append(Section("Classes", lines=tuple(_class_lines(answer)), table=classes_table(answer)))
    if error_maps:
        lines = ("Green: right. Red: predicted falsely, or as another class. Blue: missed.",)
        sections.append(Section("Cases", lines, figures=tuple(Picture(title, png) for title, png in error_maps.items())))
    return [_marked(section, answer.marks) for section in [*sections, _training_section(answer)]]


def _marked(section: Section, marks: tuple[str, ...]) -> Section:
    """A section whose table keeps its marks when it is copied."""
    return section if section.table is None else replace(section, table=replace(section.table, marks=marks))


def _pairs_section(answer: Answer, pairs: tuple[Comparison, ...]) -> Section:
    figures = [Picture("Mean paired differences with 95 % intervals; positive: the first of the two is better.", differences_figure(pairs))]
    names = list(dict.fromkeys(name for found in pairs for name in (found.a, found.b)))[::-1]
    if len(names) > 2:
        figures.append(
            Picture(
                "Blue: the row is significantly better than the column; red: worse. The numbers are p after Holm.",
                significance_figure(pairs, names),
            )
        )
    scores = answer.table.case_scores(DICE)
    if set(names) <= set(scores.models):
        figures.append(Picture("The two leading models case by case.", scatter_figure(scores, names[1], names[0])))
    return Section(
        "Differences in Dice", tuple(whole(sentence(found)) for found in answer.of_the_leader), pairs_table(pairs), tuple(figures)
    )


def _stability_section(answer: Answer) -> list[Section]:
    if not answer.stability:
        return []
    lines = [f"Ranks under {RESAMPLES:,} resamples of the patients, by three ways to rank. A cross marks the rank by all patients."]
    for name, spread in answer.spreads.items():
        lines.append(f"{name}: {spread.seeds} seeds, their mean Dice has a standard deviation of {spread.sd:.2f} points.")
    table = groups_table(answer)
    if table is not None:
        lines.append("Ranks by mean Dice in each fold and seed, with Kendall's tau against the ranking over all of them (1: the same).")
    figures = (Picture("Shares of ranks.", ranks_figure(dict(answer.stability))),)
    return [Section("Is the ranking stable?", tuple(lines), table, figures)]


def _metric_section(answer: Answer, pairs: tuple[Comparison, ...], title: str) -> Section:
    shown = {(found.a, found.b) for found in answer.of_the_leader}
    lines = tuple(whole(sentence(found)) for found in pairs if (found.a, found.b) in shown)
    return Section(f"Differences in {title}", lines, pairs_table(pairs))


def _class_lines(answer: Answer) -> list[str]:
    """Pairs that differ significantly in one class."""
    return [whole(sentence(found)) for pairs in answer.per_class.values() for found in pairs if found.p_holm <= ALPHA]


def _training_section(answer: Answer) -> Section:
    lines = _cheap_lines(answer.cheap)
    figures = [Picture("Smoothed pseudo-Dice of every fold.", curves_figure(answer.models))]
    if any(fold.ema_pseudo_dice is not None for model in answer.models for fold in model.folds):
        caption = "The pseudo-Dice of the weights against their Dice of whole cases, a point per fold."
        figures.append(Picture(caption, cheap_figure(answer.models)))
    return Section("Training, and what its pseudo-Dice is worth", tuple(lines), figures=tuple(figures))


def _cheap_lines(cheap: Agreement) -> list[str]:
    if not cheap.pairs:
        return []
    interval = "" if math.isnan(cheap.low) else f" [{number(cheap.low, 2)}, {number(cheap.high, 2)}]"
    return [
        f"Kendall's tau between EMA pseudo-Dice and full Dice over {cheap.pairs} pairs of models within one of {cheap.folds} folds: "
        f"{number(cheap.tau, 2)}{interval}. At 1 the number that training shows ranks models as whole cases do."
    ]
