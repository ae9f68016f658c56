"""The nodes of a cluster for a process that is no job of it: `python -m orchestrator.cluster.list_nodes HOST:PORT` prints them as JSON.

A process of its own, since Ray reads once and for all with which token its servers are asked; it connects no driver and starts no job.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainers.errors import ClusterError

if TYPE_CHECKING:
    from orchestrator.queue.gang_fit import NodeResources

TIMEOUT_S = 30.0


def nodes_of(control_store: str, token_file: Path) -> "list[NodeResources]":
    """The living nodes of the cluster with this control store (GCS). Raises ClusterError."""
    from orchestrator.queue.gang_fit import NodeResources

    command = [sys.executable, "-m", "orchestrator.cluster.list_nodes", control_store]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file), "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
        return [NodeResources(*node) for node in json.loads(printed.splitlines()[-1])]
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, TypeError) as err:
        raise ClusterError(f"cluster: its nodes at {control_store} could not be listed: {err}") from err


def main(arguments: Sequence[str]) -> None:
    """Print id, resources and free resources of each living node."""
    from ray import _raylet
    from ray._private import state as rays_state

    raylet, private = cast(tuple[Any, Any], (_raylet, rays_state))  # no public call asks without a driver
    state = private.GlobalState()
    state._initialize_global_state(
        raylet.GcsClientOptions.create(arguments[0], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    free = state.available_resources_per_node()
    nodes = [(n["NodeID"], n["Resources"], free.get(n["NodeID"], {})) for n in state.node_table() if n["Alive"]]
    sys.stdout.write(json.dumps(nodes))


if __name__ == "__main__":
    main(sys.argv[1:])
