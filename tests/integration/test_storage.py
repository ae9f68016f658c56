"""Storage under fire: kills at random moments of saving and uploading, and disks that are full, read-only or away."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.kill_saving import Reader, kill_saving, table, tensors_of
from orchestrator.publishing.files_channel import FilesChannel
from orchestrator.run.failure import Failure
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.training.failures import write_failure
from tests.fake_run import FakeRun
from tests.integration.disks import Disk, small_disk
from tests.integration.mlflow_server import MlflowServer
from tests.unit.trainers.storage.test_storage import reached
from tests.unit.trainers.training.test_state import FIXED, tensors
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.errors import StorageError
from trainers.storage.files import sha256_of, write_atomic
from trainers.training.state import StateWriter, newest_valid


def test_kills_while_saving_and_uploading_show_nobody_a_broken_or_worse_best(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path / "mlflow").start()
    try:
        findings = kill_saving(tmp_path / "run", server, kills=8, seed=int(time.time()))
    finally:
        server.kill()
    print(table(findings))
    assert findings.violations == []
    assert sum(findings.moments.values()) == 8
    assert all(findings.reads[place] > 0 for place in ("newest commit", "checkpoint_best.pth", "published best"))


def test_the_reader_of_these_kills_sees_what_must_not_be(tmp_path: Path) -> None:
    """The instrument itself: half a checkpoint, a worse one, and a commit whose best is another file."""
    run = FakeRun(tmp_path)
    folder = run.folder
    writer = StateWriter(folder, "key", run.fencing_token, FIXED, 1000)
    for epochs, score in ((1, 0.2), (2, 0.3)):
        writer.commit(reached(epochs), True, partial(tensors_of, score))
    writer.drain()
    reader = Reader(folder, None, "", tmp_path / "target")
    reader.commit()
    reader.best_file()
    assert reader.violations == []
    content = folder.checkpoint("best").read_bytes()
    older = next(path for path in sorted(folder.best.iterdir())).read_bytes()
    write_atomic(folder.checkpoint("best"), content[:-1000])
    reader.best_file()
    write_atomic(folder.checkpoint("best"), older)
    reader.best_file()
    write_atomic(sorted(folder.best.iterdir())[-1], older)
    reader.commit()
    cut, worse, other = reader.violations
    assert "checkpoint_best.pth cannot be loaded" in cut
    assert "the score fell from 0.3" in worse
    assert "e00002_a0001.pth is not what its digest says" in other


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """24 MiB."""
    yield from small_disk(tmp_path, 24)


def big(value: float) -> dict[str, Any]:
    return {**tensors(value), "network_weights": {"w": torch.full((500_000,), value)}}


def writer_of(folder: RunFolder) -> StateWriter:
    """A writer with one epoch committed."""
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000)
    writer.commit(reached(1), True, lambda: big(1.0))
    writer.drain()
    return writer


@pytest.mark.parametrize(
    ("trouble", "mend", "words"),
    [
        (Disk.fill, Disk.make_room, "the file system is full"),
        (Disk.make_read_only, Disk.make_writable, "the file system is read-only"),
        (Disk.go_away, Disk.come_back, "it is not the folder that this start began in"),
    ],
    ids=["full", "read-only", "away"],
)
def test_a_commit_outlives_the_trouble_of_its_disk(
    disk: Disk, tmp_path: Path, trouble: Callable[[Disk], None], mend: Callable[[Disk], None], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bits as on a disk without trouble; told once when it begins and once when it ends."""
    folder, beside = RunFolder(disk.folder / "fold_0"), RunFolder(tmp_path / "fold_0")
    writer, other = writer_of(folder), writer_of(beside)
    trouble(disk)
    with caplog.at_level(logging.WARNING):
        writer.commit(reached(2), True, lambda: big(2.0))
        wait_for(lambda: words in caplog.text)
        time.sleep(0.6)  # some more tries
        mend(disk)
        writer.drain()
    assert len(caplog.records) == 2
    other.commit(reached(2), True, lambda: big(2.0))
    other.drain()
    ours, theirs = newest_valid(folder), newest_valid(beside)
    assert ours is not None
    assert theirs is not None
    assert ours.model_dump_json() == theirs.model_dump_json()
    assert sha256_of(folder.checkpoint("best")) == sha256_of(beside.checkpoint("best"))
    assert not [*folder.root.rglob("*.part")]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_full_disk_is_a_clear_error_of_every_small_writer_and_the_old_files_stay(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun(disk.folder)
    run.epoch()
    write_outcome(run.folder, Outcome(job="training", state="TRAINED", fencing_token=1, message="x" * 5000))
    files = FilesChannel(run.folder, 1)
    files.draw(closing=True)
    before = {path: path.read_bytes() for path in run.folder.root.rglob("*") if path.is_file()}
    run.epoch(size_bytes=100)
    before |= {path: path.read_bytes() for path in run.folder.root.rglob("*") if path.is_file()}
    disk.fill()
    writers: list[Callable[[], object]] = [
        lambda: acquire_token(run.folder, "driver-2"),
        lambda: files.draw(closing=True),
    ]
    for write in writers:
        with pytest.raises(StorageError, match=r"cannot be written: the file system is full .*; 0\.0 of 24 MiB .*Free space there"):
            write()
    assert write_outcome(run.folder, Outcome(job="training", state="STOPPED", fencing_token=1, message="y" * 5000))
    write_failure(
        run.folder,
        Failure(
            driver="driver-1",
            fencing_token=1,
            kind="code",
            state="FAILED_CODE",
            epochs_done=1,
            iteration=0,
            message="why",
            evidence="z" * 5000,
        ),
    )
    assert "STOPPED: yyy" in caplog.text
    assert "the failure of the start with fencing token 1 is not stored: storage: " in caplog.text
    assert {path: path.read_bytes() for path in run.folder.root.rglob("*") if path.is_file()} == before
    disk.make_room()
    assert acquire_token(run.folder, "driver-1") == 2
