"""A disk that does not take what is stored: the state before stays, the error is clear, and when there is room again the run goes on."""

import contextlib
import errno
import gc
import io
import logging
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.away import Away, share_is_away
from tests.fake_run import FakeRun
from tests.unit.trainers.network.test_learner import ALONE
from tests.unit.trainers.training.test_state import FIXED, committed_epochs, row, tensors
from trainers.contract.commits import BestRecord, Committed, committed_states, newest_committed, read_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.errors import CheckpointError, DataError, StorageError
from trainers.network.checkpoint import read_checkpoint
from trainers.storage.exclusive import create_exclusive
from trainers.storage.faults import backoff_s, find_outage, is_of_storage, is_there, reading, retry_storage, storing
from trainers.storage.files import check_takes, link_atomic, read_json, sha256_of, write_atomic
from trainers.training.assemble import newest_everywhere
from trainers.training.state import StateWriter, TrainingProgress, newest_valid


@contextlib.contextmanager
def no_file_above(size_bytes: int) -> Iterator[None]:
    """This process may write no larger file: a full disk that needs no disk. Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def text(committed: Committed) -> str:
    """For comparing: NaN is not equal to itself."""
    return committed.model_dump_json()


class Disk:
    """Fails so many times, then takes what it is given."""

    def __init__(self, failures: int, code: int = errno.ENOSPC) -> None:
        self.failures, self.code = failures, code

    def store(self) -> str:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError(self.code, "the disk's words")
        return "stored"


def parts(folder: RunFolder) -> list[Path]:
    return [path for path in folder.root.rglob("*.part")]


def big(value: float) -> dict[str, Any]:
    return {**tensors(value), "network_weights": {"w": torch.full((500_000,), value)}}


def reached(epochs: int) -> TrainingProgress:
    rows = tuple(row(epoch, 0.1 + epoch / 100) for epoch in range(epochs))
    best = rows[-1].ema_pseudo_dice
    return TrainingProgress(history=rows, best_policy=BestRecord(ema=best, score=best, best_epoch=epochs - 1))


# ---- the policy ------------------------------------------------------------------------------------------------------


def test_back_off_doubles_from_the_first_wait_to_the_longest() -> None:
    assert [backoff_s(failures, 1.0, 60.0) for failures in (1, 2, 3, 7, 500)] == [1, 2, 4, 60, 60]
    assert [backoff_s(failures, 0.5, 20.0) for failures in (1, 6, 7)] == [0.5, 16, 20]


def test_a_full_disk_is_waited_for_and_told_once_at_each_end(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO):
        assert retry_storage(Disk(6).store, "the state", sleep=clock.sleep, clock=clock) == "stored"
    assert clock.now == 0.5 + 1 + 2 + 4 + 8 + 16
    began, ended = [record.getMessage() for record in caplog.records]
    assert "the state: storage is unavailable since" in began
    assert "the disk's words" in began
    assert ended == "the state: storage recovered after 32 s and 6 failures."


def test_patience_ends_with_an_error_that_says_what_is_kept_and_what_to_do() -> None:
    clock = Clock()
    with pytest.raises(StorageError, match=r"the state was tried \d+ times in 300 s\. What was committed before is whole: .*submit"):
        retry_storage(Disk(10**6).store, "the state", 300.0, sleep=clock.sleep, clock=clock)
    assert clock.now == 300.0


def test_an_error_of_another_kind_is_not_waited_for() -> None:
    with pytest.raises(OSError, match="words"):
        retry_storage(Disk(1, errno.ENOTDIR).store, "the state", sleep=lambda _: pytest.fail("waited"))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.ESTALE, "unavailable or broken"),
        (errno.EIO, "unavailable or broken"),
        (errno.EFBIG, "a file of this size is not allowed"),
    ],
)
def test_each_fault_of_a_disk_is_named_with_place_free_space_and_advice(tmp_path: Path, code: int, words: str) -> None:
    place = tmp_path / "not made yet" / "file"
    with pytest.raises(StorageError, match=rf"{words}.*MiB and \d+ files are free in {tmp_path}") as raised, storing(place):
        raise OSError(code, "words of the system")
    assert str(raised.value).startswith(f"storage: {place} cannot be written: ")
    assert is_of_storage(raised.value)


# ---- what is read -----------------------------------------------------------------------------------------------------


def test_a_file_whose_disk_is_away_is_the_clusters_affair_and_one_that_is_missing_or_refused_the_users(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    with pytest.raises(DataError, match="does not exist"):
        read_json(path, "plans")
    path.write_text("{}")
    away = Away(path)
    with pytest.raises(StorageError, match=rf"storage: {path} cannot be read: the file system is unavailable .*Bring back the disk"):
        read_json(path, "plans")
    away.come_back()
    assert read_json(path, "plans") == {}
    with pytest.raises(PermissionError), reading(path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_run_folder_that_is_not_there_is_an_outage_for_a_job_of_the_run_and_else_the_users_affair(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    away = run.folder.root.rename(tmp_path / "away")
    with pytest.raises(DataError, match="does not exist"):
        run.folder.spec()
    with pytest.raises(StorageError, match=r"is not there on this node\. Mount the shared folder\."):
        run.folder.living_spec()
    away.rename(run.folder.root)
    assert run.folder.living_spec() == run.folder.spec() == run.spec
    dataset = run.spec.preprocessed_folder.rename(tmp_path / "dataset")
    run.spec.preprocessed_folder.mkdir()  # a mount point without its mount
    with pytest.raises(StorageError, match=r"dataset\.json is not there on this node\. Mount the folder of the preprocessed datasets\."):
        run.folder.living_spec()
    run.spec.preprocessed_folder.rmdir()
    dataset.rename(run.spec.preprocessed_folder)
    run.folder.spec_file.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        run.folder.living_spec()


@pytest.mark.parametrize("hidden", ["dataset.json", "run.json"])
def test_what_this_user_may_not_look_at_is_the_users_affair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Permission bits do not bind root, so the calls of the system are played."""
    run = FakeRun(tmp_path)

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuses(path: Any, *args: Any, **options: Any) -> Any:
            if str(path).endswith(hidden):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *args, **options)

        return refuses

    monkeypatch.setattr(os, "stat", refusing(os.stat))
    monkeypatch.setattr(io, "open", refusing(io.open))
    with pytest.raises(DataError, match=rf"{hidden} cannot be read.*Permission denied"):
        retry_storage(run.folder.living_spec, "the start", sleep=lambda _: pytest.fail("waited"))


