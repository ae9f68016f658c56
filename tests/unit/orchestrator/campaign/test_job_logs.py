"""What jobs printed is kept in the run folder, where it outlives the cluster."""

from pathlib import Path

import pytest

from orchestrator.campaign.job_logs import KEPT_CHARACTERS, LAST_WORDS_S, RETRY_S, JobLogs, kept_text
from orchestrator.run.training_log import job_logs, stored_logs
from tests.fake_campaign import Stage, states
from trainers.contract.run_folder import RunFolder
from trainers.storage.faults import STORAGE_RETRY_S


def test_a_campaign_keeps_what_its_jobs_printed_once_they_have_ended(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    campaign = stage.campaign(run := stage.run(0))
    campaign._is_over(1.0)
    stage.cluster.texts = {"train-key0-a1": "epochs\n", "validate-key0-a1": "cases\n"}
    assert not RunFolder(run.run_folder).job_logs.exists()
    stage.cluster.training_ends(run)
    assert not campaign._is_over(1.0)
    assert list(job_logs(run.run_folder)) == ["--- train-key0-a1\n", "epochs\n"]
    stage.cluster.validation_ends(run)
    assert campaign._is_over(1.0)
    assert "".join(stored_logs(run.run_folder)) == "--- train-key0-a1\nepochs\n--- validate-key0-a1\ncases\n"
    assert list(job_logs(run.run_folder, but={"train-key0-a1"})) == ["--- validate-key0-a1\n", "cases\n"]


def test_a_job_that_still_lives_when_its_run_has_ended_is_waited_for_a_while(tmp_path: Path) -> None:
    """It has stored its outcome, and prints its last lines."""
    stage = Stage(tmp_path)
    campaign = stage.campaign(run := stage.run(0))
    campaign._is_over(1.0)
    stage.cluster.training_ends(run)
    campaign._is_over(1.0)
    stage.cluster.validation_waits_for_the_server(run)
    assert not campaign._is_over(1.0)
    assert states(campaign) == ["SUCCEEDED"]
    stage.cluster.texts = {"validate-key0-a1": "mean Dice\n"}
    stage.cluster.ends("validate-key0-a1")
    assert campaign._is_over(1.0)
    assert "mean Dice\n" in list(job_logs(run.run_folder))


def test_a_job_that_never_ends_holds_no_campaign_up(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    campaign = stage.campaign(run := stage.run(0))
    campaign._is_over(1.0)
    stage.cluster.training_ends(run)
    stage.cluster.validation_waits_for_the_server(run)
    assert not campaign._is_over(1.0)
    stage.clock.clock.sleep(LAST_WORDS_S)
    assert campaign._is_over(1.0)


def test_logs_that_were_kept_are_not_asked_for_again_and_foreign_ones_never(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    campaign = stage.campaign(run := stage.run(0))
    campaign._is_over(1.0)
    stage.cluster.texts = {"train-key0-a1": "first\n"}
    stage.cluster.training_ends(run, "STOPPED")
    campaign._is_over(1.0)
    stage.cluster.texts = {"train-key0-a1": "another\n"}
    again = JobLogs(stage.cluster, stage.clock.clock)
    again.note(campaign.runs.values(), [*stage.cluster.records()])
    again.keep()
    elsewhere = stage.cluster.jobs["train-key0-a1"].model_copy(update={"submission_id": "train-key0-a7", "run_folder": "/elsewhere"})
    again.note(campaign.runs.values(), [elsewhere])
    again.keep()
    assert again.is_over
    assert list(job_logs(run.run_folder)) == ["--- train-key0-a1\n", "first\n"]


def test_a_server_that_is_away_is_asked_again_for_minutes_and_then_holds_no_campaign_up(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    campaign = stage.campaign(run := stage.run(0))
    campaign._is_over(1.0)
    stage.cluster.training_ends(run, "STOPPED")
    logs = JobLogs(stage.cluster, stage.clock.clock)
    logs.note(campaign.runs.values(), stage.cluster.records())
    stage.cluster.is_away = True
    for _ in range(int(STORAGE_RETRY_S / RETRY_S)):
        logs.keep()
        assert not logs.is_over
        stage.clock.clock.sleep(RETRY_S)
    logs.keep()
    assert logs.is_over


def test_a_kept_log_is_bounded_by_its_end_and_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-secret")
    assert kept_text("a Bearer abcdefgh the-secret\n") == "a Bearer *** ***\n"
    text = "".join(f"line {number}\n" for number in range(KEPT_CHARACTERS // 8))
    kept = kept_text(text)
    assert len(kept) <= KEPT_CHARACTERS + 100
    assert kept.startswith("... ")
    assert kept.splitlines()[1].startswith("line ")
    assert kept.endswith(text[-200:])
