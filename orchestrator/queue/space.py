"""What is left on the nodes of a cluster, and how gangs lie on them: plain numbers by Ray's names, without Ray."""

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from trainers.contract.run_spec import WorkerSpec

if TYPE_CHECKING:
    from orchestrator.queue.gang_fit import Reservation

Resources = Mapping[str, float]
ONE_CPU = WorkerSpec(gpus=0, cpus=1)
"""What a loader actor takes that may run anywhere."""
ACCELERATOR_TYPE = "accelerator_type:"
"""Ray's resource of a node with accelerators of a type: with the type's name behind it, 1 on each such node."""
OF_THE_TYPE = 0.001
"""What a worker takes of it, as with Ray's own `accelerator_type` option: never what a node runs out of."""


def resources_of(workers: WorkerSpec) -> dict[str, float]:
    """What one worker of a gang asks of Ray, without its loader actors that run anywhere."""
    gpus = {"GPU": float(workers.gpus)} if workers.gpus else {}
    kind = {f"{ACCELERATOR_TYPE}{workers.accelerator_type}": OF_THE_TYPE} if workers.accelerator_type else {}
    return {"CPU": float(workers.cpus), **gpus, **kind}


def accelerator_types(node: Resources) -> tuple[str, ...]:
    """The types of accelerators that Ray knows of a node, sorted; mostly one or none."""
    named = [name for name, amount in node.items() if amount and name.startswith(ACCELERATOR_TYPE)]
    return tuple(sorted(name.removeprefix(ACCELERATOR_TYPE) for name in named))


class Group(NamedTuple):
    """Nodes with the same left."""

    gpus: float
    """GPUs that are left on each of them."""
    cpus: float
    """CPU cores, likewise."""
    types: tuple[str, ...]
    """Types of their accelerators."""
    nodes: int
    """How many nodes these are."""

    def bundles(self, workers: WorkerSpec) -> int:
        """How many bundles of a gang each of them holds."""
        if workers.accelerator_type and workers.accelerator_type not in self.types:
            return 0
        most = int((self.cpus + 1e-6) // workers.cpus)
        return max(0, min(most, int((self.gpus + 1e-6) // workers.gpus)) if workers.gpus else most)


@dataclass(frozen=True)
class Space:
    """What is left on nodes; nodes with the same left are one group, so that thousands cost little."""

    groups: tuple[Group, ...]
    scarce: str = ""
    """A type of accelerators that somebody asks for: where gangs lie that may lie elsewhere is not known."""
    taken_first: bool = False
    """Whether such gangs are assumed to lie on nodes of the scarce type first; else they lie there last."""

    @classmethod
    def of(cls, nodes: Iterable[Resources]) -> "Space":
        """Of nodes with these resources each."""
        counts: dict[tuple[float, float, tuple[str, ...]], int] = {}
        for node in nodes:
            left = node.get("GPU", 0.0), node.get("CPU", 0.0), accelerator_types(node)
            counts[left] = counts.get(left, 0) + 1
        return cls(tuple(Group(*left, count) for left, count in counts.items()))

    def room(self, workers: WorkerSpec) -> int:
        """How many of the gang's bundles still fit, each with its loaders."""
        alone = sum(group.nodes * group.bundles(workers) for group in self.groups)
        if not workers.loader_cpus or not alone:
            return alone
        return bisect.bisect_left(range(1, alone + 1), True, key=lambda n: self._packed(workers, n).single_cpus < n * workers.loader_cpus)

    def less(self, workers: WorkerSpec, bundles: int) -> "Space":
        """With so many of the gang's bundles and their loaders on the nodes where they leave the least unusable; those that do not fit take
        what there is."""
        return self._packed(workers, bundles)._packed(ONE_CPU, bundles * workers.loader_cpus)

    def _packed(self, workers: WorkerSpec, bundles: int) -> "Space":
        left: dict[tuple[float, float, tuple[str, ...]], int] = {}
        for group in sorted(self.groups, key=lambda group: (self._is_avoided(group, workers), *_waste(group, workers))):
            each = group.bundles(workers) if bundles else 0
            whole = min(group.nodes, bundles // each) if each else 0
            part = bundles - whole * each if whole < group.nodes and each else 0
            bundles -= whole * each + part
            for number, taken in ((whole, each), (1 if part else 0, part), (group.nodes - whole - (1 if part else 0), 0)):
                if number:
                    key = group.gpus - taken * workers.gpus, group.cpus - taken * workers.cpus, group.types
                    left[key] = left.get(key, 0) + number
        return replace(self, groups=tuple(Group(*key, count) for key, count in left.items()))

    def _is_avoided(self, group: Group, workers: WorkerSpec) -> bool:
        if not self.scarce or workers.accelerator_type == self.scarce:
            return False
        takes_first = self.taken_first and workers.gpus > 0
        return (self.scarce in group.types) != takes_first

    def after(self, reserved: Iterable["Reservation"]) -> "Space":
        """When every reservation lies on the nodes, in the order that wastes least: those with GPUs first, of a type before others, then by
        cores."""
        bundles: dict[tuple[int, bool, int, str], tuple[WorkerSpec, int]] = {}
        loaders = 0
        for each in reserved:
            kind = each.workers.accelerator_type
            shape = each.workers.gpus, bool(kind), each.workers.cpus, kind
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
        for group in self.groups:
            taken = min(other.least, group.bundles(other))
            cpus = group.cpus - taken * other.cpus
            cpus -= min(max(0.0, cpus), other.least * other.loader_cpus)
            if group._replace(gpus=group.gpus - taken * other.gpus, cpus=cpus).bundles(first) < group.bundles(first):
                return False
        return True

    def of_type(self, accelerator_type: str) -> "Space":
        """The nodes with accelerators of a type alone; of no type all nodes."""
        return replace(self, groups=tuple(group for group in self.groups if not accelerator_type or accelerator_type in group.types))

    @property
    def single_cpus(self) -> int:
        """How many actors of one CPU each fit."""
        return sum(group.nodes * max(0, int(group.cpus + 1e-6)) for group in self.groups)

    @property
    def gpus(self) -> float:
        """GPUs that are left on all nodes together."""
        return sum(group.gpus * group.nodes for group in self.groups)

    @property
    def cpus(self) -> float:
        """CPU cores that are left on all nodes together."""
        return sum(group.cpus * group.nodes for group in self.groups)


def _waste(group: Group, workers: WorkerSpec) -> tuple[float, float, float]:
    """Nodes in the order in which a gang takes them: without GPUs those that have none left, else those with the fewest cores per GPU
    that are enough, then the others; of equal ones the fullest."""
    if not workers.gpus or group.gpus <= 0:
        return group.gpus, group.cpus, 0.0
    return float(group.cpus < group.gpus * workers.cpus), group.cpus / group.gpus, group.cpus
