"""What is checked of runs that are continued without their experiment file: their data, their folder, their tracking server."""

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
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
from orchestrator.run.outcome import read_outcome
from trainers.contract.own_code import check_files
from trainers.contract.run_folder import RunFolder
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
    """As `sound_now`, once orphan workers of a dead cluster are inactive, which is waited for. For a job of the cluster, whose code package
    has to hold the user's own functions that the runs name."""
    kept, left = sound_now(specs, records, registry, raises=raises)
    lacking = _without_code(kept)
    if raises and lacking:
        raise ConfigError("\n".join(lacking.values()))
    left = [*left, *_left(kept, lacking)]
    kept = [spec for spec in kept if spec.run_key not in lacking]
    active = wait_for_orphan_workers(kept, records, clock, on_wait)
    if raises and active:
        raise ConfigError("\n".join(active.values()))
    return [spec for spec in kept if spec.run_key not in active], [*left, *_left(kept, active)]


def _without_code(specs: Sequence[RunSpec]) -> dict[str, str]:
    """Run key -> why not, of runs whose own functions this package does not bring. One that has been trained is only predicted with."""
    lacking: dict[str, str] = {}
    for spec in specs:
        try:
            ended = read_outcome(RunFolder(spec.run_folder)) if spec.own.named else None
            check_files(spec.own, predicts=ended is not None and (ended.job == "validation" or ended.state == "TRAINED"))
        except NnfleetError as err:
            lacking[spec.run_key] = str(err)
    return lacking


def sound_now(
    specs: Sequence[RunSpec], records: Callable[[], Sequence[JobRecord]], registry: Registry, *, raises: bool
) -> tuple[list[RunSpec], list[str]]:
    """The runs whose folder and data let them continue, and for each of the others why not. With `raises` the others are one error instead:
    ConfigError or DataError."""
    problems = Problems()
    faults: dict[str, str] = {}
    for spec in specs:
        found = _problems(spec, records(), registry)
        problems.add(*found)
        if found:
            faults[spec.run_key] = "; ".join(map(str, found))
    if raises:
        problems.raise_if_any()
    return [spec for spec in specs if spec.run_key not in faults], _left(specs, faults)


def _left(specs: Sequence[RunSpec], faults: Mapping[str, str]) -> list[str]:
    return [f"{spec.address} ({spec.run_key}) cannot continue: {faults[spec.run_key]}" for spec in specs if spec.run_key in faults]


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
