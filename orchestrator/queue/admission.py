"""Which run starts next: pure policies over plain values, without clock, files or Ray.

Order and capacity are two questions: `ordered` decides who is first (priorities, fair shares), `decide` starts from the front whatever fits
whole. The first run that does not fit is passed only by runs that do not delay it (`backfill.py`), so that small ones never starve it.
An elastic run starts with its fewest workers; `growth` gives it more only while nobody waits, and what it has been given it holds.
"""

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.queue.backfill import Front, front_of
from orchestrator.queue.gang_fit import Capacity, Fit, NodeResources, Reservation, fit, fit_in
from orchestrator.queue.order import Waiting, ordered
from orchestrator.queue.space import Space
from orchestrator.run.job_record import JobRecord
from trainers.contract.run_spec import WorkerSpec

SHOWN_STEP_S = 600.0
"""Expected starts are shown in steps of so much, so that a status is not new at every epoch of another run."""

MOST_KEPT_BACK_S = 300.0
"""For how long a run that takes any GPU waits for those of a type to take theirs: that takes seconds, between two jobs of a run minutes."""

NODES_RETURN_S = 1800.0
"""For how long a run without a job keeps what it has reserved though the nodes for it are gone: one that only boots is back by then."""


@dataclass(frozen=True)
class Decision:
    """Who starts now, in this order, and why the others wait."""

    start: tuple[str, ...]
    because: dict[str, str]
    first: str = ""
    """Key of the first run in line that does not fit now; empty: none."""
    starts_unix: float | None = None
    """When that one is expected to start; None: that is not known."""
    never: frozenset[str] = frozenset()
    """Keys of those that ask for what these nodes can never hold."""
    need_nodes: frozenset[str] = frozenset()
    """Keys of those that only nodes can hold which the autoscaler starts."""
    lack_kind: frozenset[str] = frozenset()
    """Keys of those among them whose kind of GPUs no node has: to ask for less would not help."""
    kept_back: frozenset[str] = frozenset()
    """Keys of those that fit, and wait for Ray to show where others lie."""

    def why(self, key: str) -> str:
        """Why a run waits and what lets it start, in sentences: apart for a wrong request and for no capacity."""
        because = self.because[key]
        if key in self.never:
            return f"Wrong request: {because}"
        if key in self.need_nodes:
            less = "" if key in self.lack_kind else "; if they never do, ask for less under `workers`"
            return f"No capacity: {because} It starts once they have come{less}."
        if key in self.kept_back:
            return f"No capacity: {because} It starts once these are in use, at the latest after {MOST_KEPT_BACK_S / 60:.0f} minutes."
        if key != self.first:
            return f"No capacity: {because} It starts after that one, or before it if that does not delay it."
        if self.starts_unix is None:
            return f"No capacity: {because} It is first in line and starts when enough of that has ended; when is not known."
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(math.ceil(self.starts_unix / SHOWN_STEP_S) * SHOWN_STEP_S))
        return f"No capacity: {because} It is first in line and starts when enough of that has ended, expected by {when}."


def schedule(
    waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation], now_unix: float = 0.0
) -> dict[str, Fit]:
    """When each of the runs starts that wait on the cluster, in their order, and why not now.

    What a run has reserved itself does not stand in its way, nor what runs without a job have that come after it and have reserved too: of
    gangs that together do not fit any more (a node died), the first one goes on. A run that fits no cluster of these nodes, or is refused,
    holds nobody back; one that had started, no longer than it may keep what it has reserved (`in_force`). The first one that does not fit
    is passed only by runs that do not delay it.
    """
    return _scheduled(waiting, nodes, reserved, now_unix)[0]


def _scheduled(
    waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation], now_unix: float
) -> tuple[dict[str, Fit], str, float | None]:
    """As `schedule`, with the key of the first run that does not fit, and its expected start."""
    waiting, held = list(waiting), in_force(reserved, nodes, now_unix)
    holding = {r.run_key for r in held}
    behind = {r.run_key for r in held if r.idle_unix} & {run.run_key for run in waiting}
    """Runs without a job that have not had their turn here: what they have reserved holds back only those that have reserved nothing."""
    capacity = Capacity.of(nodes, held)
    found: dict[str, Fit] = {}
    fits: dict[WorkerSpec, Fit] = {}
    """By gang, for the present capacity: alike runs are looked at once."""
    front: Front | None = None
    first = ""
    for run in ordered((run for run in waiting if not run.is_refused), nodes, held, now_unix):
        has_own = run.run_key in holding
        others = [r for r in held if r.run_key != run.run_key and r.run_key not in behind] if has_own else held
        room = Capacity.of(nodes, others) if has_own else capacity
        outcome = None if has_own else fits.get(run.workers)
        if outcome is None:
            outcome = fit_in(room, run.workers, nodes, len(others))
        if not has_own:
            fits[run.workers] = outcome
        if _can_fit(outcome):
            behind.discard(run.run_key)
        if _can_fit(outcome) and front is not None and not has_own:
            if outcome.when == "later" or not front.lets_pass(run, capacity):
                found[run.run_key] = Fit("later", f"queued behind {front.run.address}.")
                continue
            front = front.after(run, capacity)
        elif outcome.when == "later" and _can_fit(outcome):
            first = first or run.run_key
            front = front or front_of(run, capacity.seen_by(run.workers).totals, others, now_unix)
        if outcome.when == "now" and not has_own and (kind := _kept_back_for(run, capacity, now_unix)):
            because = f"it fits, but Ray might give it a GPU of the type {kind} that is reserved for another run."
            outcome = Fit("later", because, is_kept_back=True)
        if outcome.when == "now" or outcome.is_kept_back:
            held = [*(r for r in held if r.run_key != run.run_key), _reservation(run, now_unix)]
            capacity = Capacity.of(nodes, held) if has_own else capacity.less(run.workers, run.workers.least)
            fits.clear()
        found[run.run_key] = outcome
    return found, first, front.starts_unix if front is not None and front.run.run_key == first else None


