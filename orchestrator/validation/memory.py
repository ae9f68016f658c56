"""The memory that a worker of a full validation requests of Ray, so that a node with memory for one large case does not get two."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.queue.space import resources_of
from trainers.contract.commits import weights_file
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WeightsName, WorkerSpec

if TYPE_CHECKING:
    from trainers.validation.case_memory import CaseMemory

log = logging.getLogger(__name__)
Node = Mapping[str, float]
"""The resources of a node, by Ray's names; memory in bytes."""


def largest_case(folder: RunFolder, spec: RunSpec, cases: Sequence[str], names: Iterable[WeightsName]) -> "CaseMemory | None":
    """The case that needs most memory, with the weights `names` in one worker; None where nothing is known."""
    from trainers.validation.case_memory import of_largest  # for jobs that have cases to do alone

    return of_largest(spec, cases, sum(weights_file(folder, name).stat().st_size for name in names))


def memory_to_request(largest: "CaseMemory", spec: RunSpec, nodes: Sequence[Node], before: int = 0) -> int:
    """Bytes: what the largest case needs, at most what a node that lives has; where none has it, a warning names it.

    `before`: what the worker before has requested; the log reports only another request.
    """
    request, fits = memory_request(largest.peak_bytes, nodes, spec.workers)
    if request == before:
        return request
    need, requested = f"about {largest.peak_bytes / 2**30:.1f} GiB of memory", f"{request / 2**30:.1f} GiB"
    log.info("a worker requests %s: the largest case, %s, is expected to need %s", requested, largest.case_id, need)
    if not fits:
        log.warning(
            "case %s is expected to need %s, and of the nodes that can hold a worker none has more than %s: its worker may be "
            "ended when memory runs out. Add a node that has it, then validate again.",
            largest.case_id,
            need,
            requested,
        )
    return request


def memory_request(peak_bytes: int, nodes: Sequence[Node], workers: WorkerSpec) -> tuple[int, bool]:
    """What a worker requests of Ray whose largest case needs so many bytes, and whether a node has them. Pure.

    Of nodes that have what a worker needs none has more than the largest, so no more is requested: a prediction of memory makes nothing
    unplaceable.
    """
    needed = resources_of(workers)
    fitting = [node for node in nodes if all(node.get(kind, 0) >= amount for kind, amount in needed.items())]
    most = int(max((node.get("memory", 0) for node in fitting), default=0))
    return min(peak_bytes, most), peak_bytes <= most or not most
