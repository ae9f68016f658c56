"""What happens next with one run: a pure policy over what is known of its jobs and its folder.

Nothing is remembered between two looks except the present state, so a campaign that is started again, or a second one beside it,
comes to the same decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from orchestrator.run.job_record import JobKind, JobRecord
from orchestrator.run.outcome import EVIDENCE_CHARACTERS, Outcome
from trainers.contract.requests import PauseRequest, StopRequest
from trainers.contract.states import RunState
from trainers.errors import ClusterError, DataError, StorageError, Superseded

MAX_WITHOUT_PROGRESS = 3
"""Jobs of one kind in a row that may end without a result and without progress before a campaign ends the run.

A training job that committed a state, or a validation job that finished a case, begins the count anew: a month on flaky nodes is no
reason to end it. Errors of the user's making are not tried again at all, and preemptions never end a job.
"""


REMOVED_ENDS_S = 3600.0
"""A trained run whose folder was removed is waited for so long: it may only be on its way from one disk to another."""


@dataclass(frozen=True)
class Facts:
    """What is known of one run. `jobs` are its own; those in `earlier` ended before this campaign and are not its affair.

    No time stamp decides: clocks jump. Jobs are distinguished by their ids and ordered by their numbers.
    """

    jobs: tuple[JobRecord, ...] = ()
    outcome: Outcome | None = None
    stop: StopRequest | None = None
    pause: PauseRequest | None = None
    earlier: frozenset[str] = frozenset()
    committed_token: int = 0
    """Fencing token of the newest commit; 0 when there is none."""
    has_validated: frozenset[str] = frozenset()
    """Validation jobs that finished a case."""
    trouble: str = ""
    """Why the run waits although a job of it lives; empty when all is well."""
    is_progress_fresh: bool = True
    """The workers of the newest fencing token have begun."""
    has_begun: bool = True
    """Workers of the living training job have begun."""
    owner: str = "another cluster"
    """Who acquired the newest fencing token."""
    reassigned_to: str = ""
    """The run that the folder belongs to now."""
    removed_s: float | None = None
    """For how long the folder of a trained run without a job has been seen to be removed; None: it is there, or its disk is away."""

    @property
    def is_superseded(self) -> bool:
        """The last training job was fenced off by a driver elsewhere, and nothing of the run lives here."""
        trainings = self.ended("train")
        has_yielded = bool(trainings) and trainings[-1].exit_code == Superseded.exit_code
        is_recorded = self.outcome is not None and self.outcome.state == "SUPERSEDED"
        return (has_yielded or is_recorded) and not any(job.is_live for job in self.jobs)

    @property
    def is_paused(self) -> bool:
        """Its last training job left its workers to another run, or was asked to and is gone: no failure, and nothing is kept reserved."""
        if self.pause is not None:
            return True
        found = self.outcome if self.outcome is not None and self.outcome.state == "PAUSED" else None
        return found is not None and all(job.job_number <= found.fencing_token for job in self.ended("train"))

    def live(self, kind: JobKind) -> JobRecord | None:
        """The job of a kind that is at work, if any; also one that has paused and delivers yet: the run goes on after it."""
        of_kind = (job for job in self.jobs if job.kind == kind and job.is_live)
        at_work = (job for job in of_kind if not only_delivers(job, self.outcome) or has_paused(job, self.outcome))
        return max(at_work, key=_order, default=None)

    def ended(self, kind: JobKind) -> list[JobRecord]:
        """The jobs of a kind that ended during this campaign, oldest first."""
        found = (job for job in self.jobs if job.kind == kind and not job.is_live and job.submission_id not in self.earlier)
        return sorted(found, key=_order)

    def without_progress(self, kind: JobKind) -> list[JobRecord]:
        """The last of these jobs that ended without any progress since."""
        ended = self.ended(kind)
        if kind == "train":
            return [job for job in ended if job.job_number > self.committed_token and not self._has_paused(job)]
        return list(reversed(list(takewhile(lambda job: job.submission_id not in self.has_validated, reversed(ended)))))

    def _has_paused(self, job: JobRecord) -> bool:
        """Of a training job: it ended as it was asked to, whether it had the time for an epoch or not."""
        is_known = self.pause is not None or (self.outcome is not None and self.outcome.state == "PAUSED")
        return is_known and job.state == "SUCCEEDED"


def _order(job: JobRecord) -> tuple[int, int, str]:
    """By job number, then by retry: `validate-KEY-a1` comes before `validate-KEY-a1-r1`, and that before `...-r10`."""
    return job.job_number, len(job.submission_id), job.submission_id


@dataclass(frozen=True)
class Follow:
    """A job of the run lives and is left to itself."""

    state: RunState
    reason: str = ""
    """What keeps it from going on, if anything does."""


@dataclass(frozen=True)
class StopJob:
    """A job of the run lives and has to be ended."""

    state: RunState
    """Where the run stands until then."""
    job: JobRecord
    reason: str


@dataclass(frozen=True)
class Train:
    """The run wants a training job."""

    state: RunState
    """Where it stands until the job is submitted."""
    reason: str = ""


@dataclass(frozen=True)
class Wait:
    """The run is to have no job yet: other runs have to end first, or its folder has to come back. It stands in no queue."""

    state: RunState
    reason: str


@dataclass(frozen=True)
class Validate:
    """The run is trained and wants a validation job."""

    state: RunState
    """Where it stands until the job is submitted."""
    fencing_token: int
    """Of the training that is validated."""
    reason: str = ""


@dataclass(frozen=True)
class End:
    """Nothing happens with the run any more."""

    state: RunState
    reason: str = ""
    evidence: str = ""
    is_elsewhere: bool = False
    """It goes on under another driver, whose outcome is not touched."""


Step = Follow | StopJob | Train | Wait | Validate | End
"""What a campaign does with a run after a look."""
STOPPED = End(RunState.STOPPED, "stopped on request.")
VALIDATION_STOPPED = End(RunState.STOPPED, "trained; validation stopped; submit again or `nnfleet validate` continues it.")
STOPS = "stops on request."


def only_delivers(job: JobRecord, outcome: Outcome | None) -> bool:
    """True for a living job that has stored its end already: its workers are gone, and all that it still does is to deliver to a tracking
    server."""
    if has_paused(job, outcome):
        return True
    if outcome is None or outcome.state not in _FINAL or outcome.fencing_token != job.job_number:
        return False
    return job.kind == "train" or outcome.job == "validation"


def has_paused(job: JobRecord, outcome: Outcome | None) -> bool:
    """True for a training job that has stored that it left its workers to another run."""
    return job.kind == "train" and outcome is not None and outcome.state == "PAUSED" and outcome.fencing_token == job.job_number


def next_step(facts: Facts, before: RunState) -> Step:
    """What happens next with a run that was last seen in state `before`."""
    if facts.reassigned_to:
        return _reassigned(facts, before)
    if facts.removed_s is not None:
        return _removed(facts.removed_s, before)
    is_now = facts.stop is not None and facts.stop.is_now
    if (job := facts.live("validate")) is not None:
        is_stopping = is_now or (facts.stop is not None and not job.obeys_gentle_stop)
        return _followed(job, RunState.VALIDATING, facts.trouble, is_stopping=is_stopping)
    if (job := facts.live("train")) is not None and has_paused(job, facts.outcome):
        return _followed(job, RunState.QUEUED, facts.pause.why if facts.pause is not None else "", is_stopping=is_now)
    if (job := facts.live("train")) is not None:
        state = RunState.RUNNING if facts.is_progress_fresh or before is RunState.QUEUED else RunState.RECOVERING
        is_idle = facts.stop is not None and not (facts.has_begun and facts.is_progress_fresh)  # no worker is there to see the request
        return _followed(job, state, facts.trouble, is_stopping=is_now or is_idle)
    outcome = facts.outcome
    if facts.is_superseded and (outcome is None or outcome.state != "SUCCEEDED"):
        return End(RunState.STOPPED, f"superseded by {facts.owner}: it goes on there.", is_elsewhere=True)
    if facts.stop is not None and (end := _stopped(outcome, is_now=is_now)) is not None:
        return replace(end, reason=facts.stop.why) if facts.stop.why and end is STOPPED else end
    if outcome is not None and outcome.state in _FINAL:
        reason = "" if outcome.state == "SUCCEEDED" else outcome.message
        return End(_FINAL[outcome.state], reason, outcome.evidence)
    return _validation(facts, outcome, before) if outcome is not None and is_trained(outcome) else _training(facts, before)


def _followed(job: JobRecord, state: RunState, trouble: str = "", *, is_stopping: bool) -> Follow | StopJob:
    return StopJob(state, job, STOPS) if is_stopping else Follow(state, trouble)


def _reassigned(facts: Facts, before: RunState) -> Step:
    """The end of a run whose folder is another one's: a job of it that still lives would write there."""
    whose = f"its folder belongs to the run {facts.reassigned_to} now"
    if (job := facts.live("train") or facts.live("validate")) is not None:
        return StopJob(before, job, f"stops: {whose}.")
    advice = "Submit it again as a variant (`variant: NAME`), or in that one's place: `nnfleet submit --replace`."
    return End(RunState.STOPPED, f"{whose}. {advice}")


