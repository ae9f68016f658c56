"""Clocks that are wrong, differ between nodes, or are set while a campaign runs: no run is orphaned, repeated, ended or locked out."""

import json
from pathlib import Path

import pytest

from orchestrator.follow.next_step import MAX_WITHOUT_PROGRESS
from orchestrator.run.failure import Failure
from orchestrator.run.heartbeat import SILENT_S
from orchestrator.run.job_record import JobRecord
from orchestrator.training.failures import write_failure
from tests.fake_campaign import Stage, look, states
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

HOUR_S = 3600.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def workers_begin(stage: Stage, run: RunSpec, ahead_s: float) -> None:
    """Workers on a node whose clock is off."""
    stage.cluster.workers_begin(run)
    heartbeat = RunFolder(run.run_folder).progress_file
    content = json.loads(heartbeat.read_text())
    write_json_atomic(heartbeat, {**content, "unix": content["unix"] + ahead_s})


@pytest.mark.parametrize("off_s", [-HOUR_S, HOUR_S])
def test_deaths_are_counted_whatever_the_cluster_clock_says(stage: Stage, off_s: float) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.cluster.ahead_s = off_s
    for _ in range(MAX_WITHOUT_PROGRESS):
        look(campaign)
        stage.cluster.kill_driver(run)
    assert campaign.run(poll_s=0) == 1
    assert states(campaign) == ["FAILED_CLUSTER"]


@pytest.mark.parametrize("off_s", [-HOUR_S, HOUR_S])
def test_workers_on_a_node_with_another_clock_are_seen_to_run_and_to_recover(stage: Stage, off_s: float) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    workers_begin(stage, run, off_s)
    look(campaign)
    assert states(campaign) == ["RUNNING"]
    stage.cluster.kill_driver(run)
    look(campaign)
    look(campaign)
    assert states(campaign) == ["RECOVERING"]
    workers_begin(stage, run, off_s)
    look(campaign)
    assert states(campaign) == ["RUNNING"]


def test_a_gentle_stop_waits_for_workers_whose_clock_is_behind(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    workers_begin(stage, run, -HOUR_S)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
    look(campaign)
    assert stage.cluster.stopped == [], "its workers see the request themselves"


def test_a_clock_that_jumps_back_between_two_campaigns_starts_nothing_twice(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.kill_campaign("c1")
    stage.clock.jump(-HOUR_S)
    look(again := stage.campaign(run, name="c2"))
    assert stage.cluster.live_jobs() == ["train-key0-a1"]
    stage.cluster.kill_driver(run)
    look(again)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]
    stage.clock.jump(2 * HOUR_S)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    assert again.run(poll_s=0) == 0


def test_a_job_that_the_campaign_found_alive_counts_when_it_dies(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    campaign = stage.campaign(run, name="c2")
    for _ in range(MAX_WITHOUT_PROGRESS):
        look(campaign)
        stage.cluster.kill_driver(run)
    assert campaign.run(poll_s=0) == 1


# ---- why a run waits ----------------------------------------------------------------------------------------------------


def test_a_run_that_waits_for_its_workers_says_why(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.workers_begin(run)
    look(campaign)
    failed = {"kind": "cluster", "state": "FAILED_CLUSTER", "message": "rank 1 died\nmore", "evidence": ""}
    write_failure(folder, Failure(driver="d", fencing_token=1, epochs_done=3, iteration=0, **failed))
    look(campaign)
    assert states(campaign) == ["RECOVERING"]
    reason = "its workers failed in epoch 3 (cluster: rank 1 died); restarts them once resources for all are free."
    assert campaign.runs["key0"].status().reason == reason
    acquire_token(folder, "train-key0-a1")
    look(campaign)
    assert campaign.runs["key0"].status().reason == reason, "until the next workers have begun"
    write_json_atomic(folder.progress_file, {"epoch": 3, "iteration": 1, "phase": "train", "unix": 5, "attempt": 2})
    look(campaign)
    assert states(campaign) == ["RUNNING"]
    assert campaign.runs["key0"].status().reason == ""


def test_a_killed_driver_and_lack_of_room_are_shown_together(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.workers_begin(run)
    stage.cluster.kill_driver(run)
    stage.cluster.gpus = 0
    look(campaign)
    assert states(campaign) == ["RECOVERING"]
    reason = campaign.runs["key0"].status().reason
    assert "its job train-key0-a1 was killed by signal 9" in reason
    assert "It waits:" in reason


def test_silence_is_measured_by_this_machines_own_clock(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    workers_begin(stage, run, HOUR_S)
    look(campaign)
    stage.clock.jump(5 * HOUR_S)
    look(campaign)
    assert campaign.runs["key0"].status().reason == ""
    stage.clock.sleep(SILENT_S)
    look(campaign)
    assert campaign.runs["key0"].state is RunState.RUNNING
    assert "no heartbeat from its workers since" in campaign.runs["key0"].status().reason


def test_a_validation_that_finishes_cases_before_it_dies_is_tried_again(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run)
    look(campaign)
    for case in range(2 * MAX_WITHOUT_PROGRESS):
        write_json_atomic(folder.cases("final") / f"{case}.json", {})
        validating: list[JobRecord] = [job for job in stage.cluster.jobs.values() if job.kind == "validate" and job.is_live]
        stage.cluster.kill(validating[0].submission_id)
        look(campaign)
        assert states(campaign)[0] in ("VALIDATING", "RECOVERING")
    for _ in range(MAX_WITHOUT_PROGRESS):
        stage.cluster.kill_driver(run)
        look(campaign)
    assert states(campaign) == ["FAILED_CLUSTER"]
