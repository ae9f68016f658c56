"""What is checked of runs that are continued without their experiment file: their data, their folder, their tracking server."""

import contextlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from orchestrator.cluster.address import host_and_port
from orchestrator.dataset.preflight import problems_of
from orchestrator.dataset.problems import Problems
from orchestrator.follow.reserved import runs_at_work
from orchestrator.queue.registry import Registry
from orchestrator.resume.orphan_workers import wait_for_orphan_workers
from orchestrator.resume.takeover import refuse
from orchestrator.resume.unfinished import Found
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord
from trainers.contract.run_spec import RunSpec
from trainers.errors import ConfigError, NnfleetError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
REACH_TIMEOUT_S = 2.0


def sound(
    specs: Sequence[RunSpec],
    records: Callable[[], Sequence[JobRecord]],
    registry: Registry,
    clock: Clock,
    on_wait: Callable[[str], None],
    *,
    raises: bool,
) -> tuple[list[RunSpec], list[str]]:
    """The runs that can continue, and for each of the others why not. With `raises` the others are one error instead.

    Waits until orphan workers of a dead cluster are inactive. Raises ConfigError or DataError.
    """
    problems = Problems()
    faults: dict[str, str] = {}
    for spec in specs:
        found = _problems(spec, records(), registry)
        problems.add(*found)
        if found:
            faults[spec.run_key] = "; ".join(map(str, found))
    if raises:
        problems.raise_if_any()
    active = wait_for_orphan_workers([spec for spec in specs if spec.run_key not in faults], records, clock, on_wait)
    if raises and active:
        raise ConfigError("\n".join(active.values()))
    faults |= active
    left = [f"{spec.address} ({spec.run_key}) cannot continue: {faults[spec.run_key]}" for spec in specs if spec.run_key in faults]
    return [spec for spec in specs if spec.run_key not in faults], left


def _problems(spec: RunSpec, jobs: Sequence[JobRecord], registry: Registry) -> list[NnfleetError]:
    try:
        refuse(spec, jobs, runs_at_work(jobs, registry))
        return problems_of(spec)
    except NnfleetError as err:
        return [err]


def with_reachable_server(run: Found, local_uri: str) -> Found:
    """`run`, with `local_uri` for its MLflow server where that was one of this machine and does not answer: `up` took another port."""
    stored = run.spec.tracking_uri
    if not local_uri or stored == local_uri or urlsplit(stored).hostname not in LOOPBACK or _listens(stored):
        return run
    return replace(run, spec=run.spec.model_copy(update={"tracking_uri": local_uri}))


def _listens(uri: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        socket.create_connection(host_and_port(uri), timeout=REACH_TIMEOUT_S).close()
        return True
    return False
