"""What happens next with one run: truth tables of the pure policy."""

import pytest

from orchestrator.follow.next_step import (
    MAX_WITHOUT_PROGRESS,
    REMOVED_ENDS_S,
    STOPS,
    End,
    Facts,
    Follow,
    StopJob,
    Train,
    Validate,
    Wait,
    next_step,
)
from orchestrator.run.outcome import EndState, Outcome
from tests.fake_run import job_record as job
from trainers.contract.requests import PauseRequest, StopRequest
from trainers.contract.states import RunState
from trainers.errors import DataError


def validate(fencing_token: int, state: RunState = RunState.RUNNING) -> Validate:
    return Validate(state, fencing_token)


def ended(state: EndState, of: str = "training", fencing_token: int = 1) -> Outcome:
    return Outcome(job=of, state=state, fencing_token=fencing_token, message="said so")


KILLED = job(state="FAILED", code=137)
LATER, NOW = StopRequest(is_now=False), StopRequest(is_now=True)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(), Train(RunState.RECOVERING)),
        (Facts(jobs=(job(),)), Follow(RunState.RUNNING)),
        (Facts(jobs=(job(),), is_progress_fresh=False), Follow(RunState.RECOVERING)),
        (Facts(jobs=(job(state="PENDING"),)), Follow(RunState.RUNNING)),
        (Facts(jobs=(job(), job("validate"))), Follow(RunState.VALIDATING)),
        (Facts(jobs=(job(state="SUCCEEDED"), job("validate"))), Follow(RunState.VALIDATING)),
        (Facts(jobs=(job(state="SUCCEEDED"),), outcome=ended("TRAINED")), validate(1)),
        (Facts(outcome=ended("TRAINED", fencing_token=4)), validate(4)),
        (Facts(jobs=(job("validate", "FAILED", n=4),), outcome=ended("TRAINED", fencing_token=4)), validate(4)),
        (Facts(outcome=ended("SUCCEEDED", "validation")), End(RunState.SUCCEEDED)),
        (
            Facts(jobs=(job("validate"),), outcome=ended("SUCCEEDED", "validation")),
            End(RunState.SUCCEEDED),
        ),  # it only delivers
        (Facts(jobs=(job("validate", n=2),), outcome=ended("SUCCEEDED", "validation")), Follow(RunState.VALIDATING)),
        (Facts(jobs=(job("validate"),), outcome=ended("FAILED_CODE")), Follow(RunState.VALIDATING)),
        (Facts(jobs=(job(),), outcome=ended("TRAINED")), Follow(RunState.RUNNING)),
        (Facts(jobs=(job(),), outcome=ended("SUCCEEDED", "validation")), End(RunState.SUCCEEDED)),
        (Facts(jobs=(job(),), outcome=ended("FAILED_CONFIG")), End(RunState.FAILED_CONFIG, "said so")),
        (Facts(outcome=ended("STOPPED")), End(RunState.STOPPED, "said so")),
        (Facts(outcome=ended("FAILED_CONFIG")), End(RunState.FAILED_CONFIG, "said so")),
        (Facts(outcome=ended("FAILED_CODE")), End(RunState.FAILED_CODE, "said so")),
        (Facts(jobs=(KILLED,), outcome=ended("FAILED_CODE")), End(RunState.FAILED_CODE, "said so")),
    ],
)
def test_next_step(facts: Facts, expected: object) -> None:
    assert next_step(facts, RunState.RUNNING) == expected


