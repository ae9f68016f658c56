"""What happens next with one run: a pure policy over what is known of its jobs and its folder.

Nothing is remembered between two looks except the present state, so a campaign that is started again, or a second one beside it,
comes to the same decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from orchestrator.run.job_record import JobKind, JobRecord
from orchestrator.run.outcome import Outcome
from trainers.contract.errors import ClusterError, DataError, StorageError, Superseded
from trainers.contract.requests import StopRequest
from trainers.contract.states import RunState

BUDGET = 3
"""Jobs of one kind in a row that may end without a result and without progress before a campaign gives a run up.

A training job that committed a state, or a validation job that finished a case, begins the count anew: a month on flaky nodes is no
reason to give up. Errors of the user's making are not tried again at all, and preemptions never end a job.
"""


@dataclass(frozen=True)
class Facts:
    """What is known of one run. `jobs` are its own; those in `earlier` ended before this campaign and are not its affair.

    No time stamp decides: clocks jump. Jobs are told apart by their ids and ordered by their numbers.
    """

    jobs: tuple[JobRecord, ...] = ()
    outcome: Outcome | None = None
    stop: StopRequest | None = None
    earlier: frozenset[str] = frozenset()
    committed_token: int = 0
    """Attempt that made the newest commit; 0 when there is none."""
    has_validated: frozenset[str] = frozenset()
    """Validation jobs that finished a case."""
    trouble: str = ""
    """Why the run waits although a job of it lives; empty when all is well."""
    is_progress_fresh: bool = True
    """The workers of the newest attempt have begun."""
    has_begun: bool = True
    """Workers of the living training job have begun."""
    owner: str = "another cluster"
    """Who claimed the newest attempt."""
    reassigned_to: str = ""
    """The run that the folder belongs to now: somebody moved this one's away while it waited."""

    @property
    def is_superseded(self) -> bool:
        """The last training job gave way to a driver elsewhere, and nothing of the run lives here."""
        lost = self.ended("train")
        has_yielded = bool(lost) and lost[-1].exit_code == Superseded.exit_code
        is_reported = self.outcome is not None and self.outcome.state == "SUPERSEDED"
        return (has_yielded or is_reported) and not any(job.is_live for job in self.jobs)

    def live(self, kind: JobKind) -> JobRecord | None:
        """The job of a kind that is at work, if any."""
        at_work = (job for job in self.jobs if job.kind == kind and job.is_live and not only_delivers(job, self.outcome))
        return max(at_work, key=_order, default=None)

    def ended(self, kind: JobKind) -> list[JobRecord]:
        """The jobs of a kind that ended during this campaign, oldest first."""
        found = (job for job in self.jobs if job.kind == kind and not job.is_live and job.submission_id not in self.earlier)
        return sorted(found, key=_order)

    def without_progress(self, kind: JobKind) -> list[JobRecord]:
        """The last of these jobs that ended without any progress since."""
        lost = self.ended(kind)
        if kind == "train":
            return [job for job in lost if job.job_number > self.committed_token]
        return list(reversed(list(takewhile(lambda job: job.submission_id not in self.has_validated, reversed(lost)))))


def _order(job: JobRecord) -> tuple[int, int, str]:
    """By attempt, then by retry: `validate-KEY-a1` comes before `validate-KEY-a1-r1`, and that before `...-r10`."""
    return job.job_number, len(job.submission_id), job.submission_id


@dataclass(frozen=True)
class Stay:
    """A job of the run lives: nothing to do."""

    state: RunState
    reason: str = ""
    """Why nothing of it is at work, as far as is known."""


@dataclass(frozen=True)
class Train:
    """The run wants a training job."""

    reason: str = ""


@dataclass(frozen=True)
class Validate:
    """The run is trained, by `attempt`, and wants its full validation."""

    fencing_token: int


@dataclass(frozen=True)
class EndJob:
    """The run shall stop at once: its job is to be ended."""

    job: JobRecord
    state: RunState


@dataclass(frozen=True)
class Finish:
    """The run has come to its end."""

    state: RunState
    reason: str = ""
    evidence: str = ""
    is_elsewhere: bool = False
    """The run goes on under another driver, whose outcome is not touched."""


Step = Stay | Train | Validate | EndJob | Finish
STOPPED = Finish(RunState.STOPPED, "stopped on request.")
VALIDATION_STOPPED = Finish(RunState.STOPPED, "trained; validation stopped; submit again or `nnfleet validate` continues it.")


def only_delivers(job: JobRecord, outcome: Outcome | None) -> bool:
    """True for a living job that has stored its end already: all that it still does is to wait for a tracking server that is away."""
    if outcome is None or outcome.state not in _FINAL or outcome.fencing_token != job.job_number:
        return False
    return job.kind == "train" or outcome.job == "validation"


