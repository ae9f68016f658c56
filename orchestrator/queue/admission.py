"""Which run starts next: pure policies over plain values, without clock, files or Ray.

Order and capacity are two questions: `ordered` says who is first (the one place for priorities and dependencies), `decide` starts from the
front whatever fits whole. A run that does not fit holds back everything behind it, so that a large gang is never starved by small ones.
An elastic run starts with its fewest workers; `growth` gives it more only while nobody waits, and what it has been given it holds.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ConfigDict

from orchestrator.queue.gang_fit import Fit, NodeResources, Reservation, capacity_beside, fit
from orchestrator.run.job_record import JobRecord
from trainers.contract.run_spec import Frozen, WorkerSpec


class RegistryRecord(Frozen):
    """What campaigns publish for each other: of a newer version's, what this one does not know is passed over."""

    model_config = ConfigDict(extra="ignore")


class Waiting(RegistryRecord):
    """A run that wants to start."""

    run_key: str
    address: str
    campaign: str
    workers: WorkerSpec
    since_unix: float
    """When its campaign began."""
    position: int = 0
    """Place in its campaign."""
    is_resuming: bool = False
    """It had started already, and its job died: it goes before everything new."""
    is_refused: bool = False
    """The cluster refused its job, and is not asked at this moment: it holds nobody back, but nobody grows into its place."""


@dataclass(frozen=True)
class Decision:
    """Who starts now, in this order, and why the others wait."""

    start: tuple[str, ...]
    because: dict[str, str]


def ordered(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Who is first: runs whose job died, then first in, first out. A run that two campaigns want stands once, at its better place."""
    queue = sorted(waiting, key=lambda w: (not w.is_resuming, w.since_unix, w.campaign, w.position))
    best: dict[str, Waiting] = {}
    for run in queue:
        best.setdefault(run.run_key, run)
    return list(best.values())


def schedule(waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> dict[str, Fit]:
    """When each of the runs starts that wait on the cluster, in their order, and why not now.

    What a run has reserved itself does not stand in its way. A run that fits no cluster of these nodes (a node died), or is refused, holds
    nobody back.
    """
    held = list(reserved)
    holding = {r.run_key for r in reserved}
    found: dict[str, Fit] = {}
    front = ""
    for run in ordered(run for run in waiting if not run.is_refused):
        others = [r for r in held if r.run_key != run.run_key]
        outcome = fit(run.workers, nodes, others)
        if outcome.when != "never" and front and run.run_key not in holding:
            outcome = Fit("later", f"queued behind {front}.")
        elif outcome.when == "later":
            front = front or run.address
        elif outcome.when == "now":
            held = [*others, Reservation(run.run_key, run.workers)]
        found[run.run_key] = outcome
    return found


def decide(waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation], mine: Collection[str]) -> Decision:
    """Which of the runs in `mine` start now, among everything that waits on the cluster.

    Runs of other campaigns are left to their own campaign, but keep their place and their resources.
    """
    found = schedule(waiting, nodes, reserved)
    start = tuple(key for key, outcome in found.items() if outcome.when == "now" and key in mine)
    return Decision(start, {key: outcome.because for key, outcome in found.items() if outcome.when != "now"})


def growth(
    growing: Mapping[str, int], waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation]
) -> dict[str, int]:
    """To how many workers each elastic training may grow now. `growing`: how many it has; what one may take is not offered to the next.

    While a run waits that these nodes can hold, nobody grows: what comes free is for the queue. Nobody is made smaller by this.
    """
    held = {r.run_key: replace(r, size=growing[r.run_key]) if r.run_key in growing else r for r in reserved}
    is_wanted = any(fit(run.workers, nodes).when != "never" for run in waiting)
    for key in growing:
        own = held[key]
        more = 0 if is_wanted else capacity_beside(own.workers, nodes, list(held.values()))
        held[key] = replace(own, size=min(own.workers.most, own.bundles + max(0, more)))
    return {key: held[key].bundles for key in growing}


def ledger(
    jobs: Iterable[JobRecord], begun: Collection[str], holding: Iterable[Reservation], sizes: Mapping[str, int] | None = None
) -> list[Reservation]:
    """Everything that is held on the cluster, one reservation per run: by living jobs, and by runs that a living campaign holds
    (those between their training and their validation, or whose job died).

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
        held.setdefault(reservation.run_key, reservation)
    return list(held.values())
