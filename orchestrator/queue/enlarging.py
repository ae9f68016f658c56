"""Asks the cluster's autoscaler, where it has one, for the nodes that runs hold and wait for."""

import logging
from collections.abc import Callable, Sequence

from orchestrator.queue.demand import bundles_wanted
from orchestrator.queue.gang_fit import Reservation
from orchestrator.queue.order import Waiting
from orchestrator.queue.space import Resources
from orchestrator.run.clock import Clock
from trainers.errors import ClusterError

log = logging.getLogger(__name__)

AGAIN_S = 60.0
"""What is wanted is asked again after this time: the newest request of any campaign is the only one that counts."""


class Enlarging:
    """What one campaign, or test set, has asked for. Ray knows one request per cluster, so each asks for what all of them want."""

    def __init__(self, ask: Callable[[Sequence[Resources]], None], clock: Clock) -> None:
        self._ask, self._clock = ask, clock
        self._asked: list[Resources] = []
        self._again_s = 0.0

    @property
    def is_open(self) -> bool:
        """True while nodes are kept for what was asked."""
        return bool(self._asked)

    def want(self, waiting: Sequence[Waiting], reserved: Sequence[Reservation]) -> None:
        """Ask for all that runs hold and wait for on the cluster. A cluster that does not answer is asked again."""
        wanted = bundles_wanted(waiting, reserved)
        if wanted == self._asked and (not wanted or self._clock.monotonic() < self._again_s):
            return
        try:
            self._ask(wanted)
        except ClusterError as err:
            log.warning("the autoscaler was not asked for nodes, which is tried again: %s", err)
            return
        self._asked, self._again_s = wanted, self._clock.monotonic() + AGAIN_S
