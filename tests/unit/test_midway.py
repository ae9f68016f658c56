"""Saving within an epoch: when rank 0 wishes it, and what a start goes on from."""

import pytest

from trainers.batches import requests_from
from trainers.midway import LEAVING_S, save_is_due
from trainers.spec.committed import state_stem


def due(since: float, every: float | None = None, asked: bool = False, leaving: bool = False, saved: bool = False) -> bool:
    return save_is_due(since, every, is_asked=asked, is_leaving=leaving, saved_since_notice=saved)


def test_by_default_nothing_is_saved_within_an_epoch() -> None:
    assert not due(1e9)


def test_it_is_saved_after_so_many_minutes_without_a_save() -> None:
    assert not due(59.0, every=60.0)
    assert due(60.0, every=60.0)


def test_a_notice_saves_at_once_and_then_again_and_again_until_the_node_is_gone() -> None:
    assert due(0.0, leaving=True)
    assert not due(LEAVING_S - 1, leaving=True, saved=True)
    assert due(LEAVING_S, leaving=True, saved=True)


def test_whoever_asks_gets_a_state() -> None:
    assert due(0.0, asked=True)


def test_states_sort_by_position_then_attempt() -> None:
    in_order = [state_stem(2, 9), state_stem(3, 1), state_stem(3, 2), state_stem(3, 1, 7), state_stem(3, 1, 10), state_stem(3, 2, 10)]
    assert in_order == sorted(in_order)
    assert sorted([state_stem(4, 1), *in_order])[-1] == state_stem(4, 1)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_loader_begins_within_the_epoch(first: int) -> None:
    wanted = [("train", 1, i) for i in range(first, 2)] + [("val", 1, 0), ("train", 2, 0), ("train", 2, 1), ("val", 2, 0)]
    assert list(requests_from(1, first, 3, {"train": 2, "val": 1})) == wanted
