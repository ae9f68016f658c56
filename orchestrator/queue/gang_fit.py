"""Does a run's gang fit the cluster: a pure policy over plain numbers, without Ray.

A gang is a number of equal bundles of GPUs and CPUs; a bundle lies on one node, the gang may spread over nodes. An elastic gang
fits with its fewest bundles and takes more where there is room. With each bundle go the CPUs of its loader actors, if these run anywhere
(`WorkerSpec.loader_cpus`): single ones, on whatever nodes, first on those without GPUs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from orchestrator.queue.space import ACCELERATOR_TYPE, Resources, Space, accelerator_types
from trainers.contract.names import nearest
from trainers.contract.run_spec import WorkerSpec

FitWhen = Literal["now", "later", "never"]


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
    idle_unix: float = 0.0
    """When the last job of its run ended; 0: one lives, or that is not known."""

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
    lacks_kind: bool = False
    """True if these are nodes with a kind of GPUs that no node has now: they never come where that is misspelt."""
    is_kept_back: bool = False
    """True if it fits, and waits for Ray to show where others lie."""


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
            hint = _kind_hint(workers, totals)
            because = f"needs {describe(workers)}; {_shortage(workers, totals)} now: the autoscaler is asked for nodes.{hint}"
            return Fit("later", because, True, bool(hint))
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
    """`2 workers x (1 GPU, 8 CPUs)`, of a type `x (1 A100 GPU, ...)`, of an elastic gang `2-8 workers x (...)`; with loaders anywhere
    `x (..., 6 CPUs on any node)`."""
    parts = [_count(workers.gpus, _gpu(workers))] if workers.gpus else []
    gang = f"{sizes(workers)} workers" if workers.is_elastic else _count(workers.count, "worker")
    loaders = [f"{_count(workers.loader_cpus, 'CPU')} on any node for its loaders"] if workers.loader_cpus else []
    return f"{gang} x ({', '.join([*parts, _count(workers.cpus, 'CPU'), *loaders])})"


def sizes(workers: WorkerSpec) -> str:
    """`2`, or of an elastic gang `2-8`."""
    return f"{workers.least}-{workers.most}" if workers.is_elastic else str(workers.count)


@dataclass(frozen=True)
class Unshown:
    """What gangs hold of one type of accelerators, `left.scarce`, that Ray does not show as used yet: it may still lay others there."""

    gangs: Mapping[WorkerSpec, int]
    """Bundles of each."""
    shown: Space
    """What Ray shows as free."""
    left: Space
    """The same less all that others may yet take of it, those on this type first."""

    @classmethod
    def of(cls, kind: str, totals: Space, free: Space, reserved: Sequence[Reservation], coming: Sequence[Reservation]) -> "Unshown":
        """Of these reservations, of which Ray does not show those that are coming.

        What it shows as used on the type is counted to placed gangs in turn: one of which it shows nothing has not begun, while one of
        which it shows a part (a validation of few cases) takes no more.
        """
        gangs: dict[WorkerSpec, int] = {}
        used = totals.of_type(kind).gpus - free.of_type(kind).gpus
        for each in reserved:
            if each.workers.accelerator_type == kind:
                if not each.is_placed or used <= 0:
                    gangs[each.workers] = gangs.get(each.workers, 0) + each.bundles
                used -= each.bundles * each.workers.gpus if each.is_placed else 0
        others = (r for r in coming if r.workers.accelerator_type != kind)
        return cls(gangs, free, replace(free, scarce=kind, taken_first=True).after(others))

    def less(self, workers: WorkerSpec, bundles: int) -> "Unshown":
        """With so many more bundles that are about to start."""
        if workers.accelerator_type == self.left.scarce:
            return replace(self, gangs={**self.gangs, workers: self.gangs.get(workers, 0) + bundles})
        return replace(self, left=self.left.less(workers, bundles))

    def is_endangered_by(self, workers: WorkerSpec, bundles: int) -> bool:
        """Whether so many bundles of a gang that asks for another type, or for none, may come to lie where these do now."""
        if not self.gangs or not workers.gpus or workers.accelerator_type == self.left.scarce:
            return False
        return self._fit_in(self.shown) and not self._fit_in(self.left.less(workers, bundles))

    def _fit_in(self, space: Space) -> bool:
        for workers, bundles in sorted(self.gangs.items(), key=lambda item: -item[0].cpus):
            if space.room(workers) < bundles:
                return False
            space = space.less(workers, bundles)
        return True


@dataclass(frozen=True)
class Capacity:
    """What a cluster has left, seen in two ways."""

    totals: Space
    shown: Space
    """What Ray shows as free."""
    free: Space
    """What Ray shows as free, less what it does not show yet."""
    unreserved: Space
    """The totals less everything reserved."""
    by_type: Mapping[str, "Capacity"] = field(default_factory=dict)
    """As whoever asks for a type of accelerators has to see it, where the cluster has several: of gangs that ask for none, those that Ray
    does not show yet may come to lie on these nodes, and only Ray knows whether the others do."""
    unshown: Mapping[str, Unshown] = field(default_factory=dict)
    """By type of accelerators, where the cluster has several."""

    @classmethod
    def of(cls, nodes: Sequence[NodeResources], reserved: Sequence[Reservation]) -> "Capacity":
        """Of these nodes, beside these reservations."""
        totals, free = Space.of(node.total for node in nodes), Space.of(node.free for node in nodes)
        kinds = {group.types for group in totals.groups if group.gpus}
        types = {name for kind in kinds for name in kind} if len(kinds) > 1 else set()
        if not types:
            return _beside(totals, free, reserved)
        coming = [*(r for r in reserved if not r.is_placed), *_not_shown(reserved, totals.gpus - free.gpus)]
        seen = {
            name: _beside(replace(totals, scarce=name), replace(free, scarce=name, taken_first=True), reserved, coming) for name in types
        }
        unshown = {name: Unshown.of(name, totals, free, reserved, coming) for name in types}
        return replace(_beside(totals, free, reserved), by_type=seen, unshown=unshown)

    def seen_by(self, workers: WorkerSpec) -> "Capacity":
        """For a gang with its type of accelerators."""
        return self.by_type.get(workers.accelerator_type, self)

    def less(self, workers: WorkerSpec, bundles: int) -> "Capacity":
        """With so many more bundles reserved."""
        seen = {name: capacity.less(workers, bundles) for name, capacity in self.by_type.items()}
        unshown = {name: each.less(workers, bundles) for name, each in self.unshown.items()}
        return Capacity(self.totals, self.shown, self.free.less(workers, bundles), self.unreserved.less(workers, bundles), seen, unshown)

    def endangered_by(self, workers: WorkerSpec, bundles: int) -> str:
        """The type of accelerators that Ray may give so many bundles of the gang, though others hold them; empty: none."""
        return next((name for name in sorted(self.unshown) if self.unshown[name].is_endangered_by(workers, bundles)), "")

    def growth(self, workers: WorkerSpec, has: int = 0) -> int:
        """How many bundles a gang may have that has so many, all of which start again: as many as fit now, as far as Ray lays none of them
        on accelerators of a type that others hold and do not use yet."""
        most = min(workers.most, has + max(0, self.room(workers)))
        return next((size for size in range(most, has, -1) if not self.endangered_by(workers, size)), has)

    def tightest(self, workers: WorkerSpec) -> Space:
        """Where less room is for the gang."""
        seen = self.seen_by(workers)
        return min(seen.free, seen.unreserved, key=lambda left: left.room(workers))

    def room(self, workers: WorkerSpec) -> int:
        """How many of the gang's bundles fit now."""
        return self.tightest(workers).room(workers)


