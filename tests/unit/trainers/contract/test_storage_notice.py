"""A run says that it waits for its disk, also where that disk is full."""

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.trainers.storage.test_storage import Clock, Disk, big, no_file_above, reached
from tests.unit.trainers.training.test_state import FIXED, committed_epochs
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.storage_notice import SIZE_BYTES, StorageNotice, StorageWait, storage_wait_seen
from trainers.errors import DataError, StorageError
from trainers.storage.faults import retry_storage
from trainers.training.state import StateWriter, newest_valid


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "fold_0")


def test_each_failure_is_told_with_its_limit_and_then_the_end() -> None:
    clock, told = Clock(), list[str]()
    retry_storage(Disk(2).store, "the state", sleep=clock.sleep, clock=clock, tell=told.append)
    assert len(told) == 3
    assert all("the disk's words The state is tried again until " in text and text.endswith(" UTC.") for text in told[:2])
    assert told[2] == ""


@pytest.mark.parametrize("error", [StorageError("full"), DataError("broken")])
def test_a_wait_that_ends_with_an_error_has_ended_too(folder: RunFolder, error: Exception) -> None:
    notice, calls = StorageNotice(folder, 3), list[str]()
    notice.reserve()

    def act() -> None:
        calls.append("")
        raise OSError(errno.ENOSPC, "full") if len(calls) == 1 else error

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if storage_wait_seen(folder, 3):
            calls.append("waited")

    with pytest.raises(type(error)):
        retry_storage(act, "the state", 0.01, sleep=sleep, tell=notice.tell)
    assert "waited" in calls
    assert storage_wait_seen(folder, 3) is None


@pytest.mark.usefixtures("read_only_disk")
def test_where_no_notice_can_be_left_the_work_goes_on(folder: RunFolder) -> None:
    notice = StorageNotice(folder, 3)
    notice.reserve()
    notice.tell("read-only")
    assert storage_wait_seen(folder, 3) is None


def test_a_wait_keeps_its_beginning_and_is_its_holders_alone(folder: RunFolder) -> None:
    old, new = StorageNotice(folder, 3), StorageNotice(folder, 4)
    old.reserve()
    old.tell("full")
    first = storage_wait_seen(folder, 3)
    old.tell("x" * 5000)
    second = storage_wait_seen(folder, 3)
    assert first is not None
    assert second is not None
    assert (second.since_unix, second.because) == (first.since_unix, "x" * 1000)
    assert storage_wait_seen(folder, 4) is None
    new.reserve()
    old.tell("full still")
    assert storage_wait_seen(folder, 3) is storage_wait_seen(folder, 4) is None
    new.tell("\U0001f4be" * 1000)
    assert storage_wait_seen(folder, 4) is not None
    assert folder.storage_file.stat().st_size == SIZE_BYTES


def test_what_cannot_be_told_or_read_harms_nobody(folder: RunFolder) -> None:
    notice = StorageNotice(folder, 1)
    notice.tell("full")
    assert storage_wait_seen(folder, 1) is None
    notice.reserve()
    folder.storage_file.write_text("{")
    assert storage_wait_seen(folder, 1) is None


def waits(folder: RunFolder, fencing_token: int) -> StorageWait:
    deadline = time.monotonic() + 30
    while (wait := storage_wait_seen(folder, fencing_token)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return wait


def test_a_training_that_waits_for_its_disk_says_so_until_it_goes_on(folder: RunFolder) -> None:
    committed_epochs(folder, [0.1])
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000)
    writer.start_from(newest_valid(folder))
    with no_file_above(1_000_000):
        writer.commit(reached(2), False, lambda: big(2.0))
        wait = waits(folder, writer.fencing_token)
    assert "e00002_a0002.pth cannot be written: a file of this size is not allowed" in wait.because
    assert "are free in" in wait.because
    assert "The state after 2 epochs is tried again until" in wait.because
    writer.drain()
    assert storage_wait_seen(folder, writer.fencing_token) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB. Skips where this user cannot mount one."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """Take all that is left of its disk."""
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(os.urandom(4096)):
            pass


def test_a_disk_without_a_byte_left_takes_the_notice(small_disk: Path) -> None:
    folder = RunFolder(small_disk / "fold_0")
    writer = committed_epochs(folder, [0.1])
    writer.start_from(newest_valid(folder))
    fill(small_disk / "filler")
    writer.commit(reached(2), False, lambda: big(2.0))
    wait = waits(folder, writer.fencing_token)
    assert "the file system is full (No space left on device); 0.0 of 2 MiB" in wait.because
    assert "Free space there." in wait.because
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    writer.drain()
    assert storage_wait_seen(folder, writer.fencing_token) is None
    newest = newest_valid(folder)
    assert newest is not None
    assert newest.epochs_done == 2
