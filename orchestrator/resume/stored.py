"""The runs below a results folder that no campaign of the cluster knows, as users see them: read from their folders alone."""

import time
from collections.abc import Collection
from pathlib import Path

from orchestrator.follow.render import Reading, with_reading
from orchestrator.resume.unfinished import Found, find_runs, verdict_on
from orchestrator.run.activity import newest_stamp, owner_of
from orchestrator.run.heartbeat import FRESH_S
from orchestrator.run.progress import begun_or_taken_unix, full_dice
from orchestrator.run.status import RunStatus
from orchestrator.run.undelivered import undelivered_text
from orchestrator.tracking.binding import noted_url
from trainers.contract.fencing import count_drivers
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState

LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
"""How the addresses of local services begin."""


def stored_below(results: Path, known: Collection[str]) -> tuple[list[RunStatus], list[str]]:
    """The status of every run below `results` whose run key is not among the `known` ones of the cluster, and a sentence for each run
    folder that is left out, as `find_runs` has it."""
    found, left = find_runs(results)
    return [status_of_stored(run) for run in found if run.spec.run_key not in known], left


def status_of_stored(run: Found) -> RunStatus:
    """The status of a run that no campaign of the cluster follows: how it ended, or that it is paused."""
    spec, folder = run.spec, RunFolder(run.spec.run_folder)
    state, reason = _where(run, at_work_elsewhere(folder))
    known = RunStatus(
        run_key=spec.run_key,
        address=spec.address,
        campaign="",
        state=state,
        epochs=spec.schedule.epochs,
        reason=reason,
        mlflow_run_id=run.mlflow_run_id,
        mlflow_url=noted_url(folder),
        run_folder=spec.run_folder,
    )
    reading = Reading(
        run.committed,
        begun_unix=begun_or_taken_unix(folder, run.committed),
        num_drivers=count_drivers(folder),
        full_dice=full_dice(folder, spec),
        undelivered=undelivered_text(folder, has_ended=state.is_final),
    )
    return with_reading(known, spec, reading)


def at_work_elsewhere(folder: RunFolder) -> str:
    """In a sentence who works on a run on another machine's cluster, if its newest heartbeat is fresh by this clock; else nothing."""
    age_s = time.time() - newest_stamp(folder)
    owner = owner_of(folder)
    if age_s > FRESH_S or owner is None or not owner.cluster or owner.cluster.startswith(LOOPBACK):
        return ""
    return f"{owner} may be at work on it, on {owner.cluster}: its last heartbeat is {max(0.0, age_s):.0f} s old."


def _where(run: Found, elsewhere: str) -> tuple[RunState, str]:
    """State and reason of a run that no campaign follows. Pure."""
    if run.progress.stage == "finished":
        return RunState.SUCCEEDED, ""
    if elsewhere:
        return RunState.RUNNING, f"no campaign of this cluster follows it. {elsewhere}"
    ended = run.outcome.state if run.outcome else ""
    verdict = verdict_on(run)
    if not verdict.is_taken:
        state = RunState(ended) if ended in ("FAILED_CONFIG", "FAILED_CODE") else RunState.STOPPED
        return state, f"it {verdict.why}"
    if run.outcome and ended == "FAILED_CLUSTER":
        return RunState.FAILED_CLUSTER, f"{run.outcome.message.split(chr(10), 1)[0]} `nnfleet resume` continues it."
    return RunState.PAUSED, f"no campaign of this cluster follows it ({run.progress.text}); `nnfleet resume` continues it."
