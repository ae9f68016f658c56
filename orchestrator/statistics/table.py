"""Scores per case as a table: models x classes x cases for each metric. Nothing leaves it without being counted.

What a score that is no number means, everywhere in this wing:

* A class absent from reference and prediction has no score (NaN, as in nnU-Net): the case is left out of pairs and rankings of this class,
  and counted. So is one where one model rightly predicts nothing and another falsely something; those are counted apart.
* A class that only the reference has (missed) or only the prediction has (false) has Dice 0, a score like any other, and no distance.
  The distance counts as farther than all measured ones together in tests and rankings. Means are of the other cases, with the number of
  such cases beside them: a model must not gain by missing what is hard.
* Pooled over classes, a case has the mean of its classes that have a score (nnU-Net's foreground mean, of one case).
* A case without a record is missing: listed, and left out of the pairs of its model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
DECIMALS = 8
"""Differences are rounded to so many decimals, so that 0.9 - 0.8 and 0.8 - 0.7 are a tie."""


@dataclass(frozen=True)
class Metric:
    """A score of one class in one case."""

    name: str
    unit: str
    """What a difference is stated in."""
    scale: float = 1.0
    """Units per 1 of the value in the table."""
    higher_is_better: bool = True
    overlap: str | None = None
    """Of a distance: the metric of the same table by which its NaN is read: absent where that is NaN too, else missed or false."""


DICE = Metric("dice", "Dice points", scale=100)
NSD = Metric("nsd", "NSD points", scale=100)
LESION_SENSITIVITY = Metric("lesion_sensitivity", "points of sensitivity", scale=100)
LESION_FALSE_POSITIVES = Metric("lesion_false_positives", "false positives", higher_is_better=False)
LESION_DICE = Metric("lesion_dice", "lesion Dice points", scale=100)
HD95 = Metric("hd95_mm", "mm", higher_is_better=False, overlap="dice")


class Score(NamedTuple):
    """One record. The patient is the unit of resampling: with one case per patient, give the case as patient."""

    model: str
    patient: str
    case: str
    class_name: str
    metric: str
    value: float


@dataclass(frozen=True)
class CaseScores:
    """One number per model and case, of one class or pooled (`class_name` None): the input of every comparison."""

    metric: Metric
    class_name: str | None
    models: tuple[str, ...]
    patients: tuple[str, ...]
    """The patient of each case."""
    values: Floats
    """(models, cases) in the metric's unit, negated where lower is better: higher is always better. NaN: no score; -inf: no distance."""
    recorded: Bools
    """(models, cases): False where a record is missing."""

    def worst_for_missed(self) -> Floats:
        """`values`, with a number below all others together in place of -inf; for tests and rankings."""
        lowest = -1.0 - np.abs(self.values[np.isfinite(self.values)]).sum()
        return np.where(np.isneginf(self.values), lowest, self.values)

    def only_models(self, rows: Sequence[int], names: Sequence[str]) -> "CaseScores":
        """Some of the models, under other names."""
        return replace(self, models=tuple(names), values=self.values[list(rows)], recorded=self.recorded[list(rows)])

    def only_cases(self, columns: Sequence[int]) -> "CaseScores":
        """Some of the cases."""
        patients, kept = tuple(self.patients[column] for column in columns), list(columns)
        return replace(self, patients=patients, values=self.values[:, kept], recorded=self.recorded[:, kept])

    def averaged(self, names: Sequence[str]) -> "CaseScores":
        """Models of the same name (seeds of one model) become one: their mean per case, without a score where one of them has none."""
        rows = {name: [row for row, own in enumerate(names) if own == name] for name in names}
        values = np.stack([self.values[own].mean(axis=0) for own in rows.values()])
        return replace(
            self, models=tuple(rows), values=values, recorded=np.stack([self.recorded[own].all(axis=0) for own in rows.values()])
        )