PAUSE = PauseRequest(rung=2, why="leaves its workers")
PAUSED = job(state="SUCCEEDED", code=0)
GOES_ON = Train(RunState.QUEUED, "continues from its newest state.")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(jobs=(job(),), pause=PAUSE, has_begun=False), Follow(RunState.RUNNING)),  # the training obeys, when it has begun
        (Facts(jobs=(PAUSED,), pause=PAUSE, outcome=ended("PAUSED"), committed_token=1), Train(RunState.QUEUED, "leaves its workers")),
        (Facts(jobs=(KILLED,), pause=PAUSE), Train(RunState.QUEUED, "leaves its workers")),
        (Facts(jobs=(PAUSED,), pause=PAUSE, outcome=ended("TRAINED")), validate(1)),
        (Facts(jobs=(PAUSED,), pause=PAUSE, outcome=ended("FAILED_CODE")), End(RunState.FAILED_CODE, "said so")),
        (Facts(jobs=(job("validate"),), pause=PAUSE, outcome=ended("TRAINED")), Follow(RunState.VALIDATING)),
        (Facts(jobs=(PAUSED,), pause=PAUSE, outcome=ended("PAUSED"), stop=LATER), End(RunState.STOPPED, "stopped on request.")),
        (
            Facts(jobs=(PAUSED,), outcome=ended("PAUSED"), committed_token=1),
            GOES_ON,
        ),  # what it was asked is withdrawn, its job not yet there
        (Facts(outcome=ended("PAUSED")), Train(RunState.QUEUED)),
        (Facts(jobs=(job(),), pause=PAUSE, outcome=ended("PAUSED")), Follow(RunState.QUEUED, "leaves its workers")),  # it delivers
        (Facts(jobs=(job(),), outcome=ended("PAUSED"), stop=NOW), StopJob(RunState.QUEUED, job(), STOPS)),
        (Facts(jobs=(PAUSED, job(n=2)), outcome=ended("PAUSED")), Follow(RunState.RUNNING)),
    ],
)
def test_a_run_that_pauses_is_queued_and_keeps_nothing_reserved(facts: Facts, expected: object) -> None:
    assert next_step(facts, RunState.RUNNING) == expected


def test_a_job_that_paused_is_none_without_progress() -> None:
    """Two died, and the third one was asked to pause before it had an epoch."""
    died = tuple(job(state="FAILED", n=n, code=137) for n in (1, 2))
    paused = job(state="SUCCEEDED", n=3, code=0)
    outcome = ended("PAUSED", fencing_token=3)
    assert next_step(Facts(jobs=(*died, paused), pause=PAUSE, outcome=outcome), RunState.RUNNING) == Train(RunState.QUEUED, PAUSE.why)
    assert next_step(Facts(jobs=(*died, paused), outcome=outcome), RunState.QUEUED) == GOES_ON
    again = job(state="FAILED", n=4, code=137)
    assert next_step(Facts(jobs=(*died, paused, again), outcome=outcome), RunState.RUNNING).state is RunState.FAILED_CLUSTER
    without_result = tuple(job(state="SUCCEEDED", n=n, code=0) for n in (1, 2, 3))
    assert isinstance(next_step(Facts(jobs=without_result), RunState.RUNNING), End), "no disk took how they ended"


def test_a_job_that_dies_after_a_pause_recovers() -> None:
    died = job(state="FAILED", n=2, code=137)
    step = next_step(Facts(jobs=(PAUSED, died), outcome=ended("PAUSED"), committed_token=1), RunState.RUNNING)
    assert isinstance(step, Train)
    assert step.state is RunState.RECOVERING
    assert "was killed by signal 9" in step.reason


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(stop=LATER), RunState.STOPPED),
        (Facts(jobs=(job(),), stop=LATER), RunState.RUNNING),
        (Facts(jobs=(KILLED,), stop=LATER), RunState.STOPPED),
        (Facts(outcome=ended("TRAINED"), stop=NOW), RunState.STOPPED),
        (Facts(outcome=ended("FAILED_CODE"), stop=NOW), RunState.STOPPED),
        (Facts(outcome=ended("SUCCEEDED", "validation"), stop=NOW), RunState.SUCCEEDED),
    ],
)
def test_a_stop_request(facts: Facts, expected: RunState) -> None:
    step = next_step(facts, RunState.RUNNING)
    assert step.state is expected


def test_a_stop_at_once_ends_a_validation_and_a_gentle_one_leaves_it_the_cases_in_work() -> None:
    validating = job("validate")
    ends = StopJob(RunState.VALIDATING, validating, STOPS)
    assert next_step(Facts(jobs=(validating,), stop=NOW), RunState.VALIDATING) == ends
    assert next_step(Facts(jobs=(validating,), stop=LATER), RunState.VALIDATING) == Follow(RunState.VALIDATING)
    deaf = validating.model_copy(update={"obeys_gentle_stop": False})  # of the version before
    assert next_step(Facts(jobs=(deaf,), stop=LATER), RunState.VALIDATING) == StopJob(RunState.VALIDATING, deaf, STOPS)


