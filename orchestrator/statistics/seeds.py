"""How far training anew moves a model, and whether a cheap score ranks trained models as the full validation does."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.statistics.ranks import RESAMPLES, resample_counts
from orchestrator.statistics.table import CaseScores, Floats, patient_means, ratio


class SeedSpread(NamedTuple):
    """Standard deviation of a model's mean over its seeds: no difference below it says anything of the model, only of one training."""

    seeds: int
    sd: float
    """In the metric's unit; with two seeds it is hardly more than a guess."""


class Agreement(NamedTuple):
    """Kendall's tau-b between a cheap score and the full one, over pairs of trained models within one fold.

    Models of different folds make no pair: both scores are high in an easy fold, which says nothing of how models are ranked.
    """

    pairs: int
    folds: int
    """With a pair."""
    left_out: int
    """Trainings without one of the two scores."""
    tau: float
    low: float
    """95 % bootstrap interval over folds; NaN below five folds, and where all resamples agree, as with tau = 1: its width is then
    unknown."""
    high: float


def seed_spread(scores: CaseScores, names: Sequence[str]) -> dict[str, SeedSpread]:
    """Of every model with several seeds; `names`: what each of `scores.models` is a training of. Over the cases that all its seeds have."""
    found = {}
    for name in dict.fromkeys(names):
        rows = [row for row, own in enumerate(names) if own == name]
        columns = np.flatnonzero(np.isfinite(scores.values[rows]).all(axis=0))
        if len(rows) > 1 and columns.size:
            seeds = scores.only_models(rows, [name] * len(rows)).only_cases(columns.tolist())
            means = patient_means(seeds.values, seeds.patients).mean(axis=1)
            found[name] = SeedSpread(len(rows), float(means.std(ddof=1)))
    return found


def agreement(folds: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> Agreement:
    """Whether a cheap score (as the EMA pseudo-Dice) ranks models as the full one (their Dice) does. Per fold the two scores of each
    trained model, NaN where there is none.
    """
    known = [[scores for scores in fold if np.isfinite(scores).all()] for fold in folds]
    left_out = sum(map(len, folds)) - sum(map(len, known))
    compared = [fold for fold in known if len(fold) > 1]
    pairs = sum(len(fold) * (len(fold) - 1) // 2 for fold in compared)
    counts = np.array([_pair_counts(fold) for fold in compared]).reshape(len(compared), 3)
    tau, low, high = float(_taus(counts.sum(axis=0))), np.nan, np.nan
    if len(compared) >= 5 and not np.isnan(tau):
        low, high = np.nanquantile(_taus(resample_counts(len(compared), RESAMPLES, seed) @ counts), [0.025, 0.975])
    is_known = low < high
    return Agreement(pairs, len(compared), left_out, tau, float(low) if is_known else np.nan, float(high) if is_known else np.nan)


def _pair_counts(fold: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of the pairs of models in one fold: concordant minus discordant ones, those unequal in the cheap score, those in the full one."""
    first, second = np.triu_indices(len(fold), 1)
    cheap, full = (np.sign(values[first] - values[second]) for values in np.array(fold).T)
    return float(cheap @ full), float(np.abs(cheap).sum()), float(np.abs(full).sum())


def _taus(counts: Floats) -> Floats:
    """tau-b from the sums of `_pair_counts` over folds, in the last axis."""
    return ratio(counts[..., 0], np.sqrt(counts[..., 1] * counts[..., 2]))
