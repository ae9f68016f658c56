"""Who may start before the first run in line, which does not fit yet: pure.

A run passes it if it does not delay it: it is expected to end before the first one is expected to start, or it fits beside it even then.
Where the first one waits for something whose end is not known (a training in its first epoch, a full validation, work that is not ours),
only two kinds pass: what is expected to end before the first one could start even if all of that ended at once; and what takes nothing on
any node that the first one's workers could use. Such a wait holds others back for at most `UNKNOWN_HOLDS_S`.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.queue.gang_fit import Capacity, Reservation
from orchestrator.queue.order import Waiting
from orchestrator.queue.space import Space

UNKNOWN_HOLDS_S = 6 * 3600.0
"""For how long the first run in line holds others back while nobody knows when it can start."""


@dataclass(frozen=True)
class Front:
    """The first run in line that does not fit now, and what it holds back."""

    run: Waiting
    now_unix: float
    starts_unix: float | None
    """When it is expected to fit; None: that depends on something whose end is not known."""
    earliest_unix: float
    """Likewise, if all whose end is not known ended now."""
    then: Space
    """What is left at its start beside it; with an unknown start, what is left without it once all of that has ended."""

    def lets_pass(self, run: Waiting, capacity: Capacity) -> bool:
        """Whether a run that fits now may start before it. `capacity`: what is left now."""
        if self._end_of(run) <= (self.earliest_unix if self.starts_unix is None else self.starts_unix):
            return True
        if self.starts_unix is not None:
            return self.then.room(run.workers) >= run.workers.least
        seen = capacity.seen_by(self.run.workers)
        return all(space.spares(self.run.workers, run.workers) for space in (seen.free, seen.unreserved, self.then))

    def after(self, run: Waiting) -> "Front":
        """The same once a run has passed it."""
        if self.starts_unix is not None and self._end_of(run) <= self.starts_unix:
            return self
        return replace(self, then=self.then.less(run.workers, run.workers.least))

    def _end_of(self, run: Waiting) -> float:
        return math.inf if run.estimate_s is None else self.now_unix + run.estimate_s


def front_of(run: Waiting, totals: Space, reserved: Sequence[Reservation], now_unix: float) -> Front | None:
    """What a run holds back that does not fit now; None: nothing, it has held others back for long enough.

    `reserved`: all that is held but its own. An expected end that has passed is not known any more.
    """
    known = sorted({r.ends_unix for r in reserved if r.ends_unix is not None and r.ends_unix > now_unix})
    lasting = [r for r in reserved if r.ends_unix is not None and r.ends_unix > now_unix]

    def at(unix: float, among: Sequence[Reservation]) -> Space:
        return totals.after(r for r in among if r.ends_unix is None or r.ends_unix <= now_unix or r.ends_unix > unix)

    def first_end(among: Sequence[Reservation]) -> float | None:
        place = bisect.bisect_left(known, True, key=lambda unix: at(unix, among).room(run.workers) >= run.workers.least)
        return known[place] if place < len(known) else None

    starts = first_end(reserved)
    if starts is not None:
        return Front(run, now_unix, starts, starts, at(starts, reserved).less(run.workers, run.workers.least))
    if run.front_unix and now_unix - run.front_unix > UNKNOWN_HOLDS_S:
        return None
    fits_now = at(now_unix, lasting).room(run.workers) >= run.workers.least
    earliest = now_unix if fits_now else (first_end(lasting) or now_unix)
    return Front(run, now_unix, None, earliest, totals.after([]) if earliest == now_unix else at(earliest, lasting))