def _removed(removed_s: float, before: RunState) -> Wait | End:
    """A trained run whose folder was removed waits for it, and then ends: whatever is asked of the run, it is asked in that folder."""
    if removed_s < REMOVED_ENDS_S:
        return Wait(before, "waits for its folder, which was removed.")
    reason = "its folder was removed after its training, and was not back within an hour: it is not validated."
    return End(RunState.FAILED_CONFIG, f"{reason} Bring it back, then `nnfleet resume RUN` goes on; a new submission trains it anew.")


def is_trained(outcome: Outcome) -> bool:
    """True when the training of a run is done, by how its newest job ended."""
    return outcome.state == "TRAINED" or outcome.job == "validation"


def _stopped(outcome: Outcome | None, *, is_now: bool) -> End | None:
    """The end of a run that somebody asked to stop and that has no living job; None when its jobs ended it in their own way.

    With `is_now` it does not matter what a job recorded that was just ended.
    """
    if outcome is None:
        return STOPPED
    if outcome.state in ("SUCCEEDED", "FAILED_CONFIG") or (outcome.state == "FAILED_CODE" and not is_now):
        return None
    if is_trained(outcome):
        return VALIDATION_STOPPED
    return None if outcome.state == "STOPPED" and not is_now else STOPPED


_FINAL = {
    "SUCCEEDED": RunState.SUCCEEDED,
    "STOPPED": RunState.STOPPED,
    "FAILED_CONFIG": RunState.FAILED_CONFIG,
    "FAILED_CODE": RunState.FAILED_CODE,
}
"""Ends that no new job would change: the user's request or the user's error."""


