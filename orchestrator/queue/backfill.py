"""Who may start before the first run in line, which does not fit yet: pure.

A run passes it if it does not delay it: it is expected to end before the first one is expected to start, or it fits beside it even then.
Where the first one waits for something whose end is not known (a training in its first epoch, a full validation, work that is not ours),
only two kinds pass: what is expected to end before the first one could start even if all of that ended at once; and what takes nothing on
any node that the first one's workers could use. Such a wait holds others back for at most `UNKNOWN_HOLDS_S`.

Where the first one asks for a type of accelerators, only Ray chooses where a run lies that asks for none: it passes only if the first one
fits at its start though the run lies on that type, as far as it may at this moment.
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
    before: Space
    """What is left at its start without it, where gangs that ask for no type of accelerators lie on its own first."""

    def lets_pass(self, run: Waiting, capacity: Capacity) -> bool:
        """Whether a run that fits now may start before it. `capacity`: what is left now."""
        if self._end_of(run) <= (self.earliest_unix if self.starts_unix is None else self.starts_unix):
            return True
        if self.starts_unix is not None:
            fits_beside = self.then.room(run.workers) >= run.workers.least
            return fits_beside and self._before_less(run, capacity).room(self.run.workers) >= self.run.workers.least
        seen = capacity.seen_by(self.run.workers)
        return all(space.spares(self.run.workers, run.workers) for space in (seen.free, seen.unreserved, self.then))

    def after(self, run: Waiting, capacity: Capacity) -> "Front":
        """The same once a run has passed it. `capacity`: what was left before."""
        if self.starts_unix is not None and self._end_of(run) <= self.starts_unix:
            return self
        return replace(self, then=self.then.less(run.workers, run.workers.least), before=self._before_less(run, capacity))

    def _before_less(self, run: Waiting, capacity: Capacity) -> Space:
        """What is left at its start where a run lies on its type of accelerators as far as that is free now; of no type as it is."""
        kind = self.run.workers.accelerator_type
        if not kind:
            return self.before
        alone = run.workers.model_copy(update={"loader_cpus": 0})
        return self.before.less(run.workers, min(run.workers.least, capacity.shown.of_type(kind).room(alone)))

    def _end_of(self, run: Waiting) -> float:
        return math.inf if run.estimate_s is None else self.now_unix + run.estimate_s


def front_of(run: Waiting, totals: Space, reserved: Sequence[Reservation], now_unix: float) -> Front | None:
    """What a run holds back that does not fit now; None: nothing, it has held others back for long enough.

    `reserved`: all that is held but its own. `totals`: as seen by its gang. An expected end that has passed is not known any more.
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
        space = at(starts, reserved)
        first_on_it = replace(space, scarce=run.workers.accelerator_type, taken_first=True)
        return Front(run, now_unix, starts, starts, space.less(run.workers, run.workers.least), first_on_it)
    if run.front_unix and now_unix - run.front_unix > UNKNOWN_HOLDS_S:
        return None
    fits_now = at(now_unix, lasting).room(run.workers) >= run.workers.least
    earliest = now_unix if fits_now else (first_end(lasting) or now_unix)
    then = totals.after([]) if earliest == now_unix else at(earliest, lasting)
    return Front(run, now_unix, None, earliest, then, then)