def test_files_that_are_missing_together_with_their_dataset_are_an_outage(tmp_path: Path) -> None:
    dataset, missing = tmp_path / "dataset", FileNotFoundError(errno.ENOENT, "No such file or directory")
    files = [dataset / "cases" / "a.b2nd", dataset / "cases" / "a.npz"]
    with pytest.raises(StorageError, match=rf"storage: {dataset}/dataset\.json is not there on this node\. Mount the folder"):
        find_outage(missing, files, dataset)
    files[1].parent.mkdir(parents=True)
    files[1].touch()
    find_outage(missing, files, dataset)
    files[1].unlink()
    (dataset / "dataset.json").touch()
    find_outage(missing, files, dataset)


def test_an_outage_is_found_behind_a_librarys_own_words(tmp_path: Path) -> None:
    sound, missing = tmp_path / "sound", tmp_path / "missing"
    sound.write_bytes(b"x")
    hidden = RuntimeError("some library returned NULL")
    find_outage(hidden, [missing, sound])
    find_outage(PermissionError(errno.EACCES, "Permission denied"), [sound])
    with pytest.raises(StorageError, match="Stale file handle"):
        find_outage(OSError(errno.ESTALE, "Stale file handle"), [sound])
    Away(sound)
    with pytest.raises(StorageError, match=f"{sound} cannot be read"):
        find_outage(hidden, [missing, sound])


# ---- every writer --------------------------------------------------------------------------------------------------------


