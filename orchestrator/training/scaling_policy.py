"""How many workers an elastic run gets: Ray Train's elastic policy, given what is free now and the queue's growth limit.

Ray's own policy counts what its training coordinator has promised to the run: whole nodes, whatever else runs on them, looked at every
20 s. Twice that ends badly: after the death of a node it starts as many workers as before and never gets them, and it ends healthy
workers for more than there is capacity for. Here living nodes are asked, and healthy workers are never restarted to become fewer.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import state  # no public call returns what is free on each node, or which nodes will be taken away
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.util import placement_group_table

from orchestrator.queue.registry import Registry
from trainers.errors import NnfleetError

log = logging.getLogger(__name__)
LOOK_S = 1.0
"""Least time between two looks at the cluster."""
CONNECT_S = 2.0
MOST_ASKED = 32
"""Nodes that are asked at once: a switch that has failed takes many away, and this is Ray's controller that waits for them."""


@dataclass(frozen=True)
class Allowance:
    """What the campaigns of the cluster leave to one run; without a campaign that lives everything."""

    registry: Path | None
    run_key: str

    @classmethod
    def on_this_cluster(cls, run_key: str) -> "Allowance":
        """For the driver of a Ray job; outside of one there is no queue."""
        address = os.environ.get("RAY_ADDRESS")
        return cls(Registry.of_cluster(address).folder if address else None, run_key)

    def most(self) -> int | None:
        """Workers that the run may have now; None: as many as fit."""
        if self.registry is None:
            return None
        try:
            return Registry(self.registry).room(time.time()).get(self.run_key)
        except (NnfleetError, OSError) as err:
            log.warning("what the queue leaves to %s cannot be read (%s): it takes what is free", self.run_key, err)
            return None


class FreeCapacity(ElasticScalingPolicy):
    """Decides in Ray Train's controller, on the head node. Still asks Ray's autoscaler for nodes for the most workers."""

    def __init__(self, scaling_config: Any, allowance: Allowance) -> None:
        super().__init__(scaling_config)
        self._allowance = allowance
        self._gang: Any = None
        self._looked_at = float("-inf")
        self._seen: dict[str, dict[str, float]] | None = None

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """More workers where there is capacity and the growth limit allows it; never fewer."""
        self._gang = worker_group_state.placement_group_handle.placement_group
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        is_smaller = isinstance(decision, ResizeDecision) and decision.num_workers <= worker_group_state.num_workers
        return NoopDecision() if is_smaller else decision

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = int(super()._count_possible_workers(reserved_resources))
        allowed = self._allowance.most()
        return possible if allowed is None else min(possible, allowed)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        """Capacity by node: what is free on those that live and stay, with what the run's own workers hold there."""
        if time.monotonic() - self._looked_at >= LOOK_S:
            try:
                self._seen = capacity_by_node(self._gang)
            except Exception:  # an error here would end the run; without an answer nothing is decided
                log.exception("the cluster's free resources are not known; asked again")
                self._seen = None
            self._looked_at = time.monotonic()
        return self._seen


def answers(node: Mapping[str, Any]) -> bool:
    """Whether a node's Ray can be reached: one that was killed counts as alive for 15 s and more."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def answering(nodes: Sequence[Mapping[str, Any]]) -> set[str]:
    """Ids of the nodes that can be reached, all asked at the same time."""
    with ThreadPoolExecutor(max_workers=MOST_ASKED) as threads:
        return {node["NodeID"] for node, is_there in zip(nodes, threads.map(answers, nodes), strict=True) if is_there}


def capacity_by_node(gang: Any) -> dict[str, dict[str, float]]:
    """What is free on every node that lives and is not about to be taken away, with what the placement group `gang` holds there."""
    untyped: Any = (ray.nodes, state.available_resources_per_node, state.state.get_draining_nodes)
    nodes, free_by_node, leaving = untyped
    going = leaving()
    living = answering([node for node in nodes() if node["Alive"] and node["NodeID"] not in going])
    capacity = {node: dict(free) for node, free in free_by_node().items() if node in living}
    table: Mapping[str, Any] = placement_group_table(gang) if gang is not None else {}
    if table.get("state") != "REMOVED":
        for index, node in table.get("bundles_to_node_id", {}).items():
            for kind, amount in table["bundles"][index].items() if node in capacity else ():
                capacity[node][kind] = capacity[node].get(kind, 0.0) + amount
    return capacity
