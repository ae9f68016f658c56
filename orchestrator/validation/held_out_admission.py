"""A test set's turn on the cluster: which workers it takes, and the wait until they fit, in one queue with the runs of campaigns.

Its job has an entry in the registry as a campaign has, so that others see what it waits for and what it holds, and that nobody else
predicts into its output folder.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import Field

from orchestrator.cluster.nodes import cluster_nodes
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.follow.reserved import leave_nodes_of_others, reservations
from orchestrator.queue.admission import decide
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.gang_fit import Capacity, NodeResources, Reservation, capacity_beside, describe, fit, grows
from orchestrator.queue.order import Waiting
from orchestrator.queue.registry import Entry, HeldWorkers, Registry
from orchestrator.queue.space import accelerator_types
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord, living_members
from trainers.contract.run_spec import PRIORITY, Frozen, WorkerSpec

LOOK_S = 2.0
"""Pause between two looks whether the workers fit."""


class AskedWorkers(Frozen):
    """What somebody asked for; what is left open the cluster decides."""

    count: int | None = Field(None, ge=1)
    gpus: int | None = Field(None, ge=0, le=1)
    cpus: int | None = Field(None, ge=1)


def workers_for(asked: AskedWorkers, nodes: Sequence[NodeResources], cases: int, accelerator_type: str = "") -> WorkerSpec:
    """The workers of a test set with so many cases to do: as many as were asked for, else from one to what the cluster holds. Pure.

    With a GPU each where the cluster has any, of the kind that training asked for. Raises ClusterError for what these nodes can never hold.
    """
    gpus = int(any(node.total.get("GPU", 0) >= 1 for node in nodes)) if asked.gpus is None else asked.gpus
    kind = accelerator_type if gpus else ""
    own = [node for node in nodes if not kind or kind in accelerator_types(node.total)]
    one = WorkerSpec(count=1, gpus=gpus, cpus=asked.cpus or _cpus(own, gpus)).of_type(kind)
    idle = [replace(node, free=node.total) for node in nodes]
    wanted = one.model_copy(update={"count": asked.count or 1})
    if (outcome := fit(wanted, idle)).when == "never":
        restricted = f" Training asked for {kind} GPUs alone; `--cpu` predicts on CPUs." if kind else ""
        raise ClusterError(f"test set: its workers fit this cluster never: it {outcome.because}{restricted}")
    most = asked.count or 1 if outcome.needs_nodes else min(max(1, cases), asked.count or capacity_beside(one, idle, []))
    if asked.count is not None or most == 1:
        return one.model_copy(update={"count": most})
    return WorkerSpec(min=1, max=most, gpus=one.gpus, cpus=one.cpus).of_type(kind)


def cpu_warning(asked: AskedWorkers, workers: WorkerSpec, trained: WorkerSpec) -> str:
    """A sentence where CPUs predict that nobody asked for: the cluster has no GPU at this moment, training had some. Else nothing. Pure."""
    if workers.gpus or asked.gpus is not None or not trained.gpus:
        return ""
    return (
        f"wanted is a GPU for each worker, as in training ({describe(trained)}); no node of this cluster has one at this moment, so it "
        f"runs on CPUs: {describe(workers)}. Once the GPU node is back, stop it and give the same command again: finished cases are kept. "
        "`--cpu` asks for CPUs."
    )


def fewer_cpus(asked: AskedWorkers, workers: WorkerSpec) -> str:
    """A sentence for one that waits on CPUs of which nobody named the number: fewer may be free at once. Else nothing. Pure."""
    if workers.gpus or asked.cpus is not None or workers.cpus == 1:
        return ""
    return f" {workers.cpus} CPUs per worker are the default here; `--cpus 1` needs one: stop it and give the same command again with that."


def _cpus(nodes: Sequence[NodeResources], gpus: int) -> int:
    """Cores of a worker: the usual number, or fewer: the least share of a GPU in its node, without GPUs what the largest node has; where no
    node has any, the usual number of the nodes to come."""
    usual = WorkerSpec().cpus
    if gpus:
        shares = [int(node.total.get("CPU", 0) // node.total["GPU"]) for node in nodes if node.total.get("GPU", 0) >= 1]
        return max(1, min([usual, *shares]))
    return min(usual, max((int(node.total.get("CPU", 0)) for node in nodes), default=0) or usual)


@dataclass(frozen=True)
class QueuePlace:
    """Where the job of a test set stands in the queue."""

    job: str
    """Its submission id, by which its entry counts while it lives."""
    what: str
    """How others call it who wait behind it."""
    registry: Registry
    records: Callable[[], Sequence[JobRecord]]
    nodes: Callable[[], Sequence[NodeResources]] = cluster_nodes
    clock: Clock = field(default_factory=Clock)
    user: str = ""
    """Whose share of the cluster it takes."""
    priority: int = PRIORITY
    enlarging: Enlarging | None = None
    """Asks for nodes on demand while it waits; None: nobody asks."""

    def others(self, jobs: Sequence[JobRecord]) -> dict[str, Entry]:
        """The entries of all that live beside it."""
        return self.registry.entries(living_members(jobs) - {self.job})


@contextlib.contextmanager
def admitted(place: QueuePlace, output: Path, workers: WorkerSpec | None, on_wait: Callable[[str], None]) -> Iterator[WorkerSpec | None]:
    """Own an output folder and hold workers until the block's end; gives those that were granted, once they fit. None: no work, no workers.

    `on_wait` gets each new reason why they do not fit yet. Raises ConfigError where another job owns the folder, ClusterError.
    """
    key = f"test set in {os.path.realpath(output)}"
    with place.registry.locked():
        owner = next((job for job, entry in place.others(place.records()).items() if key in entry.runs), None)
        if owner is not None:
            raise ConfigError(
                f"output: {owner} predicts into {output} at this moment. Wait until it has ended (finished cases are kept), or name "
                "another folder: --output."
            )
        place.registry.post(place.job, Entry(runs=(key,)))
    try:
        yield None if workers is None else granted(place, key, workers, on_wait)
    finally:
        place.registry.withdraw(place.job)
        let_go(place)


def let_go(place: QueuePlace) -> None:
    """Let the autoscaler keep only what others want, where this place has asked it for nodes."""
    if place.enlarging is None or not place.enlarging.is_open:
        return
    with contextlib.suppress(ClusterError), place.registry.locked():
        leave_nodes_of_others(place.enlarging, place.records(), place.registry, but=place.job)


def granted(
    place: QueuePlace,
    key: str,
    workers: WorkerSpec,
    on_wait: Callable[[str], None],
    *,
    is_placed: bool = True,
    lacking: Callable[[Sequence[NodeResources]], str] = lambda nodes: "",
) -> WorkerSpec:
    """Wait until `workers` fit, and hold them under `key`; `on_wait` gets each new reason why they do not fit yet.

    `is_placed`: Ray shows them as used within seconds. A longer wait for that would hold the lock. `lacking`: what else the nodes
    have to have free, beside cores and GPUs; '' once they have.
    """
    waiting = Waiting(
        run_key=key,
        address=place.what,
        campaign=place.job,
        workers=workers,
        since_unix=place.clock.unix(),
        user=place.user,
        priority=place.priority,
    )
    reason = ""
    while True:
        try:
            found, because, is_kept_back = _look(place, waiting, lacking, is_placed=is_placed)
            since_unix = (waiting.kept_back_unix or place.clock.unix()) if is_kept_back else 0.0
            waiting = waiting.model_copy(update={"kept_back_unix": since_unix})
        except ClusterError as err:  # the job server, or whoever holds the lock, may answer again
            found, because = None, str(err)
        if found is not None:
            return found
        if because != reason:
            reason = because
            on_wait(because)
        place.clock.sleep(LOOK_S)


def _look(
    place: QueuePlace, waiting: Waiting, lacking: Callable[[Sequence[NodeResources]], str], *, is_placed: bool
) -> tuple[WorkerSpec | None, str, bool]:
    """The workers that fit at this moment, published as held; or None, why not, and whether they only wait for others to take theirs."""
    with place.registry.locked():
        jobs = place.records()
        others = list(place.others(jobs).values())
        held = reservations(jobs, others, place.registry.room(place.clock.unix()))
        queue, nodes = [run for entry in others for run in entry.waiting], place.nodes()
        if place.enlarging is not None and grows(nodes):
            place.enlarging.want([*queue, waiting], held)
        decision = decide([*queue, waiting], nodes, held, [waiting.run_key], place.clock.unix())
        because = lacking(nodes) if waiting.run_key in decision.start else decision.because[waiting.run_key]
        if because:
            place.registry.post(place.job, Entry(waiting=(waiting,), runs=(waiting.run_key,)))
            return None, because, waiting.run_key in decision.kept_back
        granted = _share(waiting.workers, nodes, held, queue)
        holding = HeldWorkers(run_key=waiting.run_key, workers=granted, is_placed=is_placed, user=place.user)
        place.registry.post(place.job, Entry(holding=(holding,), runs=(waiting.run_key,)))
        return granted, "", False


def _share(workers: WorkerSpec, nodes: Sequence[NodeResources], held: Sequence[Reservation], queue: Sequence[Waiting]) -> WorkerSpec:
    """Of an elastic number the fewest, and more only of what nobody waits for. Pure."""
    holding = {reservation.run_key for reservation in held}
    wanted = [Reservation(run.run_key, run.workers) for run in queue if run.run_key not in holding]
    count = max(workers.least, Capacity.of(nodes, [*held, *wanted]).growth(workers))
    return WorkerSpec(count=count, gpus=workers.gpus, cpus=workers.cpus).of_type(workers.accelerator_type)
