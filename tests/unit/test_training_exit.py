"""The exit code of a training job, by which a campaign tells a lost job from one that gave way to another driver."""

from pathlib import Path

import pytest

from orchestrator import training_job
from orchestrator.outcome import EndState, Outcome
from trainers.spec.errors import Superseded


@pytest.mark.parametrize(("state", "code"), [("TRAINED", 0), ("STOPPED", 0), ("FAILED_CODE", 1), ("SUPERSEDED", Superseded.exit_code)])
def test_the_exit_code_tells_how_a_training_job_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: EndState, code: int) -> None:
    monkeypatch.setattr(training_job.ray, "init", lambda **options: None)
    outcome = Outcome(job="training", state=state, attempt=1, message="")
    monkeypatch.setattr(training_job, "run_training", lambda folder: outcome)
    assert training_job.main([str(tmp_path)]) == code
