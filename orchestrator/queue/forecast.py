"""When waiting runs are expected to start: pure. An estimate for people; nothing is decided by it."""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import replace

from orchestrator.queue.admission import in_force
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.order import Waiting, ordered
from orchestrator.queue.space import Space

MOST_FORECAST = 200
"""Of so many runs at the front of the queue; those behind them have no expected start."""


def expected_starts(
    waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation], now_unix: float
) -> dict[str, float | None]:
    """By run key, in the order of the queue, when each is expected to start if none passes another; None: that is not known.

    Not known is a start that depends on an end which is not known, and every start behind it; never expected is a gang that fits never.
    """
    totals = Space.of(node.total for node in nodes)
    reserved = in_force(reserved, nodes, now_unix)
    held = [replace(r, ends_unix=None) if r.ends_unix is not None and r.ends_unix <= now_unix else r for r in reserved]
    found: dict[str, float | None] = {}
    start: float | None = now_unix
    for place, run in enumerate(ordered((run for run in waiting if not run.is_refused), nodes, reserved, now_unix)):
        found[run.run_key] = None
        if start is None or place >= MOST_FORECAST or totals.room(run.workers) < run.workers.least:
            continue
        held = [r for r in held if r.run_key != run.run_key]
        start = found[run.run_key] = _first_fit(run, totals, held, start)
        if start is not None:
            ends = None if run.estimate_s is None else start + run.estimate_s
            held.append(Reservation(run.run_key, run.workers, user=run.user, ends_unix=ends))
    return found


def _first_fit(run: Waiting, totals: Space, held: Sequence[Reservation], from_unix: float) -> float | None:
    """The first moment from then on at which the gang fits."""

    def fits(unix: float) -> bool:
        return totals.after(r for r in held if r.ends_unix is None or r.ends_unix > unix).room(run.workers) >= run.workers.least

    moments = [from_unix, *sorted({r.ends_unix for r in held if r.ends_unix is not None and r.ends_unix > from_unix})]
    place = bisect.bisect_left(moments, True, key=fits)
    return moments[place] if place < len(moments) else None
