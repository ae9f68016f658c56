"""The runs that no campaign of a cluster knows, after `down` or a reboot: shown from their folders alone."""

import json
import time
from pathlib import Path

import pytest

from orchestrator.resume.stored import status_of_stored, stored_below
from orchestrator.resume.unfinished import find_runs
from orchestrator.run.outcome import EndState, Outcome, write_outcome
from orchestrator.run.status import RunStatus
from orchestrator.run.training_log import training_logs
from orchestrator.run.undelivered import note_undelivered
from tests.fake_campaign import Stage, finish_on_disk
from trainers.contract.fencing import acquire_token
from trainers.contract.records import MlflowRun, write_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def begun(stage: Stage, fold: int = 0) -> RunSpec:
    run = stage.run(fold)
    write_json_atomic(RunFolder(run.run_folder).spec_file, json.loads(run.model_dump_json()))
    return run


def ended(run: RunSpec, state: EndState, message: str = "said so\nand more") -> None:
    folder = RunFolder(run.run_folder)
    token = acquire_token(folder, f"train-{run.run_key}")
    write_outcome(folder, Outcome(job="training", state=state, fencing_token=token, message=message))


def shown(stage: Stage) -> RunStatus:
    (found,) = find_runs(stage.base / "results")[0]
    return status_of_stored(found)


def test_a_finished_run_is_still_shown_with_its_dice_and_its_page(stage: Stage) -> None:
    run = begun(stage)
    finish_on_disk(run)
    ended(run, "SUCCEEDED")
    folder = RunFolder(run.run_folder)
    write_mlflow_run(folder, MlflowRun(run_id="abc", experiment_id="7", tracking_uri="http://127.0.0.1:5000"))
    write_json_atomic(folder.own / "validation_best.json", {"dice_mean": 0.75})
    status = shown(stage)
    assert (status.state, status.reason, status.epochs_done) == ("SUCCEEDED", "", run.schedule.epochs)
    assert status.full_dice == {"best": 0.75}
    assert status.mlflow_url.startswith("http://127.0.0.1:5000/#/experiments/7/runs/abc")


def test_what_mlflow_lacks_of_a_run_that_has_ended_is_said_after_its_campaign_too(stage: Stage) -> None:
    run = begun(stage)
    finish_on_disk(run)
    ended(run, "SUCCEEDED")
    note_undelivered(RunFolder(run.run_folder), "checkpoints and files", time.time(), "the disk is full.")
    reason = shown(stage).reason
    assert reason.startswith("MLflow lacks checkpoints and files since 20")
    assert reason.endswith("and `nnfleet sync` delivers what no job of it does: the disk is full.")


@pytest.mark.parametrize(
    ("state", "expected", "why"),
    [
        (None, "PAUSED", "no campaign of this cluster follows it (new); `nnfleet resume` continues it."),
        ("TRAINED", "PAUSED", "`nnfleet resume` continues it."),
        ("STOPPED", "STOPPED", "it was stopped. To continue it nevertheless: nnfleet resume key0"),
        ("FAILED_CONFIG", "FAILED_CONFIG", "it needs another request or other data (said so)"),
        ("FAILED_CODE", "FAILED_CODE", "it failed by an error of the code (said so)"),
        ("FAILED_CLUSTER", "FAILED_CLUSTER", "said so `nnfleet resume` continues it."),
    ],
)
def test_a_run_is_shown_as_it_ended_and_as_paused_if_it_was_cut_off(stage: Stage, state: EndState | None, expected: str, why: str) -> None:
    run = begun(stage)
    if state:
        ended(run, state)
    status = shown(stage)
    assert status.state == expected
    assert why in status.reason
    assert status.state.is_final


def test_a_run_that_was_asked_to_stop_is_no_paused_one(stage: Stage) -> None:
    run = begun(stage)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
    assert shown(stage).state == "STOPPED"


@pytest.mark.parametrize(
    ("cluster", "age_s", "expected"),
    [("10.0.0.7:6379", 5, "RUNNING"), ("10.0.0.7:6379", 600, "PAUSED"), ("127.0.0.1:6379", 5, "PAUSED"), ("", 5, "PAUSED")],
)
def test_a_run_with_a_fresh_heartbeat_on_another_cluster_is_not_called_paused(
    stage: Stage, cluster: str, age_s: float, expected: str
) -> None:
    folder = RunFolder(begun(stage).run_folder)
    token = acquire_token(folder, "train-x", {"role": "driver", "job": "train-x", "cluster": cluster})
    claim = folder.token_file(token)
    write_json_atomic(claim, {**json.loads(claim.read_text()), "claimed_unix": time.time() - age_s})
    status = shown(stage)
    assert status.state == expected
    assert ("may be at work on it, on 10.0.0.7:6379" in status.reason) is (expected == "RUNNING")


def test_runs_that_the_cluster_knows_are_left_out(stage: Stage) -> None:
    for fold in range(3):
        begun(stage, fold)
    assert [status.run_key for status in stored_below(stage.base / "results", {"key1"})[0]] == ["key0", "key2"]


def test_the_newest_commit_of_a_stored_run_is_read_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.campaign(run := stage.run(0))
    finish_on_disk(run)
    read: list[str] = []
    plain = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path.name)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    (status,), _ = stored_below(stage.base / "results", ())
    assert status.epochs_done == 4
    assert [name for name in read if name.startswith("e00004_")] == ["e00004_a0001.json"]


def test_the_training_log_of_a_run_outlives_its_cluster(tmp_path: Path) -> None:
    assert list(training_logs(tmp_path)) == []
    for day in (2, 1):
        (tmp_path / f"training_log_2026_01_0{day}_00_00_00.txt").write_text(f"day {day}\n")
    assert list(training_logs(tmp_path)) == ["day 2\n"]
    assert "".join(training_logs(tmp_path, earlier=True)) == (
        "--- training_log_2026_01_01_00_00_00.txt\nday 1\n--- training_log_2026_01_02_00_00_00.txt\nday 2\n"
    )
