"""The nodes of a cluster, and this machine as Ray would see it."""

import logging
from typing import Any

from orchestrator.queue.gang_fit import NodeResources
from trainers.contract.errors import ClusterError


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
        return [NodeResources(n["NodeID"], n["Resources"], free.get(n["NodeID"], {})) for n in nodes() if n["Alive"]]
    except (ConnectionError, ray.exceptions.RayError) as err:
        raise ClusterError(f"cluster: its nodes could not be listed: {err}") from err


def this_machine() -> NodeResources:
    """What Ray would find on this machine: by its own rules for containers and CUDA_VISIBLE_DEVICES. Starts nothing."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager as Gpus
    from ray._private.utils import get_num_cpus

    gpus, visible = int(Gpus.get_current_node_num_accelerators()), Gpus.get_current_process_visible_accelerator_ids()
    cpus = float(get_num_cpus(override_docker_cpu_warning=True))
    resources = {"CPU": cpus, "GPU": float(gpus if visible is None else min(gpus, len(visible)))}
    return NodeResources("this machine", resources, resources)
