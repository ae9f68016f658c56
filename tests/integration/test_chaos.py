"""Four faults, drawn once and for all, over a run on a cluster of three nodes: it ends as if nothing had happened.

The long form with every kind of fault: `python -m benchmarks.chaos --faults 20 --seed 1`.
"""

from pathlib import Path

import pytest

from benchmarks.chaos import Setting, play

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
KINDS = ("rank 0", "other rank", "loader", "driver", "state truncated", "tracking killed")
CI = Setting(faults=4, seed=1, runs=1, epochs=8, train_iterations=20, nodes=(1, 1), kinds=KINDS, validation=())


def test_a_campaign_under_fire_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    told: list[str] = []
    rows, violations = play(CI, tmp_path, told.append)
    assert not violations, "\n".join([*violations, *told])
    assert all(row.recovery_s is not None or row.result == "struck again in its start-up" for row in rows), "\n".join(told)