def _training(facts: Facts, before: RunState) -> Step:
    ended = facts.ended("train")
    state = RunState.QUEUED if facts.is_paused else RunState.RECOVERING if before is RunState.RUNNING else before
    if not ended:
        return Train(state)
    last = ended[-1]
    if last.state == "STOPPED":
        return _stopped_from_outside(last)
    if last.exit_code == DataError.exit_code and last.job_number > facts.committed_token:
        return _could_not_begin(last)
    without_progress = facts.without_progress("train")
    if len(without_progress) >= MAX_WITHOUT_PROGRESS:
        return _retries_exhausted(without_progress, facts.outcome, "training")
    if facts.is_paused:
        return Train(state, facts.pause.why if facts.pause is not None else "continues from its newest state.")
    count = f" ({len(without_progress)} of {MAX_WITHOUT_PROGRESS} jobs ended in a row without progress)" if without_progress else ""
    reason = f"its job {last.submission_id} {death(last)}; the next one continues from the newest state{count}."
    return Train(state, reason)


def _validation(facts: Facts, outcome: Outcome, before: RunState) -> Step:
    ended = facts.ended("validate")
    if ended and ended[-1].state == "STOPPED":
        return _stopped_from_outside(ended[-1])
    without_progress = facts.without_progress("validate")
    if len(without_progress) >= MAX_WITHOUT_PROGRESS:
        return _retries_exhausted(without_progress, outcome if outcome.job == "validation" else None, "full validation")
    return Validate(before, outcome.fencing_token)


_OF_MACHINES = {ClusterError.exit_code, StorageError.exit_code}
"""Exit codes by which a job reports that machines or disks failed."""


def _stopped_from_outside(job: JobRecord) -> End:
    reason = f"its Ray job {job.submission_id} was stopped from outside. `nnfleet resume RUN` or a new submission continues it."
    return End(RunState.STOPPED, reason)


def _could_not_begin(job: JobRecord) -> End:
    """The end of a run whose folder or dataset is not what a job can work with: it failed before it could store an outcome."""
    last_line = (job.message.strip().splitlines() or ["see its log."])[-1]
    reason = f"its job {job.submission_id} could not begin: {last_line}"
    return End(RunState.FAILED_CONFIG, reason, job.message[-EVIDENCE_CHARACTERS:])


def _retries_exhausted(ended: Sequence[JobRecord], outcome: Outcome | None, what: str) -> End:
    """The end of a run of which too many jobs ended; the guilty party is the code when the last one ended by itself with an error."""
    last = ended[-1]
    own_error = outcome is None and last.has_failed_by_itself and last.exit_code not in _OF_MACHINES
    state = RunState.FAILED_CODE if own_error else RunState.FAILED_CLUSTER
    recorded = f" {outcome.message}" if outcome is not None else ""
    advice = "Fix what its log names" if own_error else "See in its log which node or disk failed, and repair that"
    reason = (
        f"{what}: {len(ended)} jobs in a row ended without progress, the last ({last.submission_id}) {death(last)}.{recorded} "
        f"{advice}; then `nnfleet resume RUN` continues from the newest state."
    )
    return End(state, reason, outcome.evidence if outcome is not None else last.message[-EVIDENCE_CHARACTERS:])


def death(job: JobRecord) -> str:
    """How a job ended that left no result: `was killed by signal 9`."""
    if job.exit_code is None:
        return "died with its node or never started"
    if job.exit_code < 0 or job.exit_code > 128:
        return f"was killed by signal {-job.exit_code if job.exit_code < 0 else job.exit_code - 128}"
    return f"ended with exit code {job.exit_code} and no result"
