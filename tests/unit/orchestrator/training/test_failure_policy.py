"""What Ray Train's controller does after a failure: each failed start is counted once, whatever could be stored of it."""

import errno
import pickle
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from orchestrator.run.failure import Failure
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.training.failure_policy import BudgetPolicy
from orchestrator.training.failures import keep_evidence, read_failures, write_failure
from tests.fake_run import FakeRun
from trainers.contract.fencing import acquire_token
from trainers.errors import DataError

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "fold_0")


@pytest.fixture
def policy(run: FakeRun) -> BudgetPolicy:
    return BudgetPolicy(run.folder, "driver-1", run.fencing_token)


def raised(error: Exception, rank: int = 1) -> WorkerGroupError:
    """As Ray Train tells of it: without the traceback, after a way through pickle."""
    keep_evidence(error, "On node n", "its last line")
    status = WorkerStatus(running=False, error=pickle.loads(pickle.dumps(UserExceptionWithTraceback(error, "its traceback"))))
    return WorkerGroupPollStatus({rank: status, rank + 1: WorkerStatus(running=True)}).get_worker_group_error()


def died(*, preempted: bool = False) -> WorkerGroupError:
    death = RayActorError(error_msg="The actor died", preempted=preempted)
    gone = WorkerHealthCheckFailedError("it is gone", death)
    return WorkerGroupError("it died", {0: gone, 1: RuntimeError("[gloo] Connection closed by peer")})


def test_an_error_of_the_user_ends_the_job_at_the_first_failure_and_is_written_down_as_final(policy: BudgetPolicy, run: FakeRun) -> None:
    assert policy.make_decision(raised(DataError("case a is broken"))) is RAISE
    (found,) = read_failures(run.folder, "driver-1")
    assert (found.kind, found.state, found.is_final, found.rank) == ("user", "FAILED_CONFIG", True, 1)
    assert "case a is broken" in found.message
    assert found.message == "rank 1: DataError: case a is broken"
    assert "On node n" in found.evidence
    assert "its last line" in found.evidence


def test_a_rank_that_does_not_answer_is_gone_and_one_on_a_node_that_was_taken_away_is_preempted(policy: BudgetPolicy, run: FakeRun) -> None:
    silent = WorkerHealthCheckTimeoutError("no answer")  # type: ignore[no-untyped-call] # Ray leaves it untyped
    policy.make_decision(WorkerGroupError("it hangs", {1: silent}))
    policy.make_decision(died(preempted=True))
    policy.make_decision(died())
    assert [f.kind for f in read_failures(run.folder)] == ["cluster", "preemption", "cluster"]
    assert "rank 0 died or cannot be reached" in read_failures(run.folder)[-1].message


def test_an_error_before_the_start_has_a_number_meets_its_budget_too(policy: BudgetPolicy, run: FakeRun) -> None:
    error = RuntimeError("local rank 1 needs GPU 1, but 1 GPUs are visible on this node.")
    assert [policy.make_decision(raised(error)) for _ in range(2)] == [RETRY, RAISE]
    assert [f.is_final for f in read_failures(run.folder)] == [False, True]
    assert "2 starts failed like this in epoch 0, without progress" in read_failures(run.folder)[-1].message


def test_deaths_end_the_job_only_without_progress_in_between(policy: BudgetPolicy, run: FakeRun) -> None:
    for _ in range(3):
        assert [policy.make_decision(died()) for _ in range(4)] == [RETRY] * 4
        run.epoch()
    assert [policy.make_decision(died()) for _ in range(5)] == [RETRY] * 4 + [RAISE]


def test_a_gang_that_dies_half_started_ends_the_job_but_waiting_for_room_does_not(
    policy: BudgetPolicy, run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    waits = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert {policy.make_decision(waits) for _ in range(50)} == {RETRY}
    assert caplog.text.count("no capacity for the workers yet") == 1, "Ray asks every 20 s, for days on a full cluster"
    assert read_failures(run.folder) == []
    fails = ControllerError(WorkerGroupStartupFailedError("the runtime environment could not be made"))
    assert policy.make_decision(fails) is RAISE
    assert [(f.state, f.is_final) for f in read_failures(run.folder)] == [("FAILED_CLUSTER", True)]


def test_preemptions_cost_nothing_and_an_error_of_rays_own_ends_the_job(policy: BudgetPolicy, run: FakeRun) -> None:
    taken: TrainingFailedError = PreemptionError(PreemptionInfo(preempted_node_to_ranks={"n": [0]}, deadline_ms=0))
    assert {policy.make_decision(taken) for _ in range(30)} == {RETRY}
    assert policy.make_decision(ControllerError(ValueError("inside Ray"))) is RAISE
    assert [f.is_final for f in read_failures(run.folder)] == [False] * 30 + [True]


def test_budgets_hold_where_nothing_can_be_stored_and_another_drivers_records_do_not_count(run: FakeRun, tmp_path: Path) -> None:
    blind = BudgetPolicy(type(run.folder)(tmp_path / "away"), "driver-1", 1)
    assert [blind.make_decision(died()) for _ in range(5)] == [RETRY] * 4 + [RAISE]
    assert not (tmp_path / "away").exists()
    old = BudgetPolicy(run.folder, "driver-1", run.fencing_token)
    acquire_token(run.folder, "driver-2")
    assert old.make_decision(raised(DataError("case a"))) is RAISE
    new = BudgetPolicy(run.folder, "driver-2", 2)
    assert new.make_decision(died()) is RETRY
    assert [(f.fencing_token, f.driver) for f in read_failures(run.folder)] == [(1, "driver-1"), (2, "driver-2")]


def test_an_end_and_its_reasons_are_told_where_the_share_is_away(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "glob", away)
    monkeypatch.setattr(Path, "iterdir", away)
    assert write_outcome(run.folder, Outcome(job="training", state="TRAINED", fencing_token=1, message="trained"))
    assert "(TRAINED: trained) is not stored" in caplog.text
    assert read_failures(run.folder) == []
    write_failure(
        run.folder,
        Failure(driver="d", fencing_token=1, kind="code", state="FAILED_CODE", epochs_done=0, iteration=0, message="m", evidence=""),
    )
    assert "is not stored" in caplog.text
