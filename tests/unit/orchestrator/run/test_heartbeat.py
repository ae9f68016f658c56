"""For how long something has been as it is, by this machine's own clock."""

import math

from orchestrator.run.clock import Clock
from orchestrator.run.heartbeat import ChangeWatch


def test_a_watch_measures_from_the_last_change_whatever_the_wall_clock_does() -> None:
    def clock(monotonic: float, unix: float) -> Clock:
        return Clock(unix=lambda: unix, monotonic=lambda: monotonic)

    assert ChangeWatch().unchanged_s(clock(5, 0)) == math.inf
    watch = ChangeWatch().seen("a", clock(5, 1000))
    assert watch.seen("a", clock(15, 7)) is watch
    assert watch.unchanged_s(clock(15, 7)) == 10
    changed = watch.seen("b", clock(20, 50))
    assert (changed.unchanged_s(clock(21, 0)), changed.since_unix) == (1, 50)
