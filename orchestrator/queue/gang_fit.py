"""Does a run's gang fit the cluster: a pure policy over plain numbers, without Ray.

A gang is a number of equal bundles of GPUs and CPUs; a bundle lies on one node, the gang may spread over nodes. An elastic gang
fits with its fewest bundles and takes more where there is room. With each bundle go the CPUs of its loader actors, if these run anywhere
(`WorkerSpec.loader_cpus`): single ones, on whatever nodes, first on those without GPUs.
"""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainers.contract.run_spec import WorkerSpec

Resources = Mapping[str, float]
FitWhen = Literal["now", "later", "never"]
ONE_CPU = WorkerSpec(gpus=0, cpus=1)
"""What a loader actor takes that may run anywhere."""


@dataclass(frozen=True)
class NodeResources:
    """One node of the cluster: resources by Ray's names ("CPU", "GPU"), in all and free as Ray reports it at this moment."""

    node_id: str
    total: Resources
    free: Resources
    group: str = ""
    """The autoscaler's name for nodes of this kind; empty where the cluster has no autoscaler."""


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
    user: str = ""
    """Who submitted the run; empty: not known."""
    ends_unix: float | None = None
    """When the training is expected to end; None: not known."""

    @property
    def bundles(self) -> int:
        """Bundles that are held."""
        return max(self.size, self.workers.least) if self.workers.is_elastic else self.workers.count


@dataclass(frozen=True)
class Fit:
    """Whether a gang fits, and the reason as a sentence."""

    when: FitWhen
    because: str
    needs_nodes: bool = False
    """True if it fits once nodes have come that are not there now: it holds nobody back."""


def fit(workers: WorkerSpec, nodes: Sequence[NodeResources], reserved: Sequence[Reservation] = ()) -> Fit:
    """When a gang fits: now, later (once other work has ended) or never on these nodes.

    What these nodes cannot hold comes later where an autoscaler starts nodes; whether it has such ones only it knows. 'Now' needs room
    twice: in what is free after the reservations that Ray does not show yet, and in the totals after all reservations (a run in its
    validation uses less than it holds).
    """
    return fit_in(Capacity.of(nodes, reserved), workers, nodes, len(reserved))


def fit_in(capacity: "Capacity", workers: WorkerSpec, nodes: Sequence[NodeResources], num_reserved: int) -> Fit:
    """As `fit`, where the capacity beside `num_reserved` reservations is known already."""
    if capacity.totals.room(workers) < workers.least:
        totals = [node.total for node in nodes]
        if grows(nodes):
            return Fit("later", f"needs {describe(workers)}; {_shortage(workers, totals)} now: the autoscaler is asked for nodes.", True)
        return Fit("never", f"needs {describe(workers)}; {_shortage(workers, totals)}. {_remedy(workers, totals)}")
    tightest = capacity.tightest(workers)
    room = min(tightest.room(workers), workers.most)
    if room >= workers.least:
        share = f"with {room} of {sizes(workers)} workers, " if workers.is_elastic else ""
        return Fit("now", f"{share}{_amounts(tightest, workers)} free.")
    held_by = _count(num_reserved, "run") if num_reserved else "other work"
    return Fit("later", f"needs {describe(workers)}; {_amounts(tightest, workers)} free now, {held_by} ahead.")


def grows(nodes: Iterable[NodeResources]) -> bool:
    """Whether an autoscaler has started any of these nodes, and may start more."""
    return any(node.group for node in nodes)


