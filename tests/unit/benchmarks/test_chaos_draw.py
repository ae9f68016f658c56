"""What chaos draws: the same from the same seed, every kind before any twice, in an order in which a run can be struck; what it excuses."""

import itertools

import pytest

from benchmarks.chaos import unlike
from benchmarks.chaos_faults import IN_TRAINING, IN_VALIDATION, RESTARTS_WORKERS, draw


def test_a_seed_gives_the_same_faults() -> None:
    assert draw(1, 20, 4, 14) == draw(1, 20, 4, 14)
    assert draw(1, 20, 4, 14) != draw(2, 20, 4, 14)


def test_every_kind_comes_before_any_comes_again() -> None:
    for seed in range(20):
        kinds = [strike.kind for strike in draw(seed, len(IN_TRAINING) + 3, 4, 14)]
        assert set(kinds) >= {*IN_TRAINING, *IN_VALIDATION[:2]}


def test_a_run_is_struck_in_the_order_of_its_epochs_and_validated_last() -> None:
    for seed in range(20):
        strikes = draw(seed, 24, 4, 14)
        assert [strike.run for strike in strikes] == sorted(strike.run for strike in strikes)
        for run in range(4):
            own = [strike for strike in strikes if strike.run == run]
            moments = [strike.moment == "validation" for strike in own]
            assert moments == sorted(moments)
            epochs = [strike.epoch for strike in own if strike.moment != "validation"]
            assert epochs == sorted(epochs)
            assert all(1 <= epoch < 14 for epoch in epochs)


def test_a_start_up_is_struck_only_where_there_is_one() -> None:
    for seed in range(20):
        strikes = draw(seed, 24, 4, 14)
        for before, strike in itertools.pairwise(strikes):
            if strike.moment == "start-up" and before.run == strike.run:
                assert before.kind in RESTARTS_WORKERS


COMMITTED = {"train/loss": [(0, 0.5), (1, 0.4)], "time/epoch_s": [(0, 3.0), (1, 4.0)], "attempt": [(0, 1.0), (1, 2.0)]}
FIRST_VERSION = {"train/loss": [(0, 0.5), (1, 0.4)], "time/epoch_s": [(0, 3.0), (1, 3.5)], "attempt": [(0, 1.0), (1, 1.0)]}


def test_an_epoch_that_was_trained_twice_may_differ_in_what_the_machine_measured_and_only_after_a_cut() -> None:
    assert unlike(COMMITTED, COMMITTED, was_cut=False) == []
    assert unlike(FIRST_VERSION, COMMITTED, was_cut=True) == []
    assert len(unlike(FIRST_VERSION, COMMITTED, was_cut=False)) == 2


@pytest.mark.parametrize(
    "points",
    [
        {"train/loss": [(0, 0.5), (1, 0.41)]},
        {"train/loss": [(0, 0.5), (1, 0.4), (1, 0.4)]},
        {"train/loss": [(0, 0.5)]},
        {"time/epoch_s": [(0, 2.9), (1, 3.5)]},
        {"time/epoch_s": []},
    ],
)
def test_a_cut_excuses_no_other_difference_from_what_was_committed(points: dict[str, list[tuple[int, float]]]) -> None:
    key = next(iter(points))
    found = unlike(FIRST_VERSION | points, COMMITTED, was_cut=True)
    assert len(found) == 1
    assert key in found[0]