@dataclass(frozen=True)
class ScoreTable:
    """All scores; made by `table_of`."""

    models: tuple[str, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    """The patient of each case."""
    values: Mapping[str, Floats]
    """Metric -> (models, classes, cases); NaN where the record holds NaN or is missing."""
    recorded: Mapping[str, Bools]
    """Metric -> (models, classes, cases): False where a record is missing."""

    def case_scores(self, metric: Metric, class_name: str | None = None) -> CaseScores:
        """The scores of one class, or pooled over classes. Raises ValueError for what the table does not hold."""
        if class_name is not None and class_name not in self.classes:
            raise ValueError(f"class {class_name!r} is not in the table: it has {', '.join(self.classes)}")
        oriented, recorded = self._oriented(metric), self.recorded[metric.name]
        chosen = list(self.classes) if class_name is None else [class_name]
        columns = [self.classes.index(name) for name in chosen]
        defined = ~np.isnan(oriented[:, columns])
        values = ratio(np.where(defined, oriented[:, columns], 0).sum(axis=1), defined.sum(axis=1))
        complete = np.logical_and.reduce(recorded[:, columns], axis=1)
        return CaseScores(metric, class_name, self.models, self.patients, np.where(complete, values, np.nan), complete)

    def _oriented(self, metric: Metric) -> Floats:
        """(models, classes, cases) in the metric's unit, higher is better, -inf for a missed or false class."""
        values = self.values[self._known(metric.name)]
        oriented = values * (metric.scale if metric.higher_is_better else -metric.scale)
        if metric.overlap is not None:
            undefined, overlap = np.isnan(values) & self.recorded[metric.name], self._known(metric.overlap)
            if (undefined & ~self.recorded[overlap]).any():
                raise ValueError(f"{metric.name} is NaN where {metric.overlap} has no record: absent or missed? Add {metric.overlap}.")
            oriented[undefined & ~np.isnan(self.values[overlap])] = -np.inf
        if np.isposinf(oriented).any() or (metric.overlap is None and np.isinf(oriented).any()):
            raise ValueError(f"{metric.name} holds an infinite value; give NaN for a score that is undefined")
        return oriented

    def _known(self, metric: str) -> str:
        if metric not in self.values:
            raise ValueError(f"metric {metric!r} is not in the table: it has {', '.join(self.values)}")
        return metric


def table_of(scores: Iterable[Score]) -> ScoreTable:
    """The table of all records, in the order in which names first appear. Raises ValueError for contradicting records."""
    records = list(scores)
    names = {field: dict.fromkeys(getattr(record, field) for record in records) for field in ("model", "class_name", "case", "metric")}
    models, classes, cases = ({name: i for i, name in enumerate(names[field])} for field in ("model", "class_name", "case"))
    shape, patient_of = (len(models), len(classes), len(cases)), {record.case: record.patient for record in records}
    values = {metric: np.full(shape, np.nan) for metric in names["metric"]}
    recorded = {metric: np.zeros(shape, dtype=bool) for metric in names["metric"]}
    for record in records:
        place = models[record.model], classes[record.class_name], cases[record.case]
        if recorded[record.metric][place]:
            raise ValueError(f"two records of {record.metric} for {record.model}, case {record.case}, class {record.class_name}: keep one")
        if patient_of[record.case] != record.patient:
            raise ValueError(f"case {record.case} is of two patients, {record.patient} and {patient_of[record.case]}: keep one")
        values[record.metric][place], recorded[record.metric][place] = record.value, True
    return ScoreTable(tuple(models), tuple(classes), tuple(cases), tuple(patient_of[case] for case in cases), values, recorded)


def patient_means(values: Floats, patients: Sequence[str]) -> Floats:
    """(rows, cases) -> (rows, patients): the mean over a patient's cases, without NaN; NaN for a patient who has nothing else."""
    number, place = _places(tuple(patients))
    counts = np.stack([np.bincount(place, ~np.isnan(row), number) for row in values])
    return ratio(np.stack([np.bincount(place, np.where(np.isnan(row), 0, row), number) for row in values]), counts)


@lru_cache(maxsize=8)
def _places(patients: tuple[str, ...]) -> tuple[int, npt.NDArray[np.intp]]:
    """How many patients there are, and which of them, in the order of their names, each case has. Kept: all pairs have the same cases."""
    names, place = np.unique(np.asarray(patients), return_inverse=True)
    place.flags.writeable = False
    return len(names), place


def ratio(numerators: npt.NDArray[Any], denominators: npt.NDArray[Any]) -> Floats:
    """NaN where the denominator is 0."""
    result = np.full(np.shape(numerators), np.nan)
    np.divide(numerators, denominators, out=result, where=denominators > 0)
    return result
