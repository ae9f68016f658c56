"""The verbs of the local services, and what this machine is for a verb that is given no cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import local_services
from orchestrator.cluster.discovery import named_by_environment
from orchestrator.cluster.home import Home
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.target import reach

if TYPE_CHECKING:
    from orchestrator.queue.gang_fit import NodeResources


def up(
    home: Home | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    memory_gib: float | None = None,
    allow_hosts: Sequence[str] = (),
    artifacts: Path | None = None,
) -> Services:
    """Start the local Ray head and MLflow server, or find them running; the options are those of `nnfleet up`.

    The numbers are what the head gives out to runs, until `down`; default: what this process may use. The options of MLflow are kept.
    Raises ConfigError when the head runs with others.
    """
    return local_services.up(
        home, num_cpus=num_cpus, num_gpus=num_gpus, memory_gib=memory_gib, allow_hosts=allow_hosts, artifacts=artifacts
    )


def down(home: Home | None = None) -> None:
    """End the local services with everything that runs on them."""
    local_services.down(home)


def is_local() -> bool:
    """True if a verb that is given no cluster means this machine: Ray's own variables name none, or its local head (`auto`)."""
    return named_by_environment() is None or reach().is_here


def this_machine() -> "NodeResources":
    """This machine as the node that the local head is, or would be. Starts nothing."""
    from orchestrator.cluster import nodes

    return nodes.node_of(local_services.offered())
