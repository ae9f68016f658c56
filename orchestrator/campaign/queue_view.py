"""The queue of a cluster as people see it: the order, whose each run is, and when it is expected to start."""

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, TypeAdapter

from orchestrator.campaign.planning import queue_of
from orchestrator.queue.admission import decide
from orchestrator.queue.forecast import expected_starts
from orchestrator.queue.gang_fit import NodeResources, describe
from orchestrator.queue.order import Shares
from orchestrator.queue.registry import Registry
from orchestrator.run.events import Event
from orchestrator.run.job_record import JobRecord
from trainers.contract.run_spec import Frozen


class QueueRow(Frozen):
    """A run that waits, or the job of a test set."""

    run_key: str
    address: str
    user: str
    priority: int
    campaign: str
    workers: str
    """What it asks for, in words."""
    since_unix: float
    """When its campaign began."""
    starts_unix: float | None
    """When it is expected to start; null: not known."""
    is_moved: bool
    """It was moved before everything else of its user."""
    because: str
    """Why it waits."""


class QueueReport(Frozen):
    """The queue at one look."""

    rows: tuple[QueueRow, ...] = ()
    """First in line first."""
    num_preprocessing: int = Field(0, exclude_if=lambda count: count == 0)
    """Jobs that preprocess data: the runs that wait for them have no place in the queue yet."""
    shares: dict[str, float] = Field(default_factory=dict)
    """What part of the cluster (of its GPUs or its CPU cores, whichever is more) the runs of each user hold."""


class QueueEvent(Event):
    """What a small job on the cluster prints of its queue."""

    event: Literal["queue"] = "queue"
    queue: QueueReport


QUEUE_EVENTS = TypeAdapter(QueueEvent)


def queue_report(
    jobs: Sequence[JobRecord], nodes: Sequence[NodeResources], registry: Registry, now_unix: float | None = None
) -> QueueReport:
    """What waits on the cluster at this moment."""
    now = time.time() if now_unix is None else now_unix
    queue = queue_of(jobs, registry)
    by_key = {run.run_key: run for run in queue.waiting}
    starts = expected_starts(queue.waiting, nodes, queue.reserved, now)
    decision = decide(queue.waiting, nodes, queue.reserved, (), now)
    refused = [run.run_key for run in queue.waiting if run.run_key not in starts]
    rows = [
        QueueRow(
            run_key=key,
            address=by_key[key].address,
            user=by_key[key].user,
            priority=by_key[key].priority,
            campaign=by_key[key].campaign,
            workers=describe(by_key[key].workers),
            since_unix=by_key[key].since_unix,
            starts_unix=starts.get(key),
            is_moved=bool(by_key[key].first_unix),
            because=decision.why(key) if key in decision.because else "Its job was refused." if key in refused else "It starts now.",
        )
        for key in [*starts, *refused]
    ]
    preprocessing = sum(job.kind == "preprocess" and job.is_live for job in jobs)
    return QueueReport(rows=tuple(rows), num_preprocessing=preprocessing, shares=Shares.of(nodes).by_user(queue.reserved))
