"""What is held on the cluster at this moment: read from the list of jobs, their runs' folders and the entries of campaigns."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.follow.next_step import only_delivers
from orchestrator.queue.admission import ledger
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.gang_fit import Reservation
from orchestrator.queue.registry import Entry, Registry
from orchestrator.run.activity import has_begun, workers_now
from orchestrator.run.job_record import JobRecord, living_members
from orchestrator.run.outcome import read_outcome
from trainers.contract.run_folder import RunFolder
from trainers.errors import StorageError

T = TypeVar("T")


def reservations(
    jobs: Sequence[JobRecord], entries: Iterable[Entry] = (), growth_limits: Mapping[str, int] | None = None
) -> list[Reservation]:
    """Everything that is held on the cluster at this moment; a job that only delivers holds nothing.

    `growth_limits`: to how many workers each elastic training may grow at any moment.
    """
    at_work = _at_work(jobs)
    begun = {job.run_key for job in at_work if _read(has_begun, job, False)}
    limits, ends = growth_limits or {}, _last_ends(jobs)
    sizes = {key: max(now, limits.get(key, 0)) for key, now in _elastic_sizes(at_work).items()}
    holding = [
        Reservation(
            held.run_key, held.workers, held.is_placed, user=held.user, ends_unix=held.ends_unix, idle_unix=ends.get(held.run_key, 0.0)
        )
        for entry in entries
        for held in entry.holding
    ]
    return ledger(at_work, begun, holding, sizes)


def elastic_trainings(jobs: Sequence[JobRecord]) -> dict[str, int]:
    """Keys of the trainings at work with an elastic number of workers, with the number that each has now: as `reservations` holds them."""
    return _elastic_sizes(_at_work([job for job in jobs if _is_elastic(job)]))


def _at_work(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The living jobs of runs, without those that only deliver."""
    living = [job for job in jobs if job.is_live and job.run_folder]
    return [job for job in living if not only_delivers(job, _read(read_outcome, job, None))]


def _last_ends(jobs: Sequence[JobRecord]) -> dict[str, float]:
    """When the last of the jobs ended that each run has had here."""
    ends: dict[str, float] = {}
    for job in jobs:
        if job.kind in ("train", "validate") and not job.is_live and job.ended_unix:
            ends[job.run_key] = max(ends.get(job.run_key, 0.0), job.ended_unix)
    return ends


def _elastic_sizes(at_work: Sequence[JobRecord]) -> dict[str, int]:
    return {job.run_key: _read(workers_now, job, 0) for job in at_work if _is_elastic(job)}


def _is_elastic(job: JobRecord) -> bool:
    return job.kind == "train" and job.reserved is not None and job.reserved.is_elastic


def runs_at_work(jobs: Sequence[JobRecord], registry: Registry, *, but: str = "") -> set[str]:
    """Keys of the runs that living campaigns, all `but` this one, have not brought to their end; of test sets their output folders."""
    entries = registry.entries(living_members(jobs) - {but}).values()
    return {run_key for entry in entries for run_key in entry.runs}


def awaited_elsewhere(needed: Collection[str], jobs: Sequence[JobRecord], registry: Registry, *, but: str) -> set[str]:
    """Those of the `needed` run keys that living campaigns, all `but` this one, have not brought to their end, or that a job works on."""
    if not needed:
        return set()
    working = {job.run_key for job in _at_work([job for job in jobs if job.run_key in needed])}
    return working | (runs_at_work(jobs, registry, but=but) & set(needed))


def leave_nodes_of_others(enlarging: Enlarging, jobs: Sequence[JobRecord], registry: Registry, *, but: str) -> None:
    """Have the autoscaler asked for what living campaigns and test sets, all `but` this one, hold and wait for."""
    others = registry.entries(living_members(jobs) - {but}).values()
    enlarging.want([each for entry in others for each in entry.waiting], reservations(jobs, others))


def _read(what: Callable[[RunFolder], T], job: JobRecord, unknown: T) -> T:
    """What a run's folder holds; `unknown` where it cannot be read, so that its job counts as at work and as not placed yet."""
    with contextlib.suppress(StorageError, OSError):
        return what(RunFolder(Path(job.run_folder)))
    return unknown
