"""Which run starts next: pure policies over plain values, without clock, files or Ray.

Order and room are two questions: `ordered` says who is first (the one place for priorities and dependencies), `decide` starts from the
front whatever fits whole. A run that does not fit holds back everything behind it, so that a large gang is never starved by small ones.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.job_record import JobRecord
from orchestrator.resources import Fit, NodeResources, Reservation, fit
from trainers.spec.run_spec import Frozen, WorkerSpec


class Waiting(Frozen):
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
    """It had its place already and lost its job: it goes before everything new."""


@dataclass(frozen=True)
class Decision:
    """Who starts now, in this order, and why the others wait."""

    start: tuple[str, ...]
    because: dict[str, str]


def ordered(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Who is first: runs that lost their job, then first in, first out. A run that two campaigns want stands once, at its better place."""
    queue = sorted(waiting, key=lambda w: (not w.is_resuming, w.since_unix, w.campaign, w.position))
    best: dict[str, Waiting] = {}
    for run in queue:
        best.setdefault(run.run_key, run)
    return list(best.values())


def turns(waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> dict[str, Fit]:
    """When each of the runs starts that wait on the cluster, in their order, and why not now.

    What a run has reserved itself does not stand in its way. A run that fits no cluster of these nodes (a node was lost) holds nobody back.
    """
    held = list(reserved)
    holding = {r.run_key for r in reserved}
    found: dict[str, Fit] = {}
    front = ""
    for run in ordered(waiting):
        others = [r for r in held if r.run_key != run.run_key]
        outcome = fit(run.workers, nodes, others)
        if outcome.when != "never" and front and run.run_key not in holding:
            outcome = Fit("later", f"waits its turn behind {front}.")
        elif outcome.when == "later":
            front = front or run.address
        elif outcome.when == "now":
            held = [*others, Reservation(run.run_key, run.workers)]
        found[run.run_key] = outcome
    return found


def decide(waiting: Iterable[Waiting], nodes: Sequence[NodeResources], reserved: Sequence[Reservation], mine: Collection[str]) -> Decision:
    """Which of the runs in `mine` start now, among everything that waits on the cluster.

    Runs of other campaigns are left to their own campaign, but keep their place and their room.
    """
    found = turns(waiting, nodes, reserved)
    start = tuple(key for key, outcome in found.items() if outcome.when == "now" and key in mine)
    return Decision(start, {key: outcome.because for key, outcome in found.items() if outcome.when != "now"})


def ledger(jobs: Iterable[JobRecord], begun: Collection[str], holding: Iterable[Reservation]) -> list[Reservation]:
    """Everything that is held on the cluster, one reservation per run: by living jobs, and by runs that a living campaign says it holds
    (those between their training and their validation, or whose job was lost).

    `begun`: keys of runs whose workers hold their resources in Ray already.
    """
    held = {
        job.run_key: Reservation(job.run_key, job.reserved, is_placed=job.kind == "validate" or job.run_key in begun)
        for job in jobs
        if job.is_live and job.reserved is not None and job.kind in ("train", "validate")
    }
    for reservation in holding:
        held.setdefault(reservation.run_key, reservation)
    return list(held.values())
