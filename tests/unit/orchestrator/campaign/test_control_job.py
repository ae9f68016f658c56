"""Stopping a run from the cluster's side, with or without a campaign that follows it."""

from pathlib import Path

import pytest

from orchestrator.campaign import job
from orchestrator.campaign.control_job import main, stop
from orchestrator.cluster.jobs import Jobs
from orchestrator.errors import ConfigError, TrackingError
from orchestrator.publishing import reconcile
from orchestrator.publishing.reconcile import Synced
from tests.fake_campaign import Stage, look
from trainers.contract.requests import FinishRequest, StopRequest, finish_request_seen, read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setattr(Jobs, "inside_job", lambda: made.cluster)
    return made


def test_a_gentle_stop_leaves_a_training_its_epoch_and_a_validation_its_cases_in_work(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    folder = RunFolder(run.run_folder)
    look(stage.campaign(run, other))
    stage.cluster.kill_campaign("c1")
    stop(folder, run.run_key, stage.cluster, is_now=False)
    assert read_stop_request(folder) == StopRequest(is_now=False)
    stage.cluster.training_ends(run)
    stop(folder, run.run_key, stage.cluster, is_now=False)
    assert stage.cluster.stopped == []


def test_an_early_end_is_written_down_and_ends_no_job(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    look(stage.campaign(run, other))
    folders = [str(run.run_folder), str(other.run_folder)]
    assert main(["stop", *folders, "--run-key", run.run_key, "--run-key", other.run_key, "--finish", "--anneal", "3"]) == 0
    for spec in (run, other):
        request = FinishRequest(run_key=spec.run_key, anneal_epochs=3)
        assert finish_request_seen(RunFolder(spec.run_folder), spec.run_key) == request
    assert read_stop_request(RunFolder(run.run_folder)) is None
    assert stage.cluster.stopped == []


def test_a_stop_at_once_ends_the_training_and_the_validation(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stop(RunFolder(run.run_folder), "", stage.cluster, is_now=True)
    assert stage.cluster.stopped == ["train-key0-a1"]
    stage.cluster.training_ends(run)
    stop(RunFolder(run.run_folder), "", stage.cluster, is_now=True)
    assert stage.cluster.stopped == ["train-key0-a1", "validate-key0-a1"]


def test_a_stop_of_a_run_whose_folder_is_another_runs_now_stops_nothing(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    moved, run = stage.run(0), stage.run(0).model_copy(update={"run_key": "another"})
    look(stage.campaign(run))
    arguments = ["stop", str(run.run_folder), "--now", "--run-key"]
    assert main([*arguments, moved.run_key]) == ConfigError.exit_code
    assert "belongs to the run another now, not to key0; nothing was done. Bring the folder of key0 back" in capsys.readouterr().out
    assert read_stop_request(RunFolder(run.run_folder)) is None
    assert stage.cluster.stopped == []
    assert main([*arguments, run.run_key]) == 0
    assert stage.cluster.stopped == ["train-another-a1"]


def test_one_request_stops_several_runs_and_one_that_is_not_to_be_stopped_keeps_none_of_the_others(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [stage.run(fold) for fold in range(3)]
    look(stage.campaign(*runs))
    folders = [str(run.run_folder) for run in runs]
    assert main(["stop", *folders, "--run-key", "key0", "--run-key", "another", "--run-key", "key2"]) == ConfigError.exit_code
    assert "belongs to the run key1 now, not to another" in capsys.readouterr().out
    assert [read_stop_request(RunFolder(run.run_folder)) is not None for run in runs] == [True, False, True]


def test_a_delivery_that_leaves_something_out_fails_and_goes_on_with_the_others(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for fold in range(2):
        stage.campaign(stage.run(fold), name=f"c{fold}")
    lacking = {"key0": "the disk is full."}
    sent: list[str] = []

    def synced_one(folder: RunFolder, spec: RunSpec, jobs: object, held: object) -> Synced:
        sent.append(spec.run_key)
        return Synced(run_key=spec.run_key, run_folder=folder.root, lacking=lacking.get(spec.run_key, ""))

    monkeypatch.setattr(reconcile, "_sync_one", synced_one)
    arguments = ["sync", "key0", "key1", "--results", str(stage.base / "results")]
    assert main(arguments) == TrackingError.exit_code
    assert sent == ["key0", "key1"]
    lacking.clear()
    assert main(arguments) == 0
    sent.clear()
    assert main(["sync", "unknown", *arguments[1:]]) == TrackingError.exit_code
    assert sent == ["key0", "key1"]
    assert "there is no run 'unknown' below" in capsys.readouterr().out


def test_a_validation_of_a_run_whose_folder_is_another_runs_now_is_refused(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    moved, run = stage.run(0), stage.run(0).model_copy(update={"run_key": "another"})
    look(stage.campaign(run))
    assert job.main(["--validate", str(run.run_folder), "--run-key", moved.run_key]) == ConfigError.exit_code
    assert "validate: " in (told := capsys.readouterr().out)
    assert "belongs to the run another now, not to key0" in told
