"""Brings MLflow up to date from run folders alone: what no job delivered, and the end of runs whose jobs are gone.

Works where the campaign, the cluster that made the runs, or MLflow's own database no longer exist: the run folder is the authority.
"""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter

from orchestrator.publishing.candidates import holds_candidates
from orchestrator.publishing.files_channel import CHECKPOINTS, FilesChannel
from orchestrator.publishing.metrics_channel import MetricsChannel, epochs_missing
from orchestrator.publishing.validation_report import deliver_reports, stored_reports
from orchestrator.queue.registry import Registry
from orchestrator.run.activity import newest_stamp
from orchestrator.run.below import results_folder, run_folders_below
from orchestrator.run.events import Event
from orchestrator.run.heartbeat import FRESH_S, VALIDATION_FRESH_S
from orchestrator.run.job_record import JobRecord, living_campaigns, living_job
from orchestrator.run.names import Names, resolve
from orchestrator.run.outcome import Outcome, read_outcome
from orchestrator.run.undelivered import forget_undelivered, note_undelivered
from orchestrator.tracking.binding import TrackingServer, noted_run_id, open_experiments, refuse_mixture, run_to_take, track
from orchestrator.tracking.end_state import final_state, is_refusal
from orchestrator.tracking.groups import GROUP_TAG, grouping_tags
from orchestrator.tracking.records import STATE_TAG, shared_reason, shows_end
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import newest_token
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen, RunSpec
from trainers.contract.states import RunState
from trainers.errors import ConfigError, DataError, NnfleetError, StorageError, TrackingError

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)

GONE = "its job is gone; `nnfleet resume` continues it."
LATER = "run `nnfleet sync` again after its end"


class Synced(Frozen):
    """What was done with one run."""

    run_key: str
    run_folder: Path
    delivered: tuple[str, ...] = ()
    lacking: str = ""
    """What could not be delivered, and why."""
    note: str = ""
    """Why nothing had to be done."""

    @property
    def line(self) -> str:
        """The run in one line."""
        done = ", ".join(self.delivered) or self.note or ("nothing delivered" if self.lacking else "complete")
        return f"{self.run_key}: {done}" + (f"; LACKING: {self.lacking}" if self.lacking else "")


class SyncedEvent(Event):
    """A job on the cluster has synced a run."""

    event: Literal["synced"] = "synced"
    synced: Synced


SYNC_EVENTS = TypeAdapter(SyncedEvent)


def sync_below(results: Path | None, runs: Sequence[str], jobs: Sequence[JobRecord], registry: Registry | None = None) -> Iterator[Synced]:
    """`sync` of every run below a results folder (by default nnUNet_results), or of those that the names `runs` mean.

    `registry`: of the cluster that `jobs` are of. A name that means no run is one that lacks everything. Raises ConfigError if none means
    any, and without such a folder.
    """
    place = results_folder(results, os.environ)
    folders = run_folders_below(place)
    found, unknown = called(runs, folders, place) if runs else (folders, {})
    if unknown and not found:
        raise ConfigError("\n".join(map(str, unknown.values())))
    yield from sync(found, jobs, held_runs(jobs, registry))
    for name, err in unknown.items():
        yield Synced(run_key=name, run_folder=place, lacking=str(err))


def called(runs: Sequence[str], folders: Sequence[RunFolder], place: Path) -> tuple[list[RunFolder], dict[str, ConfigError]]:
    """Those of the run folders below `place` that any of the names `runs` means, each once; and the error of each name that means none."""
    readable = list(_readable(folders))
    names = [Names(spec.run_key, spec.address, noted_run_id(folder), str(folder.root)) for folder, spec in readable]
    found: list[int] = []
    unknown: dict[str, ConfigError] = {}
    for run in runs:
        try:
            found += resolve(run, names, f"below {place}")
        except ConfigError as err:
            unknown[run] = err
    return [readable[i][0] for i in dict.fromkeys(found)], unknown


def sync(folders: Iterable[RunFolder], jobs: Sequence[JobRecord], held: Collection[str] = ()) -> Iterator[Synced]:
    """Bring each run up to date. `jobs`: of the cluster that the runs may live on, if there is one; `held`: keys of the runs that its
    campaigns go on with. An error of one run stops no other."""
    for folder in folders:
        try:
            spec = folder.spec()
        except (DataError, StorageError) as err:
            yield Synced(run_key="unreadable", run_folder=folder.root, lacking=str(err))
            continue
        yield _sync_one(folder, spec, jobs, held)


