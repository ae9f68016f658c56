"""How stable is a ranking: under resampled patients, over folds and over seeds.

Rankings are over the cases in which every model has a score; a patient's score is the mean over the patient's cases. Rank 1 is the best,
and equal models share the better rank. Three schemes, named as in challengeR (Wiesenfarth et al., 2021):

* mean-then-rank: by the mean over patients;
* rank-then-mean: by the mean of the ranks within each patient (equal scores share the average rank);
* test-then-rank: by the number of other models that are beaten significantly (Wilcoxon signed rank, one-sided, normal approximation, zeros
  dropped, not adjusted: the count orders, it claims nothing).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import stats

from orchestrator.statistics.pairs import ALPHA
from orchestrator.statistics.table import DECIMALS, Bools, CaseScores, Floats, patient_means, ratio

Ints = npt.NDArray[np.int64]
Draws = npt.NDArray[np.int32]
Scheme = Literal["mean-then-rank", "rank-then-mean", "test-then-rank"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
RESAMPLES = 10_000
TEST_RESAMPLES = 1_000
"""Of test-then-rank, the first ones: every resample costs a test per pair."""


@dataclass(frozen=True)
class RankStability:
    """A ranking and what becomes of it under bootstrap resamples of the patients."""

    models: tuple[str, ...]
    patients: int
    ranks: Ints
    """(models,) from all patients."""
    shares: Floats
    """(models, ranks): the share of resamples in which the model has rank 1, 2, ..."""


@dataclass(frozen=True)
class GroupRanks:
    """The ranking within one fold or one seed."""

    models: tuple[str, ...]
    patients: int
    """With a score of every model; without any there is no ranking: all models share rank 1."""
    ranks: Ints
    tau: float
    """Kendall's tau-b against the ranking over all groups; NaN where one of them has all models equal."""


def rank_stability(scores: CaseScores, seed: int = 0, resamples: int = RESAMPLES) -> dict[Scheme, RankStability]:
    """All three schemes under the same resamples. Raises ValueError when no case has a score of every model."""
    values, kept = common_patient_scores(scores)
    counts = resample_counts(kept.size, resamples, seed)[:, kept]
    counts = counts[counts.any(axis=1)]  # of a class with few patients none may be drawn
    return {scheme: _stability(scheme, scores.models, values, counts) for scheme in SCHEMES}


def _stability(scheme: Scheme, models: tuple[str, ...], values: Floats, counts: Draws) -> RankStability:
    ranks = ranks_of(merits(scheme, values, counts[:TEST_RESAMPLES] if scheme == "test-then-rank" else counts))
    shares = np.stack([(ranks == rank).mean(axis=0) for rank in range(1, len(models) + 1)], axis=1)
    return RankStability(models, values.shape[1], full_ranks(scheme, values), shares)


def ranks_by_case_group(scores: CaseScores, groups: Sequence[str]) -> dict[str, GroupRanks]:
    """The ranking within each group of cases (`groups`: one label per case, as folds), compared with that over all cases."""
    columns = {group: [column for column, own in enumerate(groups) if own == group] for group in dict.fromkeys(groups)}
    return {group: _group_ranks(scores.only_cases(kept), scores) for group, kept in columns.items()}


def ranks_by_model_group(scores: CaseScores, names: Sequence[str], groups: Sequence[str]) -> dict[str, GroupRanks]:
    """The ranking within each group of trained models, compared with that of their means over all groups.

    One label per trained model: `groups` as its seed, `names` what it is a training of. Compared are the names that the group has.
    """
    found = {}
    for group in dict.fromkeys(groups):
        row_of = {name: row for row, (name, own) in enumerate(zip(names, groups, strict=True)) if own == group}
        rows = [row for name in row_of for row, own in enumerate(names) if own == name]
        averaged = scores.only_models(rows, [names[row] for row in rows]).averaged([names[row] for row in rows])
        found[group] = _group_ranks(scores.only_models(list(row_of.values()), list(row_of)), averaged)
    return found


def _group_ranks(part: CaseScores, whole: CaseScores) -> GroupRanks:
    """By mean-then-rank."""
    if any(np.isnan(scores.values).any(axis=0).all() for scores in (part, whole)):
        return GroupRanks(part.models, 0, np.ones(len(part.models), dtype=np.int64), float("nan"))
    (own, _), (full, _) = common_patient_scores(part), common_patient_scores(whole)
    ranks, reference = full_ranks("mean-then-rank", own), full_ranks("mean-then-rank", full)
    return GroupRanks(part.models, own.shape[1], ranks, float(kendall_taus(ranks[np.newaxis], reference)[0]))


