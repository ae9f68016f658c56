"""Workers of another, or a dead, cluster that may still train a run: waited for until they are silent, before the run is taken up.

Whether they live is told by what changes in the run folder while this machine's own monotonic clock runs (`orchestrator/run/heartbeat.py`);
time stamps of other machines only say how long to look. A clock that is an hour off costs at most a minute, and hides no living worker.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.run.activity import Owner, newest_stamp, owner_of
from orchestrator.run.clock import Clock
from orchestrator.run.heartbeat import FRESH_S, MIN_OBSERVATION_S, ORPHANS_PATIENCE_S, ChangeWatch
from orchestrator.run.job_record import JobRecord, living_job
from trainers.contract.fencing import newest_token
from trainers.contract.records import read_heartbeat
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_S = 0.5


def quiet_needed_s(stamp_unix: float, now_unix: float) -> float:
    """For how long nothing may change before workers count as gone: pure. A stamp from the future tells nothing, so all of FRESH_S."""
    age_s = now_unix - stamp_unix
    return FRESH_S if age_s < 0 else max(MIN_OBSERVATION_S, FRESH_S - age_s)


@dataclass(frozen=True)
class _Observation:
    watch: ChangeWatch
    needed_s: float
    """For how long nothing may change before the workers count as gone."""

    def seen(self, mark: Any, clock: Clock) -> "_Observation":
        watch = self.watch.seen(mark, clock)
        return self if watch is self.watch else _Observation(watch, FRESH_S)

    def is_active(self, clock: Clock) -> bool:
        return self.watch.unchanged_s(clock) < self.needed_s


def wait_for_orphan_workers(
    specs: Sequence[RunSpec], records: Callable[[], Sequence[JobRecord]], clock: Clock, report: Callable[[str], None]
) -> dict[str, str]:
    """Return when no run of `specs` is being trained by workers that no job of this cluster started, or only by such as go on for good.

    `report` is called once when that takes long. Returns, by run key, why a run cannot be taken up: its workers go on.
    """
    observed: dict[str, _Observation] = {}
    begun_s, is_reported = clock.monotonic(), False
    while True:
        active = _active(specs, records(), observed, clock)
        if all(observed[spec.run_key].watch.since_s - begun_s >= ORPHANS_PATIENCE_S for spec, _ in active):
            return {spec.run_key: _refusal(spec, owner) for spec, owner in active}
        if not is_reported and any(observed[spec.run_key].needed_s > MIN_OBSERVATION_S for spec, _ in active):
            is_reported = True
            report(_waiting(active))
        clock.sleep(LOOK_S)


def refuse_orphan_workers(
    specs: Sequence[RunSpec], records: Callable[[], Sequence[JobRecord]], clock: Clock, report: Callable[[str], None]
) -> None:
    """Wait likewise, and raise ConfigError for a run whose workers go on."""
    for why in wait_for_orphan_workers(specs, records, clock, report).values():
        raise ConfigError(why)


def _active(
    specs: Sequence[RunSpec], jobs: Sequence[JobRecord], observed: dict[str, _Observation], clock: Clock
) -> list[tuple[RunSpec, Owner]]:
    """Runs of unknown workers that have not been silent for long enough. Keeps `observed` up to date."""
    found = []
    for spec in specs:
        owner = unknown_owner(spec, jobs, os.environ.get("RAY_ADDRESS", ""))
        if owner is None:
            continue
        folder = RunFolder(spec.run_folder)
        mark = (newest_token(folder), read_heartbeat(folder))
        if (observation := observed.get(spec.run_key)) is None:
            observation = _Observation(ChangeWatch().seen(mark, clock), quiet_needed_s(newest_stamp(folder), clock.unix()))
        observed[spec.run_key] = observation = observation.seen(mark, clock)
        if observation.is_active(clock):
            found.append((spec, owner))
    return found


def unknown_owner(spec: RunSpec, jobs: Sequence[JobRecord], cluster: str) -> Owner | None:
    """Who acquired the newest token of a run, unless that is a job that this cluster knows, or the run has a living job here.

    `cluster`: its address, as its jobs know it; empty where it is not known."""
    owner = owner_of(RunFolder(spec.run_folder))
    own = [job for job in jobs if job.run_key == spec.run_key or job.run_folder == str(spec.run_folder)]  # of a run that had the folder
    if owner is None or living_job(spec, jobs) is not None:
        return None
    if owner.cluster and owner.cluster != (cluster or owner.cluster):  # its job is of the same name only
        return owner
    return None if {job.submission_id for job in own} & {owner.job, owner.driver} else owner


def _waiting(active: Sequence[tuple[RunSpec, Owner]]) -> str:
    spec, owner = active[0]
    more = f" and {len(active) - 1} more" if len(active) > 1 else ""
    return (
        f"{spec.address}{more}: workers of {owner} may still be at work, and no job of this cluster started them. "
        f"Waiting until they have sent no heartbeat for {FRESH_S:.0f} s; refused if they go on for {ORPHANS_PATIENCE_S:.0f} s."
    )


def _refusal(spec: RunSpec, owner: Owner) -> str:
    return (
        f"results: workers of {owner} ({owner.job or 'no job named'}) send heartbeats for {spec.address} in {spec.run_folder}, and no job "
        f"of this cluster started them. Follow or stop it on its own cluster; if that was just shut down, try again in {FRESH_S:.0f} s."
    )
