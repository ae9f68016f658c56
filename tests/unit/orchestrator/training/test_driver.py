"""The exit code of a training job, by which a campaign tells a lost job from one that gave way to another driver."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.outcome import EndState, Outcome, read_outcome, write_outcome
from orchestrator.training import driver
from orchestrator.training.worker import WorkerJob
from tests.fake_run import FakeRun
from tests.unit.planned import planned
from trainers.contract.fencing import acquire_token
from trainers.contract.run_spec import OwnCode, OwnParts
from trainers.errors import StorageError


@pytest.mark.parametrize(
    ("state", "code"), [("TRAINED", 0), ("STOPPED", 0), ("PAUSED", 0), ("FAILED_CODE", 1), ("FAILED_CLUSTER", 5), ("SUPERSEDED", 7)]
)
def test_the_exit_code_tells_how_a_training_job_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: EndState, code: int) -> None:
    monkeypatch.setattr("ray.init", lambda **options: None)
    outcome = Outcome(job="training", state=state, fencing_token=1, message="")
    monkeypatch.setattr(driver, "run_training", lambda folder, fencing_token: outcome)
    assert driver.main([str(tmp_path)]) == code


def test_a_job_whose_claim_the_disk_did_not_take_says_so_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.init", lambda **options: None)

    def full(folder: object, fencing_token: int) -> Outcome:
        raise StorageError("storage: the file system is full")

    monkeypatch.setattr(driver, "run_training", full)
    assert driver.main([str(tmp_path)]) == 11
    assert "the file system is full" in capsys.readouterr().out


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "retry_storage", lambda act, what: act())


@pytest.mark.usefixtures("impatient")
def test_a_head_without_the_share_is_an_outage_and_gets_no_folder_of_that_name(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.folder.root.rename(tmp_path / "away")
    with pytest.raises(StorageError, match=r"run\.json is not there on this node"):
        driver.run_training(run.folder)
    with pytest.raises(StorageError, match=r"shows no state of a training that has ended"):
        driver.ended(run.folder, 1, "TRAINED")
    assert write_outcome(run.folder, Outcome(job="training", state="FAILED_CODE", fencing_token=1, message=""))
    assert not run.folder.root.exists()
    assert driver.ended(run.folder, 1, "STOPPED").message == "stopped after 0 epochs"
    assert driver.ended(run.folder, 1, "PAUSED").message == "paused after 0 epochs"


def test_the_end_of_a_run_is_stored_where_its_folder_is(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    outcome = driver.ended(run.folder, run.fencing_token, "TRAINED")
    assert write_outcome(run.folder, outcome)
    assert read_outcome(run.folder) == outcome


def test_an_attempt_is_numbered_at_least_as_high_as_its_job(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    assert acquire_token(run.folder, "driver-2", least=6) == 6
    assert acquire_token(run.folder, "driver-2") == 7
    assert acquire_token(run.folder, "driver-3", least=6) == 8


def test_a_network_that_cannot_take_its_patch_ends_the_run_before_a_worker_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver.preflight(planned(tmp_path / "sound"), 1) is None
    spec = planned(tmp_path / "broken", norm_op_kwargs={"epsilon": 1})
    outcome = driver.preflight(spec, 1)
    assert outcome is not None
    assert outcome.state == "FAILED_CONFIG"
    assert "plans: configuration '3d_fullres' of" in outcome.message
    assert "unexpected keyword argument 'epsilon'" in outcome.message
    monkeypatch.setattr(driver, "newest_committed", lambda folder: "a state")  # it has trained before
    assert driver.preflight(spec, 1) is None


@pytest.mark.parametrize(
    ("state", "message", "is_cured"),
    [
        ("FAILED_CONFIG", "loss: my_loss:focal failed: NameError: x (line 3 of my_loss.py).", True),
        ("FAILED_CONFIG", "loss: my_loss has no function 'focal'. Name one as `module:function`.", True),
        ("FAILED_CONFIG", "dataset: case_1 lacks its labels.", False),
        ("FAILED_CLUSTER", "loss: my_loss:focal was not sent.", False),
    ],
)
def test_a_run_that_its_own_code_ends_names_the_submission_as_the_way_on(state: EndState, message: str, is_cured: bool) -> None:
    outcome = Outcome(job="training", state=state, fencing_token=1, message=message)
    own = OwnParts(loss=OwnCode(name="my_loss:focal", sha256="0" * 64))
    found = driver.with_cure(outcome, own).message
    assert found.startswith(message)
    assert ("Correct the code, then submit the experiment again: the code is part of the run" in found) == is_cured
    assert driver.with_cure(outcome, OwnParts()) == outcome


def test_ray_train_says_only_errors_into_the_log_of_a_run(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    made: Any = driver.trainer(run.spec, run.folder, WorkerJob(str(run.folder.root), "driver-1", 1))
    assert made.run_config.logging_config.log_level == "ERROR"