def _sync_one(folder: RunFolder, spec: RunSpec, jobs: Sequence[JobRecord], held: Collection[str]) -> Synced:
    if not spec.tracking_uri and not folder.mlflow_file.exists():
        return Synced(run_key=spec.run_key, run_folder=folder.root, note="not tracked")
    delivered: list[str] = []
    lacking = ""
    try:
        folder.check_is_own(spec)  # of a copy, the MLflow run that it names is the original's
        if is_alive(folder, spec, jobs, time.time()):
            return Synced(run_key=spec.run_key, run_folder=folder.root, note=f"a job of it is alive and delivers; {LATER}")
        if spec.run_key in held:
            return Synced(run_key=spec.run_key, run_folder=folder.root, note=f"a living campaign goes on with it; {LATER}")
        with _noting_failure(folder):
            _deliver(folder, spec, delivered)
    except (NnfleetError, OSError) as err:
        lacking = str(err)
    except Exception as err:  # whatever a folder of another age holds
        log.exception("%s was not delivered", spec.run_key)
        lacking = f"{type(err).__name__}: {err}"
    return Synced(run_key=spec.run_key, run_folder=folder.root, delivered=tuple(delivered), lacking=lacking)


@contextlib.contextmanager
def _noting_failure(folder: RunFolder) -> Iterator[None]:
    """What keeps a delivery back stands in the run folder until one succeeds, for `status`: nobody may read what this process prints."""
    try:
        yield
    except Exception as err:
        note_undelivered(folder, "results", time.time(), str(err))
        raise
    forget_undelivered(folder, "results")


def _deliver(folder: RunFolder, spec: RunSpec, delivered: list[str]) -> None:
    """Send everything that MLflow lacks of one run; what arrived is appended to `delivered`. Raises what keeps the rest back."""
    from orchestrator.publishing.checkpoint_store import published
    from orchestrator.tracking.client import Tracker  # seconds: not before it is needed

    bound = read_mlflow_run(folder)
    tracker = Tracker(bound.tracking_uri if bound is not None else spec.tracking_uri)
    tracker.ping()
    run_id, is_new = mlflow_run_of(folder, spec, tracker)
    if is_new:
        delivered.append("a new MLflow run")
    elif GROUP_TAG not in tracker.tags(run_id):  # of a version that did not know them
        tracker.set_tags(run_id, grouping_tags(spec))
    fencing_token, committed = newest_token(folder), newest_committed(folder)
    missing = [] if committed is None else epochs_missing(committed.history, tracker.logged_epochs(run_id))
    before = {name: published(tracker, run_id, name) for name in CHECKPOINTS}
    MetricsChannel(folder, fencing_token).send(closing=True)
    if missing:
        delivered.append(f"{len(missing)} epochs")
    held = tracker.metrics(run_id)
    reports, lacks_candidates = stored_reports(folder, spec, held), not holds_candidates(held, folder)
    if reports or lacks_candidates:
        if (failure := deliver_reports(folder, spec, reports, fencing_token, waits_s=())) is not None:
            raise TrackingError(failure)
        delivered.extend(f"full validation of {report.name}" for report in reports)
        delivered.extend(["full validation of candidates"] if lacks_candidates else [])
    forget_undelivered(folder, MetricsChannel.name)
    FilesChannel(folder, fencing_token).send_files(closing=True)
    forget_undelivered(folder, FilesChannel.name)
    for name in CHECKPOINTS:
        after = published(tracker, run_id, name)
        if after is not None and after != before[name]:
            delivered.append(f"checkpoint {name} of epoch {after.manifest.epoch}")
    state = publish_state(tracker, run_id, folder, spec)
    if state is not None:
        delivered.append(f"state {state}")
    elif missing and (end := final_state(read_outcome(folder))) is not None:
        tracker.set_state(run_id, end)  # the run's duration is that of the epochs which MLflow has


def mlflow_run_of(folder: RunFolder, spec: RunSpec, tracker: "Tracker") -> tuple[str, bool]:
    """The id of the MLflow run, and whether it was made or looked up anew because the server does not know the recorded one.

    A recorded one that was deleted in MLflow's pages is restored, unless another has taken its place.
    """
    recorded, taken = noted_run_id(folder), run_to_take(spec, tracker)
    if taken is not None and taken.run_id == recorded:
        if newest_committed(folder) is None:  # then the MLflow run may have been reassigned to another folder
            refuse_mixture(spec, tracker)
        tracker.restore_run(recorded)
        return recorded, False
    if recorded:
        log.warning("%s: its MLflow run %s at %s is gone, or another has its place", spec.run_key, recorded, tracker.uri)
    open_experiments([spec], tracker)  # a deleted one comes back with its runs
    refuse_mixture(spec, tracker)
    return track(spec, tracker).run_id, True