def _beside(totals: Space, free: Space, reserved: Sequence[Reservation], coming: Sequence[Reservation] | None = None) -> Capacity:
    """`coming`: those that Ray does not show; by default all that are not placed."""
    yet = [r for r in reserved if not r.is_placed] if coming is None else coming
    return Capacity(totals, free, free.after(yet), totals.after(reserved))


def _not_shown(reserved: Sequence[Reservation], used_gpus: float) -> list[Reservation]:
    """Of placed gangs that ask for no type of accelerators, as many bundles as Ray shows fewer GPUs in use than placed gangs have: the
    actors of a validation take theirs one by one."""
    missing = sum(r.bundles * r.workers.gpus for r in reserved if r.is_placed) - used_gpus
    found = []
    for each in reserved:
        workers = each.workers
        if missing > 0 and each.is_placed and workers.gpus and not workers.accelerator_type:
            bundles = min(each.bundles, math.ceil(missing / workers.gpus))
            missing -= bundles * workers.gpus
            found.append(Reservation(each.run_key, workers.model_copy(update={"count": bundles, "min": None, "max": None})))
    return found


def _gpu(workers: WorkerSpec) -> str:
    return f"{workers.accelerator_type} GPU" if workers.accelerator_type else "GPU"


def _types(nodes: Iterable[Resources]) -> list[str]:
    """The types of GPUs that Ray knows of the cluster."""
    return sorted({name for node in nodes if node.get("GPU", 0) for name in accelerator_types(node)})