def full_ranks(scheme: Scheme, values: Floats) -> Ints:
    """(models,) with every patient once."""
    ranks: Ints = ranks_of(merits(scheme, values, np.ones((1, values.shape[1]), dtype=np.int32)))[0]
    return ranks


def common_patient_scores(scores: CaseScores) -> tuple[Floats, Bools]:
    """(models, patients) of the cases in which every model has a score, a missing distance as worst; and who of all patients these are."""
    common = ~np.isnan(scores.values).any(axis=0)
    if not common.any():
        raise ValueError(f"no case has a {scores.metric.name} of each of {', '.join(scores.models)}: these models cannot be ranked")
    means = patient_means(np.where(common, scores.worst_for_missed(), np.nan), scores.patients)
    kept = ~np.isnan(means[0])
    return means[:, kept], kept


@lru_cache(maxsize=1)
def resample_counts(patients: int, resamples: int, seed: int) -> Draws:
    """(resamples, patients): how often each patient is drawn; every row sums to `patients`. Kept: all classes share the resamples."""
    drawn = np.random.default_rng(seed).integers(patients, size=(resamples, patients))
    counts = np.stack([np.bincount(row, minlength=patients) for row in drawn]).astype(np.int32)
    counts.flags.writeable = False
    return counts


def merits(scheme: Scheme, values: Floats, counts: Draws) -> Floats:
    """(resamples, models): what models are ranked by, higher is better. `values`: (models, patients), `counts`: (resamples, patients)."""
    if scheme == "test-then-rank":
        return _significant_wins(values, counts)
    entries = values if scheme == "mean-then-rank" else -stats.rankdata(-np.round(values, DECIMALS), axis=0)
    means: Floats = counts @ entries.T / counts.sum(axis=1, keepdims=True)
    return np.round(means, DECIMALS)


def ranks_of(merit: Floats) -> Ints:
    """(resamples, models) -> ranks, 1 the best: one more than the number of better models."""
    ranks = np.ones(merit.shape, dtype=np.int64)
    for column in range(merit.shape[1]):
        ranks += merit[:, [column]] > merit
    return ranks


def _significant_wins(values: Floats, counts: Draws) -> Floats:
    wins, critical = np.zeros((len(counts), len(values))), stats.norm.ppf(1 - ALPHA)
    for a, b in combinations(range(len(values)), 2):
        z = signed_rank_z(np.round(values[b] - values[a], DECIMALS), counts)
        wins[:, b] += z > critical
        wins[:, a] += z < -critical
    return wins


def signed_rank_z(differences: Floats, counts: Draws) -> Floats:
    """(resamples,) z of Wilcoxon's signed-rank test when patient i is drawn `counts[:, i]` times; 0 where all differences are zero.

    z is the sum of signed ranks over the root of the sum of squared ranks, each as often as its patient is drawn. In the order of
    |difference|, equal ones share a midrank: half of the drawn before the first, plus the drawn up to the last, plus one.
    """
    nonzero = np.flatnonzero(differences)
    order = nonzero[np.argsort(np.abs(differences[nonzero]), kind="stable")]
    drawn, sizes = np.take(counts, order, axis=1), np.abs(differences[order])
    up_to = np.zeros((len(counts), order.size + 1), dtype=np.int32)
    np.cumsum(drawn, axis=1, out=up_to[:, 1:])
    if np.unique(sizes).size == order.size:
        before, after = up_to[:, :-1], up_to[:, 1:]
    else:
        before, after = (up_to[:, np.searchsorted(sizes, sizes, side)] for side in ("left", "right"))
    ranks = np.add(before, after, dtype=np.float32)
    ranks += 1  # twice the midranks: the factor leaves z alone
    weighted = drawn.astype(np.float32) * ranks
    total, squares = weighted @ np.sign(differences[order]).astype(np.float32), np.einsum("ri,ri->r", weighted, ranks)
    return np.nan_to_num(ratio(total, np.sqrt(squares)))


def kendall_taus(ranks: Ints, reference: Ints) -> Floats:
    """Kendall's tau-b of each row of (rankings, models) against `reference`; NaN where a ranking has all models equal."""
    first, second = np.triu_indices(ranks.shape[1], 1)
    signs, reference_signs = (np.sign(r[..., first] - r[..., second]).astype(np.float32) for r in (ranks, reference))
    pairs = np.abs(signs).sum(axis=1) * np.abs(reference_signs).sum()
    return ratio(signs @ reference_signs, np.sqrt(pairs))
