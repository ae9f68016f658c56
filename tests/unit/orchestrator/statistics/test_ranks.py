"""Rankings: schemes by hand, resampling against plain loops and scipy, folds and seeds."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.ranks import (
    SCHEMES,
    common_patient_scores,
    full_ranks,
    kendall_taus,
    rank_stability,
    ranks_by_case_group,
    ranks_by_model_group,
    ranks_of,
    resample_counts,
    signed_rank_z,
)
from orchestrator.statistics.table import HD95, table_of
from tests.unit.orchestrator.statistics.score_tables import NAN, dice, records


def test_schemes_differ_where_one_case_is_extreme() -> None:
    values = np.array([[90.0, 91, 92, 10], [80, 81, 82, 83], [70, 71, 72, 73]])
    assert full_ranks("mean-then-rank", values).tolist() == [3, 1, 2]  # 70.75, 81.5, 71.5
    assert full_ranks("rank-then-mean", values).tolist() == [1, 2, 3]  # (1+1+1+3)/4, (2+2+2+1)/4 = 1.75, (3+3+3+2)/4
    assert full_ranks("test-then-rank", values).tolist() == [2, 1, 2]  # only B beats C: z = 4 / 2; A beats B and C by 0.38


def test_equal_models_share_the_better_rank() -> None:
    assert ranks_of(np.array([[1.0, 3.0, 3.0, 2.0]])).tolist() == [[4, 1, 1, 3]]


def test_resamples_draw_every_patient_equally_often_and_the_same_again() -> None:
    counts = resample_counts(5, 4000, seed=1)
    assert (counts.sum(axis=1) == 5).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.06)
    np.testing.assert_array_equal(counts, resample_counts.__wrapped__(5, 4000, 1))


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_the_resampled_test_is_scipys_on_the_drawn_patients(decimals: int) -> None:
    differences = np.round(np.random.default_rng(5).normal(0.4, 1, 60), decimals)  # with 0: zeros and many ties
    counts = resample_counts(60, 20, seed=2)
    for z, times in zip(signed_rank_z(differences, counts), counts, strict=True):
        drawn = np.repeat(differences, times)
        expected = stats.wilcoxon(drawn[drawn != 0], alternative="greater", method="asymptotic").pvalue
        assert stats.norm.sf(z) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_without_a_difference_nobody_wins() -> None:
    assert signed_rank_z(np.zeros(4), resample_counts(4, 3, seed=0)).tolist() == [0, 0, 0]


def test_taus_are_scipys() -> None:
    rng = np.random.default_rng(6)
    ranks, reference = ranks_of(rng.integers(0, 4, (50, 6)).astype(float)), ranks_of(rng.integers(0, 5, (1, 6)).astype(float))[0]
    expected = [stats.kendalltau(row, reference).statistic for row in ranks]
    np.testing.assert_allclose(kendall_taus(ranks, reference), expected, rtol=1e-6)


def test_tau_is_undefined_where_all_models_are_equal() -> None:
    assert np.isnan(kendall_taus(np.array([[1, 1, 1]]), np.array([1, 2, 3]))).all()


def test_a_clear_order_is_stable_and_a_tie_is_not() -> None:
    rng = np.random.default_rng(7)
    hard = rng.normal(0.6, 0.1, 40)
    scores = dice({"worst": list(hard), "A": list(hard + 0.1 + rng.normal(0, 0.02, 40)), "B": list(hard + 0.1 + rng.normal(0, 0.02, 40))})
    found = rank_stability(scores, resamples=2000)
    assert tuple(found) == SCHEMES
    for stability in found.values():
        assert stability.shares[0].tolist() == [0, 0, 1]  # the last rank in every resample
        assert stability.shares.sum(axis=1) == pytest.approx(1)
        assert stability.patients == 40
    assert 0.05 < found["mean-then-rank"].shares[1, 0] < 0.95


def test_ranks_are_over_cases_that_all_models_have_with_a_score() -> None:
    common, kept = common_patient_scores(dice({"A": [0.5, 0.6, NAN, 0.9], "B": [0.5, 0.7, 0.8]}, patients="ppqq"))
    np.testing.assert_allclose(common, [[55], [60]])
    assert kept.tolist() == [True, False]


def test_a_class_with_one_patient_is_ranked_in_the_resamples_that_draw_the_patient() -> None:
    found = rank_stability(dice({"A": [0.5, NAN, NAN], "B": [0.6, NAN, NAN]}), resamples=500)["mean-then-rank"]
    assert (found.patients, found.shares.tolist()) == (1, [[0, 1], [1, 0]])


def test_without_a_common_case_there_is_no_ranking() -> None:
    with pytest.raises(ValueError, match="no case has a dice of each of A, B"):
        rank_stability(dice({"A": [0.5, NAN], "B": [NAN, 0.5]}))


def test_the_model_that_misses_a_class_ranks_last_by_distance() -> None:
    rows = records({"A": [0.0, 0.9], "B": [0.9, 0.9]}) + records({"A": [NAN, 1.0], "B": [80.0, 90.0]}, metric="hd95_mm")
    values, _ = common_patient_scores(table_of(rows).case_scores(HD95))
    assert full_ranks("mean-then-rank", values).tolist() == [2, 1]


def test_ranking_in_each_fold_against_all_cases() -> None:
    scores = dice({"A": [0.9, 0.9, 0.5, 0.5], "B": [0.8, 0.8, 0.55, 0.55], "C": [0.1, 0.1, 0.2, 0.2]})
    found = ranks_by_case_group(scores, ["fold0", "fold0", "fold1", "fold1"])
    assert {fold: group.ranks.tolist() for fold, group in found.items()} == {"fold0": [1, 2, 3], "fold1": [2, 1, 3]}
    assert found["fold0"].tau == pytest.approx(1)  # over all cases A 70, B 67.5, C 15
    assert found["fold1"].tau == pytest.approx(1 / 3)


def test_a_fold_without_the_class_has_no_ranking() -> None:
    found = ranks_by_case_group(dice({"A": [0.9, NAN], "B": [0.8, NAN]}), ["fold0", "fold1"])
    assert (found["fold0"].patients, found["fold0"].tau) == (1, 1)
    assert (found["fold1"].patients, found["fold1"].ranks.tolist()) == (0, [1, 1])
    assert np.isnan(found["fold1"].tau)


def test_seeds_without_a_case_in_common_have_no_ranking() -> None:
    scores = dice({"A0": [0.9, NAN], "B0": [0.8, NAN], "A1": [NAN, 0.9], "B1": [NAN, 0.8]})
    found = ranks_by_model_group(scores, ["A", "B", "A", "B"], ["0", "0", "1", "1"])
    assert [group.patients for group in found.values()] == [0, 0]


def test_ranking_of_each_seed_against_the_mean_over_seeds() -> None:
    scores = dice({"A0": [0.9], "B0": [0.8], "C0": [0.1], "B1": [0.95], "A1": [0.9], "A2": [0.9]})
    found = ranks_by_model_group(scores, ["A", "B", "C", "B", "A", "A"], ["0", "0", "0", "1", "1", "2"])
    assert found["0"].models == ("A", "B", "C")
    assert found["0"].ranks.tolist() == [1, 2, 3]
    assert found["0"].tau == pytest.approx(1)  # A 90, B 87.5, C 10
    assert (found["1"].models, found["1"].ranks.tolist(), found["1"].tau) == (("B", "A"), [1, 2], -1)
    assert np.isnan(found["2"].tau)  # one model
