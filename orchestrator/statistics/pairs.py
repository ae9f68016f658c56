"""Two models on the cases that both have: the difference with its interval, the test, and what could have been detected.

The unit is the patient: a patient's difference is the mean over the patient's cases, and all numbers are of these.

The interval of the mean is Student's t, since BCa bootstrap intervals are too narrow for differences of segmentation scores:
`benchmarks/compare_coverage.py` measures both. That of the median is from order statistics, which assume nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from scipy import special, stats

from orchestrator.statistics.table import DECIMALS, CaseScores, Floats, Metric, patient_means

ALPHA = 0.05
POWER = 0.8
Interval = tuple[float, float]
"""Confidence interval at 1 - ALPHA; infinite where there are too few patients for one."""


class Counts(NamedTuple):
    """Cases of a pair of models: what the numbers are of, and what they are not of."""

    cases: int
    """Both models have a score; all numbers are of these."""
    patients: int
    missing: int
    """Left out: a record of at least one of the two is missing."""
    absent: int
    """Left out: the class is in neither the reference nor the predictions."""
    false_of_a: int
    """Left out: the class is not in the reference, and only `a` predicts it."""
    false_of_b: int
    missed_by_a: int
    """Of `cases`: `a` has no distance, as it missed the class or predicted it falsely. Worst in the test, not part of the mean."""
    missed_by_b: int


class SignedRank(NamedTuple):
    """Wilcoxon's signed-rank test, two-sided; differences of zero are dropped first (Wilcoxon's way with zeros)."""

    p: float
    method: Literal["exact", "normal approximation", "no difference"]
    rank_biserial: float
    """Matched-pairs rank-biserial correlation: 1 when every difference favours `b`, -1 when every one favours `a`."""


class Difference(NamedTuple):
    """The scores of `b` minus those of `a`, as they are measured: of a distance negative where `b` is better."""

    mean: float
    mean_interval: Interval
    median: float


@dataclass(frozen=True)
class Comparison:
    """`b` against `a` in the metric's unit, of one class or pooled. A positive difference: `b` is better, also where lower is better."""

    metric: Metric
    class_name: str | None
    a: str
    b: str
    counts: Counts
    mean: float
    mean_interval: Interval
    median: float
    median_interval: Interval
    wins: int
    """Patients in whom `b` is better."""
    ties: int
    losses: int
    test: SignedRank
    p_holm: float
    """Adjusted over all `comparisons`: the pairs of models for one metric, pooled, or in all classes that were compared together."""
    comparisons: int
    detectable: float
    """The smallest difference that this many patients show with a probability of POWER."""
    seed_sd: float | None
    """Standard deviation of a model's mean over its seeds, of the two models the larger one; None when neither has several seeds."""

    @property
    def b_minus_a(self) -> Difference:
        """What a table may call `b` minus `a`."""
        if self.metric.higher_is_better:
            return Difference(self.mean, self.mean_interval, self.median)
        low, high = self.mean_interval
        return Difference(0.0 - self.mean, (0.0 - high, 0.0 - low), 0.0 - self.median)  # of no difference 0, never -0


Differences = tuple[Floats, Floats, Counts]
"""Of patients: without cases that lack a distance (for the mean); with a missing distance as worst (for the rest)."""


def compare_all(scores: CaseScores, seed_sd: Mapping[str, float] = MappingProxyType({})) -> list[Comparison]:
    """Every pair of models, in the order of `scores.models`. `seed_sd`: model -> see `Comparison.seed_sd`."""
    return compare_family([scores], [seed_sd])[0]


def compare_family(parts: Sequence[CaseScores], seed_sds: Sequence[Mapping[str, float]]) -> list[list[Comparison]]:
    """Every pair of models in each part, as a class, adjusted over all of them: whoever looks through classes for one in which models
    differ makes so many comparisons.
    """
    places = [(part, pair) for part in range(len(parts)) for pair in combinations(range(len(parts[part].models)), 2)]
    worst = [part.worst_for_missed() for part in parts]
    pairs = [_differences(parts[part], worst[part], *pair) for part, pair in places]
    tests = [signed_rank(ranked) for _, ranked, _ in pairs]
    adjusted = holm([test.p for test in tests])
    found: list[list[Comparison]] = [[] for _ in parts]
    for (part, pair), difference, test, p_holm in zip(places, pairs, tests, adjusted, strict=True):
        found[part].append(_comparison(parts[part], pair, difference, test, p_holm, len(places), seed_sds[part]))
    return found


