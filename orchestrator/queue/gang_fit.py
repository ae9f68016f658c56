"""Does a run's gang fit the cluster: a pure policy over plain numbers, without Ray.

A gang is a number of equal bundles of GPUs and CPUs; a bundle lies on one node, the gang may spread over nodes. An elastic gang
fits with its fewest bundles and takes more where there is room.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trainers.contract.run_spec import WorkerSpec

Resources = Mapping[str, float]
FitWhen = Literal["now", "later", "never"]


@dataclass(frozen=True)
class NodeResources:
    """One node of the cluster: resources by Ray's names ("CPU", "GPU"), in all and free as Ray reports it at this moment."""

    node_id: str
    total: Resources
    free: Resources


@dataclass(frozen=True)
class Reservation:
    """Resources that a run holds from its submission until its validation has ended.

    `is_placed` is True once its workers hold them in Ray, so that `NodeResources.free` already lacks them.
    """

    run_key: str
    workers: WorkerSpec
    is_placed: bool = False
    size: int = 0
    """Bundles that an elastic run holds at this moment; 0: its fewest."""

    @property
    def bundles(self) -> int:
        """Bundles that are held."""
        return max(self.size, self.workers.least) if self.workers.is_elastic else self.workers.count


@dataclass(frozen=True)
class Fit:
    """Whether a gang fits, and the reason as a sentence."""

    when: FitWhen
    because: str


def fit(workers: WorkerSpec, nodes: Sequence[NodeResources], reserved: Sequence[Reservation] = ()) -> Fit:
    """When a gang fits: now, later (once other work has ended) or never on these nodes.

    'Now' needs room twice: in what is free after the reservations that Ray does not show yet, and in the totals after all
    reservations (a run in its validation uses less than it holds).
    """
    totals = [_Node(n.total) for n in nodes]
    if _room(workers, totals) < workers.least:
        return Fit("never", f"needs {describe(workers)}; {_shortage(workers, totals)}. {_remedy(workers, totals)}")
    tightest = _tightest(workers, nodes, reserved)
    room = min(_room(workers, tightest), workers.most)
    if room >= workers.least:
        share = f"with {room} of {sizes(workers)} workers, " if workers.is_elastic else ""
        return Fit("now", f"{share}{_amounts(tightest, workers)} free.")
    held_by = _count(len(reserved), "run") if reserved else "other work"
    return Fit("later", f"needs {describe(workers)}; {_amounts(tightest, workers)} free now, {held_by} ahead.")


def capacity_beside(workers: WorkerSpec, nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> int:
    """How many bundles fit now beside everything reserved, and without what Ray shows as used."""
    return _room(workers, _tightest(workers, nodes, reserved))


def describe(workers: WorkerSpec) -> str:
    """`2 workers x (1 GPU, 8 CPUs)`, of an elastic gang `2-8 workers x (...)`."""
    parts = [_count(workers.gpus, "GPU")] if workers.gpus else []
    gang = f"{sizes(workers)} workers" if workers.is_elastic else _count(workers.count, "worker")
    return f"{gang} x ({', '.join([*parts, _count(workers.cpus, 'CPU')])})"


def sizes(workers: WorkerSpec) -> str:
    """`2`, or of an elastic gang `2-8`."""
    return f"{workers.least}-{workers.most}" if workers.is_elastic else str(workers.count)


@dataclass(frozen=True)
class _Node:
    left: Resources

    def bundles(self, workers: WorkerSpec) -> int:
        """How many of the gang's bundles this node still holds."""
        needs = {"GPU": workers.gpus, "CPU": workers.cpus}
        return min(int((self.left.get(kind, 0.0) + 1e-6) // amount) for kind, amount in needs.items() if amount)

    def less(self, workers: WorkerSpec, count: int) -> "_Node":
        taken = {"GPU": workers.gpus * count, "CPU": workers.cpus * count}
        return replace(self, left={kind: amount - taken.get(kind, 0) for kind, amount in self.left.items()})


def _tightest(workers: WorkerSpec, nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> list[_Node]:
    """What Ray shows as free less what it does not show yet, or the totals less everything reserved: where less room is."""
    free = _after([_Node(n.free) for n in nodes], [r for r in reserved if not r.is_placed])
    unreserved = _after([_Node(n.total) for n in nodes], reserved)
    return min(free, unreserved, key=lambda left: _room(workers, left))


def _room(workers: WorkerSpec, nodes: Sequence[_Node]) -> int:
    return sum(max(0, node.bundles(workers)) for node in nodes)


def _after(nodes: Sequence[_Node], reserved: Sequence[Reservation]) -> list[_Node]:
    """What is left when every reservation lies on the nodes, packed in their order; one that does not fit takes what there is."""
    left = list(nodes)
    for reservation in reserved:
        open_bundles = reservation.bundles
        for index, node in enumerate(left):
            placed = min(open_bundles, max(0, node.bundles(reservation.workers)))
            left[index] = node.less(reservation.workers, placed)
            open_bundles -= placed
    return left


def _shortage(workers: WorkerSpec, nodes: Sequence[_Node]) -> str:
    """Which resource the cluster will never have enough of."""
    if not nodes:
        return "the cluster has no nodes"
    for kind, each in (("GPU", workers.gpus), ("CPU", workers.cpus)):
        whole = sum(node.left.get(kind, 0) for node in nodes)
        if whole < each * workers.least:
            return f"the cluster has {_count(whole, kind)} in all"
        largest = max(node.left.get(kind, 0) for node in nodes)
        if largest < each:
            return f"no node has {_count(each, kind)} (the largest has {largest:g})"
    return f"the nodes together hold {_count(_room(workers, nodes), 'such worker')}"


def _remedy(workers: WorkerSpec, nodes: Sequence[_Node]) -> str:
    lower = ["workers.min" if workers.is_elastic else "workers.count"] if workers.least > 1 else []
    if workers.gpus and not any(node.left.get("GPU", 0) for node in nodes):
        return "Set workers.gpus: 0 to run on CPUs, or start a node with GPUs."
    if workers.cpus > 1 and _room(workers.model_copy(update={"cpus": 1}), nodes) >= 1:
        lower.append("workers.cpus")
    return f"Lower {' or '.join(lower)}, or start more nodes." if lower else "Start more nodes."


def _amounts(nodes: Sequence[_Node], workers: WorkerSpec) -> str:
    kinds = ("GPU", "CPU") if workers.gpus else ("CPU",)
    return " and ".join(_count(max(0.0, sum(node.left.get(kind, 0) for node in nodes)), kind) for kind in kinds)


def _count(amount: float, noun: str) -> str:
    return f"{amount:g} {noun}{'' if amount == 1 else 's'}"
