"""The loop of a campaign: looks at the cluster and the run folders, and does what the pure policies decide.

It remembers nothing that it could not find again, so it may be killed at any moment and started again.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from orchestrator.campaign.events import CampaignEvent, Done, StatusChanged, Warned
from orchestrator.campaign.followed_run import FollowedRun
from orchestrator.campaign.next_step import Step, next_step
from orchestrator.campaign.observe import Observer
from orchestrator.campaign.render import changes, is_news
from orchestrator.campaign.reserved import elastic_trainings, reservations, runs_at_work
from orchestrator.campaign.state_reporter import StateReporter
from orchestrator.campaign.takeover import Acquired, acquire, end_replaced, refuse, reset
from orchestrator.queue.admission import Decision, Waiting, decide, growth
from orchestrator.queue.gang_fit import NodeResources, Reservation
from orchestrator.queue.registry import Entry, HeldWorkers, Registry
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord, living_campaigns, validations
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.progress import Action
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import TrackingServer, lacks_scores, refuse_mixture, track
from trainers.contract.errors import ClusterError, NnfleetError, StorageError, TrackingError
from trainers.contract.fencing import newest_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState, can_follow

log = logging.getLogger(__name__)

POLL_S = 1.0
REPEAT_LOG_S = 60.0


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
        emit: Callable[[CampaignEvent], None],
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
        self._wanted: dict[str, Step] = {}
        """Steps that want a job, of this look."""
        self._refused: set[str] = set()
        """Runs whose job the cluster refused when it was last asked."""
        self._stopped_jobs: set[str] = set()
        self._reported: dict[str, RunStatus] = {}
        self._reported_s: dict[str, float] = {}
        self._logged_s: dict[str, float] = {}
        self._reporter = StateReporter(campaign, tracker, self._warn, self._clock)
        self.runs: dict[str, FollowedRun] = {}

    # ---- the opening: every run is acquired, or none

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
                at_work = runs_at_work(jobs, self._registry, but=self.campaign)
                for spec in specs:
                    refuse(spec, jobs, at_work)
                acquired = [acquire(spec, jobs, only_validate=only_validate) for spec in specs]
            acquired = self._tracked(acquired, jobs)
            with self._registry.locked():
                for each in acquired:
                    self._begin(self.runs[each.spec.run_key], each)
            self._registry.post(self.campaign, self._entry())

    def _tracked(self, acquired: Sequence[Acquired], jobs: Sequence[JobRecord]) -> list[Acquired]:
        """Give every acquired run its MLflow run. When that fails on the way, the runs that would wait there for ever are ended.

        Returns them; a finished run whose scores MLflow lacks is to be delivered.
        """
        done: list[Acquired] = []
        try:
            for each in acquired:
                spec, tracked = each.spec, track(each.spec, self._tracker)
                own = [job for job in jobs if job.run_key == spec.run_key]
                earlier = frozenset(job.submission_id for job in own if each.was_stopping or not job.is_live)
                observer = Observer(spec, earlier, continues_after_stop=each.was_stopping, clock=self._clock)
                self.runs[spec.run_key] = FollowedRun(observer, self.campaign, tracked)
                end_replaced(each, self._tracker)
                is_lacking = each.action is Action.NOTHING and lacks_scores(spec, tracked, self._tracker)
                done.append(replace(each, action=Action.DELIVER) if is_lacking else each)
        except NnfleetError:
            for each in acquired:
                opened = self.runs.get(each.spec.run_key)
                if self._tracker is not None and opened is not None and each.action is not Action.FOLLOW:
                    state = RunState.SUCCEEDED if each.action is Action.NOTHING else RunState.STOPPED
                    with contextlib.suppress(TrackingError):
                        self._tracker.set_state(opened.tracked.run_id, state)
            raise
        return done

    def _begin(self, run: FollowedRun, acquired: Acquired) -> None:
        """The first state of a run in this campaign."""
        match acquired.action:
            case Action.NOTHING:
                self._enter(run, RunState.SUCCEEDED, "was finished before.")
            case Action.DELIVER:
                reset(run.folder, Action.VALIDATE)  # finished cases are kept; the validation job delivers everything
                self._enter(run, RunState.QUEUED, "was finished before; its results go to MLflow.")
            case Action.TRAIN | Action.VALIDATE:
                self._enter(run, RunState.QUEUED)
            case Action.FOLLOW if acquired.was_stopping:
                log.warning("%s had been asked to stop: the request is withdrawn; if it ends all the same, it is continued", run.key)

    # ---- the loop

    def run(self, poll_s: float = POLL_S) -> int:
        """Follow the runs to their end; the exit code is 0 when none failed. A cluster, server or disk that is away is waited for."""
        while True:
            try:
                self.tick()
                is_reported = self.report()
                if is_reported and not self._open_runs() and self._reporter.is_over():
                    break
            except (ClusterError, StorageError, OSError) as err:
                self._log_once(f"the campaign cannot go on and looks again every {poll_s:g} s: {err}")
            self._clock.sleep(poll_s)
        self._registry.withdraw(self.campaign)
        exit_code = 1 if any(run.state.is_failure for run in self.runs.values()) else 0
        self._emit(Done(exit_code=exit_code))
        return exit_code

    def tick(self) -> None:
        """Look once at everything and do what has to be done, under the lock that all campaigns of the cluster share.

        Raises ClusterError where the cluster does not answer; what it, or a disk, refuses one run is that run's trouble alone.
        """
        with self._registry.locked():
            jobs = self._cluster.records()
            self._wanted = {}
            unread: list[str] = []
            for run in self._open_runs():
                try:
                    run.observer.refresh_spec()
                    self._take(run, next_step(run.observer.facts(jobs), run.state))
                except (StorageError, OSError) as err:  # the others go on
                    unread.append(f"{run.key}: {err}")
            if unread:
                more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
                self._log_once(f"left as it is until its folder can be read: {unread[0]}{more}")
            self._admit(jobs)

    def report(self) -> bool:
        """Bring MLflow up to date, or try again later if it is away; emit what changed. Returns as `announce`."""
        self._reporter.refresh(self._open_runs())
        self._reporter.report()
        return self.announce()

    def announce(self) -> bool:
        """Emit what changed. Also done before the plan is emitted: whoever submitted finds the runs in `status` from then on.

        Returns False while the status of a run is unknown, because its folder cannot be read.
        """
        is_complete = True
        for key, run in self.runs.items():
            before = self._reported.get(key)
            try:
                status = run.status()
            except (StorageError, OSError) as err:
                is_complete = False
                if before is None:
                    continue
                status = before.model_copy(update={"state": run.state, "reason": f"its folder cannot be read: {err}"})
            now_s = self._clock.monotonic()
            if is_news(before, status, now_s - self._reported_s.get(key, now_s)):
                self._reported[key], self._reported_s[key] = status, now_s
                self._emit(StatusChanged(status=changes(before, status)))
        return is_complete

    def _take(self, run: FollowedRun, step: Step) -> None:
        """Do what the step of one run asks for; one that wants a job waits for `_admit`."""
        if step.action is Action.NOTHING:
            self._finish(run, step)
            return
        is_same_wait = step.action is Action.FOLLOW and step.state is run.state is RunState.RECOVERING
        self._enter(run, step.state, step.reason or (run.reason if is_same_wait else ""))
        if step.action is not Action.FOLLOW:
            self._wanted[run.key] = step
        elif step.ends is not None and step.ends.submission_id not in self._stopped_jobs:
            with self._refusable(run):
                self._cluster.stop(step.ends.submission_id)
                self._stopped_jobs.add(step.ends.submission_id)

    def _finish(self, run: FollowedRun, end: Step) -> None:
        if end.is_elsewhere:  # the outcome and the MLflow run are the other driver's
            self._reporter.forget(run)
            run.enter(end.state, end.reason)
            return
        if run.observer.reassigned_to:  # the folder's outcome is another run's
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

    # ---- admission

    def _admit(self, jobs: Sequence[JobRecord]) -> None:
        """Start what fits now, in the order of the queue of all campaigns; leave what nobody waits for to elastic trainings."""
        others = self._registry.entries(living_campaigns(jobs) - {self.campaign})
        own = self._entry()
        self._registry.post(self.campaign, own)
        growing = elastic_trainings(jobs)
        if not self._wanted and not growing:
            return
        now_unix = self._clock.unix()
        entries = [*others.values(), own]
        nodes, held = self._nodes(), reservations(jobs, entries, self._registry.room(now_unix))
        waiting = [*(each for entry in others.values() for each in entry.waiting), *self._waiting(self._wanted)]
        started, decision = self._start(waiting, nodes, held, jobs)
        for key, because in decision.because.items():
            if key in self._wanted:
                before = self._wanted[key].reason
                self.runs[key].reason = f"{before} It waits: {because}" if before else because
        if growing:
            held += [Reservation(key, self.runs[key].spec.workers) for key in started if key not in {r.run_key for r in held}]
            queue = [each for each in waiting if each.run_key not in {*started, *growing}]
            self._registry.set_growth_limits(growth(growing, queue, nodes, held), now_unix)

    def _start(
        self, waiting: Sequence[Waiting], nodes: Sequence[NodeResources], held: Sequence[Reservation], jobs: Sequence[JobRecord]
    ) -> tuple[list[str], Decision]:
        """Submit the jobs of the runs that fit now. Where one is refused, it is decided again without it: it keeps nobody back.

        Returns the runs that have started, and the last decision.
        """
        started: list[str] = []
        refused: set[str] = set()
        while True:
            candidates = [each for each in waiting if each.run_key not in refused]
            decision = decide(candidates, nodes, held, self._wanted)
            due = [key for key in decision.start if key not in started]
            taken = [key for key in due if self._is_submitted(self.runs[key], self._wanted[key], jobs)]
            started += taken
            refused |= {*due} - {*taken}
            if len(taken) == len(due):
                self._refused = refused
                return started, decision

    def _is_submitted(self, run: FollowedRun, step: Step, jobs: Sequence[JobRecord]) -> bool:
        with self._refusable(run):
            self._submit(run, step, jobs)
            return True
        return False

    def _submit(self, run: FollowedRun, step: Step, jobs: Sequence[JobRecord]) -> None:
        run_id = run.tracked.run_id
        if run.observer.continues_after_stop:  # the end that it continues after is no end of this campaign
            reset(run.folder, step.action)
            run.observer.continues_after_stop = False
        if step.action is Action.VALIDATE:
            retry = len(validations(jobs, run.key, step.fencing_token))
            self._cluster.submit_validation(run.folder, run.spec, step.fencing_token, retry, campaign=self.campaign, mlflow_run_id=run_id)
            self._enter(run, RunState.VALIDATING)
            return
        job_number = run.observer.next_job_number(jobs)
        self._cluster.submit_training(run.folder, run.spec, job_number, campaign=self.campaign, mlflow_run_id=run_id)
        self._enter(run, RunState.RECOVERING if run.state is RunState.RECOVERING else RunState.RUNNING, step.reason)

    @contextlib.contextmanager
    def _refusable(self, run: FollowedRun) -> Iterator[None]:
        """What the cluster, or a disk, refuses in here is the trouble of this run alone: its status says so, and the next look tries again.

        Raises ClusterError where the cluster does not even list its jobs: then it is away for all.
        """
        try:
            yield
        except (ClusterError, StorageError, OSError) as err:
            if isinstance(err, ClusterError):
                self._cluster.records()
            run.reason = f"{run.reason} Refused, and tried again: {err}".strip()
            self._log_once(f"{run.key}: refused, and tried again: {err}")

    def _entry(self) -> Entry:
        """What this campaign waits for and holds; a run that has started keeps its place and its resources until its end."""
        open_runs = self._open_runs()
        holding = [HeldWorkers(run_key=run.key, workers=run.spec.workers) for run in open_runs if run.state is not RunState.QUEUED]
        waiting = self._waiting(self._wanted.keys() - self._refused)  # other campaigns do not queue behind what is refused
        return Entry(waiting=tuple(waiting), holding=tuple(holding), runs=tuple(run.key for run in open_runs))

    def _waiting(self, keys: Collection[str]) -> list[Waiting]:
        """The place in the queue of each of these runs."""
        return [
            Waiting(
                run_key=run.key,
                address=run.spec.address,
                campaign=self.campaign,
                workers=run.spec.workers,
                since_unix=self._since_unix,
                position=position,
                is_resuming=run.state is not RunState.QUEUED,
            )
            for position, run in enumerate(self.runs.values())
            if run.key in keys
        ]

    # ---- what both parts use

    def _open_runs(self) -> list[FollowedRun]:
        return [run for run in self.runs.values() if not run.state.is_final]

    def _enter(self, run: FollowedRun, state: RunState, reason: str = "") -> None:
        if not can_follow(run.state, state):
            log.info("%s went from %s to %s between two looks", run.key, run.state, state)
        if run.enter(state, reason):
            self._reporter.note(run)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        self._emit(Warned(message=text))

    def _log_once(self, text: str) -> None:
        """Log a lasting trouble when it begins, and again every minute."""
        now_s = self._clock.monotonic()
        if now_s - self._logged_s.get(text, now_s - REPEAT_LOG_S) >= REPEAT_LOG_S:
            self._logged_s[text] = now_s
            log.warning("%s", text)
