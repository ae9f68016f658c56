"""In which order runs start: a pure policy over plain values, without clock, files or Ray.

First runs whose job died. Then by priority; of equal priority the user who holds the smallest share of the cluster; of one user first in,
first out. So users share the cluster evenly while all of them wait, and whoever waits alone has it alone.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from orchestrator.queue.gang_fit import NodeResources, Reservation
from trainers.contract.run_spec import PRIORITY, TOP_PRIORITY, Frozen, WorkerSpec

LIFT_S = 3600.0
"""A user who holds nothing gains a point of priority in this time: whoever is served keeps nobody waiting for ever."""


class RegistryRecord(Frozen):
    """What campaigns publish for each other: of a newer version's, what this one does not know is passed over."""

    model_config = ConfigDict(extra="ignore")


class GangRecord(RegistryRecord):
    """What concerns a gang. Its kind of GPUs is published beside `workers`: versions that know no kinds pass over it there, and refuse it
    within."""

    run_key: str
    workers: WorkerSpec

    @model_serializer(mode="wrap")
    def _kind_beside(self, default: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = default(self)
        kind = content["workers"].pop("accelerator_type", "")
        return {**content, "accelerator_type": kind} if kind else content

    @model_validator(mode="before")
    @classmethod
    def _kind_from_beside(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not content.get("accelerator_type") or not isinstance(content.get("workers"), dict):
            return content
        return {**content, "workers": {**content["workers"], "accelerator_type": content["accelerator_type"]}}


class Waiting(GangRecord):
    """A run that wants to start."""

    address: str
    campaign: str
    since_unix: float
    """When its campaign began."""
    position: int = 0
    """Place in its campaign."""
    is_resuming: bool = False
    """It had started already, and its job died: it goes before everything new."""
    is_refused: bool = False
    """The cluster refused its job, and is not asked at this moment: it holds nobody back, but nobody grows into its place."""
    user: str = ""
    """Who submitted it; empty: not known."""
    priority: int = Field(PRIORITY, ge=0, le=TOP_PRIORITY)
    first_unix: float = 0.0
    """When it was moved before everything else of its user; 0: it was not."""
    front_unix: float = 0.0
    """Since when it is first of all, does not fit, and it is not known when it will; 0: it is not."""
    kept_back_unix: float = 0.0
    """Since when it fits and waits for Ray to show where others lie; 0: it does not."""
    estimate_s: float | None = None
    """How long its training is expected to take; None: not known."""


@dataclass(frozen=True)
class Shares:
    """What part of the cluster gangs take: of its GPUs or of its CPU cores, whichever is more."""

    gpus: float
    cpus: float

    @classmethod
    def of(cls, nodes: Sequence[NodeResources]) -> "Shares":
        """Of a cluster of these nodes."""
        return cls(sum(n.total.get("GPU", 0.0) for n in nodes) or 1.0, sum(n.total.get("CPU", 0.0) for n in nodes) or 1.0)

    def taken_by(self, workers: WorkerSpec, bundles: int) -> float:
        """By so many bundles of a gang."""
        return max(bundles * workers.gpus / self.gpus, bundles * (workers.cpus + workers.loader_cpus) / self.cpus)

    def by_user(self, reserved: Iterable[Reservation]) -> dict[str, float]:
        """What each user holds."""
        held: dict[str, float] = {}
        for each in reserved:
            held[each.user] = held.get(each.user, 0.0) + self.taken_by(each.workers, each.bundles)
        return held


def ordered(
    waiting: Iterable[Waiting], nodes: Sequence[NodeResources] = (), reserved: Iterable[Reservation] = (), now_unix: float = 0.0
) -> list[Waiting]:
    """The runs in their order, as if each took its share when its turn comes. A run that two campaigns want stands once, at its better
    place."""
    runs = _once(sorted(waiting, key=_own_order))
    found = [run for run in runs if run.is_resuming]
    shares = Shares.of(nodes)
    held = shares.by_user(reserved)
    queues: dict[str, list[Waiting]] = {}
    for run in reversed(runs):  # the first of each user stands last
        if not run.is_resuming:
            queues.setdefault(run.user, []).append(run)
    highest = {user: max(run.priority for run in queue) for user, queue in queues.items()}

    def place(user: str) -> tuple[float, float, float, str, int, str]:
        run, share = queues[user][-1], held.get(user, 0.0)
        priority = highest[user] if run.first_unix else run.priority
        lift = 0 if share else int(max(0.0, now_unix - run.since_unix) // LIFT_S)
        return -min(TOP_PRIORITY, priority + lift), round(share, 9), run.since_unix, run.campaign, run.position, user

    heap = [place(user) for user in queues]
    heapq.heapify(heap)
    while heap:
        user = heap[0][-1]
        run = queues[user].pop()
        found.append(run)
        held[user] = held.get(user, 0.0) + shares.taken_by(run.workers, run.workers.least)
        if queues[user]:
            heapq.heapreplace(heap, place(user))
        else:
            heapq.heappop(heap)
    return found


def _own_order(run: Waiting) -> tuple[bool, float, int, float, str, int]:
    """Among the runs of one user."""
    return not run.is_resuming, -run.first_unix, -run.priority, run.since_unix, run.campaign, run.position


def _once(runs: Iterable[Waiting]) -> list[Waiting]:
    best: dict[str, Waiting] = {}
    for run in runs:
        best.setdefault(run.run_key, run)
    return list(best.values())