def in_force(reserved: Iterable[Reservation], nodes: Sequence[NodeResources], now_unix: float) -> list[Reservation]:
    """The reservations that count: not those of runs that have had no job for long, and whose gangs these nodes cannot hold any more.

    Once the nodes are back, they count again.
    """
    totals = Space.of(node.total for node in nodes)
    return [r for r in reserved if not r.idle_unix or now_unix - r.idle_unix <= NODES_RETURN_S or totals.room(r.workers) >= r.workers.least]


def _kept_back_for(run: Waiting, capacity: Capacity, now_unix: float) -> str:
    """The type of GPUs that a run may take from others, for which it waits; empty: none, or it has waited for long enough.

    A run that holds its own resources already never waits for that, so that no two wait for each other.
    """
    if run.kept_back_unix and now_unix - run.kept_back_unix > MOST_KEPT_BACK_S:
        return ""
    return capacity.endangered_by(run.workers, run.workers.least)


def _reservation(run: Waiting, now_unix: float) -> Reservation:
    """What a run holds that starts now."""
    ends = None if run.estimate_s is None else now_unix + run.estimate_s
    return Reservation(run.run_key, run.workers, user=run.user, ends_unix=ends)


def decide(
    waiting: Iterable[Waiting],
    nodes: Sequence[NodeResources],
    reserved: Sequence[Reservation],
    mine: Collection[str],
    now_unix: float = 0.0,
) -> Decision:
    """Which of the runs in `mine` start now, among everything that waits on the cluster.

    Runs of other campaigns are left to their own campaign, but keep their place and their resources.
    """
    found, first, starts_unix = _scheduled(waiting, nodes, reserved, now_unix)
    start = tuple(key for key, outcome in found.items() if outcome.when == "now" and key in mine)
    never = frozenset(key for key, outcome in found.items() if outcome.when == "never")
    need_nodes = frozenset(key for key, outcome in found.items() if outcome.needs_nodes)
    lack_kind = frozenset(key for key, outcome in found.items() if outcome.lacks_kind)
    kept_back = frozenset(key for key, outcome in found.items() if outcome.is_kept_back)
    because = {key: outcome.because for key, outcome in found.items() if outcome.when != "now"}
    return Decision(start, because, first, starts_unix, never, need_nodes, lack_kind, kept_back)


def growth(
    growing: Mapping[str, int], waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation]
) -> dict[str, int]:
    """To how many workers each elastic training may grow now. `growing`: how many it has; what one may take is not offered to the next.

    While a run waits that these nodes can hold, nobody grows: what comes free is for the queue. Nobody is made smaller by this. To grow,
    all workers of a run start again, and Ray may lay them on GPUs of a type that are reserved and not in use yet: there must be enough of
    these for both.
    """
    held = {r.run_key: replace(r, size=growing[r.run_key]) if r.run_key in growing else r for r in reserved}
    is_wanted = any(_can_fit(fit(run.workers, nodes)) for run in waiting)
    for key in growing:
        if not is_wanted:
            own = held[key]
            held[key] = replace(own, size=Capacity.of(nodes, list(held.values())).growth(own.workers, own.bundles))
    return {key: held[key].bundles for key in growing}


def _can_fit(outcome: Fit) -> bool:
    """Whether the nodes that are there now can hold a gang at some time."""
    return outcome.when != "never" and not outcome.needs_nodes


def ledger(
    jobs: Iterable[JobRecord], begun: Collection[str], holding: Iterable[Reservation], sizes: Mapping[str, int] | None = None
) -> list[Reservation]:
    """Everything that is held on the cluster, one reservation per run: by living jobs, and by runs that a living campaign holds
    (those between their training and their validation, or whose job died). Whose a run is, and its expected end, its campaign knows.

    `begun`: keys of runs whose workers hold their resources in Ray already. `sizes`: how many workers elastic trainings have or may take
    at any moment; a validation holds the fewest.
    """
    now = sizes or {}
    held = {
        job.run_key: Reservation(
            job.run_key,
            job.reserved,
            is_placed=job.kind == "validate" or job.run_key in begun,
            size=now.get(job.run_key, 0) if job.kind == "train" and job.reserved.is_elastic else 0,
        )
        for job in jobs
        if job.is_live and job.reserved is not None and job.kind in ("train", "validate")
    }
    for reservation in holding:
        known = held.setdefault(reservation.run_key, reservation)
        held[known.run_key] = replace(known, user=known.user or reservation.user, ends_unix=known.ends_unix or reservation.ends_unix)
    return list(held.values())