def next_step(facts: Facts, before: RunState) -> Step:
    """What happens next with a run that was last seen in state `before`."""
    is_now = facts.stop is not None and facts.stop.is_now
    if facts.reassigned_to:
        job = facts.live("train") or facts.live("validate")
        return EndJob(job, before) if job is not None else _reassigned(facts.reassigned_to)
    if (job := facts.live("validate")) is not None:
        return EndJob(job, RunState.VALIDATING) if is_now else Stay(RunState.VALIDATING)
    if (job := facts.live("train")) is not None:
        state = RunState.RUNNING if facts.is_progress_fresh or before is RunState.QUEUED else RunState.RECOVERING
        is_idle = facts.stop is not None and not (facts.has_begun and facts.is_progress_fresh)  # no worker is there to see the wish
        return EndJob(job, state) if is_now or is_idle else Stay(state, facts.trouble)
    outcome = facts.outcome
    if facts.is_superseded and (outcome is None or outcome.state != "SUCCEEDED"):
        return Finish(RunState.STOPPED, f"taken over by {facts.owner}: it goes on there.", is_elsewhere=True)
    if facts.stop is not None and (end := _stopped(outcome, is_now=is_now)) is not None:
        return end
    if outcome is not None and outcome.state in _FINAL:
        return Finish(_FINAL[outcome.state], "" if outcome.state == "SUCCEEDED" else outcome.message, outcome.evidence)
    return _validation(facts, outcome) if outcome is not None and _is_trained(outcome) else _training(facts)


def _reassigned(owner: str) -> Finish:
    reason = f"its folder belongs to the run {owner} now. Submit it again with another nnUNet_results, or when that one is moved away."
    return Finish(RunState.STOPPED, reason)


def _is_trained(outcome: Outcome) -> bool:
    return outcome.state == "TRAINED" or outcome.job == "validation"


def _stopped(outcome: Outcome | None, *, is_now: bool) -> Finish | None:
    """The end of a run that somebody asked to stop and that has no living job; None when its jobs ended it in their own way.

    With `is_now` it does not matter what a job says that was just ended.
    """
    if outcome is None:
        return STOPPED
    if outcome.state in ("SUCCEEDED", "FAILED_CONFIG") or (outcome.state == "FAILED_CODE" and not is_now):
        return None
    if _is_trained(outcome):
        return VALIDATION_STOPPED
    return None if outcome.state == "STOPPED" and not is_now else STOPPED


_FINAL = {
    "SUCCEEDED": RunState.SUCCEEDED,
    "STOPPED": RunState.STOPPED,
    "FAILED_CONFIG": RunState.FAILED_CONFIG,
    "FAILED_CODE": RunState.FAILED_CODE,
}
"""Ends that no new job would change: the user's wish or the user's error."""


def _training(facts: Facts) -> Step:
    lost = facts.ended("train")
    if not lost:
        return Train()
    if lost[-1].state == "STOPPED":
        return _stopped_from_outside(lost[-1])
    if lost[-1].exit_code == DataError.exit_code and lost[-1].job_number > facts.committed_token:
        return _could_not_begin(lost[-1])
    without_progress = facts.without_progress("train")
    if len(without_progress) >= BUDGET:
        return _retries_exhausted(without_progress, facts.outcome, "training")
    count = f" ({len(without_progress)} of {BUDGET} jobs lost in a row without progress)" if without_progress else ""
    return Train(f"its job {lost[-1].submission_id} {death(lost[-1])}; the next one continues from the newest state{count}.")


def _validation(facts: Facts, outcome: Outcome) -> Step:
    lost = facts.ended("validate")
    if lost and lost[-1].state == "STOPPED":
        return _stopped_from_outside(lost[-1])
    without_progress = facts.without_progress("validate")
    if len(without_progress) >= BUDGET:
        return _retries_exhausted(without_progress, outcome if outcome.job == "validation" else None, "full validation")
    return Validate(outcome.fencing_token)


_OF_MACHINES = {ClusterError.exit_code, StorageError.exit_code}
"""Exit codes by which a job says that machines or disks failed."""


def _stopped_from_outside(job: JobRecord) -> Finish:
    reason = f"its Ray job {job.submission_id} was stopped from outside. `nnfleet resume RUN` or a new submission continues it."
    return Finish(RunState.STOPPED, reason)


def _could_not_begin(job: JobRecord) -> Finish:
    """The end of a run whose folder or dataset is not what a job can work with: it said so before it could store an outcome."""
    told = (job.message.strip().splitlines() or ["see its log."])[-1]
    return Finish(RunState.FAILED_CONFIG, f"its job {job.submission_id} could not begin: {told}", job.message[-8000:])


def _retries_exhausted(lost: Sequence[JobRecord], outcome: Outcome | None, what: str) -> Finish:
    """The end of a run that lost too many jobs; the guilty party is the code when the last one ended by itself with an error."""
    last = lost[-1]
    own_error = outcome is None and last.has_failed_by_itself and last.exit_code not in _OF_MACHINES
    state = RunState.FAILED_CODE if own_error else RunState.FAILED_CLUSTER
    told = f" {outcome.message}" if outcome is not None else ""
    advice = "Mend what its log names" if own_error else "See in its log which node or disk failed, and mend that"
    reason = (
        f"{what}: {len(lost)} jobs in a row were lost without progress, the last ({last.submission_id}) {death(last)}.{told} "
        f"{advice}; then `nnfleet resume RUN` continues from the newest state."
    )
    return Finish(state, reason, outcome.evidence if outcome is not None else last.message[-8000:])


def death(job: JobRecord) -> str:
    """How a job ended that left no result: `was killed by signal 9`."""
    if job.exit_code is None:
        return "died with its node or never started"
    if job.exit_code < 0 or job.exit_code > 128:
        return f"was killed by signal {-job.exit_code if job.exit_code < 0 else job.exit_code - 128}"
    return f"ended with exit code {job.exit_code} and no result"
