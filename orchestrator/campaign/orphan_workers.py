"""Workers of another, or a dead, cluster that may still train a run: waited for until they are silent, before the run is taken up.

Whether they live is told by what changes in the run folder while this machine's own monotonic clock runs; time stamps of other machines
only say how long to look. A clock that is an hour off costs at most a minute, and hides no living worker.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.run.activity import FRESH_S, Owner, newest_stamp, owner_of, read_heartbeat
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord, living_job
from trainers.contract.errors import ConfigError
from trainers.contract.fencing import newest_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec

log = logging.getLogger(__name__)

MIN_OBSERVATION_S = 6.0
"""Least time of looking, even where the stamps say that the last sign is old: three heartbeats."""
PATIENCE_S = 90.0
"""Workers that give signs of life for so long after a submission has begun to wait are no leftovers: it is refused."""
LOOK_S = 0.5


def quiet_needed_s(stamp_unix: float, now_unix: float) -> float:
    """For how long nothing may change before workers count as gone: pure. A stamp from the future tells nothing, so all of FRESH_S."""
    age_s = now_unix - stamp_unix
    return FRESH_S if age_s < 0 else max(MIN_OBSERVATION_S, FRESH_S - age_s)


@dataclass
class _Watched:
    mark: str
    needed_s: float
    since_s: float
    """When it was first seen as it is, by the monotonic clock."""


def wait_for_orphan_workers(
    specs: Sequence[RunSpec], records: Callable[[], Sequence[JobRecord]], clock: Clock, say: Callable[[str], None]
) -> dict[str, str]:
    """Return when no run of `specs` is being trained by workers that no job of this cluster started, or only by such as go on for good.

    `say` is told once when that takes long. Returns, by run key, why a run cannot be taken up: its workers go on.
    """
    watched: dict[str, _Watched] = {}
    begun_s, is_reported = clock.monotonic(), False
    while True:
        active = _active(specs, records(), watched, clock)
        if all(watched[spec.run_key].since_s - begun_s >= PATIENCE_S for spec, _ in active):
            return {spec.run_key: _refusal(spec, owner) for spec, owner in active}
        if not is_reported and any(watched[spec.run_key].needed_s > MIN_OBSERVATION_S for spec, _ in active):
            is_reported = True
            say(_waiting(active))
        clock.sleep(LOOK_S)


def refuse_orphan_workers(
    specs: Sequence[RunSpec], records: Callable[[], Sequence[JobRecord]], clock: Clock, say: Callable[[str], None]
) -> None:
    """Wait likewise, and raise ConfigError for a run whose workers go on."""
    for why in wait_for_orphan_workers(specs, records, clock, say).values():
        raise ConfigError(why)


def _active(specs: Sequence[RunSpec], jobs: Sequence[JobRecord], watched: dict[str, _Watched], clock: Clock) -> list[tuple[RunSpec, Owner]]:
    """Runs of unknown workers that have not been silent for long enough. Keeps `watched` up to date."""
    found = []
    for spec in specs:
        owner = _unknown_owner(spec, jobs)
        if owner is None:
            continue
        folder, now_s = RunFolder(spec.run_folder), clock.monotonic()
        mark = json.dumps([newest_token(folder), read_heartbeat(folder)], sort_keys=True)
        before = watched.get(spec.run_key)
        if before is None:
            watched[spec.run_key] = before = _Watched(mark, quiet_needed_s(newest_stamp(folder), clock.unix()), now_s)
        elif before.mark != mark:
            watched[spec.run_key] = before = _Watched(mark, FRESH_S, now_s)
        if now_s - before.since_s < before.needed_s:
            found.append((spec, owner))
    return found


def _unknown_owner(spec: RunSpec, jobs: Sequence[JobRecord]) -> Owner | None:
    """Who claimed the newest attempt of a run, unless that is a job that this cluster knows, or the run has a living job here."""
    owner = owner_of(RunFolder(spec.run_folder))
    own = [job for job in jobs if job.run_key == spec.run_key or job.run_folder == str(spec.run_folder)]  # of a run that had the folder
    if owner is None or living_job(spec, jobs) is not None:
        return None
    if owner.cluster and owner.cluster != os.environ.get("RAY_ADDRESS", owner.cluster):  # its job is of the same name only
        return owner
    return None if {job.submission_id for job in own} & {owner.job, owner.driver} else owner


def _waiting(active: Sequence[tuple[RunSpec, Owner]]) -> str:
    spec, owner = active[0]
    more = f" and {len(active) - 1} more" if len(active) > 1 else ""
    return (
        f"{spec.address}{more}: workers of {owner} may still be at work, though no job of this cluster is theirs; "
        f"waits until they have been silent for {FRESH_S:.0f} s, and gives up if they go on for {PATIENCE_S:.0f} s."
    )


def _refusal(spec: RunSpec, owner: Owner) -> str:
    return (
        f"results: {spec.run_key} gives signs of life in {spec.run_folder}, from {owner} ({owner.job or 'no job named'}), which no job of "
        f"this cluster is. Follow or stop it on its own cluster; if that has just been shut down, try again in {FRESH_S:.0f} s."
    )
