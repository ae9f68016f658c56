"""A job that waits for its disk: the status of its run says what is full, how much is free, since when, and what would let it go."""

from pathlib import Path

import pytest

from orchestrator.follow import observe
from orchestrator.run.heartbeat import PROBE_AFTER_S
from tests.fake_campaign import Stage, look
from tests.fake_run import epoch_row
from trainers.contract.commits import Committed, state_stem
from trainers.contract.fencing import newest_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.storage_notice import StorageNotice
from trainers.errors import StorageError
from trainers.storage.files import write_atomic

FULL = "storage: /x cannot be written: the file system is full; 0.0 of 64 MiB are free in /x. Free space there."


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def commit_one(folder: RunFolder, fencing_token: int) -> None:
    committed = Committed(
        run_key="key0", epochs_done=1, fencing_token=fencing_token, history=(epoch_row(0),), state_sha256="0", state_size_bytes=1
    )
    write_atomic(folder.state / f"{state_stem(1, fencing_token)}.json", committed.model_dump_json().encode())


def test_the_status_of_a_training_that_waits_says_for_what_and_promises_no_end(stage: Stage) -> None:
    run = stage.run(0)
    campaign, folder = stage.campaign(run), RunFolder(run.run_folder)
    look(campaign)
    stage.cluster.workers_begin(run)
    commit_one(folder, newest_token(folder))
    look(campaign)
    assert campaign.runs["key0"].status().seconds_left == pytest.approx(3 * 9.5, abs=10)
    notice = StorageNotice(folder, newest_token(folder))
    notice.reserve()
    notice.tell(FULL)
    look(campaign)
    status = campaign.runs["key0"].status()
    assert (status.state.value, status.seconds_left) == ("RUNNING", None)
    assert status.reason.startswith("waits since 2")
    assert status.reason.endswith(FULL)
    notice.tell("")
    look(campaign)
    status = campaign.runs["key0"].status()
    assert (status.reason, status.seconds_left is None) == ("", False)


def test_a_wait_of_workers_that_died_is_no_wait_of_those_that_follow(stage: Stage) -> None:
    run = stage.run(0)
    campaign, folder = stage.campaign(run), RunFolder(run.run_folder)
    look(campaign)
    stage.cluster.workers_begin(run)
    notice = StorageNotice(folder, newest_token(folder))
    notice.reserve()
    notice.tell(FULL)
    stage.cluster.workers_begin(run)
    look(campaign)
    assert campaign.runs["key0"].status().reason == ""


def test_the_status_of_a_validation_that_waits_says_so_too(stage: Stage) -> None:
    run = stage.run(0)
    campaign, folder = stage.campaign(run), RunFolder(run.run_folder)
    look(campaign)
    stage.cluster.training_ends(run)
    notice = StorageNotice(folder, 1)
    notice.reserve()
    notice.tell(FULL)
    look(campaign)
    status = campaign.runs["key0"].status()
    assert (status.state.value, status.reason[-len(FULL) :]) == ("VALIDATING", FULL)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_disk_that_takes_no_notice_either_is_tried_from_the_head(stage: Stage, monkeypatch: pytest.MonkeyPatch, has_begun: bool) -> None:
    def refuse(folder: Path, size_bytes: int) -> None:
        raise StorageError(FULL)

    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    if has_begun:
        stage.cluster.workers_begin(run)
    look(campaign)
    monkeypatch.setattr(observe, "check_takes", refuse)
    look(campaign)
    assert campaign.runs["key0"].status().reason == ""
    stage.clock.sleep(PROBE_AFTER_S)
    look(campaign)
    assert campaign.runs["key0"].status().reason.endswith(FULL)
    look(campaign)
    assert campaign.runs["key0"].status().reason.endswith(FULL)
    monkeypatch.undo()
    stage.clock.sleep(PROBE_AFTER_S)
    look(campaign)
    assert campaign.runs["key0"].status().reason == ""
