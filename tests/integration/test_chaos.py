"""Faults, drawn once and for all, over runs on a cluster of several nodes: they end as if nothing had happened.

The second test draws what the first one lacks; more of everything: `python -m benchmarks.chaos --faults 20 --seed 1`.
"""

from pathlib import Path

import pytest

from benchmarks.chaos import Setting, play

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]
KINDS = ("rank 0", "driver", "state truncated", "tracking killed")
SHORT = Setting(faults=3, seed=1, runs=1, epochs=6, train_iterations=20, nodes=(1, 1), kinds=KINDS, validation=())
LONG_KINDS = ("other rank", "node", "head", "campaign", "driver", "loader", "drain notice", "validation worker", "validation driver")
LONG = Setting(faults=9, seed=35, runs=2, epochs=12, kinds=LONG_KINDS)
"""Each of these kinds comes once; with this seed the head dies while its nodes live on, and a new one starts at another address."""


def test_a_campaign_under_fire_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    told: list[str] = []
    rows, violations = play(SHORT, tmp_path, told.append)
    assert not violations, "\n".join([*violations, *told])
    assert all(row.recovery_s is not None or row.result == "struck again in its start-up" for row in rows), "\n".join(told)


@pytest.mark.timeout(1800)
def test_a_campaign_that_loses_nodes_head_drivers_and_validation_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    told: list[str] = []
    rows, violations = play(LONG, tmp_path, told.append)
    assert not violations, "\n".join([*violations, *told])
    assert {row.strike.kind for row in rows} == set(LONG_KINDS)
    struck = [row for row in rows if row.recovery_s is not None or row.result == "struck again in its start-up"]
    assert len(struck) >= LONG.faults / 2, "\n".join(told)  # the rest found its run at its end
