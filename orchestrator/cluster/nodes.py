"""The nodes of a cluster, and this machine as the node that `up` would make of it."""

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

from orchestrator.cluster.capacity import Offer, Share, usable_cpus, usable_memory
from orchestrator.cluster.neighbours import Notice
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.space import ACCELERATOR_TYPE, Resources
from trainers.errors import ClusterError, ConfigError

_GROUP_LABEL = "ray.io/node-group"
"""The label that a node has which an autoscaler, `ray up` or KubeRay has started."""


def cluster_nodes() -> list[NodeResources]:
    """The living nodes of the cluster that this process is a job of. Raises ClusterError."""
    import ray
    from ray._private import state

    untyped: Any = (ray.nodes, state.available_resources_per_node)  # no public call lists what is free on each node
    nodes, free_by_node = untyped
    try:
        if not ray.is_initialized():
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        free = free_by_node()
        return [
            NodeResources(n["NodeID"], n["Resources"], free.get(n["NodeID"], {}), n["Labels"].get(_GROUP_LABEL, ""))
            for n in nodes()
            if n["Alive"]
        ]
    except (ConnectionError, ray.exceptions.RayError) as err:
        raise ClusterError(f"cluster: its nodes could not be listed: {err}") from err


def ask_for_nodes(bundles: Sequence[Resources]) -> None:
    """Ask the autoscaler of the cluster that this process is a job of to have room for these bundles; it replaces what was asked before.

    Raises ClusterError.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    try:
        if not ray.is_initialized():
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        request_resources(bundles=[dict(bundle) for bundle in bundles])
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as err:
        raise ClusterError(f"cluster: its autoscaler could not be asked: {err}") from err


def offer_of(asked: Share, others: Sequence[Notice] = (), busy: Collection[str] = ()) -> Offer:
    """What a head that this process starts would give out beside those of others; of GPUs on which processes compute already (`busy`) only
    as many as have to be. Raises ConfigError when it may not use so many GPUs, or would use those of others."""
    ids = usable_gpus()
    shared = [(other, shared_gpus(ids, other)) for other in others]
    taken = [other for other, gpus in shared if gpus]
    free = [gpu for gpu in ids if not any(gpu in gpus for _, gpus in shared)]
    chosen = ids if asked.gpus is None else sorted(sorted(free, key=lambda gpu: gpu in busy)[: asked.gpus], key=ids.index)
    if asked.gpus is not None and asked.gpus > len(ids):
        found = f"GPUs {','.join(ids)}" if ids else "no NVIDIA GPU"
        raise ConfigError(
            f"up: --gpus {asked.gpus}, but this process may use {found}. Ask for fewer, or name more in CUDA_VISIBLE_DEVICES."
        )
    if len(chosen) < (asked.gpus or 0) or (asked.gpus is None and taken):
        raise ConfigError(
            f"up: {'; '.join(map(str, taken))}. Free are {len(free)} GPUs ({','.join(free)}): take them or fewer with `nnfleet up --gpus "
            "N`, or name others in CUDA_VISIBLE_DEVICES; or share one head (docs/security.md)."
        )
    memory_gib = usable_memory() / 2**30 if asked.memory_gib is None else asked.memory_gib
    return Offer(cpus=asked.cpus or usable_cpus(), gpu_ids=tuple(chosen), memory_gib=memory_gib)


def usable_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Gpus

    return visible_gpus(int(Gpus.get_current_node_num_accelerators()), Gpus.get_current_process_visible_accelerator_ids())


def visible_gpus(found: int, named: Sequence[str] | None) -> list[str]:
    """Which of the `found` GPUs of a machine CUDA shows: all, or those that are named before the first name that means none. Pure."""
    if named is None:
        return [str(index) for index in range(found)]
    names = [name.strip() for name in named] if found else []
    return list(takewhile(lambda name: name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < found), names))


def shared_gpus(ids: Sequence[str], other: Notice) -> list[str]:
    """Those of this process's GPUs, as CUDA_VISIBLE_DEVICES names them, that another head may give out too.

    Their UUIDs tell, where both are known: a number counts the GPUs that a process sees, so in two jobs of a batch system that shows each
    its own ones, 0 is mostly not the same GPU, and 0 in one may be 1 outside.
    """
    uuids = gpu_uuids(ids) if other.gpu_uuids else ()
    if uuids:
        return [gpu for gpu, uuid in zip(ids, uuids, strict=True) if uuid in other.gpu_uuids]
    return [gpu for gpu in ids if overlap([gpu], other.offer.gpu_ids)]


def gpu_uuids(ids: Sequence[str]) -> tuple[str, ...]:
    """The UUIDs of GPUs that CUDA_VISIBLE_DEVICES names so here; empty where NVML does not know every one of them."""
    return uuids_of(ids, seen_uuids()) if ids else ()


def busy_gpus(ids: Sequence[str]) -> dict[str, list[int]]:
    """Those GPUs, as CUDA_VISIBLE_DEVICES names them here, on which processes compute, with their pids; none where NVML does not tell."""
    computing = computing_processes()
    uuids = gpu_uuids(ids) if any(computing.values()) else ()
    return {gpu: computing[uuid] for gpu, uuid in zip(ids, uuids, strict=False) if computing.get(uuid)}


def computing_processes() -> dict[str, list[int]]:
    """By the UUID of each NVIDIA GPU that this process sees, the pids of what computes on it; empty where NVML does not answer."""
    import pynvml

    found: dict[str, list[int]] = {}
    with contextlib.suppress(pynvml.NVMLError), _gpus_by_nvml() as gpus:
        for gpu in gpus:
            found[_uuid(gpu)] = [each.pid for each in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
    return found


@contextlib.contextmanager
def _gpus_by_nvml() -> Iterator[Iterator[Any]]:
    """NVML's handles of the NVIDIA GPUs that this process sees, in the order of their numbers. Raises NVMLError."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield (pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _uuid(gpu: Any) -> str:
    import pynvml

    uuid = pynvml.nvmlDeviceGetUUID(gpu)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)


