"""Stopping a run from the cluster's side, with or without a campaign that follows it."""

from pathlib import Path

import pytest

from orchestrator.campaign.control_job import stop
from orchestrator.cluster.jobs import Jobs
from orchestrator.run.activity import StopRequest, stop_request
from tests.fake_campaign import Stage, look
from trainers.contract.run_folder import RunFolder


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setattr(Jobs, "inside_job", lambda: made.cluster)
    return made


def test_a_gentle_stop_ends_a_validation_and_leaves_a_training_its_epoch(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    folder = RunFolder(run.run_folder)
    look(stage.campaign(run, other))
    stage.cluster.kill_campaign("c1")
    stop(folder, is_now=False)
    assert stage.cluster.stopped == []
    assert stop_request(folder) == StopRequest(is_now=False)
    stage.cluster.training_ends(run)
    stop(folder, is_now=False)
    assert stage.cluster.stopped == ["validate-key0-a1"]


def test_a_stop_at_once_ends_the_training(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stop(RunFolder(run.run_folder), is_now=True)
    assert stage.cluster.stopped == ["train-key0-a1"]
