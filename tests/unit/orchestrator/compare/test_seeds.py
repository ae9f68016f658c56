"""Spread over seeds, and whether a cheap score ranks trained models as the full one."""

import numpy as np
import pytest
from scipy import stats

from orchestrator.compare.seeds import agreement, seed_spread
from tests.unit.orchestrator.compare.score_tables import NAN, dice


def test_the_spread_is_that_of_the_means_over_common_cases() -> None:
    scores = dice({"A0": [0.5, 0.7, 0.1], "A1": [0.6, 0.8, NAN], "A2": [0.7, 0.9, 0.2], "B": [0.1, 0.1, 0.1]})
    found = seed_spread(scores, ["A", "A", "A", "B"])
    assert set(found) == {"A"}  # of B there is one seed
    assert found["A"].seeds == 3
    assert found["A"].sd == pytest.approx(10)  # 60, 70, 80


def test_a_patient_with_many_cases_counts_once_in_the_spread() -> None:
    found = seed_spread(dice({"A0": [0.5, 0.5, 0.5, 0.9], "A1": [0.5, 0.5, 0.5, 0.7]}, patients="pppq"), ["A", "A"])
    assert found["A"].sd == pytest.approx(np.std([70, 60], ddof=1))


def test_agreement_is_scipys_tau_and_counts_what_it_leaves_out() -> None:
    rng = np.random.default_rng(0)
    full = {f"run{i}": float(value) for i, value in enumerate(rng.normal(size=15))}
    cheap = {name: value + float(rng.normal(0, 0.7)) for name, value in full.items()} | {"no full": 0.5, "undefined": NAN}
    found = agreement(cheap, full | {"undefined": 0.3, "no cheap": 0.1})
    expected = stats.kendalltau([cheap[name] for name in full], list(full.values()))
    assert (found.models, found.left_out) == (15, 3)
    assert [found.tau, found.p] == pytest.approx([expected.statistic, expected.pvalue])
    assert -1 <= found.low < found.tau < found.high <= 1


def test_the_interval_of_tau_is_scipys_percentile_bootstrap() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=20)
    y = x + rng.normal(0, 0.5, 20)
    found = agreement({str(i): v for i, v in enumerate(x)}, {str(i): v for i, v in enumerate(y)})
    expected = stats.bootstrap(
        (x, y), lambda a, b: stats.kendalltau(a, b).statistic, paired=True, vectorized=False, n_resamples=400, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.08)


@pytest.mark.parametrize("models", [0, 1, 2, 4, 9])
def test_perfect_agreement_of_any_number_has_no_interval(models: int) -> None:
    scores = {str(i): float(i) for i in range(models)}
    found = agreement(scores, scores)
    assert np.isnan([found.low, found.high]).all()
    assert found.models == models
    assert found.tau == pytest.approx(1 if models > 1 else NAN, nan_ok=True)


def test_equal_scores_have_no_tau() -> None:
    found = agreement(dict.fromkeys("abcdef", 0.5), {name: i / 10 for i, name in enumerate("abcdef")})
    assert np.isnan([found.tau, found.low, found.high]).all()
