"""Attempts whose files a disk does not give: no fence opens, nobody is stopped, and no run that goes on nowhere is called taken over."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.resume.takeover import acquire
from orchestrator.resume.unfinished import find_runs
from orchestrator.run.outcome import Outcome, is_newest, read_outcome, write_outcome
from tests.away import BROKEN, Away
from tests.fake_campaign import Stage, finish_on_disk, look, states
from tests.fake_run import FakeRun
from trainers.contract.fencing import acquire_token, check_driver_fence, check_fence, count_drivers, newest_token, newest_token_of
from trainers.contract.run_folder import RunFolder
from trainers.errors import DataError, StorageError


def claim_file(folder: RunFolder, fencing_token: int) -> Path:
    return folder.tokens / f"{fencing_token:04d}.json"


# ---- a folder that is not listed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fence", [check_fence, check_driver_fence])
def test_no_fence_is_passed_where_the_attempts_cannot_be_listed(tmp_path: Path, fence: Callable[[RunFolder, int], None]) -> None:
    folder = FakeRun(tmp_path).folder
    acquire_token(folder, "newer")
    folder.tokens.rename(tmp_path / "away")
    folder.tokens.symlink_to(folder.tokens)  # to root too it is there and cannot be listed
    with pytest.raises(OSError, match="symbolic links"):
        fence(folder, 1)


def test_a_share_that_is_away_is_named_and_no_attempts_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = FakeRun(tmp_path).folder

    def stale(path: Path) -> Iterator[Path]:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "iterdir", stale)
        with pytest.raises(StorageError, match="attempts cannot be read: the file system is unavailable"):
            check_fence(folder, 1)
    assert newest_token(folder) == 1
    assert newest_token(RunFolder(tmp_path / "fold_9")) == 0


def test_numbers_between_which_some_are_missing_are_told_apart(tmp_path: Path) -> None:
    folder = FakeRun(tmp_path).folder
    for driver in ("driver-1", "driver-2", "driver-2"):
        acquire_token(folder, driver)
    claim_file(folder, 3).unlink()
    (folder.tokens / ".0009.json.x.part").write_text("half written")
    assert [newest_token_of(folder, driver) for driver in ("driver-1", "driver-2", "driver-3")] == [2, 4, 0]
    assert newest_token(folder) == 4


# ---- a claim that is not read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unreadable", [1, 2])
def test_the_end_of_a_run_with_an_unreadable_claim_is_recorded(tmp_path: Path, unreadable: int) -> None:
    folder = FakeRun(tmp_path).folder
    acquire_token(folder, "driver-1")
    claim_file(folder, unreadable).write_text("{")
    with pytest.raises(DataError):
        check_driver_fence(folder, 1)
    assert write_outcome(folder, Outcome(job="training", state="FAILED_CONFIG", fencing_token=1, message="m"))
    assert read_outcome(folder) is not None
    assert not is_newest(folder, 0), "nobody claimed that one"
    claim_file(folder, unreadable).unlink()
    assert is_newest(folder, 1) == (unreadable == 2)


def test_an_unreadable_claim_ends_no_campaign(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    run = stage.run(0)
    campaign, folder = stage.campaign(run), RunFolder(run.run_folder)
    look(campaign)
    stage.cluster.workers_begin(run)
    acquire_token(folder, "away")
    acquire_token(folder, "damaged")
    Away(claim_file(folder, 2))
    claim_file(folder, 3).write_text("{")
    look(campaign)
    assert count_drivers(folder) == campaign.runs["key0"].status().num_drivers == 1
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    assert campaign.run(poll_s=0) == 0
    assert states(campaign) == ["SUCCEEDED"]


# ---- a wish that is not read ----------------------------------------------------------------------------------------------


def test_a_failed_read_of_the_stop_file_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(tmp_path)
    run = stage.run(0)
    campaign, folder = stage.campaign(run), RunFolder(run.run_folder)
    look(campaign)
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    look(campaign)
    assert states(campaign) == ["VALIDATING"]
    folder.stop_file.symlink_to(BROKEN)
    found, told = find_runs(stage.base / "results")
    assert not found
    assert "Input/output error" in told[0]
    with pytest.raises(DataError, match=r"cannot be used for 1/3d/nnUNetTrainer/0: Input/output error"):
        acquire(run, stage.cluster.records())
    real, looks = stage.cluster.records, []

    def back_after_three() -> list[object]:
        looks.append("")
        if len(looks) == 4:
            folder.stop_file.unlink()
            stage.cluster.validation_ends(run)
        return real()  # type: ignore[return-value]

    stage.cluster.records = back_after_three  # type: ignore[assignment, method-assign]
    assert campaign.run(poll_s=0) == 0
    assert stage.cluster.stopped == []
    assert states(campaign) == ["SUCCEEDED"]
    assert caplog.text.count("left as it is until its folder can be read: key0") == 1