def test_what_writes_a_file_leaves_the_old_one_and_no_half_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")
    with no_file_above(1000):
        with pytest.raises(StorageError, match="a file of this size is not allowed"):
            write_atomic(target, bytes(10_000))
        with pytest.raises(StorageError, match="claimed cannot be written"):
            create_exclusive(tmp_path / "claimed", bytes(10_000))
        with pytest.raises(StorageError):
            check_takes(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"
    check_takes(tmp_path)
    assert create_exclusive(tmp_path / "claimed", bytes(10_000))


def test_a_folder_that_is_gone_takes_nothing_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is gone"):
        check_takes(tmp_path / "share")
    assert not (tmp_path / "share").exists()


def test_a_link_whose_folder_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "source", b"new")
    with pytest.raises(FileNotFoundError):
        link_atomic(tmp_path / "none", tmp_path / "target")
    link_atomic(tmp_path / "source", tmp_path / "target")
    link_atomic(tmp_path / "source", tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


# ---- the writer of states -------------------------------------------------------------------------------------------------


def test_a_commit_waits_for_room_and_then_has_the_same_bits(tmp_path: Path) -> None:
    folder, beside = RunFolder(tmp_path / "fold_0"), RunFolder(tmp_path / "fold_1")
    for place in (folder, beside):
        writer = StateWriter(place, "key", acquire_token(place, "d"), FIXED, 1000)
        writer.commit(reached(1), True, lambda: big(1.0))
        writer.drain()
        with no_file_above(1_000_000 if place is folder else 2**40):
            writer.commit(reached(2), True, lambda: big(2.0))
            time.sleep(0.3)  # long enough for some tries, short enough for the test
            if place is folder:
                kept = newest_valid(folder)
                assert kept is not None
                assert kept.best is not None
                assert (kept.epochs_done, kept.best.epoch) == (1, 0)
        writer.drain()
        assert parts(place) == []
    ours, theirs = newest_valid(folder), newest_valid(beside)
    assert ours is not None
    assert theirs is not None
    assert text(ours) == text(theirs)
    assert ours.epochs_done == 2
    assert sha256_of(folder.checkpoint("best")) == sha256_of(beside.checkpoint("best"))


def test_a_commit_that_finds_no_room_ends_the_run_with_the_state_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1])
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000, patience_s=0.0)
    writer.start_from(newest_valid(folder))
    with no_file_above(1_000_000):
        writer.commit(reached(2), True, lambda: big(2.0))
        with pytest.raises(StorageError, match=r"e00002_a0002\.pth cannot be written.*the state after 2 epochs was tried"):
            writer.drain()
    assert parts(folder) == []
    newest = newest_valid(folder)
    assert newest is not None
    assert newest.epochs_done == 1
    again = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000)
    again.start_from(newest)
    again.commit(reached(2), True, lambda: big(2.0))
    again.drain()
    resumed = newest_valid(folder)
    assert resumed is not None
    assert resumed.stem == "e00002_a0003"


def test_a_share_that_is_gone_is_waited_for_and_nothing_is_written_below_its_place(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "share" / "fold_0")
    writer = committed_epochs(folder, [0.1])
    (tmp_path / "share").rename(tmp_path / "away")
    writer.commit(reached(2), False, lambda: tensors(1.0))
    time.sleep(0.1)
    assert not (tmp_path / "share").exists()
    (tmp_path / "away").rename(tmp_path / "share")
    writer.drain()
    newest = newest_valid(folder)
    assert newest is not None
    assert newest.epochs_done == 2


class SlowToStore:
    """Half a tenth of a second for whoever writes it."""

    def __reduce__(self) -> tuple[Any, ...]:
        time.sleep(0.05)
        return (int, (0,))


def test_a_slow_disk_holds_the_training_and_neither_loses_a_state_nor_piles_them_up(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), {**FIXED, "slow": SlowToStore()}, 6)
    weights, seen = torch.zeros(123_457), []
    state: dict[str, Any] = {"network_weights": {"w": weights}, "optimizer_state": {}, "grad_scaler_state": None}
    for epochs in range(1, 7):
        weights += 1
        writer.commit(reached(epochs), True, lambda: state)
        copies = sum(type(o) is torch.Tensor and o.shape == weights.shape for o in gc.get_objects())
        assert copies <= 2, "the weights and one snapshot of them"
        newest = newest_committed(folder)
        seen.append(newest.epochs_done if newest else 0)
    writer.drain()
    assert all(done >= epochs - 1 for epochs, done in enumerate(seen, 1)), "the commit before is on disk when the next one begins"
    final = newest_valid(folder)
    assert final is not None
    assert (final.epochs_done, final.final is not None) == (6, True)


def test_what_tidies_up_has_only_the_patience_that_the_state_has_left(tmp_path: Path) -> None:
    """The other ranks wait for both together."""
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1])
    slow = {**FIXED, "slow": [SlowToStore() for _ in range(5)]}
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), slow, 1000, patience_s=0.2)
    away = Away(folder.state / "e00001_a0001.json")  # which is to be kept
    writer.commit(reached(2), False, lambda: tensors(1.0))
    with pytest.raises(
        StorageError, match=r"e00001_a0001\.json cannot be read.*nnU-Net's names for the state after 2 epochs was tried 1 times"
    ):
        writer.drain()
    away.come_back()
    assert [committed.epochs_done for committed in committed_states(folder)] == [2, 1]


def test_an_old_commit_that_cannot_be_read_is_pruned_unread(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1])
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000, patience_s=0.0)
    writer.commit(reached(2), False, lambda: tensors(1.0))
    writer.drain()
    Away(folder.state / "e00001_a0001.json")
    writer.commit(reached(3), False, lambda: tensors(2.0))
    writer.drain()
    assert [committed.epochs_done for committed in committed_states(folder)] == [3, 2]


