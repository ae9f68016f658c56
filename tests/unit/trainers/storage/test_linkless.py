"""File systems that are no local disk: without hard links, without permissions, with folders that are not synced."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.dataset.folder import ensure_splits
from tests.fake_run import FakeRun
from tests.unit.trainers.training.test_state import committed_epochs, row, tensors
from trainers.contract.commits import BestRecord, newest_committed
from trainers.contract.fencing import acquire_token, check_fence, newest_token
from trainers.contract.pseudonyms import pseudonym_salt
from trainers.contract.run_folder import RunFolder
from trainers.errors import Superseded
from trainers.storage.exclusive import create_exclusive, release_claim
from trainers.storage.files import (
    NO_FOLDER_SYNC,
    NO_LINKS,
    fsync_folder,
    link_atomic,
    sha256_of,
    write_atomic,
)
from trainers.training.state import StateWriter, TrainingProgress, newest_valid


def without_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EPERM) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, "no links here")

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("number", sorted(NO_LINKS))
def test_a_file_is_created_once_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    without_links(monkeypatch, number)
    assert create_exclusive(tmp_path / "claim", b"x", mode=0o600)
    assert not create_exclusive(tmp_path / "claim", b"y")
    assert (tmp_path / "claim").read_bytes() == b"x"
    assert (tmp_path / "claim").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [".claim.claim", "claim"]


def test_only_one_of_many_creates_a_file_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch)
    for attempt in range(20):
        won: list[int] = []
        target = tmp_path / str(attempt)

        def create(number: int, target: Path = target, won: list[int] = won) -> None:
            if create_exclusive(target, str(number).encode() * 1000):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert target.read_bytes() == str(won[0]).encode() * 1000
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(map(str, range(20)))


def test_nobody_creates_a_file_twice_who_is_told_by_a_cache_that_it_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMB and some of FUSE remember for a while that a name was not found; the winner of the first time has come to its end meanwhile."""
    without_links(monkeypatch)
    target, look_up = tmp_path / "0001.json", Path.stat
    assert create_exclusive(target, b"first")

    def remembered(path: Path, **options: Any) -> os.stat_result:
        if path.name in (target.name, f".{target.name}.claim"):
            raise FileNotFoundError(errno.ENOENT, "remembered")
        return look_up(path, **options)

    with monkeypatch.context() as cached:
        cached.setattr(Path, "stat", remembered)
        assert not create_exclusive(target, b"second")
    assert target.read_bytes() == b"first"


def test_a_file_that_was_removed_is_created_anew_once_its_claim_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch)
    target = tmp_path / "run.json"
    assert create_exclusive(target, b"first")
    release_claim(target)
    assert list(tmp_path.iterdir()) == [target]
    assert not create_exclusive(target, b"second")
    target.unlink()
    assert create_exclusive(target, b"third")
    assert target.read_bytes() == b"third"


def test_a_split_that_its_user_deletes_is_made_anew_of_the_present_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch)
    cases = [f"case_{number}" for number in range(6)]
    ensure_splits(tmp_path, cases[:5])
    (tmp_path / "splits_final.json").unlink()
    assert sorted(case for split in ensure_splits(tmp_path, cases) for case in split.val) == cases


def test_a_best_checkpoint_is_copied_once_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch)
    folder = RunFolder(tmp_path / "fold_0")
    writer = committed_epochs(folder, [0.5])
    named = folder.checkpoint("best")
    copied, reached = named.stat(), TrainingProgress((row(0, 0.5), row(1, 0.4)), BestRecord(ema=0.5, score=0.5, best_epoch=0))
    commit(writer, reached, is_best=False)
    assert (named.stat().st_ino, named.stat().st_mtime_ns) == (copied.st_ino, copied.st_mtime_ns)
    named.unlink()
    commit(writer, reached, is_best=False)
    assert sha256_of(named) == newest_best(folder)
    better = TrainingProgress((*reached.history, row(2, 0.9)), BestRecord(ema=0.9, score=0.9, best_epoch=2))
    before = newest_best(folder)
    commit(writer, better, is_best=True)
    assert sha256_of(named) == newest_best(folder) != before


def commit(writer: StateWriter, reached: TrainingProgress, *, is_best: bool) -> None:
    writer.commit(reached, is_best, lambda: tensors(float(reached.epochs_done)))
    writer.drain()


def newest_best(folder: RunFolder) -> str:
    committed = newest_committed(folder)
    assert committed is not None
    assert committed.best is not None
    return committed.best.sha256


def test_an_error_that_is_none_of_links_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_links(monkeypatch, errno.ENAMETOOLONG)
    with pytest.raises(OSError, match="no links here"):
        create_exclusive(tmp_path / "claim", b"x")
    assert list(tmp_path.iterdir()) == []


KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from trainers.storage.exclusive import create_exclusive

def refuse(*_):
    raise PermissionError(1, "no links here")

os.link = refuse
base, step, is_killed = Path(sys.argv[1]), 0, True
while is_killed:
    step += 1
    target = base / str(step) / "0001.json"
    target.parent.mkdir()
    child = os.fork()
    if child == 0:
        count = 0

        def kill(event, arguments):
            global count
            if event.startswith("os.") or event == "open":
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        create_exclusive(target, b"first" * 100)
        os._exit(0)
    is_killed = os.waitpid(child, 0)[1] != 0
    found = target.read_bytes() if target.exists() else b""
    is_second = create_exclusive(target, b"second" * 100)
    is_of_winner = target.read_bytes() == (b"second" if is_second else b"first") * 100
    print(step, found == b"", found in (b"", b"first" * 100), is_second, is_of_winner)
"""


def test_a_kill_at_any_step_leaves_the_file_whole_or_to_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path)], capture_output=True, text=True, check=True)
    rows = [[word == "True" for word in line.split()[1:]] for line in done.stdout.splitlines()]
    assert len(rows) > 10
    for is_missing, is_whole, is_second, is_of_winner in rows:
        assert is_whole
        assert is_of_winner
        assert is_missing or not is_second
    assert {(missing, second) for missing, _, second, _ in rows} == {(True, True), (True, False), (False, False)}, "each stage was met"


@pytest.mark.parametrize("number", sorted(NO_FOLDER_SYNC))
def test_a_folder_that_is_not_synced_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(os, "fsync", _refusing_folders(number))
    with caplog.at_level(logging.INFO):
        write_atomic(tmp_path / "a", b"x")
        write_atomic(tmp_path / "a", b"y")
    assert (tmp_path / "a").read_bytes() == b"y"
    assert len([record for record in caplog.records if "does not sync folders" in record.getMessage()]) == 1


def test_a_disk_that_breaks_while_a_folder_is_synced_is_no_such_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _refusing_folders(errno.EIO))
    with pytest.raises(OSError, match="refused"):
        fsync_folder(tmp_path)


def _refusing_folders(number: int) -> Any:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, "refused")
        fsync(descriptor)

    return refuse


def test_a_secret_that_its_file_system_leaves_open_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fchmod = os.fchmod

    def as_mounted(descriptor: int, mode: int) -> None:
        fchmod(descriptor, 0o755)
        raise PermissionError(errno.EPERM, "modes are those of the mount")

    monkeypatch.setattr(os, "fchmod", as_mounted)
    write_atomic(tmp_path / "a", b"x")
    assert caplog.records == []
    assert len(pseudonym_salt(tmp_path)) == 64
    assert "others may read it" in caplog.text


# ---- real ones --------------------------------------------------------------------------------------------------------


MOUNTS = {"vfat": (["mkfs.vfat"], ["mount", "-t", "vfat"]), "exfat": (["mkfs.exfat"], ["mount.exfat-fuse"])}


@pytest.fixture(params=sorted(MOUNTS))
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system without links. Skips where this machine or user cannot mount one."""
    make, mount = MOUNTS[request.param]
    if os.getuid() != 0 or not all(shutil.which(tool) for tool in (make[0], mount[0], "losetup")):
        pytest.skip(f"only root mounts a {request.param}, with its tools")
    image, place = tmp_path / "image", tmp_path / "mounted"
    place.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)
    subprocess.run([*make, str(image)], check=True, capture_output=True)
    loop = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True)
    if loop.returncode:
        pytest.skip(f"no loop device: {loop.stderr}")
    device = loop.stdout.strip()
    try:
        done = subprocess.run([*mount, device, str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{request.param} cannot be mounted here: {done.stderr.strip()}")
        yield place
        subprocess.run(["umount", str(place)], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


def test_a_run_lives_on_a_file_system_without_links(mounted: Path) -> None:
    with pytest.raises(PermissionError):
        (mounted / "linked").hardlink_to(_touched(mounted / "probe"))
    run = FakeRun(mounted)
    run.epoch()
    run.finish()
    run.resume()
    with pytest.raises(Superseded):
        check_fence(run.folder, 1)
    folder = RunFolder(mounted / "fold_0")
    committed_epochs(folder, [0.1, 0.3, 0.2])
    newest = newest_valid(folder)
    assert newest is not None
    assert (newest.epochs_done, newest_token(folder)) == (3, 1)
    assert acquire_token(folder, "second") == 2
    link_atomic(folder.checkpoint("best"), mounted / "again.pth")
    assert (mounted / "again.pth").read_bytes() == folder.checkpoint("best").read_bytes()
    assert [path for path in mounted.rglob("*") if ".claim." in path.name or path.suffix == ".part"] == []


def _touched(path: Path) -> Path:
    path.touch()
    return path
