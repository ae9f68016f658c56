"""How far training anew moves a model, and whether a cheap score ranks trained models as the full validation does."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from orchestrator.compare.ranks import RESAMPLES, Draws, resample_counts
from orchestrator.compare.table import CaseScores, Floats, patient_means, ratio


class SeedSpread(NamedTuple):
    """Standard deviation of a model's mean over its seeds: no difference below it says anything of the model, only of one training."""

    seeds: int
    sd: float
    """In the metric's unit; with two seeds it is hardly more than a guess."""


class Agreement(NamedTuple):
    """Kendall's tau-b between a cheap score and the full one over trained models."""

    models: int
    left_out: int
    """Without one of the two scores."""
    tau: float
    p: float
    """Two-sided, of no association: `scipy.stats.kendalltau`."""
    low: float
    """95 % bootstrap interval over models; NaN below five models, and where all resamples agree, as with tau = 1: its width is then
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


def agreement(cheap: Mapping[str, float], full: Mapping[str, float], seed: int = 0) -> Agreement:
    """Whether `cheap` (as the EMA pseudo-Dice) ranks trained models as `full` (as their Dice) does; model -> score, NaN or absent: none."""
    names = [name for name in cheap if np.isfinite(cheap[name]) and np.isfinite(full.get(name, np.nan))]
    x, y = (np.array([scores[name] for name in names], dtype=float) for scores in (cheap, full))
    left_out = len({*cheap, *full}) - len(names)
    if len(names) < 2:
        return Agreement(len(names), left_out, *[float("nan")] * 4)
    tau, p = stats.kendalltau(x, y)
    low, high = np.nan, np.nan
    if len(names) >= 5 and not np.isnan(tau):
        low, high = np.nanquantile(_resampled_taus(x, y, resample_counts(x.size, RESAMPLES, seed)), [0.025, 0.975])
    known = low < high
    return Agreement(len(names), left_out, float(tau), float(p), float(low) if known else np.nan, float(high) if known else np.nan)


def _resampled_taus(x: Floats, y: Floats, counts: Draws) -> Floats:
    """(resamples,) tau-b when model i is drawn `counts[:, i]` times; a model and its copy are equal in both and count for nothing."""
    signs_x, signs_y = (np.sign(values[:, np.newaxis] - values) for values in (x, y))
    weights = signs_x * signs_y, np.abs(signs_x), np.abs(signs_y)
    agreeing, pairs_x, pairs_y = (np.einsum("ri,ri->r", counts, counts @ of_pair) for of_pair in weights)
    return ratio(agreeing, np.sqrt(pairs_x * pairs_y))