# ---- a start whose disk is away for a moment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["state/e00003_a0001.json", "state/e00003_a0001.pth", "best/e00003_a0001.pth"])
def test_a_newest_commit_that_cannot_be_read_now_is_neither_passed_over_nor_lost(tmp_path: Path, half: str) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.2, 0.3])
    before = newest_valid(folder)
    assert before is not None
    away = Away(folder.own / half)
    with pytest.raises(StorageError, match=f"{half} cannot be read: the file system is unavailable"):
        newest_valid(folder)
    if half.endswith("json"):
        with pytest.raises(StorageError):
            newest_committed(folder)
    threading.Timer(0.2, away.come_back).start()
    found = newest_everywhere(folder, ALONE)
    assert found is not None
    assert text(found) == text(before)
    StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000).start_from(found)
    assert sorted(path.suffix for path in folder.state.iterdir()) == [".json", ".json", ".pth", ".pth"]


def test_a_folder_of_states_that_cannot_be_listed_is_no_fresh_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1])
    folder.state.rename(folder.own / "moved")
    folder.state.symlink_to(folder.state)
    with pytest.raises(OSError, match="symbolic links"):
        newest_valid(folder)


def test_a_checkpoint_that_cannot_be_read_now_is_not_called_broken(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1])
    Away(folder.state / "e00001_a0001.pth")
    with pytest.raises(StorageError, match=r"e00001_a0001\.pth cannot be read: the file system is unavailable"):
        read_checkpoint(folder.state / "e00001_a0001.pth")


# ---- what a power cut or a broken disk leaves ---------------------------------------------------------------------------------


def damage(path: Path, draw: random.Random) -> str:
    """One of the things that happen to files: cut anywhere, empty, gone, or a block of zeros."""
    kind = draw.choice(["cut", "empty", "gone", "zeros"])
    content = path.read_bytes()
    if kind == "gone":
        path.unlink()
    elif kind == "zeros":
        start = draw.randrange(len(content))
        write_atomic(path, content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :])
    else:
        write_atomic(path, content[: draw.randrange(len(content)) if kind == "cut" else 0])
    return f"{path.parent.name}/{path.name} {kind}"


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_to_the_files_of_a_commit_no_wrong_state_is_read(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """1 to 3 files of a run are damaged at random: what is found then is one of the commits, whole, or an error; and it is said."""
    draw = random.Random(seed)
    folder = RunFolder(tmp_path / "fold_0")
    emas = [0.1, 0.3, 0.2] if seed % 2 else [0.1, 0.2, 0.3]
    committed_epochs(folder, emas)
    before = {path.stem: newest for path in folder.state.glob("*.json") if (newest := read_committed(path))}
    files = sorted([*folder.state.iterdir(), *folder.best.iterdir(), folder.checkpoint("best")])
    done = [damage(path, draw) for path in draw.sample(files, draw.randint(1, 3))]
    caplog.clear()
    if not any(is_whole(folder, original) for original in before.values()) and any(folder.state.glob("*.json")):
        with pytest.raises(CheckpointError, match="none of the commits"):
            newest_valid(folder)
        return
    found = newest_valid(folder)
    if found is None:  # nothing says any more that there was a commit
        assert len([what for what in done if what.endswith("json gone")]) == len(before)
        return
    original = before[found.stem]
    assert text(found) in (text(original), text(original.model_copy(update={"best": None})))
    assert sha256_of(folder.state / f"{found.stem}.pth") == found.state_sha256
    if found.best is not None:
        assert sha256_of(folder.root / found.best.file) == found.best.sha256
    is_newest_whole = found.stem == max(before) and found.best == original.best
    assert is_newest_whole or caplog.records or f"state/{max(before)}.json gone" in done
    harmless = all(what.startswith((f"state/{min(before)}", "fold_0/checkpoint_best")) for what in done)
    assert is_newest_whole or not harmless


def is_whole(folder: RunFolder, original: Committed) -> bool:
    """Whether both halves of a commit are as they were."""
    tensors_file = folder.state / f"{original.stem}.pth"
    tensors_whole = tensors_file.is_file() and sha256_of(tensors_file) == original.state_sha256
    found = read_committed(folder.state / f"{original.stem}.json")
    return tensors_whole and found is not None and text(found) == text(original)


def test_what_is_there_is_told_from_what_is_not_to_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert is_there(tmp_path)
    assert is_there(tmp_path / "file")
    assert not is_there(tmp_path / "none")
    assert not is_there(tmp_path / "file" / "below")
    share_is_away(monkeypatch, "file")
    with pytest.raises(StorageError, match="file cannot be read: the file system is unavailable"):
        is_there(tmp_path / "file")
    assert not (tmp_path / "file").exists()