def capacity_beside(workers: WorkerSpec, nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> int:
    """How many bundles fit now beside everything reserved, and without what Ray shows as used."""
    return Capacity.of(nodes, reserved).room(workers)


def describe(workers: WorkerSpec) -> str:
    """`2 workers x (1 GPU, 8 CPUs)`, of an elastic gang `2-8 workers x (...)`; with loaders anywhere `x (..., 6 CPUs on any node)`."""
    parts = [_count(workers.gpus, "GPU")] if workers.gpus else []
    gang = f"{sizes(workers)} workers" if workers.is_elastic else _count(workers.count, "worker")
    loaders = [f"{_count(workers.loader_cpus, 'CPU')} on any node for its loaders"] if workers.loader_cpus else []
    return f"{gang} x ({', '.join([*parts, _count(workers.cpus, 'CPU'), *loaders])})"


def sizes(workers: WorkerSpec) -> str:
    """`2`, or of an elastic gang `2-8`."""
    return f"{workers.least}-{workers.most}" if workers.is_elastic else str(workers.count)


@dataclass(frozen=True)
class Space:
    """What is left on nodes; nodes with the same left are one group, so that thousands cost little."""

    groups: tuple[tuple[float, float, int], ...]
    """GPUs and CPUs left on each node of a group, and how many nodes it has."""

    @classmethod
    def of(cls, nodes: Iterable[Resources]) -> "Space":
        """Of nodes with these resources each."""
        counts: dict[tuple[float, float], int] = {}
        for node in nodes:
            left = node.get("GPU", 0.0), node.get("CPU", 0.0)
            counts[left] = counts.get(left, 0) + 1
        return cls(tuple((gpus, cpus, count) for (gpus, cpus), count in counts.items()))

    def room(self, workers: WorkerSpec) -> int:
        """How many of the gang's bundles still fit, each with its loaders."""
        alone = sum(count * _bundles(gpus, cpus, workers) for gpus, cpus, count in self.groups)
        if not workers.loader_cpus or not alone:
            return alone
        return bisect.bisect_left(range(1, alone + 1), True, key=lambda n: self._packed(workers, n).single_cpus < n * workers.loader_cpus)

    def less(self, workers: WorkerSpec, bundles: int) -> "Space":
        """With so many of the gang's bundles and their loaders on the nodes where they leave the least unusable; those that do not fit take
        what there is."""
        return self._packed(workers, bundles)._packed(ONE_CPU, bundles * workers.loader_cpus)

    def _packed(self, workers: WorkerSpec, bundles: int) -> "Space":
        left: dict[tuple[float, float], int] = {}
        for gpus, cpus, count in sorted(self.groups, key=lambda group: _waste(group, workers)):
            each = _bundles(gpus, cpus, workers) if bundles else 0
            whole = min(count, bundles // each) if each else 0
            part = bundles - whole * each if whole < count and each else 0
            bundles -= whole * each + part
            for number, taken in ((whole, each), (1 if part else 0, part), (count - whole - (1 if part else 0), 0)):
                if number:
                    key = gpus - taken * workers.gpus, cpus - taken * workers.cpus
                    left[key] = left.get(key, 0) + number
        return Space(tuple((gpus, cpus, count) for (gpus, cpus), count in left.items()))

    def after(self, reserved: Iterable[Reservation]) -> "Space":
        """When every reservation lies on the nodes, in the order that wastes least: those with GPUs first, then by cores."""
        bundles: dict[tuple[int, int], tuple[WorkerSpec, int]] = {}
        loaders = 0
        for each in reserved:
            shape = each.workers.gpus, each.workers.cpus
            bundles[shape] = each.workers, bundles.get(shape, (each.workers, 0))[1] + each.bundles
            loaders += each.bundles * each.workers.loader_cpus
        space = self
        for _, (workers, count) in sorted(bundles.items(), key=lambda item: item[0], reverse=True):
            space = space._packed(workers, count)
        return space._packed(ONE_CPU, loaders)

    def spares(self, first: WorkerSpec, other: WorkerSpec) -> bool:
        """Whether no node, wherever the bundles and loaders of `other` come to lie, holds fewer of `first` for it. Where `first` has
        loaders anywhere, any CPU might be one of theirs."""
        if first.loader_cpus:
            return False
        for gpus, cpus, _ in self.groups:
            taken = min(other.least, _bundles(gpus, cpus, other))
            cpus_left = cpus - taken * other.cpus
            cpus_left -= min(max(0.0, cpus_left), other.least * other.loader_cpus)
            if _bundles(gpus - taken * other.gpus, cpus_left, first) < _bundles(gpus, cpus, first):
                return False
        return True

    @property
    def single_cpus(self) -> int:
        """How many actors of one CPU each fit."""
        return sum(count * max(0, int(cpus + 1e-6)) for _, cpus, count in self.groups)

    @property
    def gpus(self) -> float:
        """GPUs that are left on all nodes together."""
        return sum(gpus * count for gpus, _, count in self.groups)

    @property
    def cpus(self) -> float:
        """CPU cores that are left on all nodes together."""
        return sum(cpus * count for _, cpus, count in self.groups)


@dataclass(frozen=True)
class Capacity:
    """What a cluster has left, seen in two ways."""

    totals: Space
    free: Space
    """What Ray shows as free, less what it does not show yet."""
    unreserved: Space
    """The totals less everything reserved."""

    @classmethod
    def of(cls, nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> "Capacity":
        """Of these nodes, beside these reservations."""
        totals = Space.of(node.total for node in nodes)
        free = Space.of(node.free for node in nodes).after(r for r in reserved if not r.is_placed)
        return cls(totals, free, totals.after(reserved))

    def less(self, workers: WorkerSpec, bundles: int) -> "Capacity":
        """With so many more bundles reserved."""
        return Capacity(self.totals, self.free.less(workers, bundles), self.unreserved.less(workers, bundles))

    def tightest(self, workers: WorkerSpec) -> Space:
        """Where less room is for the gang."""
        return min(self.free, self.unreserved, key=lambda left: left.room(workers))

    def room(self, workers: WorkerSpec) -> int:
        """How many of the gang's bundles fit now."""
        return self.tightest(workers).room(workers)


def _waste(group: tuple[float, float, int], workers: WorkerSpec) -> tuple[float, float, float]:
    """Nodes in the order in which a gang takes them: without GPUs those that have none left, else those with the fewest cores per GPU
    that are enough, then the others; of equal ones the fullest."""
    gpus, cpus, _ = group
    if not workers.gpus or gpus <= 0:
        return gpus, cpus, 0.0
    return float(cpus < gpus * workers.cpus), cpus / gpus, cpus


def _bundles(gpus: float, cpus: float, workers: WorkerSpec) -> int:
    """How many bundles of a gang a node with so much left holds."""
    most = int((cpus + 1e-6) // workers.cpus)
    return max(0, min(most, int((gpus + 1e-6) // workers.gpus)) if workers.gpus else most)


def _shortage(workers: WorkerSpec, nodes: Sequence[Resources]) -> str:
    """Which resource the cluster will never have enough of."""
    if not nodes:
        return "the cluster has no nodes"
    for kind, each, beside in (("GPU", workers.gpus, 0), ("CPU", workers.cpus, workers.loader_cpus)):
        whole = sum(node.get(kind, 0) for node in nodes)
        if whole < (each + beside) * workers.least:
            return f"the cluster has {_count(whole, kind)} in all"
        largest = max(node.get(kind, 0) for node in nodes)
        if largest < each:
            return f"no node has {_count(each, kind)} (the largest has {largest:g})"
    return f"the nodes together hold {_count(Space.of(nodes).room(workers), 'such worker')}"


def _remedy(workers: WorkerSpec, nodes: Sequence[Resources]) -> str:
    lower = ["workers.min" if workers.is_elastic else "workers.count"] if workers.least > 1 else []
    if workers.gpus and not any(node.get("GPU", 0) for node in nodes):
        return "Set workers.gpus: 0 to run on CPUs, or start a node with GPUs."
    if workers.cpus > 1 and Space.of(nodes).room(workers.model_copy(update={"cpus": 1})) >= 1:
        lower.append("workers.cpus")
    if workers.loader_cpus:
        lower.append("loader.actors")
    return f"Lower {' or '.join(lower)}, or start more nodes." if lower else "Start more nodes."


def _amounts(space: Space, workers: WorkerSpec) -> str:
    amounts = [(space.gpus, "GPU"), (space.cpus, "CPU")] if workers.gpus else [(space.cpus, "CPU")]
    return " and ".join(_count(max(0.0, amount), kind) for amount, kind in amounts)


def _count(amount: float, noun: str) -> str:
    return f"{amount:g} {noun}{'' if amount == 1 else 's'}"
