"""Scores of models as the table that the pure statistics take, and all pairs of models compared by it. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from orchestrator.statistics.pairs import Comparison, compare_family
from orchestrator.statistics.seeds import seed_spread
from orchestrator.statistics.table import (
    DICE,
    HD95,
    LESION_DICE,
    LESION_FALSE_POSITIVES,
    LESION_SENSITIVITY,
    NSD,
    CaseScores,
    Metric,
    Score,
    ScoreTable,
    table_of,
)
from trainers.contract.summary import CaseResult, have_lesions

METRICS: tuple[Metric, ...] = (DICE, HD95, NSD)
LESION_METRICS: tuple[Metric, ...] = (LESION_SENSITIVITY, LESION_FALSE_POSITIVES, LESION_DICE)
"""Compared where they were counted in every case of every model."""


def metrics_of(results: Iterable[Sequence[CaseResult]]) -> tuple[Metric, ...]:
    """What models with these results can be compared by."""
    return (*METRICS, *LESION_METRICS) if all(map(have_lesions, results)) else METRICS


def score_table(results: Mapping[str, Sequence[CaseResult]], patient_of: Mapping[str, str]) -> ScoreTable:
    """The scores of every case of each model, which stand in the given order: of a pair the second one is `b`."""
    rows = []
    for model, of_model in results.items():
        for result in of_model:
            patient = patient_of[result.case_id]
            for name, metrics in result.metrics.items():
                values = {DICE.name: metrics.dice, HD95.name: metrics.hd95_mm, NSD.name: metrics.nsd}
                values |= metrics.lesions.scores if metrics.lesions else {}
                rows += [Score(model, patient, result.case_id, name, metric, value) for metric, value in values.items()]
    return table_of(rows)


def pairs_of(parts: Sequence[CaseScores], bases: Sequence[str]) -> list[tuple[Comparison, ...]]:
    """Of each part, which are one family; with the spread over seeds in this very metric and class.

    `bases`: what each model is one seed of.
    """
    sds = [{name: spread.sd for name, spread in seed_spread(part, bases).items()} for part in parts]
    return [tuple(found) for found in compare_family([part.averaged(bases) for part in parts], sds)]


def pooled_pairs(table: ScoreTable, metrics: Iterable[Metric], bases: Sequence[str]) -> dict[str, tuple[Comparison, ...]]:
    """Metric -> every pair, pooled over classes; each metric is a family of its own."""
    return {metric.name: pairs_of([table.case_scores(metric)], bases)[0] for metric in metrics}


def class_pairs(table: ScoreTable, bases: Sequence[str]) -> dict[str, tuple[Comparison, ...]]:
    """Class -> every pair by Dice; the pairs of all classes are one family."""
    return dict(zip(table.classes, pairs_of([table.case_scores(DICE, name) for name in table.classes], bases), strict=True))
