"""The exit code of a training job, by which a campaign tells a lost job from one that gave way to another driver."""

from pathlib import Path

import pytest

from orchestrator import training_job
from orchestrator.outcome import EndState, Outcome
from trainers.spec.errors import StorageError


@pytest.mark.parametrize(("state", "code"), [("TRAINED", 0), ("STOPPED", 0), ("FAILED_CODE", 1), ("FAILED_CLUSTER", 5), ("SUPERSEDED", 7)])
def test_the_exit_code_tells_how_a_training_job_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: EndState, code: int) -> None:
    monkeypatch.setattr(training_job.ray, "init", lambda **options: None)
    outcome = Outcome(job="training", state=state, attempt=1, message="")
    monkeypatch.setattr(training_job, "run_training", lambda folder: outcome)
    assert training_job.main([str(tmp_path)]) == code


def test_a_job_whose_claim_the_disk_did_not_take_says_so_by_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_job.ray, "init", lambda **options: None)

    def full(folder: object) -> Outcome:
        raise StorageError("storage: the file system is full")

    monkeypatch.setattr(training_job, "run_training", full)
    assert training_job.main([str(tmp_path)]) == 11
    assert "the file system is full" in capsys.readouterr().out
