"""The loop of a campaign: looks at the cluster and the run folders, and does what the pure policies decide.

It remembers nothing that it could not find again, so it may be killed at any moment and started again.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import assert_never

from orchestrator.campaign.comparisons import Comparisons
from orchestrator.campaign.deliveries import SENDS, Deliveries
from orchestrator.campaign.dispatch import ClusterJobs, Dispatcher
from orchestrator.campaign.events import CampaignEvent, Done, RungDecided, StatusChanged, Warned
from orchestrator.campaign.halving import Halvings
from orchestrator.campaign.job_logs import JobLogs
from orchestrator.campaign.notices import Notices
from orchestrator.campaign.opening import Opened, opening
from orchestrator.campaign.state_reporter import StateReporter
from orchestrator.follow.first_stage import FirstStageRun, after_first_stage, needed_of
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.follow.next_step import End, Follow, Step, StopJob, Train, Validate, Wait, next_step
from orchestrator.follow.observe import ended_without
from orchestrator.follow.render import changes, is_news
from orchestrator.follow.reserved import awaited_elsewhere, runs_at_work
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Registry
from orchestrator.queue.space import Resources
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.progress import Action
from orchestrator.run.status import RunStatus
from orchestrator.tracking.binding import TrackingServer
from trainers.contract.fencing import newest_token
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState, can_follow
from trainers.errors import ClusterError, StorageError

log = logging.getLogger(__name__)

POLL_S = 1.0
LAST_POLL_S, LAST_LOOKS = 0.2, 25
"""So often once all runs have ended: their last jobs print their last lines, mostly within a second or two."""
REPEAT_LOG_S = 60.0


class Campaign:
    """The runs of one submission on their way from the queue to their end."""

    def __init__(
        self,
        campaign: str,
        cluster: ClusterJobs,
        nodes: Callable[[], Sequence[NodeResources]],
        registry: Registry,
        emit: Callable[[CampaignEvent], None],
        tracker: TrackingServer | None = None,
        clock: Clock | None = None,
        ask_for_nodes: Callable[[Sequence[Resources]], None] = lambda bundles: None,
    ) -> None:
        self.campaign = campaign
        self._cluster = cluster
        self._registry = registry
        self._emit = emit
        self._tracker = tracker
        self._clock = clock or Clock()
        self._reported: dict[str, RunStatus] = {}
        self._reported_s: dict[str, float] = {}
        self._logged_s: dict[str, float] = {}
        self._reporter = StateReporter(campaign, tracker, self._warn, self._clock)
        self._notices = Notices(campaign, self._warn)
        self._deliveries = Deliveries(campaign, cluster, self._warn)
        self._comparisons = Comparisons(campaign, cluster, emit, self._warn, self._clock)
        self._halvings = Halvings(campaign, self._clock, lambda text: emit(RungDecided(message=text)))
        self._logs = JobLogs(cluster, self._clock)
        self._dispatcher = Dispatcher(campaign, cluster, nodes, registry, self._enter, self._clock, ask_for_nodes)
        self.runs: dict[str, FollowedRun] = {}

    def open(self, specs: Sequence[RunSpec], *, only_validate: bool = False, replaces: bool = False) -> None:
        """Take possession of every run, as `opening` does, and raise as it does."""
        with opening(
            specs,
            campaign=self.campaign,
            cluster=self._cluster,
            registry=self._registry,
            tracker=self._tracker,
            clock=self._clock,
            only_validate=only_validate,
            replaces=replaces,
        ) as opened:
            self.runs = {one.run.key: one.run for one in opened}
            self._comparisons.is_wanted = any(one.action is not Action.NOTHING for one in opened)
            self._notices.begin(self.runs.values())
            for one in opened:
                self._begin(one)
            self._deliveries.start([one.run for one in opened if one.action is Action.DELIVER])
            self._registry.post(self.campaign, self._dispatcher.entry([*self.runs.values()]))

    def _begin(self, opened: Opened) -> None:
        """The first state of a run in this campaign."""
        match opened.action:
            case Action.NOTHING:
                self._enter(opened.run, RunState.SUCCEEDED, "was finished before.")
            case Action.DELIVER:
                self._enter(opened.run, RunState.SUCCEEDED, SENDS)
            case Action.TRAIN | Action.VALIDATE:
                self._enter(opened.run, RunState.QUEUED)
            case Action.FOLLOW if opened.acquired.was_stopping:
                log.warning("%s had been asked to stop: the request is withdrawn; if it ends all the same, it is continued", opened.run.key)
            case Action.FOLLOW:
                pass
            case _:
                assert_never(opened.action)

    def run(self, poll_s: float = POLL_S) -> int:
        """Follow the runs to their end; the exit code is 0 when none failed. A cluster, server or disk that is away is waited for."""
        with self.interruptible():
            last_looks = 0
            while not self._is_over(poll_s):
                last_looks = 0 if self._open_runs() else last_looks + 1
                self._clock.sleep(min(poll_s, LAST_POLL_S) if 0 < last_looks <= LAST_LOOKS else poll_s)
        self._registry.withdraw(self.campaign)
        with contextlib.suppress(ClusterError, StorageError, OSError), self._registry.locked():
            self._dispatcher.end()
        self._notices.close([*self.runs.values()])
        exit_code = 1 if any(run.state.is_failure for run in self.runs.values()) else 0
        self._emit(Done(exit_code=exit_code))
        return exit_code

    def _is_over(self, poll_s: float) -> bool:
        """Look once; True when nothing is left to follow or to report."""
        try:
            self.tick()
            is_over = self.report() and not self._open_runs()
            self._logs.keep()
            is_over = is_over and self._logs.is_over and self._deliveries.is_over and self._reporter.is_over()
            return is_over and self._comparisons.are_over([run.spec for run in self.runs.values() if run.state is RunState.SUCCEEDED])
        except (ClusterError, StorageError, OSError) as err:
            self._log_once(f"the campaign cannot go on and looks again every {poll_s:g} s: {err}")
            return False

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the block an interrupt leaves no run that waits in MLflow for ever: nobody else ends one that never had a job."""
        try:
            yield
        except KeyboardInterrupt:
            self._reporter.withdraw([run for run in self.runs.values() if run.is_queued])
            raise

    def tick(self) -> None:
        """Look once at everything and do what has to be done, under the lock that all campaigns of the cluster share.

        Raises ClusterError where the cluster does not answer; what it, or a disk, refuses one run is that run's trouble alone.
        """
        with self._registry.locked():
            self._dispatcher.begin_look()
            jobs = self._cluster.records()
            self._deliveries.check(jobs)
            self._logs.note(self.runs.values(), jobs)
            has_halved = self._halve(jobs)
            first_stages, elsewhere = self._first_stages(), self._first_stages_elsewhere(jobs)
            wanted: dict[str, Train | Validate] = {}
            unread: list[str] = []
            for run in self._open_runs():
                try:
                    run.observer.refresh_spec()
                    step = self._after_first_stage(run, next_step(run.observer.facts(jobs), run.state), first_stages, elsewhere)
                    if isinstance(step, Train) and run.spec.halving is not None and not has_halved:
                        step = Wait(step.state, "waits until successive halving can read all folders: it may have stopped this run.")
                    self._take(run, step)
                    if isinstance(step, Train | Validate):
                        wanted[run.key] = step
                except (StorageError, OSError) as err:  # the others go on
                    unread.append(f"{run.key}: {err}")
            if unread:
                more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
                self._log_once(f"left as it is until its folder can be read: {unread[0]}{more}")
            self._dispatcher.start([*self.runs.values()], wanted, jobs)
            if has_halved:
                self._make_room()

    def report(self) -> bool:
        """Bring MLflow up to date, or try again later if it is away; emit what changed. Returns as `announce`."""
        self._reporter.refresh(self._open_runs())
        self._reporter.report()
        self._notices.send()
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
        """Bring the run where the step says. One that wants a job stands in the queue until the dispatcher submits it."""
        run.needs_others = isinstance(step, Wait)
        match step:
            case End():
                self._finish(run, step)
            case Train() | Validate():
                self._enter(run, step.state, step.reason, is_waiting=True)
            case Wait():
                self._enter(run, step.state, step.reason)
            case Follow():
                run.refusal = None  # it was started all the same, here or by another campaign
                is_same_wait = step.state is run.state is RunState.RECOVERING
                self._enter(run, step.state, step.reason or (run.reason if is_same_wait else ""))
            case StopJob():
                self._enter(run, step.state, step.reason)
                self._dispatcher.stop(run, step.job.submission_id)
            case _:
                assert_never(step)

    def _finish(self, run: FollowedRun, end: End) -> None:
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
        self._notices.note(run)

    def _halve(self, jobs: Sequence[JobRecord]) -> bool:
        """Stop the models that fall behind; False while a folder cannot be read: none is stopped then, and none that was starts again."""
        try:
            self._halvings.look(self.runs.values(), lambda: runs_at_work(jobs, self._registry, but=self.campaign))
        except (StorageError, OSError) as err:
            self._log_once(f"successive halving decides nothing, and its runs start no training, until all folders can be read: {err}")
            return False
        return True

    def _make_room(self) -> None:
        """Have runs that have reached a rung leave their workers to those that found none in this look."""
        try:
            self._halvings.make_room(self._dispatcher.lacking)
        except (StorageError, OSError) as err:
            self._log_once(f"no run is paused at a rung of successive halving until its folder can be read and written: {err}")

    def _after_first_stage(self, run: FollowedRun, step: Step, own: Mapping[str, FirstStageRun], elsewhere: Collection[str]) -> Step:
        """What happens next with a run that may be of a cascade's second stage. One that had begun has seen all that it needs, and waits
        for no first stage that is at work elsewhere again. Raises StorageError or OSError."""
        awaited = elsewhere if run.state is RunState.QUEUED else ()
        step = after_first_stage(step, needed_of(run.spec, own, awaited))
        if isinstance(step, Train) and run.needs_others:  # what it waited for elsewhere may have ended without its segmentations
            step = after_first_stage(step, needed_of(run.spec, {**ended_without(run.spec), **own}))
        return step

    def _first_stages(self) -> dict[str, FirstStageRun]:
        """The runs that others may need the segmentations of, by key, as they stand now."""
        runs = [run for run in self.runs.values() if run.spec.next_stages]
        return {run.key: FirstStageRun(run.spec.model, run.spec.address, run.state, run.reason) for run in runs}

    def _first_stages_elsewhere(self, jobs: Sequence[JobRecord]) -> set[str]:
        """Keys of the runs that ours need the segmentations of, and that only others bring to their end."""
        stages = [run.spec.previous_stage for run in self._open_runs()]
        needed = {key for stage in stages if stage is not None for key in stage.run_keys} - self.runs.keys()
        return awaited_elsewhere(needed, jobs, self._registry, but=self.campaign)

    def _open_runs(self) -> list[FollowedRun]:
        return [run for run in self.runs.values() if not run.state.is_final]

    def _enter(self, run: FollowedRun, state: RunState, reason: str = "", *, is_waiting: bool = False) -> None:
        if not can_follow(run.state, state):
            log.info("%s went from %s to %s between two looks", run.key, run.state, state)
        if run.enter(state, reason, is_waiting=is_waiting):
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
