"""The report of a comparison: one HTML file that needs nothing else, its pictures within."""

import base64
import math
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
from orchestrator.compare.held_out_sets import HeldOutSet
from orchestrator.compare.held_out_tables import held_out_table
from orchestrator.compare.tables import candidates_table, cases_table, checkpoints_table, classes_table, groups_table, models_table
from orchestrator.compare.text_table import TextTable, number, pairs_table
from orchestrator.report.case_pictures import NO_PICTURES, CasePictures, renamed, shown_names
from orchestrator.report.slice_viewer import SCRIPT, SliceViewer
from orchestrator.statistics.pairs import ALPHA, POWER, Comparison
from orchestrator.statistics.ranks import RESAMPLES
from orchestrator.statistics.seeds import Agreement
from orchestrator.statistics.table import DICE, HD95, LESION_DICE, LESION_FALSE_POSITIVES, LESION_SENSITIVITY, NSD
from orchestrator.statistics.verdict import sentence
from trainers.storage.files import write_atomic

METRIC_TITLES = {
    HD95.name: "HD95",
    NSD.name: "Surface Dice",
    LESION_SENSITIVITY.name: "lesion sensitivity",
    LESION_FALSE_POSITIVES.name: "false lesions per case",
    LESION_DICE.name: "lesion-wise Dice",
}
TEMPLATE = Path(__file__).parent / "page.html.j2"


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
    viewers: tuple[SliceViewer, ...] = ()


def write_report(answer: Answer, pictures: CasePictures, target: Path) -> None:
    """Write the report, whole or not at all."""
    write_atomic(target, html(answer, pictures).encode())


