"""The loop of a campaign: looks at the cluster and the run folders, and does what the pure policies decide.

It remembers nothing that it could not find again, so it may be killed at any moment and started again.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.campaign.next_step import EndJob, Finish, Stay, Step, Train, Validate, next_step, only_delivers
from orchestrator.campaign.run_watch import RunWatch
from orchestrator.campaign.state_reporter import StateReporter
from orchestrator.campaign.takeover import Acquired, acquire, refuse, reset
from orchestrator.queue.admission import Waiting, decide, growth, ledger
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.registry import Entry, HeldWorkers, Registry
from orchestrator.run.activity import has_begun, workers_now
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord, validations
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import TrackingServer, lacks_scores, refuse_mixture, track
from trainers.contract.errors import ClusterError, NnfleetError, StorageError, TrackingError
from trainers.contract.fencing import newest_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState, can_follow

log = logging.getLogger(__name__)

POLL_S = 1.0
MIN_REPORT_INTERVAL_S = 5.0
"""Least time between two events of a run that only say how far it is within an epoch."""
REPEAT_LOG_S = 60.0
Event = dict[str, Any]


class Cluster(Protocol):
    """What a campaign asks of the cluster; `orchestrator.cluster.jobs.Jobs` is it."""

    def records(self) -> list[JobRecord]: ...
    def submit_training(self, folder: RunFolder, spec: RunSpec, job_number: int, *, campaign: str, mlflow_run_id: str) -> str: ...
    def submit_validation(
        self, folder: RunFolder, spec: RunSpec, fencing_token: int, retry: int, *, campaign: str, mlflow_run_id: str
    ) -> str: ...
    def stop(self, submission_id: str) -> None: ...


class Campaign:
    """The runs of one submission on their way from the queue to their end."""

    def __init__(
        self,
        campaign: str,
        cluster: Cluster,
        nodes: Callable[[], Sequence[NodeResources]],
        registry: Registry,
        emit: Callable[[Event], None],
        tracker: TrackingServer | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.campaign = campaign
        self._cluster = cluster
        self._nodes = nodes
        self._registry = registry
        self._emit = emit
        self._tracker = tracker
        self._clock = clock or Clock()
        self._since_unix = self._clock.unix()
        self._steps: dict[str, Train | Validate] = {}
        self._ended_jobs: set[str] = set()
        self._told: dict[str, RunStatus] = {}
        self._reported_at: dict[str, float] = {}
        self._logged_at: dict[str, float] = {}
        self._reporter = StateReporter(campaign, tracker, self._warn)
        self.runs: dict[str, RunWatch] = {}

    def open(self, specs: Sequence[RunSpec], *, only_validate: bool = False) -> None:
        """Take possession of every run; `only_validate`: of trained ones, to validate them again.

        Raises ConfigError, DataError, ClusterError or TrackingError; nothing has started then, and no run waits in MLflow for ever.
        """
        if self._tracker is not None:
            self._tracker.ping()
        with self._registry.locked("opening"):  # not the lock of `tick`: speaking to MLflow may take a while
            living = {job.run_key for job in self._cluster.records() if job.is_live}
            for spec in specs:
                if self._tracker is not None and spec.run_key not in living:
                    refuse_mixture(spec, self._tracker)
            with self._registry.locked():  # no campaign submits a job meanwhile
                jobs = self._cluster.records()
                for spec in specs:
                    refuse(spec, jobs)
                claims = [acquire(spec, jobs, only_validate=only_validate) for spec in specs]
            claims = self._tracked(claims, jobs)
            with self._registry.locked():
                for claimed in claims:
                    self._begin(self.runs[claimed.spec.run_key], claimed)
            self._registry.post(self.campaign, self._entry())

    def _tracked(self, claims: Sequence[Acquired], jobs: Sequence[JobRecord]) -> list[Acquired]:
        """Give every claimed run its MLflow run. When that fails on the way, the runs that would wait there for ever are ended.

        Returns the claims; a finished run whose scores MLflow lacks is to be delivered.
        """
        told: list[Acquired] = []
        try:
            for claimed in claims:
                spec = claimed.spec
                own = [job for job in jobs if job.run_key == spec.run_key]
                earlier = frozenset(job.submission_id for job in own if claimed.was_stopping or not job.is_live)
                tracked = track(spec, self._tracker)
                run = RunWatch(spec, self.campaign, earlier, tracked, resumes=claimed.was_stopping, clock=self._clock)
                self.runs[spec.run_key] = run
                is_lacking = claimed.opening == "finished" and lacks_scores(spec, run.tracked, self._tracker)
                told.append(replace(claimed, opening="deliver") if is_lacking else claimed)
        except NnfleetError:
            for claimed in claims:
                opened = self.runs.get(claimed.spec.run_key)
                if self._tracker is not None and opened is not None and claimed.opening != "adopt":
                    state = RunState.SUCCEEDED if claimed.opening == "finished" else RunState.STOPPED
                    with contextlib.suppress(TrackingError):
                        self._tracker.set_state(opened.tracked.run_id, state)
            raise
        return told

    def _begin(self, run: RunWatch, claimed: Acquired) -> None:
        """The first state of a run in this campaign."""
        match claimed.opening:
            case "finished":
                self._enter(run, RunState.SUCCEEDED, "was finished before.")
            case "deliver":
                reset(run.folder, "validate")  # finished cases are kept; the validation job delivers everything
                self._enter(run, RunState.QUEUED, "was finished before; its results go to MLflow.")
            case "train" | "validate":
                self._enter(run, RunState.QUEUED)
            case "adopt" if claimed.was_stopping:
                log.warning("%s was about to stop; this submission takes the wish back, and continues it should it end", run.spec.run_key)

    def run(self, poll_s: float = POLL_S) -> int:
        """Follow the runs to their end; the exit code is 0 when none failed. A cluster, server or disk that is away is waited for."""
        while True:
            try:
                self.tick()
                is_reported = self.tell()
                if is_reported and not self._open_runs() and self._reporter.is_over():
                    break
            except (ClusterError, StorageError, OSError) as err:
                self._log_once(f"the campaign cannot go on and looks again every {poll_s:g} s: {err}")
            time.sleep(poll_s)
        self._registry.withdraw(self.campaign)
        exit_code = 1 if any(run.state.is_failure for run in self.runs.values()) else 0
        self._emit({"event": "done", "exit_code": exit_code})
        return exit_code

    def tick(self) -> None:
        """Look once at everything and do what has to be done, under the lock that all campaigns of the cluster share."""
        with self._registry.locked():
            jobs = self._cluster.records()
            self._steps = {}
            unread: list[str] = []
            for run in self._open_runs():
                try:
                    run.refresh_spec()
                    self._take(run, next_step(run.facts(jobs), run.state))
                except (StorageError, OSError) as err:  # the others go on
                    unread.append(f"{run.spec.run_key}: {err}")
            if unread:
                more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
                self._log_once(f"left as it is until its folder can be read: {unread[0]}{more}")
            self._admit(jobs)

    def tell(self) -> bool:
        """Bring MLflow up to date, or try again later if it is away; emit what changed. Returns as `announce`."""
        self._reporter.refresh(self._open_runs())
        self._reporter.tell()
        return self.announce()

    def announce(self) -> bool:
        """Emit what changed. Also done before the plan is told: whoever submitted finds the runs in `status` from then on.

        Returns False while a run cannot be told of, because its folder cannot be read.
        """
        is_reported = True
        for key, run in self.runs.items():
            before = self._told.get(key)
            try:
                status = run.status()
            except (StorageError, OSError) as err:
                is_reported = False
                if before is None:
                    continue
                status = before.model_copy(update={"state": run.state, "reason": f"its folder cannot be read: {err}"})
            if is_news(before, status, time.monotonic() - self._reported_at.get(key, 0.0)):
                self._told[key] = status
                self._reported_at[key] = time.monotonic()
                self._emit({"event": "status", "status": changes(before, status)})
        return is_reported

    def _log_once(self, text: str) -> None:
        """Log a lasting trouble when it begins, and again every minute."""
        if time.monotonic() - self._logged_at.get(text, -REPEAT_LOG_S) >= REPEAT_LOG_S:
            self._logged_at[text] = time.monotonic()
            log.warning("%s", text)

    def _open_runs(self) -> list[RunWatch]:
        return [run for run in self.runs.values() if not run.state.is_final]

    def _take(self, run: RunWatch, step: Step) -> None:
        match step:
            case Stay(state, reason):
                is_same_wait = state is run.state is RunState.RECOVERING
                self._enter(run, state, reason or (run.reason if is_same_wait else ""))
            case EndJob(job, state):
                self._enter(run, state, "stops on request.")
                if job.submission_id not in self._ended_jobs:
                    self._cluster.stop(job.submission_id)
                    self._ended_jobs.add(job.submission_id)
            case Finish():
                self._finish(run, step)
            case Train() | Validate():
                self._steps[run.spec.run_key] = step
                if run.state is RunState.RUNNING and isinstance(step, Train):
                    self._enter(run, RunState.RECOVERING, step.reason)

    def _finish(self, run: RunWatch, end: Finish) -> None:
        if end.is_elsewhere:  # the outcome and the MLflow run are the winner's
            self._reporter.forget(run)
            run.enter(end.state, end.reason)
            return
        if run.reassigned_to:  # the folder's outcome is another run's
            self._enter(run, end.state, end.reason)
            return
        outcome = read_outcome(run.folder)
        if outcome is None or outcome.state != end.state.value:
            job = outcome.job if outcome else "training"
            fencing_token = max(newest_token(run.folder), outcome.fencing_token if outcome else 0)
            write_outcome(
                run.folder, Outcome(job=job, state=end.state.value, fencing_token=fencing_token, message=end.reason, evidence=end.evidence)
            )
        self._enter(run, end.state, end.reason)

    def _admit(self, jobs: Sequence[JobRecord]) -> None:
        """Start what fits now, in the order of the queue of all campaigns; leave what nobody waits for to elastic trainings."""
        living = {job.campaign for job in jobs if job.kind == "campaign" and job.is_live}
        entries = {**self._registry.entries(living - {self.campaign}), self.campaign: self._entry()}
        self._registry.post(self.campaign, entries[self.campaign])
        growing = elastic_trainings(jobs)
        if not self._steps and not growing:
            return
        nodes, held = self._nodes(), reservations(jobs, entries.values(), self._registry.room(time.time()))
        waiting = [run for note in entries.values() for run in note.waiting]
        decision = decide(waiting, nodes, held, self._steps)
        for key in decision.start:
            self._submit(self.runs[key], self._steps[key], jobs)
        for key, because in decision.because.items():
            if key in self._steps:
                step = self._steps[key]
                lost = step.reason if isinstance(step, Train) else ""
                self.runs[key].reason = f"{lost} It waits: {because}" if lost else because
        if growing:
            held += [Reservation(key, self.runs[key].spec.workers) for key in decision.start if key not in {r.run_key for r in held}]
            queue = [run for run in waiting if run.run_key not in {*decision.start, *growing}]
            self._registry.set_growth_limits(growth(growing, queue, nodes, held), time.time())

    def _entry(self) -> Entry:
        """What this campaign waits for and holds; a run that has started keeps its place and its room until its end."""
        runs = list(self.runs.values())
        waiting = [
            Waiting(
                run_key=run.spec.run_key,
                address=run.spec.address,
                campaign=self.campaign,
                workers=run.spec.workers,
                since_unix=self._since_unix,
                position=position,
                is_resuming=run.state is not RunState.QUEUED,
            )
            for position, run in enumerate(runs)
            if run.spec.run_key in self._steps
        ]
        holding = [HeldWorkers(run_key=r.spec.run_key, workers=r.spec.workers) for r in self._open_runs() if r.state is not RunState.QUEUED]
        return Entry(waiting=tuple(waiting), holding=tuple(holding), runs=tuple(run.spec.run_key for run in self._open_runs()))

    def _submit(self, run: RunWatch, step: Train | Validate, jobs: Sequence[JobRecord]) -> None:
        run_id = run.tracked.run_id
        if run.resumes:  # the end that it continues after is no end of this campaign
            reset(run.folder, "validate" if isinstance(step, Validate) else "train")
            run.resumes = False
        if isinstance(step, Validate):
            retry = len(validations(jobs, run.spec.run_key, step.fencing_token))
            self._cluster.submit_validation(run.folder, run.spec, step.fencing_token, retry, campaign=self.campaign, mlflow_run_id=run_id)
            self._enter(run, RunState.VALIDATING)
            return
        job_number = run.next_job_number(jobs)
        self._cluster.submit_training(run.folder, run.spec, job_number, campaign=self.campaign, mlflow_run_id=run_id)
        self._enter(run, RunState.RECOVERING if run.state is RunState.RECOVERING else RunState.RUNNING, step.reason)

    def _enter(self, run: RunWatch, state: RunState, reason: str = "") -> None:
        if not can_follow(run.state, state):
            log.info("%s went from %s to %s between two looks", run.spec.run_key, run.state, state)
        if run.enter(state, reason):
            self._reporter.note(run)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._emit({"event": "warning", "message": text})


def reservations(jobs: Sequence[JobRecord], entries: Iterable[Entry] = (), room: Mapping[str, int] | None = None) -> list[Reservation]:
    """Everything that is held on the cluster at this moment; a job that only delivers holds nothing.

    `room`: to how many workers elastic trainings were told that they may grow.
    """
    living = [job for job in jobs if job.is_live and job.run_folder]
    at_work = [job for job in living if not only_delivers(job, _outcome_seen(RunFolder(Path(job.run_folder))))]
    begun = {job.run_key for job in at_work if has_begun(RunFolder(Path(job.run_folder)))}
    sizes = {key: max(now, (room or {}).get(key, 0)) for key, now in elastic_trainings(at_work).items()}
    return ledger(at_work, begun, [Reservation(held.run_key, held.workers) for note in entries for held in note.holding], sizes)


def _outcome_seen(folder: RunFolder) -> Outcome | None:
    """A run's outcome; None too where it cannot be read, so that its job counts as being at work."""
    with contextlib.suppress(StorageError, OSError):
        return read_outcome(folder)
    return None


def elastic_trainings(jobs: Sequence[JobRecord]) -> dict[str, int]:
    """Keys of the living trainings with an elastic number of workers, with the number that each has now."""
    living = [job for job in jobs if job.is_live and job.kind == "train" and job.run_folder]
    return {job.run_key: workers_now(RunFolder(Path(job.run_folder))) for job in living if job.reserved and job.reserved.is_elastic}


def changes(before: RunStatus | None, now: RunStatus) -> dict[str, Any]:
    """The run's key and the fields that are new: what a log of a thousand epochs can bear. `CampaignLog` puts them together again."""
    fields = json.loads(now.model_dump_json())
    known = {} if before is None else json.loads(before.model_dump_json())
    return {key: value for key, value in fields.items() if key == "run_key" or key not in known or known[key] != value}


def is_news(told: RunStatus | None, now: RunStatus, since_reported_s: float) -> bool:
    """Whether a status is worth an event: any change, but progress within an epoch or a validation only every few seconds. Pure."""
    if told is None or since_reported_s >= MIN_REPORT_INTERVAL_S:
        return told != now
    progress = {"phase": "", "fraction_of_epoch": 0.0, "seconds_left": None, "validation": None}
    return told.model_copy(update=progress) != now.model_copy(update=progress)