@pytest.mark.parametrize("stop", [LATER, NOW])
def test_a_stop_ends_a_run_whose_validation_has_no_job(stop: StopRequest) -> None:
    for outcome in (ended("TRAINED"), ended("STOPPED", "validation"), ended("FAILED_CLUSTER", "validation")):
        end = next_step(Facts(outcome=outcome, stop=stop), RunState.VALIDATING)
        assert isinstance(end, End)
        assert end.reason.startswith("trained; validation stopped; submit again or")
    failed = Facts(outcome=ended("FAILED_CODE", "validation"), stop=LATER)
    assert next_step(failed, RunState.VALIDATING) == End(RunState.FAILED_CODE, "said so")


def test_a_gentle_stop_ends_a_training_without_workers() -> None:
    never_began = Facts(jobs=(job(),), stop=LATER, has_begun=False)
    assert next_step(never_began, RunState.RUNNING) == StopJob(RunState.RUNNING, job(), STOPS)
    lost_them = Facts(jobs=(job(),), stop=LATER, is_progress_fresh=False)
    assert next_step(lost_them, RunState.RUNNING) == StopJob(RunState.RECOVERING, job(), STOPS)


def test_a_run_whose_folder_is_another_runs_now_ends_without_touching_it() -> None:
    stops = "stops: its folder belongs to the run k2 now."
    for living in (job(), job("validate")):
        step = next_step(Facts(jobs=(living,), reassigned_to="k2"), RunState.RUNNING)
        assert step == StopJob(RunState.RUNNING, living, stops)
    end = next_step(Facts(jobs=(job(state="STOPPED"),), reassigned_to="k2"), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.STOPPED
    assert end.reason.startswith("its folder belongs to the run k2 now. Submit it again")


def test_a_trained_run_whose_folder_was_removed_is_waited_for_an_hour() -> None:
    assert isinstance(next_step(Facts(removed_s=REMOVED_ENDS_S - 1), RunState.VALIDATING), Wait)
    end = next_step(Facts(removed_s=REMOVED_ENDS_S), RunState.VALIDATING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CONFIG


def test_a_job_that_finds_its_folder_or_dataset_unfit_is_not_tried_again() -> None:
    log = "Job entrypoint command failed, last logs:\nstarts\ndataset: /d/dataset.json is refused to this user. Mend its rights.\n"
    unfit = job(state="FAILED", code=DataError.exit_code).model_copy(update={"message": log})
    end = next_step(Facts(jobs=(unfit,)), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CONFIG
    assert end.reason.endswith("could not begin: dataset: /d/dataset.json is refused to this user. Mend its rights.")
    assert end.evidence == log


def test_a_stop_at_once_ends_the_job() -> None:
    assert next_step(Facts(jobs=(job(),), stop=NOW), RunState.RUNNING) == StopJob(RunState.RUNNING, job(), STOPS)


def test_a_killed_job_is_tried_again_until_the_budget_is_spent() -> None:
    lost = [job(state="FAILED", n=n, code=137) for n in range(1, MAX_WITHOUT_PROGRESS + 1)]
    again = next_step(Facts(jobs=tuple(lost[:-1])), RunState.RUNNING)
    assert isinstance(again, Train)
    assert "signal 9" in again.reason
    end = next_step(Facts(jobs=tuple(lost)), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CLUSTER


def test_the_code_is_blamed_when_the_last_job_ended_by_itself_with_an_error() -> None:
    lost = tuple(job(state="FAILED", n=n, code=1) for n in range(1, MAX_WITHOUT_PROGRESS + 1))
    end = next_step(Facts(jobs=lost), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CODE


def test_a_failure_of_the_cluster_is_tried_again_and_reported_in_its_own_words() -> None:
    lost = tuple(job(state="FAILED", n=n, code=1) for n in range(1, MAX_WITHOUT_PROGRESS + 1))
    assert isinstance(next_step(Facts(jobs=lost[:1], outcome=ended("FAILED_CLUSTER")), RunState.RUNNING), Train)
    end = next_step(Facts(jobs=lost, outcome=ended("FAILED_CLUSTER")), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CLUSTER
    assert "said so" in end.reason


def test_jobs_of_an_earlier_campaign_do_not_count_as_failures() -> None:
    lost = tuple(job(state="FAILED", n=n, code=137) for n in range(1, MAX_WITHOUT_PROGRESS + 1))
    assert next_step(Facts(jobs=lost, earlier=frozenset(j.submission_id for j in lost)), RunState.QUEUED) == Train(RunState.QUEUED)


def test_a_job_that_made_progress_begins_the_count_anew() -> None:
    lost = tuple(job(state="FAILED", n=n, code=137) for n in range(1, 20, 2))
    assert isinstance(next_step(Facts(jobs=lost, committed_token=20), RunState.RUNNING), Train)
    few = next_step(Facts(jobs=lost, committed_token=16), RunState.RUNNING)
    assert isinstance(few, Train)
    assert f"({MAX_WITHOUT_PROGRESS - 1} of {MAX_WITHOUT_PROGRESS} jobs ended in a row without progress)" in few.reason
    end = next_step(Facts(jobs=lost, committed_token=14), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CLUSTER
    assert f"{MAX_WITHOUT_PROGRESS} jobs in a row ended without progress" in end.reason
    assert "nnfleet resume" in end.reason


def test_the_order_of_jobs_is_that_of_their_numbers_whatever_the_clocks_say() -> None:
    first, second = job(state="FAILED", n=1, code=137, started=9000), job(state="STOPPED", n=2, started=5)
    end = next_step(Facts(jobs=(second, first)), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.STOPPED


def test_a_validation_that_finishes_cases_is_tried_again() -> None:
    lost = tuple(
        job("validate", "FAILED", n=3, code=137).model_copy(update={"submission_id": f"validate-r-a3{f'-r{n}' if n else ''}"})
        for n in range(12)
    )
    trained = ended("TRAINED", fencing_token=3)
    assert next_step(Facts(jobs=lost, outcome=trained, has_validated=frozenset({"validate-r-a3-r9"})), RunState.VALIDATING) == validate(
        3, RunState.VALIDATING
    )
    end = next_step(Facts(jobs=lost, outcome=trained, has_validated=frozenset({"validate-r-a3-r8"})), RunState.VALIDATING)
    assert isinstance(end, End)


@pytest.mark.parametrize(("code", "state"), [(1, RunState.FAILED_CODE), (5, RunState.FAILED_CLUSTER), (11, RunState.FAILED_CLUSTER)])
def test_jobs_whose_end_no_disk_took_end_the_run_by_their_exit_codes(code: int, state: RunState) -> None:
    end = next_step(Facts(jobs=tuple(job(state="FAILED", n=n, code=code) for n in range(1, MAX_WITHOUT_PROGRESS + 1))), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is state


def test_a_job_that_somebody_stopped_is_not_started_again() -> None:
    end = next_step(Facts(jobs=(job(state="STOPPED"),)), RunState.RUNNING)
    assert isinstance(end, End)
    assert end.state is RunState.STOPPED


def test_a_superseded_job_does_not_end_the_run() -> None:
    assert next_step(Facts(jobs=(job(state="FAILED", code=1), job(n=2)), outcome=ended("SUPERSEDED")), RunState.RUNNING) == Follow(
        RunState.RUNNING
    )


@pytest.mark.parametrize(
    "outcome", [None, ended("TRAINED", fencing_token=4), ended("STOPPED", fencing_token=4), ended("FAILED_CONFIG", fencing_token=4)]
)
def test_a_superseded_run_is_left_to_the_other_cluster(outcome: Outcome | None) -> None:
    facts = Facts(jobs=(job(state="FAILED", code=7),), outcome=outcome, owner="host-1 (fencing token 4)")
    end = next_step(facts, RunState.RUNNING)
    assert end == End(RunState.STOPPED, "superseded by host-1 (fencing token 4): it goes on there.", is_elsewhere=True)
    assert next_step(Facts(outcome=ended("SUPERSEDED")), RunState.RUNNING) == End(
        RunState.STOPPED, "superseded by another cluster: it goes on there.", is_elsewhere=True
    )


def test_a_validation_has_a_budget_of_its_own() -> None:
    trainings = (job(state="FAILED", code=137), job(state="FAILED", n=2, code=137), job(state="SUCCEEDED", n=3, code=0))
    lost = tuple(job("validate", "FAILED", n=3, code=137) for _ in range(MAX_WITHOUT_PROGRESS))
    trained = ended("TRAINED", fencing_token=3)
    assert next_step(Facts(jobs=(*trainings, *lost[:-1]), outcome=trained), RunState.VALIDATING) == validate(3, RunState.VALIDATING)
    end = next_step(Facts(jobs=(*trainings, *lost), outcome=trained), RunState.VALIDATING)
    assert isinstance(end, End)
    assert end.state is RunState.FAILED_CLUSTER
