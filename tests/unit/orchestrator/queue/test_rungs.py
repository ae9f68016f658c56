"""Which models of a comparison go on after a rung; the numbers are worked by hand."""

import pytest

from orchestrator.queue.rungs import Contestant, judged, num_kept


def fold(model: str, number: int, value: float | None = None, *, reached: bool = True, is_open: bool = True) -> Contestant:
    return Contestant(model, f"{model}/{number}", is_open, reached, value)


FOUR = [
    *(fold("a", number, value) for number, value in enumerate((0.5, 0.7))),  # 0.6
    *(fold("b", number, value) for number, value in enumerate((0.9, 0.5))),  # 0.7
    *(fold("c", number, value) for number, value in enumerate((0.65, 0.65))),  # 0.65
    *(fold("d", number, value) for number, value in enumerate((0.1, 0.3))),  # 0.2
]


def names(runs: list[Contestant], keep: float) -> tuple[list[str], list[str], list[str]]:
    found = judged(runs, keep)
    assert found is not None
    models, out = found
    return [one.model for one in models if one.is_kept], [one.model for one in models if not one.is_kept], out


def test_the_better_half_by_the_mean_over_folds_goes_on() -> None:
    assert names(FOUR, 0.5) == (["b", "c"], ["a", "d"], [])
    found = judged(FOUR, 0.5)
    assert found is not None
    assert [one.value for one in found[0]] == pytest.approx([0.7, 0.65, 0.6, 0.2])
    assert found[0][0].runs == {"b/0": 0.9, "b/1": 0.5}, "the evidence"


@pytest.mark.parametrize(
    ("count", "keep", "kept"),
    [(4, 0.5, 2), (5, 0.5, 3), (1, 0.5, 1), (9, 1 / 3, 3), (10, 0.3, 3), (100, 0.29, 29), (2, 0.01, 1)],
)
def test_the_number_that_goes_on_is_rounded_up(count: int, keep: float, kept: int) -> None:
    assert num_kept(count, keep) == kept


def test_nothing_is_decided_while_a_fold_has_not_reached_the_rung() -> None:
    assert judged([*FOUR[:-1], fold("d", 1, reached=False)], 0.5) is None


def test_a_fold_that_ended_before_the_rung_takes_its_model_out_and_its_other_folds_are_not_waited_for() -> None:
    runs = [*FOUR[:-2], fold("d", 0, reached=False, is_open=False), fold("d", 1, reached=False)]
    assert names(runs, 0.5) == (["b", "c"], ["a"], ["d"])


def test_a_fold_that_ended_after_the_rung_counts_by_what_it_had_reached() -> None:
    assert names([*FOUR[:-1], fold("d", 1, 2.0, is_open=False)], 0.5) == (["d", "b"], ["c", "a"], [])


def test_of_equal_models_the_first_goes_on_and_one_without_foreground_comes_last() -> None:
    runs = [fold("none", 0), fold("a", 0, 0.5), fold("b", 0, 0.5), fold("zero", 0, 0.0)]
    assert names(runs, 0.25) == (["a"], ["b", "zero", "none"], [])


def test_what_ended_before_alone_decides_nothing() -> None:
    assert judged([fold("a", 0, reached=False, is_open=False)], 0.5) is None


def test_a_fold_that_a_person_stopped_before_the_rung_is_waited_for() -> None:
    stopped = Contestant("d", "d/1", is_open=False, has_reached=False, was_stopped=True)
    assert judged([*FOUR[:-1], stopped], 0.5) is None


def test_among_models_of_which_no_run_goes_on_nothing_is_decided() -> None:
    runs = [fold("a", 0, 0.5, is_open=False), fold("b", 0, 0.6, is_open=False)]
    assert judged(runs, 0.5) is None
    assert judged([*runs, fold("c", 0, reached=False, is_open=False)], 0.5) is None
    assert judged([*runs, fold("c", 0, 0.1)], 0.5) is not None