def busy_words(busy: Mapping[str, Sequence[int]]) -> str:
    """A sentence about GPUs that a head gives out though others compute on them."""
    gpus = "; ".join(f"GPU {gpu}: process {', '.join(map(str, pids))}" for gpu, pids in busy.items())
    return (
        f"processes that Ray does not know compute on GPUs that this head gives out ({gpus}). Runs will be placed there all the same: end "
        "them, or give out others: `nnfleet up --gpus N` takes idle ones first, CUDA_VISIBLE_DEVICES names them."
    )


def uuids_of(ids: Sequence[str], seen: Sequence[str]) -> tuple[str, ...]:
    """By the UUIDs of the GPUs that this process sees, in their order. A name may be the beginning of a UUID. Pure."""
    found = []
    for name in ids:
        meant = seen[int(name) : int(name) + 1] if name.isdecimal() else [uuid for uuid in seen if uuid.startswith(name)]
        if len(meant) != 1:
            return ()
        found.append(meant[0])
    return tuple(found)


def seen_uuids() -> list[str]:
    """The UUIDs of the NVIDIA GPUs that this process sees, in the order of their numbers; none where NVML does not answer."""
    import pynvml

    try:
        with _gpus_by_nvml() as gpus:
            return [_uuid(gpu) for gpu in gpus]
    except pynvml.NVMLError:
        return []


def overlap(some: Sequence[str], others: Sequence[str]) -> bool:
    """True if two lists as CUDA_VISIBLE_DEVICES has them may mean the same GPU; a number and a UUID are not told apart."""
    kinds = ("GPU-", "MIG-")
    return any(a == b or [a.startswith(kind) for kind in kinds] != [b.startswith(kind) for kind in kinds] for a in some for b in others)


def node_of(offer: Offer) -> NodeResources:
    """The node that a head with this offer is; nothing of it is in use."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Gpus

    resources = {"CPU": float(offer.cpus), "GPU": float(len(offer.gpu_ids))}
    if offer.gpu_ids and (kind := Gpus.get_current_node_accelerator_type()):
        resources[f"{ACCELERATOR_TYPE}{kind}"] = 1.0
    return NodeResources("this machine", resources, resources)
