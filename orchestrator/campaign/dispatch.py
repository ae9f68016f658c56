"""Submits the jobs that runs want, in the order of the queue of all campaigns, as soon as their whole gang fits; and has jobs ended."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from orchestrator.campaign.expected import Expected
from orchestrator.follow.followed_run import FollowedRun, Order, Refusal
from orchestrator.follow.next_step import Train, Validate
from orchestrator.follow.reserved import elastic_trainings, leave_nodes_of_others, reservations
from orchestrator.queue.admission import decide, growth
from orchestrator.queue.enlarging import Enlarging
from orchestrator.queue.gang_fit import NodeResources, Reservation, grows
from orchestrator.queue.order import Waiting
from orchestrator.queue.registry import Entry, HeldWorkers, Registry
from orchestrator.queue.space import Resources
from orchestrator.resume.takeover import reset
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord, living_members, validations
from orchestrator.run.progress import Action
from trainers.contract.requests import place_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.errors import ClusterError, StorageError
from trainers.storage.faults import backoff_s

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0
"""How long a run that the cluster, or a disk, has refused is left alone: twice as long after each refusal, up to this. There is no limit to
their number: what refused may be repaired at any time, and the status shows it."""
REFUSALS_WAITED_FOR = 5
"""So often what a paused run offers its workers to may be refused, over a minute, before that one goes on itself: it pauses but once."""
STOP_AGAIN_S = 60.0
"""How long a job that was asked to end may take for it; more than the job server's own grace."""


class ClusterJobs(Protocol):
    """The jobs of a cluster; `orchestrator.cluster.jobs.Jobs` is it. Raises ClusterError when the cluster refuses or is away."""

    def records(self) -> list[JobRecord]: ...
    def submit_training(self, folder: RunFolder, spec: RunSpec, job_number: int, *, campaign: str, mlflow_run_id: str) -> str: ...
    def submit_validation(
        self, folder: RunFolder, spec: RunSpec, fencing_token: int, retry: int, *, campaign: str, mlflow_run_id: str
    ) -> str: ...
    def submit_preprocessing(self, name: str, order: str, place: Mapping[str, str], cpus: int, memory_gib: float | None) -> str: ...
    def submit_control(self, name: str, arguments: list[str]) -> str: ...
    def stop(self, submission_id: str) -> None: ...
    def logs(self, submission_id: str) -> str: ...


def _is_tried_again_soon(run: FollowedRun) -> bool:
    return run.refusal is not None and run.refusal.order == "start" and run.refusal.count <= REFUSALS_WAITED_FOR


