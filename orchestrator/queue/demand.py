"""What a cluster that grows on demand should have room for: pure. Ray does not see what waits, since it is not submitted yet."""

from collections.abc import Iterable, Sequence

from orchestrator.queue.gang_fit import Reservation
from orchestrator.queue.order import Waiting
from orchestrator.queue.space import Resources, resources_of
from trainers.contract.run_spec import WorkerSpec

MOST_BUNDLES = 1000
"""So many bundles are asked for at once, from the front of the queue: more than a cluster starts while they wait."""


def bundles_wanted(waiting: Iterable[Waiting], reserved: Sequence[Reservation]) -> list[Resources]:
    """The bundles that the cluster should have room for in all: what runs hold, also between two of their jobs, and what waits.

    An elastic run that waits counts with its fewest workers. A run that waits and holds something counts once.
    """
    found = [bundle for held in reserved for bundle in _bundles(held.workers, held.bundles)]
    holding = {held.run_key for held in reserved}
    for run in waiting:
        if run.run_key not in holding and len(found) < MOST_BUNDLES:
            found += _bundles(run.workers, run.workers.least)
            holding.add(run.run_key)
    return found


def _bundles(workers: WorkerSpec, count: int) -> list[Resources]:
    bundles: list[Resources] = [resources_of(workers)] * count
    return bundles + [{"CPU": 1.0}] * (count * workers.loader_cpus)
