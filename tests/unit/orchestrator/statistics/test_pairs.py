"""Pairs: against scipy and against values worked by hand."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.pairs import compare_all, detectable_difference, holm, mean_interval, median_interval, signed_rank
from orchestrator.statistics.table import DICE, HD95, table_of
from tests.unit.orchestrator.statistics.score_tables import NAN, dice, records

# Dice points, sorted: 1 2 3 4 5 -1.5 -> mean 13.5 / 6 = 2.25, median 2.5
A = [0.50, 0.50, 0.50, 0.50, 0.50, 0.50]
B = [0.51, 0.52, 0.53, 0.54, 0.55, 0.485]


def test_a_pair_worked_by_hand() -> None:
    [found] = compare_all(dice({"A": A, "B": B}))
    assert (found.a, found.b, found.counts.cases, found.counts.patients, found.comparisons) == ("A", "B", 6, 6, 1)
    assert found.mean == pytest.approx(2.25)
    assert found.median == pytest.approx(2.5)
    assert (found.wins, found.ties, found.losses) == (5, 0, 1)
    # ranks of |d|: 1 -> 1, 1.5 -> 2: W- = 2, W+ = 19; 3 of 64 sign patterns reach W- <= 2, twice: p = 6 / 64
    assert found.test.p == found.p_holm == pytest.approx(6 / 64)
    assert found.test.method == "exact"
    assert found.test.rank_biserial == pytest.approx((19 - 2) / 21)
    assert found.median_interval == pytest.approx((-1.5, 5))  # of six values the smallest and the largest: 1 - 2/64


def test_a_positive_difference_favours_the_second_model_also_where_lower_is_better() -> None:
    both = table_of(records({"A": [0.9] * 3, "B": [0.9] * 3}) + records({"A": [9.0, 8, 7], "B": [5.0, 5, 5]}, metric="hd95_mm"))
    [found] = compare_all(both.case_scores(HD95))
    assert (found.mean, found.wins, found.losses) == (3.0, 3, 0)
    low, high = found.mean_interval
    assert found.b_minus_a == (-3.0, (-high, -low), -3.0), "as measured, B has 3 mm less"


def test_intervals_are_those_of_scipy() -> None:
    differences = np.random.default_rng(0).normal(1, 2, 37)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert mean_interval(differences) == pytest.approx((expected.low, expected.high))
    low, high = median_interval(differences)
    assert low == pytest.approx(stats.quantile_test(differences, p=0.5, alternative="greater").confidence_interval(0.975).low)
    assert high == pytest.approx(stats.quantile_test(differences, p=0.5, alternative="less").confidence_interval(0.975).high)


def test_the_interval_is_that_of_the_bca_bootstrap_where_that_one_is_right() -> None:
    differences = np.random.default_rng(1).normal(1, 2, 400)
    bca = stats.bootstrap((differences,), np.mean, method="BCa", n_resamples=4000, rng=np.random.default_rng(2)).confidence_interval
    assert mean_interval(differences) == pytest.approx((bca.low, bca.high), abs=0.04)  # a fifth of its half width


@pytest.mark.parametrize("size", [6, 13, 50, 51, 300])
def test_the_test_is_scipys(size: int) -> None:
    differences = np.random.default_rng(size).normal(0.3, 1, size)
    assert signed_rank(differences).p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert signed_rank(differences).method == ("exact" if size <= 50 else "normal approximation")


def test_with_ties_among_few_it_is_scipys_permutation_test() -> None:
    for differences in ([1.0, 1, -1, 2, 2, 3], [1.0, -1, -1, 2], [0.5] * 5, [1.0, -1]):
        assert signed_rank(np.array(differences)).p == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_zeros_are_dropped_before_the_test_is_chosen() -> None:
    differences = np.array([0.0] * 95 + [1.0, 2.0, 3.0, 4.0, 5.0])
    found = signed_rank(differences)
    assert found.method == "exact"
    assert found.p == pytest.approx(2 / 32)  # scipy alone would take the normal approximation: 0.043


def test_ties_are_exact_only_among_few() -> None:
    few, many = signed_rank(np.array([1.0] * 6)), signed_rank(np.array([1.0, -1.0] * 7))
    assert (few.p, few.method, few.rank_biserial) == (2 / 64, "exact", 1.0)
    assert (many.method, many.rank_biserial) == ("normal approximation", 0.0)
    assert many.p > 0.9


def test_scores_that_differ_only_by_rounding_are_ties() -> None:
    [found] = compare_all(dice({"A": [0.8, 0.7, 0.1 + 0.2], "B": [0.9, 0.8, 0.3]}))
    assert (found.wins, found.ties) == (2, 1)
    assert found.test.p == 0.5  # two equal differences: exact with ties


def test_equal_models_have_no_difference() -> None:
    [found] = compare_all(dice({"A": A, "B": A}))
    assert (found.mean, found.mean_interval, found.p_holm, found.test.method) == (0, (0, 0), 1, "no difference")


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])  # 4*.01, 3*.03, then 2*.04 < .09
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_all_pairs_are_adjusted_together() -> None:
    found = compare_all(dice({"A": A, "B": B, "C": [x - 0.1 for x in A]}))
    assert [(pair.a, pair.b) for pair in found] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert [pair.test.p for pair in found] == pytest.approx([6 / 64, 2 / 64, 2 / 64])
    assert [pair.p_holm for pair in found] == pytest.approx([6 / 64, 6 / 64, 6 / 64])
    assert {pair.comparisons for pair in found} == {3}


def test_a_patient_with_many_cases_counts_once() -> None:
    [found] = compare_all(dice({"A": [0.5] * 4, "B": [0.6, 0.6, 0.6, 0.4]}, patients="pppq"))
    assert found.mean == pytest.approx(0)  # +10 and -10
    assert (found.counts.cases, found.counts.patients, found.wins, found.losses) == (4, 2, 1, 1)


def test_cases_left_out_of_a_pair_are_counted_by_reason() -> None:
    a, b = [0.5, NAN, 0.0, NAN, 0.6], [0.6, NAN, NAN, 0.0]  # B lacks the last case
    [found] = compare_all(dice({"A": a, "B": b}))
    counts = found.counts
    assert (counts.cases, counts.absent, counts.false_of_a, counts.false_of_b, counts.missing) == (1, 1, 1, 1, 1)
    assert found.mean == pytest.approx(10)


def test_a_missed_class_counts_as_dice_zero() -> None:
    [found] = compare_all(dice({"A": [0.0, 0.5], "B": [0.5, 0.5]}))
    assert (found.mean, found.counts.missed_by_a) == (25, 0)


def test_a_model_does_not_gain_distance_by_missing_the_hard_cases() -> None:
    dices = {"A": [0.9] * 6 + [0.0] * 6, "B": [0.9] * 12}
    distances = {"A": [3.0, 3.1, 3.2, 3.3, 3.4, 3.5] + [NAN] * 6, "B": [3.05, 3.15, 3.25, 3.35, 3.45, 3.55, 30, 31, 32, 33, 34, 35]}
    [found] = compare_all(table_of(records(dices) + records(distances, metric="hd95_mm")).case_scores(HD95))
    assert found.mean == pytest.approx(-0.05)  # over the six cases that both found
    assert (found.counts.cases, found.counts.missed_by_a, found.counts.missed_by_b) == (12, 6, 0)
    assert (found.wins, found.losses) == (6, 6)
    assert found.test.rank_biserial > 0.4  # but those that A missed are the largest differences


def test_a_class_that_both_models_miss_is_a_tie() -> None:
    rows = records({"A": [0.0, 0.9], "B": [0.0, 0.9]}) + records({"A": [NAN, 3.0], "B": [NAN, 2.0]}, metric="hd95_mm")
    [found] = compare_all(table_of(rows).case_scores(HD95))
    assert (found.wins, found.ties, found.mean, found.counts.missed_by_a, found.counts.missed_by_b) == (1, 1, 1.0, 1, 1)


def test_models_without_a_common_case_compare_to_nothing() -> None:
    [found] = compare_all(table_of(records({"A": [0.5]}) + records({"B": [0.5]}, class_name="tumour")).case_scores(DICE, "liver"))
    assert (found.counts.cases, found.counts.missing, found.p_holm, found.detectable) == (0, 1, 1.0, np.inf)
    assert np.isnan([found.mean, found.median]).all()


def test_one_patient_has_no_interval() -> None:
    [found] = compare_all(dice({"A": [0.5], "B": [0.6]}))
    assert (found.mean_interval, found.median_interval, found.detectable) == ((-np.inf, np.inf), (-np.inf, np.inf), np.inf)


def test_the_detectable_difference_by_hand() -> None:
    # t quantiles with 24 degrees of freedom: 2.0639 at 0.975 and 0.8569 at 0.8; 10 / sqrt(25) = 2
    assert detectable_difference(10, 25, 1) == pytest.approx((2.0639 + 0.8569) * 2, abs=1e-3)
    assert detectable_difference(10, 25, 6) > detectable_difference(10, 25, 1)


@pytest.mark.parametrize("comparisons", [1, 10])
def test_the_detectable_difference_is_found_with_the_stated_power(comparisons: int) -> None:
    rng, size = np.random.default_rng(3), 60
    shift = detectable_difference(1.0, size, comparisons)
    found = [signed_rank(rng.normal(shift, 1, size)).p * comparisons <= 0.05 for _ in range(200)]
    assert 0.69 < np.mean(found) < 0.88  # 200 draws: 0.8 +- 0.06, and the signed-rank test has 0.955 of t's efficiency


def test_the_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(4)
    intervals = [mean_interval(np.round(rng.standard_t(4, 15) + 1, 1)) for _ in range(1000)]
    assert 0.93 < np.mean([low <= 1 <= high for low, high in intervals]) < 0.98