class Dispatcher:
    """What one campaign asks of the cluster for its runs, and what was refused them."""

    def __init__(
        self,
        campaign: str,
        cluster: ClusterJobs,
        nodes: Callable[[], Sequence[NodeResources]],
        registry: Registry,
        enter: Callable[[FollowedRun, RunState, str], None],
        clock: Clock,
        ask_for_nodes: Callable[[Sequence[Resources]], None] = lambda bundles: None,
    ) -> None:
        self._campaign = campaign
        self._enlarging = Enlarging(ask_for_nodes, clock)
        self._expected = Expected()
        self._front: tuple[str, float] = "", 0.0
        """Key of the run of ours that is first in line and does not fit, and since when it is not known when it starts."""
        self._kept_back: dict[str, float] = {}
        """Since when each run of ours fits and waits for Ray to show where others lie."""
        self._cluster = cluster
        self._nodes = nodes
        self._registry = registry
        self._enter = enter
        self._clock = clock
        self._since_unix = clock.unix()
        self._refused_now: set[Order] = set()
        self._refused_before: set[Order] = set()
        """What was refused in this look, and in the one before it."""
        self.lacking: tuple[str, ...] = ()
        """Keys of the runs of ours that in this look found no capacity, on nodes that can hold them; first in line first."""
        self._stop_again_s: dict[str, float] = {}
        """By job that was asked to end: when it is asked again, on the monotonic clock."""

    def entry(self, runs: Sequence[FollowedRun], wanted: Collection[str] = ()) -> Entry:
        """What this campaign waits for and holds; a run that has started keeps its place and its resources until its end.

        `runs`: all of the campaign, in its order. `wanted`: keys of those that want a job.
        """
        unended = [run for run in runs if not run.state.is_final]
        return Entry(
            waiting=tuple(self._waiting(runs, wanted)),
            holding=tuple(self._held(run) for run in unended if run.state is not RunState.QUEUED and not run.needs_others),
            runs=tuple(run.key for run in unended),
        )

    def begin_look(self) -> None:
        """From here on a refusal belongs to a new look.

        A refusal ends the look for orders of its kind, since a server that hangs may take minutes for it under the lock of admission. The
        next look asks for nothing that was refused before, so that however long refusals take, they keep nobody back.
        """
        self._refused_before, self._refused_now = self._refused_now, set()
        self.lacking = ()

    def start(self, runs: Sequence[FollowedRun], wanted: Mapping[str, Train | Validate], jobs: Sequence[JobRecord]) -> None:
        """Start what fits now; leave what nobody waits for to elastic trainings. The caller holds the lock of admission."""
        others = self._registry.entries(living_members(jobs) - {self._campaign})
        self._expected.note(runs, self._clock.unix())
        own = self.entry(runs, wanted)
        self._registry.post(self._campaign, own)
        growing = elastic_trainings(jobs)
        if not wanted and not growing and not self._enlarging.is_open:
            return
        now_unix = self._clock.unix()
        nodes = self._nodes()
        by_key = {run.key: run for run in runs}
        has_left = {key for key, run in by_key.items() if run.has_left_workers}
        held = reservations(jobs, [*(entry.without(has_left) for entry in others.values()), own], self._registry.room(now_unix))
        waiting = [*(each for entry in others.values() for each in entry.waiting), *own.waiting]
        if grows(nodes):
            self._enlarging.want(waiting, held)
        expected_soon = {key for key in wanted if _is_tried_again_soon(by_key[key])}
        not_now = {key for key in wanted if self._pauses(by_key[key], "start") or by_key[key].offers_workers_to in expected_soon}
        due = [key for key in wanted if key not in not_now]  # also where another campaign, which was not refused, wants it too
        decision = decide(waiting, nodes, held, due, now_unix)
        if decision.first != self._front[0] or decision.starts_unix is not None:  # a wait of a known end holds others back to that end
            self._front = decision.first, now_unix
        self._kept_back = {key: self._kept_back.get(key, now_unix) for key in decision.kept_back}
        wait_for_more = decision.never | decision.need_nodes | decision.kept_back
        self.lacking = tuple(key for key in decision.because if key in due and key not in wait_for_more)
        for key in decision.because:
            if key in due:
                run, because = by_key[key], decision.why(key)
                run.refusal = None  # it is the queue that it waits for now
                run.reason = f"{run.reason} It waits: {because}" if run.reason else because
        started: list[str] = []
        for key in decision.start:
            if not self._is_submitted(by_key[key], wanted[key], jobs):
                break
            started.append(key)
        if growing:
            holding = {reservation.run_key for reservation in held}
            held += [Reservation(key, by_key[key].spec.gang) for key in started if key not in holding]
            queue = [each for each in waiting if each.run_key not in {*started, *growing}]
            self._registry.set_growth_limits(growth(growing, queue, nodes, held), now_unix)

    def end(self) -> None:
        """Let the autoscaler keep only what others want. The caller holds the lock of admission, and the campaign's entry is withdrawn."""
        if self._enlarging.is_open:
            leave_nodes_of_others(self._enlarging, self._cluster.records(), self._registry, but=self._campaign)

    def stop(self, run: FollowedRun, submission_id: str) -> None:
        """Have a job ended; one that lives on all the same is asked again, since a job server may lose the request with its own end."""
        if "stop" in self._refused_now or self._pauses(run, "stop") or self._clock.monotonic() < self._stop_again_s.get(submission_id, 0.0):
            return
        with self._refusable(run, "stop"):
            self._cluster.stop(submission_id)
            self._stop_again_s[submission_id] = self._clock.monotonic() + STOP_AGAIN_S

    @contextlib.contextmanager
    def _refusable(self, run: FollowedRun, order: Order) -> Iterator[None]:
        """What the cluster, or a disk, refuses in here is the trouble of this run alone: its status says so, and it is asked again later.

        Raises ClusterError where the cluster does not even list its jobs: then it is away for all.
        """
        try:
            yield
        except (ClusterError, StorageError, OSError) as err:
            if isinstance(err, ClusterError):
                self._cluster.records()
            count = run.refusal.count + 1 if run.refusal is not None and run.refusal.order == order else 1
            pause_s = backoff_s(count, FIRST_PAUSE_S, LONGEST_PAUSE_S)
            self._refused_now.add(order)
            run.refusal = Refusal(order, count, self._clock.monotonic() + pause_s, str(err))
            log.warning("%s: refused, and tried again in %.0f s: %s", run.key, pause_s, err)
        else:
            run.refusal = None

    def _pauses(self, run: FollowedRun, order: Order) -> bool:
        """True while what was refused for a run is not asked for."""
        if run.refusal is None or run.refusal.order != order:
            return False
        return order in self._refused_before or self._clock.monotonic() < run.refusal.again_s

    def _is_submitted(self, run: FollowedRun, step: Train | Validate, jobs: Sequence[JobRecord]) -> bool:
        with self._refusable(run, "start"):
            self._submit(run, step, jobs)
            return True
        return False

    def _submit(self, run: FollowedRun, step: Train | Validate, jobs: Sequence[JobRecord]) -> None:
        carried = {"campaign": self._campaign, "mlflow_run_id": run.tracked.run_id}
        if run.observer.ignores_an_end:  # the end that it continues after is no end of this campaign
            reset(run.folder, Action.VALIDATE if isinstance(step, Validate) else Action.TRAIN)
            run.observer.take_up()
        match step:
            case Validate():
                retry = len(validations(jobs, run.key, step.fencing_token))
                self._cluster.submit_validation(run.folder, run.spec, step.fencing_token, retry, **carried)
                self._enter(run, RunState.VALIDATING, "")
            case Train():
                self._expected.note_beginning(run)
                run.observer.end_pause()
                self._cluster.submit_training(run.folder, run.spec, run.observer.next_job_number(jobs), **carried)
                is_recovering = run.state is RunState.RECOVERING
                self._enter(run, RunState.RECOVERING if is_recovering else RunState.RUNNING, step.reason if is_recovering else "")

    def _held(self, run: FollowedRun) -> HeldWorkers:
        """What a run that has started keeps."""
        return HeldWorkers(run_key=run.key, workers=run.spec.gang, user=run.spec.user, ends_unix=self._expected.ends_unix(run))

    def _waiting(self, runs: Sequence[FollowedRun], keys: Collection[str]) -> list[Waiting]:
        """The place in the queue of each of these runs."""
        behind = {"next": -len(runs), "last": len(runs)}
        places = (position + behind.get(run.turn, 0) for position, run in enumerate(runs))
        return [self._waits(run, place) for run, place in zip(runs, places, strict=True) if run.key in keys]

    def _waits(self, run: FollowedRun, position: int) -> Waiting:
        asked = place_request_seen(run.folder)
        return Waiting(
            run_key=run.key,
            address=run.spec.address,
            campaign=self._campaign,
            workers=run.spec.gang,
            since_unix=self._since_unix,
            position=position,
            is_resuming=run.state is not RunState.QUEUED or run.turn == "first",
            is_refused=self._pauses(run, "start"),
            user=run.spec.user,
            priority=run.spec.priority if asked.priority is None else asked.priority,
            first_unix=asked.first_unix,
            front_unix=self._front[1] if self._front[0] == run.key else 0.0,
            kept_back_unix=self._kept_back.get(run.key, 0.0),
            estimate_s=self._expected.left_s(run),
        )
