"""The same `evaluate` twice: one job, which the second command follows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.errors import ClusterError
from orchestrator.run.events import Event, line_of
from orchestrator.run.interrupts import HungUp
from orchestrator.run.job_record import JobRecord, JobState
from orchestrator.validation.held_out_events import HeldOutEvent, HeldOutWaits, HeldOutWarned
from orchestrator.verbs.models import _followed_to_its_end

COMMAND = ["4/3d_fullres/nnUNetTrainer", "--images=/imagesTs", "--checkpoint=final"]
DONE = HeldOutEvent(message="3 cases are predicted", num_cases=3)


@dataclass
class FakeJobs:
    """A job server on which each look at a job brings it to the next of `turns`."""

    turns: list[Callable[[], None]] = field(default_factory=list)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    submitted: list[list[str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    interrupted: bool | None = None
    """Ctrl-C while a job is submitted, after (True) or before the server has stored it."""
    address: str = "http://head:8265"

    def records(self) -> list[JobRecord]:
        return list(self.jobs.values())

    def find(self, submission_id: str) -> JobRecord:
        if self.turns:
            self.turns.pop(0)()
        return self.jobs[submission_id]

    def logs(self, submission_id: str) -> str:
        return self.texts[submission_id]

    def stop(self, submission_id: str) -> None:
        if submission_id not in self.jobs:
            raise ClusterError(f"cluster: could not stop {submission_id}: status code 404")
        self.stopped.append(submission_id)

    def submit_held_out(self, name: str, arguments: list[str]) -> str:
        self.submitted.append(arguments)
        if self.interrupted is not False:
            self.set(f"test-{name}", "RUNNING")
        if self.interrupted is not None:
            raise KeyboardInterrupt
        return f"test-{name}"

    def set(self, submission_id: str, state: JobState, *events: Event) -> None:
        self.jobs[submission_id] = JobRecord(submission_id=submission_id, kind="test", state=state)
        self.texts[submission_id] = "".join(f"{line_of(event)}\n" for event in events)

    def end(self, *events: Event, state: JobState = "SUCCEEDED") -> None:
        self.set(list(self.jobs)[-1], state, *events)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.campaign.follower.time.sleep", lambda _: None)


def evaluate(jobs: Any, how: list[str], said: list[str]) -> HeldOutEvent:
    return _followed_to_its_end(jobs, COMMAND, how, said.append)


def test_the_same_command_follows_the_job_of_the_first_and_starts_none() -> None:
    jobs, said = FakeJobs(), list[str]()
    jobs.turns = [lambda: jobs.end(DONE)]
    assert evaluate(jobs, [], said) == DONE
    [first] = jobs.jobs
    jobs.set(first, "RUNNING")
    jobs.turns = [lambda: jobs.end(HeldOutWaits(because="queued behind 4/2d/t/0."), state="RUNNING"), lambda: jobs.end(DONE)]
    assert evaluate(jobs, ['--workers={"gpus": 0}'], said) == DONE, "how it is done does not matter"
    assert len(jobs.submitted) == 1
    assert said == [
        f"The same command is at work already as job {first}: this one follows it. `nnfleet stop {first}` ends it.",
        "It waits: queued behind 4/2d/t/0.",
    ]


@pytest.mark.parametrize("looks", [1, 2])
def test_a_warning_of_the_job_is_shown_once_however_fast_it_ends(looks: int) -> None:
    jobs, said = FakeJobs(), list[str]()
    warned = HeldOutWarned(message="it runs on CPUs")
    steps = [lambda: jobs.end(warned, state="RUNNING"), lambda: jobs.end(warned, DONE)]
    jobs.turns = steps[-looks:]
    evaluate(jobs, [], said)
    assert said == ["Warning: it runs on CPUs"]


def test_once_it_has_ended_the_same_command_starts_a_job_that_continues() -> None:
    jobs = FakeJobs()
    jobs.turns = [lambda: jobs.end(DONE)]
    evaluate(jobs, [], [])
    jobs.turns = [lambda: jobs.end(DONE)]
    evaluate(jobs, ['--workers={"count": 2}'], [])
    assert jobs.submitted == [COMMAND, [*COMMAND, '--workers={"count": 2}']]
    assert len(jobs.jobs) == 2


def test_only_the_command_that_began_the_job_stops_it() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    jobs = FakeJobs([interrupt])
    with pytest.raises(KeyboardInterrupt):
        evaluate(jobs, [], [])
    [first] = jobs.jobs
    assert jobs.stopped == [first]
    jobs.turns = [interrupt]
    with pytest.raises(KeyboardInterrupt):
        evaluate(jobs, [], [])
    assert jobs.stopped == [first], "it lives on for the first"


def test_a_closed_terminal_ends_no_job_and_whoever_follows_one_knows_whose_it_is() -> None:
    def hang_up() -> None:
        raise HungUp

    jobs, seen = FakeJobs([hang_up, hang_up]), dict[str, bool]()
    with pytest.raises(HungUp):
        _followed_to_its_end(jobs, COMMAND, [], on_job=seen.__setitem__)  # type: ignore[arg-type]
    [first] = jobs.jobs
    assert (seen, jobs.stopped) == ({first: True}, [])
    with pytest.raises(HungUp):
        _followed_to_its_end(jobs, COMMAND, [], on_job=seen.__setitem__)  # type: ignore[arg-type]
    assert (seen, jobs.stopped) == ({first: False}, [])


@pytest.mark.parametrize("is_stored", [True, False])
def test_ctrl_c_while_the_job_is_submitted_ends_it_or_says_that_it_may_be_at_work(
    is_stored: bool, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = FakeJobs(interrupted=is_stored)
    with pytest.raises(KeyboardInterrupt):
        evaluate(jobs, [], [])
    assert jobs.stopped == list(jobs.jobs)
    assert len(jobs.stopped) == is_stored
    assert ("may be at work. `nnfleet status` shows it then, `nnfleet stop test-" in caplog.text) is not is_stored


def test_an_error_of_the_job_is_the_error_of_the_command() -> None:
    jobs = FakeJobs()
    jobs.turns = [lambda: jobs.end(HeldOutEvent(message="test set: its workers fit this cluster never", exit_code=5), state="FAILED")]
    with pytest.raises(ClusterError, match="fit this cluster never"):
        evaluate(jobs, [], [])
