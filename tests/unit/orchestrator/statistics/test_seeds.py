"""Spread over seeds, and whether a cheap score ranks trained models as the full one."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.seeds import agreement, seed_spread
from tests.unit.orchestrator.statistics.score_tables import NAN, dice


def test_the_spread_is_that_of_the_means_over_common_cases() -> None:
    scores = dice({"A0": [0.5, 0.7, 0.1], "A1": [0.6, 0.8, NAN], "A2": [0.7, 0.9, 0.2], "B": [0.1, 0.1, 0.1]})
    found = seed_spread(scores, ["A", "A", "A", "B"])
    assert set(found) == {"A"}  # of B there is one seed
    assert found["A"].seeds == 3
    assert found["A"].sd == pytest.approx(10)  # 60, 70, 80


def test_a_patient_with_many_cases_counts_once_in_the_spread() -> None:
    found = seed_spread(dice({"A0": [0.5, 0.5, 0.5, 0.9], "A1": [0.5, 0.5, 0.5, 0.7]}, patients="pppq"), ["A", "A"])
    assert found["A"].sd == pytest.approx(np.std([70, 60], ddof=1))


def drawn(rng: np.random.Generator, models: int, difficulty: float = 0.0, noise: float = 0.7) -> list[tuple[float, float]]:
    """Both scores of the models in one fold: they rise with the ease of the fold."""
    full = rng.normal(difficulty, 1, models)
    return [(float(value + rng.normal(0, noise)), float(value)) for value in full]


def test_within_one_fold_agreement_is_scipys_tau_and_counts_what_it_leaves_out() -> None:
    fold = drawn(np.random.default_rng(0), 15)
    found = agreement([[*fold, (0.5, NAN), (NAN, 0.3), (NAN, NAN)]])
    assert (found.pairs, found.folds, found.left_out) == (105, 1, 3)
    assert found.tau == pytest.approx(stats.kendalltau(*zip(*fold, strict=True)).statistic)


def test_how_hard_folds_are_is_no_agreement() -> None:
    """In each of three folds the pseudo-Dice ranks the two models the wrong way; over all points tau would be 9 of 15."""
    folds = [[(ease, ease + 0.01), (ease + 0.01, ease)] for ease in (0.5, 0.7, 0.9)]
    pooled = stats.kendalltau(*zip(*(scores for fold in folds for scores in fold), strict=True)).statistic
    assert pooled == pytest.approx(9 / 15)
    assert agreement(folds).tau == -1
    assert agreement(folds).pairs == 3


def test_pairs_of_all_folds_count_alike() -> None:
    """Three models in one fold, two of its pairs concordant; two in the other, discordant: (2 - 1 - 1) of 4."""
    assert agreement([[(1, 1), (2, 3), (3, 2)], [(1, 2), (2, 1)]]).tau == pytest.approx(0)


def test_the_interval_of_tau_is_scipys_bootstrap_over_folds() -> None:
    rng = np.random.default_rng(1)
    folds = [drawn(rng, 4, difficulty) for difficulty in rng.normal(0, 3, 12)]
    counts = np.array(
        [[stats.kendalltau(*zip(*fold, strict=True)).statistic, 1] for fold in folds]
    )  # four models without ties: 6 pairs each
    expected = stats.bootstrap((counts[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=rng).confidence_interval
    found = agreement(folds)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03)


@pytest.mark.parametrize("folds", [0, 1, 4, 9])
def test_perfect_agreement_in_any_number_of_folds_has_no_interval(folds: int) -> None:
    found = agreement([[(1.0, 1.0), (2.0, 2.0)]] * folds)
    assert np.isnan([found.low, found.high]).all()
    assert found.folds == found.pairs == folds
    assert found.tau == pytest.approx(1 if folds else NAN, nan_ok=True)


def test_equal_scores_and_one_model_have_no_tau() -> None:
    assert np.isnan(agreement([[(0.5, 0.1), (0.5, 0.2)]] * 6).tau)
    assert np.isnan(agreement([[(0.5, 0.1)]] * 6).tau)