def html(answer: Answer, pictures: CasePictures = NO_PICTURES) -> str:
    """The page. It needs no network, and runs in a frame that allows nothing but scripts, as MLflow shows it. Raises DataError."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    names = shown_names(answer.models)
    title = f"{answer.dataset}: {len(answer.models)} models, {answer.checkpoint} checkpoints"
    sections = [*_sections(answer), *_case_sections(answer, pictures, names), _training_section(answer), *_candidates_section(answer)]
    return template.render(
        title=title,
        verdict=answer.verdict,
        notes=[renamed(note, names) for note in answer.notes],
        basis=basis(answer),
        sections=[_marked(section, tuple(renamed(mark, names) for mark in answer.marks)) for section in sections],
        script=SCRIPT.read_text(encoding="utf-8") if pictures.viewers else "",
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


def _sections(answer: Answer) -> list[Section]:
    dice = Picture("Dice of every case.", scores_figure(answer))
    sections = [Section("Models", (sources_text(answer.models),), models_table(answer), (dice,))]
    sections += [section for each in answer.held_out for section in _held_out_sections(each, answer)]
    pairs = answer.pooled[DICE.name]
    if pairs:
        sections += [_pairs_section(answer, pairs), *_stability_section(answer)]
        sections += [_metric_section(answer, found, METRIC_TITLES[name]) for name, found in answer.pooled.items() if name in METRIC_TITLES]
    sections.append(Section("Classes", lines=tuple(_class_lines(answer)), table=classes_table(answer)))
    return sections


def _held_out_sections(found: HeldOutSet, answer: Answer) -> list[Section]:
    """The scores on a test set, and where models are compared on it, their differences: before those of the cross-validation."""
    cases = len(found.first.results)
    unit = "each case is a patient" if found.num_patients == cases else f"{found.num_patients} patients are the unit"
    basis = f"{cases} cases, each predicted by all folds of a model together"
    lines = (f"{basis}{f'; {unit}' if found.num_patients else ''}.", *found.remarks)
    sections = [Section(f"Test set {found.label}", lines, held_out_table(found, [model.name for model in answer.models]))]
    if pairs := found.pooled.get(DICE.name):
        figure = Picture("Mean paired differences on the test set, as those of the cross-validation below.", differences_figure(pairs))
        texts = tuple(whole(sentence(each)) for each in found.of_the_leader)
        sections.append(Section(f"Differences in Dice on the test set {found.label}", texts, pairs_table(pairs), (figure,)))
    return sections


def _case_sections(answer: Answer, pictures: CasePictures, names: dict[str, str]) -> list[Section]:
    table = cases_table(answer, names)
    found = [Section("Cases that differ most", lines=("By Dice, mean over classes.",), table=table)] if table else []
    if pictures.left_out:
        found.append(Section("Pictures of cases", (pictures.left_out,)))
    if pictures.unreadable:
        found.append(Section("Files that could not be read", pictures.unreadable))
    if pictures.maps:
        lines = (
            "First row of each model: contours of the classes, truth solid, prediction dashed. Second row: green is right, red predicted "
            "falsely or as another class, blue missed.",
        )
        figures = tuple(Picture(title, png) for title, png in pictures.maps.items())
        found.append(Section("Where the models are wrong", lines, figures=figures))
    if pictures.viewers:
        lines = ("Sliders move through the slices; a click into a plane moves the other two there.",)
        found.append(Section("The worst cases, slice by slice", lines, viewers=pictures.viewers))
    return found


def _marked(section: Section, marks: tuple[str, ...]) -> Section:
    """A section whose table keeps its marks when it is copied."""
    return section if section.table is None else replace(section, table=replace(section.table, marks=marks))


def _pairs_section(answer: Answer, pairs: tuple[Comparison, ...]) -> Section:
    figures = [
        Picture(
            "Mean paired differences with 95 % intervals; positive: the first of the two is better. Grey: too small to be detected.",
            differences_figure(pairs),
        )
    ]
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
    return Section(f"Differences in {title}", (*_orientation(pairs[0]), *lines), pairs_table(pairs))


def _orientation(found: Comparison) -> list[str]:
    """What a table of a score must not be read without whose sign is not that of the others."""
    return [] if found.metric.higher_is_better else ["Lower is better: a negative difference is in favour of the first of the two models."]


def _class_lines(answer: Answer) -> list[str]:
    """Pairs that differ significantly in one class."""
    return [whole(sentence(found)) for pairs in answer.per_class.values() for found in pairs if found.p_holm <= ALPHA]


def _training_section(answer: Answer) -> Section:
    lines = _cheap_lines(answer.cheap)
    figures = [Picture("Smoothed pseudo-Dice of every fold.", curves_figure(answer.models))]
    if any(fold.ema_pseudo_dice is not None for model in answer.models for fold in model.folds):
        caption = "The pseudo-Dice of the weights against their Dice of whole cases, a point per fold."
        figures.append(Picture(caption, cheap_figure(answer.models)))
    return Section("Training, and what its pseudo-Dice is worth", tuple(lines), checkpoints_table(answer), tuple(figures))


def _candidates_section(answer: Answer) -> list[Section]:
    """Of runs that keep them: epoch by epoch the cheap number beside the full one, and what a run's folder says of them."""
    table = candidates_table(answer)
    if table is None:
        return []
    lines = tuple(
        f"{model.name}, fold {fold.spec.fold}: {' '.join(fold.candidates.sentences)}"
        for model in answer.models
        for fold in model.folds
        if fold.candidates is not None
    )
    return [Section("Is the best epoch by pseudo-Dice the best by Dice?", lines, table)]


def _cheap_lines(cheap: Agreement) -> list[str]:
    if not cheap.pairs:
        return []
    is_known = not math.isnan(cheap.low)
    interval = f" [{number(cheap.low, 2)}, {number(cheap.high, 2)}]" if is_known else ""
    lacking = "" if is_known else " An interval needs five folds that do not all agree."
    return [
        f"Kendall's tau between EMA pseudo-Dice and full Dice over {cheap.pairs} pairs of models within one of {cheap.folds} folds: "
        f"{number(cheap.tau, 2)}{interval}. At 1 the number that training shows ranks models as whole cases do.{lacking}"
    ]
