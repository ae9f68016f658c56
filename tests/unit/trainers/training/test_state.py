"""The resume stream: what is committed survives, what is damaged is passed over, what is old is pruned, who is superseded stops."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.contract.commits import BestRecord, EpochRow, InFlight, committed_states, newest_committed
from trainers.contract.fencing import acquire_token, check_driver_fence, newest_token
from trainers.contract.run_folder import RunFolder
from trainers.errors import CheckpointError, Superseded
from trainers.network.checkpoint import copied_to_cpu, read_checkpoint
from trainers.storage.files import sha256_of
from trainers.training.state import StateWriter, TrainingProgress, newest_valid

FIXED: dict[str, Any] = {
    "trainer_name": "nnUNetTrainer",
    "init_args": {"plans": {}, "configuration": "3d_fullres", "fold": 0, "dataset_json": {}},
    "inference_allowed_mirroring_axes": (0, 1, 2),
}


def row(epoch: int, ema: float | None) -> EpochRow:
    times = {"started_unix": epoch, "ended_unix": epoch + 1, "epoch_s": 1, "train_s": 0.8, "val_s": 0.2, "wait_data_s": 0, "save_s": 0}
    losses = {"train_loss": -0.1 * epoch, "val_loss": 0.5, "learning_rate": 0.01}
    dice = {"pseudo_dice": (0.5, math.nan), "pseudo_dice_mean": 0.5, "ema_pseudo_dice": ema}
    rest = {"epoch": epoch, "attempt": 1, "world_size": 1, "samples_per_s": 10, "gpu_memory_gib": 0}
    return EpochRow.model_validate({**times, **losses, **dice, **rest})


def tensors(value: float) -> dict[str, Any]:
    weight = torch.full((4, 4), value)
    return {
        "network_weights": {"a.weight": weight, "alias.weight": weight},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.full((4, 4), -value)}}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler_state": None,
    }


def committed_epochs(folder: RunFolder, emas: list[float], total: int = 1000, driver: str = "d") -> StateWriter:
    """Commit one epoch per EMA value; an epoch is a new best when it rises."""
    writer = StateWriter(folder, "key", acquire_token(folder, driver), FIXED, total)
    reached, best = TrainingProgress(), BestRecord()
    for epoch, ema in enumerate(emas):
        is_best = best.score is None or ema > best.score
        if is_best:
            best = BestRecord(ema=ema, score=ema, best_epoch=epoch)
        reached = TrainingProgress(history=(*reached.history, row(epoch, ema)), best_policy=best)
        writer.commit(reached, is_best, partial(tensors, float(epoch)))
    writer.drain()
    return writer


def test_a_commit_restores_history_best_and_tensors(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.2, 0.5, 0.4])
    newest = newest_valid(folder)
    assert newest is not None
    assert newest.epochs_done == 3
    assert [r.ema_pseudo_dice for r in newest.history] == [0.2, 0.5, 0.4]
    assert math.isnan(newest.history[0].pseudo_dice[1])
    assert newest.best is not None
    assert (newest.best.epoch, newest.best.ema_pseudo_dice) == (1, 0.5)
    checkpoint = read_checkpoint(folder.state / f"{newest.stem}.pth")
    assert torch.equal(checkpoint["network_weights"]["a.weight"], torch.full((4, 4), 2.0))
    assert checkpoint["logging"]["ema_fg_dice"] == [0.2, 0.5, 0.4]
    assert checkpoint["current_epoch"] == 3
    best = torch.load(folder.checkpoint("best"), weights_only=True)
    assert torch.equal(best["network_weights"]["a.weight"], torch.full((4, 4), 1.0))
    assert "optimizer_state" not in best


def test_the_last_epoch_becomes_nnunets_final_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.2], total=2)
    assert (folder.root / "checkpoint_latest.pth").is_file()
    assert not folder.checkpoint("final").exists()
    committed_epochs(folder, [0.2, 0.3], total=2)
    newest = newest_committed(folder)
    assert newest is not None
    assert newest.final is not None
    assert sha256_of(folder.checkpoint("final")) == newest.final.sha256
    assert not (folder.root / "checkpoint_latest.pth").exists()


def test_two_states_and_the_named_best_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.9, 0.2, 0.3, 0.4])
    assert sorted(p.name for p in folder.state.iterdir()) == [
        "e00004_a0001.json", "e00004_a0001.pth", "e00005_a0001.json", "e00005_a0001.pth",
    ]  # fmt: skip
    assert [p.name for p in folder.best.iterdir()] == ["e00002_a0001.pth"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "json cut"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path: Path, damage: str) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.2, 0.3])
    state = folder.state / "e00003_a0001.pth"
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:100])
    elif damage == "missing":
        state.unlink()
    elif damage == "json cut":
        (folder.state / "e00003_a0001.json").write_text('{"run_key": "key"')
    else:
        flip_a_bit(state)
    newest = newest_valid(folder)
    assert newest is not None
    assert newest.epochs_done == 2
    assert newest.best is not None
    assert newest.best.epoch == 1


def test_the_newest_end_of_an_epoch_is_kept_beside_the_newest_states(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    writer = committed_epochs(folder, [0.1, 0.2])
    history = (row(0, 0.1), row(1, 0.2))
    for iteration in (10, 20, 30):
        in_flight = InFlight(iteration=iteration, train_loss_sums=(0.5,), elapsed_s=1.0)
        writer.commit(TrainingProgress(history, BestRecord(), in_flight), False, lambda: tensors(0.0))
    writer.drain()
    kept = ["e00002_a0001", "e00002i000020_a0001", "e00002i000030_a0001"]
    assert sorted(path.name for path in folder.state.iterdir()) == [f"{stem}.{half}" for stem in kept for half in ("json", "pth")]


def test_a_damaged_commit_is_told_once_and_not_at_every_look(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.2, 0.3])
    for name in ("e00002_a0001.json", "e00003_a0001.json"):
        (folder.state / name).write_text("{")
    for _ in range(5):
        assert newest_committed(folder) is None
    assert [record.args[0].name for record in caplog.records] == ["e00003_a0001.json", "e00002_a0001.json"]  # type: ignore[index, union-attr]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_lost_best_file_is_restored_from_nnunets_name_for_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.9, 0.3])
    (folder.best / "e00002_a0001.pth").unlink()
    newest = newest_valid(folder)
    assert newest is not None
    assert (newest.epochs_done, newest.best and newest.best.epoch) == (3, 1)
    assert (folder.best / "e00002_a0001.pth").is_file()


def test_a_best_that_is_damaged_everywhere_costs_the_best_and_not_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.9, 0.3])
    flip_a_bit(folder.best / "e00002_a0001.pth")  # checkpoint_best.pth is the same file
    newest = newest_valid(folder)
    assert newest is not None
    assert (newest.epochs_done, newest.best) == (3, None)
    assert newest.best_policy.score == 0.9


def test_a_run_never_starts_anew_over_states_that_are_all_damaged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    assert newest_valid(folder) is None
    committed_epochs(folder, [0.1, 0.2, 0.3])
    for path in folder.state.glob("*.pth"):
        flip_a_bit(path)
    with pytest.raises(CheckpointError, match="none of the commits .* is whole"):
        newest_valid(folder)


def test_what_comes_after_a_damaged_state_is_the_newest_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.2, 0.3])
    flip_a_bit(folder.state / "e00003_a0001.pth")
    (folder.state / ".e00003_a0001.pth.x.part").write_text("left by a kill")
    restored = newest_valid(folder)
    assert restored is not None
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000)
    writer.start_from(restored)
    newest = newest_committed(folder)
    assert newest is not None
    assert newest.epochs_done == 2
    assert (folder.state / "e00003_a0001.json.damaged").is_file()
    assert list(folder.state.glob(".*.part")) == []
    writer.commit(TrainingProgress(history=(*restored.history, row(2, 0.3))), False, lambda: tensors(2.0))
    writer.drain()
    valid = newest_valid(folder)
    assert valid is not None
    assert valid.stem == "e00003_a0002"
    assert epochs_of(folder) == [3, 2]


def epochs_of(folder: RunFolder) -> list[int]:
    return [committed.epochs_done for committed in committed_states(folder)]


def test_a_superseded_attempt_commits_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    old = committed_epochs(folder, [0.1])
    assert acquire_token(folder, "another driver") == 2
    old.commit(TrainingProgress(history=(row(0, 0.1), row(1, 0.9))), True, lambda: tensors(9.0))
    with pytest.raises(Superseded, match="token 1 .* superseded by token 2"):
        old.drain()
    assert [c.epochs_done for c in committed_states(folder)] == [1]
    assert torch.load(folder.checkpoint("best"), weights_only=True)["network_weights"]["a.weight"][0, 0] == 0.0


def test_a_restart_of_workers_does_not_fence_off_its_own_publisher(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    driver = acquire_token(folder, "driver A")
    acquire_token(folder, "driver A")
    check_driver_fence(folder, driver)
    acquire_token(folder, "driver B")
    with pytest.raises(Superseded, match="stops publishing"):
        check_driver_fence(folder, driver)
    assert newest_token(folder) == 3


def test_an_error_of_the_writer_reaches_the_training_thread(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    writer = committed_epochs(folder, [0.1])
    folder.state.rename(folder.own / "moved")
    folder.state.write_text("a file where the folder was")
    writer.commit(TrainingProgress(history=(row(0, 0.1), row(1, 0.2))), False, lambda: tensors(1.0))
    with pytest.raises(OSError, match="e00002_a0001|File exists|Not a directory"):
        writer.drain()


def test_a_snapshot_is_a_copy_and_keeps_shared_tensors_shared() -> None:
    weight = torch.ones(3)
    copied = copied_to_cpu({"a": weight, "b": weight, "c": [weight, {"d": (weight, 5)}]})
    weight.zero_()
    assert copied["a"].tolist() == [1, 1, 1]
    assert copied["b"] is copied["a"]
    assert copied["c"][1]["d"] == (copied["a"], 5)


def test_a_snapshot_takes_the_memory_of_the_one_before() -> None:
    older = copied_to_cpu({"a": torch.ones(3), "b": [torch.ones(2, 3)]})
    memory = {older["a"].data_ptr(), older["b"][0].data_ptr()}
    newer = copied_to_cpu({"b": torch.full((2, 3), 5.0), "a": torch.tensor([1.0, 2.0, 3.0])}, older)
    assert {newer["a"].data_ptr(), newer["b"].data_ptr()} == memory
    assert newer["a"].tolist() == [1, 2, 3]
    assert newer["b"].tolist() == [[5] * 3] * 2


def test_a_snapshot_over_an_older_one_of_other_tensors_is_whole() -> None:
    """What the older one shared, the newer need not share; what has another type, order in memory or size gets memory of its own."""
    shared = torch.zeros(4, 3)
    older = copied_to_cpu({"a": shared, "b": shared, "c": torch.zeros(4, 3), "d": torch.zeros(2), "e": torch.zeros(0)})
    now = {
        "a": torch.full((4, 3), 1.0),
        "b": torch.full((4, 3), 2.0),
        "c": torch.arange(12.0).reshape(3, 4).t(),
        "d": torch.tensor([1, 2]),
        "e": torch.zeros(0),
        "f": torch.full((4, 3), 3.0),
        "g": torch.ones(1).expand(4, 3),
    }
    newer = copied_to_cpu(now, older)
    assert all(torch.equal(newer[name], tensor) and newer[name].dtype == tensor.dtype for name, tensor in now.items())
    assert newer["c"].stride() == now["c"].stride()
    assert len({tensor.untyped_storage().data_ptr() for name, tensor in newer.items() if name != "e"}) == 6


def test_a_commit_holds_the_tensors_of_its_moment(tmp_path: Path) -> None:
    """They change in place while it is written, and the commit after it is written from the same memory."""
    folder = RunFolder(tmp_path / "fold_0")
    writer, state = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 1000), tensors(0.0)
    reached = TrainingProgress()
    for epoch in range(3):
        reached = TrainingProgress(history=(*reached.history, row(epoch, 0.1)))
        writer.commit(reached, False, lambda: state)
        state["network_weights"]["a.weight"].add_(1.0)
    writer.drain()
    for committed in committed_states(folder):
        weights = read_checkpoint(folder.state / f"{committed.stem}.pth")["network_weights"]
        assert weights["a.weight"].unique().tolist() == [committed.epochs_done - 1]


def test_a_checkpoint_is_a_whole_zip_of_the_digest_that_its_commit_names(tmp_path: Path) -> None:
    """Its checksums are those that zip readers check, and the SHA-256 is that of the file though it is not read again."""
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.1, 0.2])
    for committed in committed_states(folder):
        assert committed.best is not None
        for path, sha256 in (
            (folder.state / f"{committed.stem}.pth", committed.state_sha256),
            (folder.root / committed.best.file, committed.best.sha256),
        ):
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
            assert sha256_of(path) == sha256


def test_a_broken_checkpoint_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match="checkpoint_final.pth cannot be read"):
        read_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="no tensors under 'network_weights'"):
        read_checkpoint(path)


def test_kill_at_any_moment_of_saving_leaves_a_valid_state_and_best(tmp_path: Path) -> None:
    """SIGKILL of a process that commits rising bests without pause, 8 times: what it had committed is whole, and the best never falls."""
    folder = RunFolder(tmp_path / "fold_0")
    program = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[4])!r})
        from pathlib import Path
        import torch
        from tests.unit.trainers.training.test_state import FIXED, row
        from trainers.contract.fencing import acquire_token
        from trainers.contract.commits import BestRecord
        from trainers.contract.run_folder import RunFolder
        from trainers.training.state import StateWriter, TrainingProgress, newest_valid
        folder = RunFolder(Path({str(folder.root)!r}))
        found = newest_valid(folder)
        history = found.history if found else ()
        writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 10**6)
        writer.start_from(found)
        print("ready", flush=True)
        while True:
            epoch = len(history)
            history = (*history, row(epoch, epoch / 1000))
            weights = {{"network_weights": {{"w": torch.full((300_000,), float(epoch))}}, "optimizer_state": {{}}}}
            best = BestRecord(ema=epoch / 1000, score=epoch / 1000, best_epoch=epoch)
            writer.commit(TrainingProgress(history=history, best_policy=best), True, lambda: weights)
    """)
    before = 0
    for round_number in range(8):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while (committed := newest_committed(folder)) is None or committed.epochs_done <= before:
            time.sleep(0.01)
        time.sleep(0.037 * round_number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        newest = newest_valid(folder)
        assert newest is not None
        assert newest.best is not None
        assert newest.epochs_done > before
        assert newest.best.epoch == newest.epochs_done - 1
        weights = read_checkpoint(folder.root / newest.best.file)["network_weights"]["w"]
        assert weights.unique().tolist() == [float(newest.best.epoch)]
        if newest.best.epoch > 0:  # nnU-Net's name for it comes after the commit
            linked = read_checkpoint(folder.checkpoint("best"))["network_weights"]["w"].unique().tolist()
            assert linked[0] >= newest.best.epoch - 1
        before = newest.epochs_done
