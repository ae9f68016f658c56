"""The workers of a full validation: Ray actors, each with the same checkpoints loaded and one pending call.

An actor that dies, or whose case never ends, is replaced and the case tried again. One at an unhealthy place (`case_queue.py`) is
quarantined: it holds what it has reserved, so that no replacement lands there, and gets cases again only when nobody else is left.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click
import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.run.activity import report_cases
from orchestrator.run.status import CasesDone
from orchestrator.validation.case_queue import CaseFailure, CaseQueue, case_limit_s
from orchestrator.validation.case_worker import CaseWorker, loaded
from orchestrator.validation.cases import Stopped, case_sizes
from orchestrator.validation.memory import memory_request, memory_to_request
from trainers.contract.requests import stop_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WeightsName
from trainers.errors import CheckpointError, ClusterError, DataError, NnfleetError, StorageError
from trainers.storage.faults import is_of_storage
from trainers.storage.files import check_takes

if TYPE_CHECKING:
    from trainers.validation.case_memory import CaseMemory

log = logging.getLogger(__name__)
POLL_S = 1.0
WAIT_REPORT_S = 60.0
"""After this long without a free worker the log reports what is waited for, and again after each such span."""


def living_nodes() -> list[dict[str, float]]:
    """The resources of each node that lives, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class PendingCall:
    """A call that an actor works on: a case, or the loading of the network."""

    actor: Any
    case_id: str | None
    place: str
    started: float