def _differences(scores: CaseScores, worst: Floats, a: int, b: int) -> Differences:
    both, nothing, missed = scores.recorded[a] & scores.recorded[b], np.isnan(scores.values), np.isneginf(scores.values)
    used = both & ~nothing[a] & ~nothing[b]
    difference = np.where(used, worst[b] - worst[a], np.nan)
    rows = np.stack([np.where(missed[a] | missed[b], np.nan, difference), difference])
    measured, ranked = (row[~np.isnan(row)] for row in np.round(patient_means(rows, scores.patients), DECIMALS))
    left_out = ~both, both & nothing[a] & nothing[b], both & ~nothing[a] & nothing[b], both & nothing[a] & ~nothing[b]
    sums = [int(cases.sum()) for cases in (*left_out, used & missed[a], used & missed[b])]
    return measured, ranked, Counts(int(used.sum()), ranked.size, *sums)


def _comparison(
    scores: CaseScores,
    place: tuple[int, int],
    pair: Differences,
    test: SignedRank,
    p_holm: float,
    comparisons: int,
    sds: Mapping[str, float],
) -> Comparison:
    (measured, ranked, counts), (a, b) = pair, (scores.models[row] for row in place)
    mean, median = (float(of(row)) if row.size else float("nan") for of, row in ((np.mean, measured), (np.median, ranked)))
    wins, ties, losses = (int((np.sign(ranked) == sign).sum()) for sign in (1, 0, -1))
    detectable = detectable_difference(float(measured.std(ddof=1)), measured.size, comparisons) if measured.size > 1 else float("inf")
    seed_sd = max((sds[model] for model in (a, b) if model in sds), default=None)
    means, medians = (mean, mean_interval(measured)), (median, median_interval(ranked))
    numbers = counts, *means, *medians, wins, ties, losses, test, p_holm, comparisons, detectable, seed_sd
    return Comparison(scores.metric, scores.class_name, a, b, *numbers)


def signed_rank(differences: Floats) -> SignedRank:
    """Exact up to 50 differences other than zero, with ties among them up to 13; else the normal approximation, corrected for ties."""
    nonzero = differences[differences != 0]
    if nonzero.size == 0:
        return SignedRank(1.0, "no difference", 0.0)
    ranks = stats.rankdata(np.abs(nonzero))
    surplus, is_exact = float(np.sign(nonzero) @ ranks), nonzero.size <= (50 if np.unique(ranks).size == ranks.size else 13)
    if nonzero.size <= 13:
        p = _exact_p(ranks, surplus)
    elif is_exact:
        p = float(stats.wilcoxon(nonzero, method="exact").pvalue)
    else:
        p = float(2 * special.ndtr(-abs(surplus) / np.sqrt(ranks @ ranks)))
    return SignedRank(p, "exact" if is_exact else "normal approximation", surplus / float(ranks.sum()))


def _exact_p(ranks: Floats, surplus: float) -> float:
    """Over all patterns of signs, also with ties, as distances in whole voxels have; scipy takes seconds for those."""
    signs = 1 - 2 * (np.arange(2**ranks.size)[:, np.newaxis] >> np.arange(ranks.size) & 1)
    return float((np.abs(signs @ ranks) >= abs(surplus)).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm, 1979): the smallest times n, the next times n - 1 and so on, never below the one before, at most 1."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(adjusted[place]) for place in np.argsort(order)]


def mean_interval(differences: Floats) -> Interval:
    """Student's t interval of the mean."""
    if differences.size < 2:
        return -np.inf, np.inf
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(differences.size)
    half = special.stdtrit(differences.size - 1, 1 - ALPHA / 2) * error
    return float(mean - half), float(mean + half)


def median_interval(differences: Floats) -> Interval:
    """The narrowest pair of order statistics that holds the median with at least 1 - ALPHA; from 6 patients on."""
    place = _place_of_median_bound(differences.size)
    if place == 0:
        return -np.inf, np.inf
    ordered = np.sort(differences)
    return float(ordered[place - 1]), float(ordered[-place])


@lru_cache
def _place_of_median_bound(patients: int) -> int:
    """Of the ordered differences, counted from one at either end; 0 where there is none. Kept, as all pairs mostly have as many."""
    return int(stats.binom.ppf(ALPHA / 2, patients, 0.5)) if patients else 0


def detectable_difference(spread: float, patients: int, comparisons: int) -> float:
    """The smallest mean difference found with a probability of POWER: paired, two-sided, at ALPHA / `comparisons` (Holm's first step).

    `spread`: standard deviation of the patients' differences. The normal approximation, with quantiles of Student's t.
    """
    quantiles = special.stdtrit(patients - 1, [1 - ALPHA / (2 * comparisons), POWER]).sum()
    return float(quantiles * spread / np.sqrt(patients))
