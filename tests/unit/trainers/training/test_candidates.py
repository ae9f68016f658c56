"""Candidates: the best epochs by EMA, kept through every commit, the same ones whatever dies in between."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainers.training.test_state import FIXED, flip_a_bit, row, tensors
from trainers.contract.candidates import candidate_epochs
from trainers.contract.commits import BestRecord, Committed, EpochRow, InFlight, committed_states, newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.network.checkpoint import read_checkpoint
from trainers.training import state
from trainers.training.pseudo_dice import updated
from trainers.training.state import StateWriter, TrainingProgress, newest_valid

EMAS = (0.2, 0.5, 0.4, 0.6, 0.45, 0.1, 0.55, 0.3)
"""Of these the candidates of two are, epoch after epoch: 0; 1 0; 1 2; 3 1; 3 1; 3 1; 3 6; 3 6."""


def history_of(dice: Sequence[float]) -> tuple[tuple[EpochRow, ...], BestRecord]:
    """As the loop writes it: an epoch without foreground repeats the EMA of the one before."""
    best, rows = BestRecord(decay=0.0), []
    for epoch, value in enumerate(dice):
        best, _ = updated(best, value, epoch)
        rows.append(row(epoch, best.ema).model_copy(update={"pseudo_dice_mean": value}))
    return tuple(rows), best


DICE = st.lists(st.one_of(st.just(math.nan), st.sampled_from([0.0, 0.25, 0.5, 0.75])), max_size=12)


@given(DICE, st.integers(1, 5))
def test_the_candidates_are_the_epochs_of_the_highest_ema_and_the_first_is_the_best(dice: list[float], count: int) -> None:
    history, best = history_of(dice)
    seen = [epoch for epoch, value in enumerate(dice) if not math.isnan(value)]
    assert list(candidate_epochs(history, count)) == sorted(seen, key=lambda epoch: (-dice[epoch], epoch))[:count]
    assert next(iter(candidate_epochs(history, count)), None) == best.best_epoch


@given(DICE, st.integers(1, 5))
def test_an_epoch_that_has_fallen_out_never_comes_back(dice: list[float], count: int) -> None:
    history, _ = history_of(dice)
    for done in range(len(history)):
        assert {*candidate_epochs(history[: done + 1], count)} <= {*candidate_epochs(history[:done], count), done}


def test_of_equal_epochs_the_earlier_one_is_kept() -> None:
    history, _ = history_of([0.5, 0.5, 0.75, 0.5])
    assert candidate_epochs(history, 3) == (2, 0, 1)
    assert candidate_epochs(history, 0) == ()


def train(folder: RunFolder, num_candidates: int, emas: Sequence[float] = EMAS) -> None:
    """Go on from the newest valid state, as a start of the workers does, to the last of these epochs."""
    restored = newest_valid(folder)
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, len(emas), num_candidates=num_candidates)
    writer.start_from(restored)
    history = restored.history if restored else ()
    best = restored.best_policy if restored else BestRecord()
    for epoch in range(len(history), len(emas)):
        is_best = best.score is None or emas[epoch] > best.score
        best = BestRecord(ema=emas[epoch], score=emas[epoch], best_epoch=epoch) if is_best else best
        history = (*history, row(epoch, emas[epoch]))
        writer.commit(TrainingProgress(history=history, best_policy=best), is_best, partial(tensors, float(epoch)))
    writer.drain()


def committed_in(folder: RunFolder) -> Committed:
    newest = newest_committed(folder)
    assert newest is not None
    return newest


def kept_weights(folder: RunFolder) -> dict[str, tuple[int, float | None, float]]:
    """Name -> epoch, EMA, and the value that all weights of that epoch have."""
    found: dict[str, tuple[int, float | None, float]] = {}
    for manifest in committed_in(folder).weights.values():
        content = read_checkpoint(folder.root / manifest.file)
        assert ("optimizer_state" in content) == (manifest.checkpoint == "final")
        found[manifest.checkpoint] = manifest.epoch, manifest.ema_pseudo_dice, content["network_weights"]["a.weight"].unique().item()
    return found


UNBROKEN = {"best": (3, 0.6, 3.0), "final": (7, 0.3, 7.0), "candidate_3": (3, 0.6, 3.0), "candidate_6": (6, 0.55, 6.0)}


def check_no_orphans(folder: RunFolder) -> None:
    """Every file of weights is named by a commit that is kept."""
    named = {manifest.file for kept in committed_states(folder) for manifest in (*kept.candidates, *filter(None, [kept.best]))}
    assert {str(path.relative_to(folder.root)) for path in folder.best.iterdir()} == named


def test_the_weights_of_the_best_epochs_are_kept_and_those_that_fall_out_are_deleted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    for done, epochs in enumerate([(0,), (1, 0), (1, 2), (3, 1), (3, 1), (3, 1), (3, 6), (3, 6)], start=1):
        train(folder, 2, EMAS[:done])
        assert tuple(manifest.epoch for manifest in committed_in(folder).candidates) == epochs
    assert kept_weights(folder) == UNBROKEN
    check_no_orphans(folder)
    assert len(list(folder.best.iterdir())) == 2, "a candidate that is the best is the same file"


def test_a_run_without_candidates_is_stored_as_before_there_were_any(tmp_path: Path) -> None:
    plain, with_some = RunFolder(tmp_path / "a" / "fold_0"), RunFolder(tmp_path / "b" / "fold_0")
    train(plain, 0)
    train(with_some, 2)
    assert "candidates" not in (plain.state / f"{committed_in(plain).stem}.json").read_text()
    assert [path.name for path in plain.best.iterdir()] == ["e00004_a0001.pth"]
    assert {name: kept for name, kept in UNBROKEN.items() if name in ("best", "final")} == kept_weights(plain)
    assert committed_in(plain).checkpoints == committed_in(with_some).checkpoints, "the same bytes"


class Killed(BaseException):
    """What a kill is to the writer: nothing after it happens."""


@pytest.mark.parametrize("step", range(1, 30, 4))
def test_a_run_that_is_killed_at_any_write_ends_with_the_candidates_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder, writes = RunFolder(tmp_path / "fold_0"), 0

    def counted(write: Any, *arguments: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == step:
            raise Killed
        return write(*arguments)

    with monkeypatch.context() as patched:
        for name in ("write_hashed", "write_atomic", "link_atomic"):
            patched.setattr(state, name, partial(counted, getattr(state, name)))
        with pytest.raises(Killed):
            train(folder, 2)
    train(folder, 2)
    assert kept_weights(folder) == UNBROKEN
    check_no_orphans(folder)


def test_a_run_that_goes_on_from_an_older_state_keeps_its_candidates_and_leaves_no_orphans(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    train(folder, 2, EMAS[:7])
    flip_a_bit(folder.state / f"{committed_in(folder).stem}.pth")
    train(folder, 2)
    assert kept_weights(folder) == UNBROKEN
    assert [manifest.fencing_token for manifest in committed_in(folder).candidates] == [1, 2], "epoch 6 was trained again"
    check_no_orphans(folder)


def test_a_state_within_an_epoch_has_the_candidates_of_the_epochs_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    train(folder, 2, EMAS[:4])
    before = committed_in(folder)
    writer = StateWriter(folder, "key", acquire_token(folder, "d"), FIXED, 8, num_candidates=2)
    writer.start_from(newest_valid(folder))
    in_flight = InFlight(iteration=10, train_loss_sums=(0.5,), elapsed_s=1.0)
    writer.commit(TrainingProgress(before.history, before.best_policy, in_flight), False, lambda: tensors(9.0))
    writer.drain()
    assert committed_in(folder).candidates == before.candidates


def test_a_candidate_whose_weights_are_lost_costs_itself_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    train(folder, 2, EMAS[:7])
    flip_a_bit(folder.root / committed_in(folder).candidates[1].file)
    restored = newest_valid(folder)
    assert restored is not None
    assert [manifest.epoch for manifest in restored.candidates] == [3]
    assert "candidate nnfleet/best/e00007_a0001.pth of epoch 6 is damaged or missing" in caplog.text
    train(folder, 2)
    assert [manifest.checkpoint for manifest in committed_in(folder).candidates] == ["candidate_3"]
    assert torch.load(folder.checkpoint("best"), weights_only=True)["network_weights"]["a.weight"][0, 0] == 3.0