def _shortage(workers: WorkerSpec, nodes: Sequence[Resources]) -> str:
    """Which resource the cluster will never have enough of."""
    if not nodes:
        return "the cluster has no nodes"
    fitting = [node for node in nodes if not workers.accelerator_type or workers.accelerator_type in accelerator_types(node)]
    if not fitting and any(node.get("GPU", 0) for node in nodes):
        return f"the cluster has no {_gpu(workers)}, but {', '.join(_types(nodes)) or 'GPUs of which Ray knows no accelerator type'}"
    for kind, having, each, beside in (("GPU", fitting, workers.gpus, 0), ("CPU", nodes, workers.cpus, workers.loader_cpus)):
        name = _gpu(workers) if kind == "GPU" else kind
        whole = sum(node.get(kind, 0) for node in having)
        if whole < (each + beside) * workers.least:
            return f"the cluster has {_count(whole, name)} in all"
        largest = max(node.get(kind, 0) for node in fitting)
        if largest < each:
            return f"no node has {_count(each, name)} (the largest has {largest:g})"
    return f"the nodes together hold {_count(Space.of(nodes).room(workers), 'such worker')}"


def _kind_hint(workers: WorkerSpec, nodes: Sequence[Resources]) -> str:
    """What to look at where the kind of GPUs is on none of these nodes, before those that the autoscaler is asked for come; else ''."""
    kind, types = workers.accelerator_type, _types(nodes)
    if not kind or kind in types:
        return ""
    return f"{nearest(kind, types)} Check workers.accelerator_type; its node type must list {ACCELERATOR_TYPE}{kind}."


def _remedy(workers: WorkerSpec, nodes: Sequence[Resources]) -> str:
    lower = ["workers.min" if workers.is_elastic else "workers.count"] if workers.least > 1 else []
    if workers.gpus and not any(node.get("GPU", 0) for node in nodes):
        return "Set workers.gpus: 0 to run on CPUs, or start a node with GPUs."
    types = _types(nodes)
    if workers.accelerator_type and workers.accelerator_type not in types:
        return f"Correct workers.accelerator_type, or start a node with such a GPU.{nearest(workers.accelerator_type, types)}"
    if workers.cpus > 1 and Space.of(nodes).room(workers.model_copy(update={"cpus": 1})) >= 1:
        lower.append("workers.cpus")
    if workers.loader_cpus:
        lower.append("loader.actors")
    return f"Lower {' or '.join(lower)}, or start more nodes." if lower else "Start more nodes."


def _amounts(space: Space, workers: WorkerSpec) -> str:
    amounts = [(space.cpus, "CPU")]
    if workers.gpus:
        space = space.of_type(workers.accelerator_type)
        amounts = [(space.gpus, _gpu(workers)), (space.cpus, "CPU")]
    return " and ".join(_count(max(0.0, amount), kind) for amount, kind in amounts)


def _count(amount: float, noun: str) -> str:
    return f"{amount:g} {noun}{'' if amount == 1 else 's'}"