def publish_state(tracker: TrackingServer, run_id: str, folder: RunFolder, spec: RunSpec) -> RunState | None:
    """Give a run without a living job the state that its folder shows; returns it, or None when MLflow has it already."""
    outcome = read_outcome(folder)
    due = state_due(tracker.tags(run_id).get(STATE_TAG, ""), outcome)
    if due is None:
        return None
    tracker.set_state(run_id, due)
    reason = GONE if final_state(outcome) is None or outcome is None else "" if due is RunState.SUCCEEDED else outcome.message
    tracker.set_tags(run_id, {"nnfleet.reason": GONE if reason == GONE else shared_reason(spec, reason)})
    return due


def state_due(shown: str, outcome: Outcome | None) -> RunState | None:
    """The state that MLflow has to get for a run without a living job; None when what it shows is right. Pure."""
    end = final_state(outcome)
    if end is not None:
        return None if shown == end.value else end
    return None if shows_end(shown) else RunState.STOPPED


def is_alive(folder: RunFolder, spec: RunSpec, jobs: Sequence[JobRecord], now_unix: float) -> bool:
    """True when a job of the run lives on this cluster, or its folder shows recent activity from another one."""
    if living_job(spec, jobs) is not None:
        return True
    own = [job for job in jobs if job.run_key == spec.run_key and job.kind in ("train", "validate")]
    if final_state(read_outcome(folder)) is not None:
        return False
    if not own and now_unix - _newest_case_unix(folder) < VALIDATION_FRESH_S:
        return True
    stamp = newest_stamp(folder)
    is_of_dead_job = bool(own) and stamp <= max(job.ended_unix or 0.0 for job in own)
    return not is_of_dead_job and abs(now_unix - stamp) < FRESH_S  # a stamp from far in the future is of a clock that jumped


def _newest_case_unix(folder: RunFolder) -> float:
    return max((folder.cases(name).stat().st_mtime for name in CHECKPOINTS if folder.cases(name).is_dir()), default=0.0)


def held_runs(jobs: Sequence[JobRecord], registry: Registry | None) -> set[str]:
    """Keys of the runs that living campaigns go on with, whether or not a job of them lives: those that they name in `registry`, and of one
    that has posted nothing there those that it was handed."""
    entries = {} if registry is None else registry.entries(living_campaigns(jobs))
    handed = {run.run_key for job in jobs if job.kind == "campaign" and job.is_live and job.campaign not in entries for run in job.handed}
    return handed | {run_key for entry in entries.values() for run_key in entry.runs}


def end_orphaned_runs(tracker: TrackingServer, jobs: Sequence[JobRecord], registry: Registry) -> list[str]:
    """End orphaned runs in MLflow: those shown as running whose folder is seen here and of which no job is alive; returns their keys.

    A run that waits for its next job is alive as long as its campaign, which names it in `registry`. The caller holds the lock `opening`,
    so no campaign acquires a run meanwhile. A server that is away, or an error of one run, is only logged.
    """
    ended: list[str] = []
    held = held_runs(jobs, registry)
    try:
        open_runs = tracker.open_runs()
    except TrackingError as err:
        log.warning("orphaned runs were not looked for in MLflow: %s", err)
        return ended
    for shown in open_runs:
        folder = RunFolder(Path(shown.run_folder))
        try:
            if not folder.root.is_absolute() or not folder.spec_file.is_file():
                continue
            spec = folder.spec()
            is_its_own = spec.run_key == shown.run_key and noted_run_id(folder) == shown.run_id  # a tag is no proof
            if not is_its_own or shown.run_key in held or is_alive(folder, spec, jobs, time.time()):
                continue
            if publish_state(tracker, shown.run_id, folder, spec) is not None:
                ended.append(shown.run_key)
        except (NnfleetError, OSError) as err:
            log.warning("%s: its state in MLflow was not reconciled: %s", shown.run_key, err)
            if isinstance(err, TrackingError) and not is_refusal(err):
                break  # the server is away, and each further run would wait for it as long
    return ended


def _readable(folders: Iterable[RunFolder]) -> Iterator[tuple[RunFolder, RunSpec]]:
    for folder in folders:
        try:
            yield folder, folder.spec()
        except (DataError, StorageError) as err:
            log.warning("%s", err)