@dataclass
class Pool:
    """Actors at work on some checkpoints, and their pending calls. `run` returns when every case is done or its retries are exhausted."""

    folder: RunFolder
    spec: RunSpec
    digests: Mapping[WeightsName, str]
    """SHA-256 of each checkpoint that a worker predicts a case with, one after the other in one call."""
    queue: CaseQueue
    fencing_token: int
    """Of the training whose checkpoints these are."""
    spare: list[Any] = field(default_factory=list)
    """Actors that the pool before has left; they are taken before new ones are started."""
    is_last: bool = True
    """No pool comes after: an actor ends as soon as it has nothing to do; else it is left in `spare`."""
    largest: "CaseMemory | None" = None
    """The case that needs most memory: what new actors request of Ray, so that no node gets more of them than it has memory for."""
    evidence: list[str] = field(default_factory=list)
    _pending: dict[Any, PendingCall] = field(default_factory=dict)
    """Pending call -> what it is."""
    _quarantined: list[tuple[Any, str]] = field(default_factory=list)
    """Actors at unhealthy places, with these; "" where the network did not load, and the actor only holds its resources."""
    _memory_bytes: int = 0
    """What the newest actor has requested; 0: nothing."""
    _is_stopping: bool = False
    """Somebody asked for a stop after the cases in work."""
    _loading_losses: int = 0
    _slowest_s: float = 0.0
    _done: int = 0
    """Cases of the fold that are done, those of earlier jobs included."""

    def run(self, count: int) -> None:
        """Validate all waiting cases on `count` actors.

        Raises Stopped, CheckpointError (the network does not load), StorageError (a disk is away from here too) or ClusterError.
        """
        last_report = time.monotonic()
        self._done = len(self.spec.val_cases) - len(self.queue.waiting)
        self._report_cases()
        try:
            self._look_for_stop()
            for _ in range(0 if self._is_stopping else count):
                self._start_worker()
            while self._pending and (self._has_more_to_give() or self._is_case_in_work()):  # else nobody needs the workers that still load
                ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=POLL_S)
                self._look_for_stop()
                for call in ready:
                    self._on_result(call)
                self._end_overdue()
                if self._has_more_to_give() and self._quarantined and self._nobody_works():
                    self._reinstate()
                last_report = time.monotonic() if ready else self._report_waiting(last_report)
            if self._is_stopping and self.queue.waiting:
                raise Stopped
            self._leave_loading_ones()
        finally:
            for actor in [*(pending.actor for pending in self._pending.values()), *(actor for actor, _ in self._quarantined)]:
                ray.kill(actor)

    @property
    def name(self) -> str:
        """The checkpoints, for messages: 'best and final'."""
        return " and ".join(self.digests)

    def actor_class(self) -> type:
        """What the actors are: made of the folder and the fencing token, with `load` and `validate` as those of `CaseWorker`."""
        return CaseWorker

    def load_here(self) -> None:
        """Load what a worker has loaded; raises what is wrong with the files from here too."""
        for name, digest in self.digests.items():
            loaded(self.folder, name, digest, "cpu")

    def check_inputs(self, case_id: str) -> None:
        """Raise StorageError where what a case needs is not to be seen from here either."""
        self.folder.living_spec()
        case_sizes(self.spec, [case_id])

    def _look_for_stop(self) -> None:
        """Raise Stopped if somebody wants that at once; take note if after the cases in work."""
        request = stop_request_seen(self.folder)
        if request is None or not request.is_for_validation:
            return
        if request.is_now:
            raise Stopped
        self._is_stopping = True

    def _has_more_to_give(self) -> bool:
        return bool(self.queue.waiting) and not self._is_stopping

    def _start_worker(self) -> None:
        if self.largest is not None:  # by the nodes of now: one of those before may have died with the most memory
            self._memory_bytes = memory_to_request(self.largest, self.spec, living_nodes(), self._memory_bytes)
        cpus, gpus, kind = self.spec.workers.cpus, self.spec.workers.gpus, self.spec.workers.accelerator_type or None
        threads = {"OMP_NUM_THREADS": str(cpus), "MKL_NUM_THREADS": str(cpus), "nnUNet_def_n_proc": str(cpus)}
        actor_class: Any = ray.remote(self.actor_class()).options(
            num_cpus=cpus,
            num_gpus=gpus,
            accelerator_type=kind,
            memory=self._memory_bytes or None,
            max_restarts=0,
            runtime_env={"env_vars": threads},
        )
        actor: Any = self.spare.pop() if self.spare else actor_class.remote(str(self.folder.root), self.fencing_token)
        self._pending[actor.load.remote(dict(self.digests))] = PendingCall(actor, None, "", time.monotonic())

    def _on_result(self, call: Any) -> None:
        """Take in one finished call and give its actor the next case, or replace the actor."""
        pending = self._pending.pop(call)
        try:
            value = ray.get(call)
        except RayTaskError as err:
            cause = err.cause if isinstance(err.cause, BaseException) else err
            if pending.case_id is None:
                self._loading_failed(pending, cause)
            else:
                self._case_failed(pending, pending.case_id, cause, err)
        except RayError as err:  # RayActorError: it died or cannot be reached; else out of memory, a lost object: it is in doubt
            if pending.case_id is None:
                self._loading_failed(pending, err)
            else:
                self._worker_died(pending, pending.case_id, err)
        else:
            if pending.case_id is None:
                self._give_next(pending.actor, value)
                return
            for name, dice in value.items():
                log.info("%s of %s: mean Dice %.4f", pending.case_id, name, dice)
            self._slowest_s = max(self._slowest_s, time.monotonic() - pending.started)
            self.queue.done(pending.place)
            self._done += 1
            self._report_cases()
            self._give_next(pending.actor, pending.place)

    def _report_cases(self) -> None:
        *_, last = self.digests
        report_cases(self.folder, self.fencing_token, CasesDone(checkpoint=last, done=self._done, cases=len(self.spec.val_cases)))

    def _give_next(self, actor: Any, place: str) -> None:
        if self.queue.is_unhealthy(place) and self._pending:
            log.warning("cases fail at %s that others can do: its worker is quarantined while there are others", place)
            self._quarantined.append((actor, place))
            return
        case_id = self.queue.next() if self._has_more_to_give() else None
        if case_id is None:
            self._release(actor)
            return
        self._pending[actor.validate.remote(case_id)] = PendingCall(actor, case_id, place, time.monotonic())

    def _release(self, actor: Any) -> None:
        """Leave an actor to the pool after; without one, its memory and GPU are free for others while the last cases run."""
        if self.is_last:
            ray.kill(actor)
        else:
            self.spare.append(actor)

    def _leave_loading_ones(self) -> None:
        """Nobody needs them here; what they load is half of the way for the pool after."""
        for pending in self._pending.values():
            self._release(pending.actor)
        self._pending.clear()

    def _is_case_in_work(self) -> bool:
        return any(pending.case_id is not None for pending in self._pending.values())

    def _nobody_works(self) -> bool:
        """True when no case is in work and whoever was started has not loaded, perhaps for want of what the quarantined hold."""
        long_ago = time.monotonic() - WAIT_REPORT_S
        return not self._is_case_in_work() and all(pending.started < long_ago for pending in self._pending.values())

    def _reinstate(self) -> None:
        """Nobody else is left: the unhealthy places are reinstated, and what fails there counts."""
        quarantined, self._quarantined = self._quarantined, []
        for actor, place in quarantined:
            if not place:
                ray.kill(actor)  # whoever waits in its stead may try there
                continue
            self.queue.reinstate(place)
            self._give_next(actor, place)

    def _loading_failed(self, pending: PendingCall, cause: BaseException) -> None:
        """A worker did not come to work: it is replaced some times, then left out. An error of ours that nobody escapes is raised."""
        if getattr(cause, "preempted", False):  # its node was taken away, which says nothing of the others
            log.warning("the node on which a worker of %s loaded the network was taken away: another worker takes its place", self.name)
            ray.kill(pending.actor)
            self._replace()
            return
        is_of_files = isinstance(cause, StorageError | DataError | CheckpointError)
        if is_of_files:
            self._quarantined.append((pending.actor, ""))
            self.load_here()  # raises if they are so from here too; else it is its node
        else:
            ray.kill(pending.actor)
            if isinstance(cause, NnfleetError):
                raise cause
        self._loading_losses += 1
        log.warning("a worker of %s was lost while it loaded the network: %s", self.name, str(cause)[-500:])
        if self._loading_losses <= self.queue.tries:
            self._replace()
        elif not self._pending and not any(place for _, place in self._quarantined):
            advice = (
                "Mount the shared folder on all nodes, at the same place."
                if is_of_files
                else f"Does a node have memory for {self.spec.workers.cpus} CPUs' worth of it?"
            )
            raise ClusterError(
                f"full validation ({self.name}): workers were lost {self._loading_losses} times while loading the network, "
                f"at last: {cause} {advice}"
            )

    def _case_failed(self, pending: PendingCall, case_id: str, cause: BaseException, error: RayTaskError) -> None:
        is_data, is_of_disk = isinstance(cause, DataError), is_of_storage(cause)
        if not is_data:
            ray.kill(pending.actor)  # a CUDA error leaves the process useless, a disk that went away its open files
        if is_of_disk:  # the worker has waited for it; raises if it is away from here too
            check_takes(self.folder.own)
            self.check_inputs(case_id)
        kind = "data" if is_data else "lost" if is_of_disk else "code"
        self._note(case_id, CaseFailure(kind, f"{type(cause).__name__}: {cause}", pending.place), error)  # type: ignore[arg-type]
        if is_data:
            self._give_next(pending.actor, pending.place)
        else:
            self._replace()

    def _worker_died(self, pending: PendingCall, case_id: str, error: RayError) -> None:
        ray.kill(pending.actor)
        if getattr(error, "preempted", False):  # its node was taken away: not the case's fault
            log.warning("the node that worked on case %s of %s was taken away: the case is done elsewhere", case_id, self.name)
            self.queue.waiting.appendleft(case_id)
        else:
            reason = "its worker died, often because memory ran out; see the Ray log of the node."
            self._note(case_id, CaseFailure("lost", reason, pending.place), error)
        self._replace()

    def _end_overdue(self) -> None:
        """End workers whose case takes so long that they must hang."""
        limit_s = case_limit_s(self._slowest_s)
        now = time.monotonic()
        for call, pending in list(self._pending.items()):
            if pending.case_id is None or now - pending.started <= limit_s:
                continue
            del self._pending[call]
            ray.kill(pending.actor)
            reason = f"it was not done after {limit_s / 3600:.1f} h, so its worker was ended."
            self._note(pending.case_id, CaseFailure("lost", reason, pending.place), reason)
            self._replace()

    def _note(self, case_id: str, failure: CaseFailure, error: object) -> None:
        again = self.queue.failed(case_id, failure)
        log.warning("case %s of %s failed (%s): %s", case_id, self.name, "it is retried" if again else "retries exhausted", failure.reason)
        self.evidence.append(f"{case_id}, {failure.place}: {click.unstyle(str(error))}"[-3000:])

    def _replace(self) -> None:
        if self._has_more_to_give():
            self._start_worker()

    def _request_what_nodes_have(self) -> None:
        """A worker may wait for memory that no node has any more: another one takes its place, which requests less."""
        if self.largest is None:
            return
        now, _ = memory_request(self.largest.peak_bytes, living_nodes(), self.spec.workers)
        if not 0 < now < self._memory_bytes:
            return
        for call, pending in list(self._pending.items()):
            if pending.case_id is None:
                del self._pending[call]
                ray.kill(pending.actor)
                self._replace()

    def _report_waiting(self, last_report: float) -> float:
        if time.monotonic() - last_report < WAIT_REPORT_S:
            return last_report
        self._request_what_nodes_have()
        loading = sum(pending.case_id is None for pending in self._pending.values())
        running = [pending.case_id for pending in self._pending.values() if pending.case_id is not None]
        workers = self.spec.workers
        memory = f", {self._memory_bytes / 2**30:.1f} GiB of memory" if self._memory_bytes else ""
        what = f"{workers.cpus} CPUs{memory} and {workers.gpus} GPUs"
        log.info("%d workers wait for %s each or load; cases in work: %s", loading, what, running)
        return time.monotonic()
