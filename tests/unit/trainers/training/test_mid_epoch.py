"""Saving within an epoch: when rank 0 wishes it, and what a start goes on from."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train.v2._internal.execution.controller.state import ResizingState
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

from orchestrator.training import save_before_resize
from orchestrator.training.save_before_resize import SaveBeforeResize
from tests.conftest import Toys
from tests.fake_run import FakeRun
from tests.toy import toy_spec
from tests.unit.trainers.network.test_learner import ALONE, batch
from tests.unit.trainers.training.test_fenced_writes import PATIENCE_S, Gate
from tests.unit.trainers.training.test_state import FIXED, row
from trainers.contract.commits import Committed, InFlight, committed_states, newest_committed, state_stem
from trainers.contract.requests import (
    acknowledge_save,
    complete_save,
    is_save_open,
    save_request_seen,
    stop_request_seen,
    withdraw_save,
)
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointSpec, Schedule
from trainers.data.batches import Batch, Preparation, SplitName, requests_from
from trainers.network.checkpoint import training_part
from trainers.network.learner import Learner
from trainers.storage.files import write_atomic, write_json_atomic
from trainers.training.assemble import assemble, model_config
from trainers.training.loop import train
from trainers.training.mid_epoch import LEAVING_S, MidEpochSaver, save_is_due
from trainers.training.state import KEEP_STATES, StateWriter, TrainingProgress, prune, quarantine_newer


def due(since: float, every: float | None = None, asked: bool = False, leaving: bool = False, saved: bool = False) -> bool:
    return save_is_due(since, every, is_requested=asked, is_leaving=leaving, saved_since_notice=saved)


def test_by_default_nothing_is_saved_within_an_epoch() -> None:
    assert not due(1e9)


def test_it_is_saved_after_so_many_minutes_without_a_save() -> None:
    assert not due(59.0, every=60.0)
    assert due(60.0, every=60.0)


def test_a_notice_saves_at_once_and_then_again_and_again_until_the_node_is_gone() -> None:
    assert due(0.0, leaving=True)
    assert not due(LEAVING_S - 1, leaving=True, saved=True)
    assert due(LEAVING_S, leaving=True, saved=True)


def test_whoever_asks_gets_a_state() -> None:
    assert due(0.0, asked=True)


AT_LAST = 10**5, 10**6, 10**4
"""The first epoch, iteration and token whose number has more digits than a state's name has zeros for."""


@pytest.mark.parametrize(
    "in_order",
    [
        [(2, 0, 9), (3, 0, 1), (3, 0, 2), (3, 7, 1), (3, 10, 1), (3, 10, 2), (4, 0, 1)],
        [(AT_LAST[0] + n, 0, 1) for n in range(-3, 3)],
        [(3, AT_LAST[1] + n, 1) for n in range(-3, 3)],
        [(3, 0, AT_LAST[2] + n) for n in range(-3, 3)],
    ],
    ids=["small numbers", "epochs", "iterations", "tokens"],
)
def test_states_sort_by_the_numbers_in_their_names_and_the_newest_are_kept(tmp_path: Path, in_order: list[tuple[int, int, int]]) -> None:
    folder = RunFolder(tmp_path)
    for epochs, iteration, token in in_order:
        committed = state_of(epochs, iteration, token)
        for place in (folder.state, folder.best):
            write_atomic(place / f"{committed.stem}.pth", b"tensors")
        write_atomic(folder.state / f"{committed.stem}.json", committed.model_dump_json().encode())
    newest = newest_committed(folder)
    assert newest is not None
    assert [(*state.position, state.fencing_token) for state in committed_states(folder)] == in_order[::-1]
    prune(folder, in_order[-1][2])
    whole = [state_stem(epochs, token, iteration) for epochs, iteration, token in in_order if not iteration][-1:]
    kept = {state_stem(epochs, token, iteration) for epochs, iteration, token in in_order[-KEEP_STATES:]}
    assert {path.stem for path in folder.state.glob("*.pth")} == {path.stem for path in folder.state.glob("*.json")} >= kept
    assert len(list(folder.state.glob("*.json"))) == len(kept.union(whole))
    assert newest.stem in {path.stem for path in folder.best.iterdir()}, "what a newer commit will name stays"


def state_of(epochs: int, iteration: int, token: int) -> Committed:
    """A commit without history."""
    in_flight = InFlight(iteration=iteration, train_loss_sums=(0.5,), elapsed_s=1.0) if iteration else None
    return Committed(
        run_key="key", epochs_done=epochs, fencing_token=token, history=(), in_flight=in_flight, state_sha256="0" * 64, state_size_bytes=7
    )


def test_a_damaged_state_whose_number_outgrew_its_zeros_is_set_aside(tmp_path: Path) -> None:
    folder, sound, damaged = RunFolder(tmp_path), state_of(AT_LAST[0] - 1, 0, 1), state_of(AT_LAST[0], 0, 1)
    for committed in (sound, damaged):
        write_atomic(folder.state / f"{committed.stem}.json", committed.model_dump_json().encode())
    quarantine_newer(folder, sound, 1)
    assert sorted(path.name for path in folder.state.iterdir()) == ["e100000_a0001.json.damaged", "e99999_a0001.json"]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_loader_begins_within_the_epoch(first: int) -> None:
    wanted = [("train", 1, i) for i in range(first, 2)] + [("val", 1, 0), ("train", 2, 0), ("train", 2, 1), ("val", 2, 0)]
    assert list(requests_from(1, first, 3, {"train": 2, "val": 1})) == wanted


# ---- what is saved, and what a wish waits for ------------------------------------------------------------------------------


class Training:
    """Rank 0 of a run with one finished epoch, saving through the real writer; its weights are one small layer."""

    def __init__(self, base: Path, every_minutes: float | None = None) -> None:
        schedule, saving = Schedule(epochs=5, train_iterations=10), CheckpointSpec(every_minutes=every_minutes)
        self.run = FakeRun(base, schedule=schedule, checkpoint=saving)
        self.folder, self.plain = self.run.folder, torch.nn.Linear(2, 2)
        optimizer, scaler = torch.optim.SGD(self.plain.parameters(), 0.01), torch.amp.GradScaler("cpu", enabled=False)
        unused: Any = None
        learner = Learner(self.plain, self.plain, optimizer, scaler, unused, unused, schedule, ALONE.device, 2, 1, fencing_token=1)
        self.writer = StateWriter(self.folder, self.run.spec.run_key, 1, FIXED, schedule.epochs)
        self.mid_epoch = MidEpochSaver(self.run.spec, self.folder, ALONE, learner, self.writer)
        self.reached = TrainingProgress((row(0, 0.5),))
        self.finish_epoch()

    def finish_epoch(self) -> None:
        """Commit the end of the first epoch and begin the second."""
        self.writer.commit(self.reached, False, self.mid_epoch.learner.tensors)
        self.mid_epoch.begin_epoch(self.reached)

    def step(self, iteration: int) -> None:
        """What the loop does after a training step."""
        self.mid_epoch.save_if_due(iteration, torch.tensor(0.5, dtype=torch.float64))

    def ask(self) -> None:
        """Somebody asks for a state."""
        self.folder.save_file.write_text("{}")

    def is_open(self) -> bool:
        """Whether who waits for it goes on waiting."""
        return is_save_open(self.folder)

    def states(self) -> list[tuple[int, int]]:
        """Positions that are committed, newest first."""
        return [committed.position for committed in committed_states(self.folder)]


def test_weights_that_are_no_numbers_replace_no_sound_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(tmp_path, every_minutes=1e-9)
    training.step(1)
    with torch.no_grad():
        training.plain.weight[0, 0] = torch.nan
    training.ask()
    for iteration in (2, 3, 4):
        training.step(iteration)
    training.writer.drain()
    assert training.states() == [(1, 1), (1, 0)]
    assert not training.is_open()
    assert [record.message for record in caplog.records] == [
        "epoch 1: not saved after 2 iterations, nor later within it: weights hold NaN or infinity"
    ]


def test_after_a_refusal_nothing_is_looked_at_until_the_next_epoch(tmp_path: Path) -> None:
    training = Training(tmp_path, every_minutes=1e-9)
    statistics = torch.tensor([torch.nan])
    training.plain.register_buffer("running_mean", statistics)
    training.step(1)
    statistics.zero_()
    training.ask()
    training.step(2)
    assert not training.is_open()
    training.reached = TrainingProgress((row(0, 0.5), row(1, 0.5)))
    training.finish_epoch()
    training.step(1)
    training.writer.drain()
    assert training.states() == [(2, 1), (2, 0)]


def test_before_a_resize_a_state_that_is_refused_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(save_before_resize, "SAVE_POLL_S", 0.005)
    monkeypatch.setattr(save_before_resize, "SAVE_WAIT_S", 10 * PATIENCE_S)
    monkeypatch.setattr(save_before_resize, "SEEN_WITHIN_S", 0.05)
    training = Training(tmp_path)
    training.writer.drain()
    with torch.no_grad():
        training.plain.weight[0, 0] = torch.nan
    resizing = threading.Thread(target=is_about_to_resize, args=[training.folder], daemon=True)
    resizing.start()
    while not training.folder.save_file.exists():
        time.sleep(0.001)
    training.step(1)
    resizing.join(PATIENCE_S)
    assert not resizing.is_alive()
    assert "saved no state" in caplog.records[-1].message


def is_about_to_resize(folder: RunFolder) -> None:
    """What Ray's controller calls before it changes the number of workers."""
    resizing = ResizingState(ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1}))
    SaveBeforeResize(folder).after_controller_state_update(None, resizing)


def half_written(tmp_path: Path) -> tuple[Training, Gate]:
    """A training whose state for a first wish is half written, and the gate before the rest of it."""
    training, gate = Training(tmp_path), Gate()
    training.writer.drain()
    training.writer.fixed = {**FIXED, "gate": gate}
    training.ask()
    training.step(1)
    assert gate.reached.wait(PATIENCE_S)
    return training, gate


def test_a_wish_is_open_until_the_one_state_that_answers_it_is_durable(tmp_path: Path) -> None:
    training, gate = half_written(tmp_path)
    assert training.is_open()
    training.step(2)
    assert training.is_open()
    gate.opened.set()
    training.writer.drain()
    assert not training.is_open()
    assert training.states() == [(1, 1), (1, 0)]


def test_a_wish_that_comes_while_another_is_answered_gets_a_state_of_its_own(tmp_path: Path) -> None:
    training, gate = half_written(tmp_path)
    training.ask()
    gate.opened.set()
    training.step(2)
    training.writer.drain()
    assert training.states() == [(1, 2), (1, 1), (1, 0)]
    assert not training.is_open()


def test_before_a_resize_the_state_that_was_asked_for_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the epoch before is still being written when the wish comes, and is no answer to it."""
    monkeypatch.setattr(save_before_resize, "SAVE_POLL_S", 0.005)
    training, before, asked = Training(tmp_path), Gate(), Gate()
    training.writer.drain()
    training.reached = TrainingProgress((row(0, 0.5), row(1, 0.5)))
    training.writer.fixed = {**FIXED, "gate": before}
    training.finish_epoch()
    assert before.reached.wait(PATIENCE_S)
    training.writer.fixed = {**FIXED, "gate": asked}
    found: list[tuple[int, int]] = []

    def resize() -> None:
        is_about_to_resize(training.folder)
        newest = newest_committed(training.folder)
        assert newest is not None
        found.append(newest.position)

    resizing, stepping = threading.Thread(target=resize), threading.Thread(target=lambda: training.step(3))
    resizing.start()
    while not training.folder.save_file.exists():
        time.sleep(0.001)
    stepping.start()
    before.opened.set()
    assert asked.reached.wait(PATIENCE_S)
    time.sleep(0.1)  # it looks many times meanwhile
    asked.opened.set()
    for thread in (resizing, stepping):
        thread.join(PATIENCE_S)
    training.writer.drain()
    assert found == [(2, 3)]


# ---- an epoch that goes on after a restart --------------------------------------------------------------------------------


def test_the_seconds_of_an_epoch_before_its_restart_are_in_nnunets_log(toys: Toys, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    spec = toy_spec(toys("labels"), schedule=Schedule(epochs=2, train_iterations=2, val_iterations=1))
    plan = model_config(spec)
    learner = assemble(spec, plan, ALONE, fencing_token=1)
    writer = StateWriter(run.folder, spec.run_key, 1, FIXED, 2)
    reached = TrainingProgress((row(0, 0.5),), in_flight=InFlight(iteration=1, train_loss_sums=(0.5,), elapsed_s=1000.0))
    source, mid_epoch = Batches(batch(0, plan.labels), spec.schedule), MidEpochSaver(spec, run.folder, ALONE, learner, writer)
    assert train(spec, run.folder, ALONE, learner, source, mid_epoch, reached) == "TRAINED"
    committed = newest_committed(run.folder)
    assert committed is not None
    logged = training_part(committed.history, committed.best_policy)["logging"]
    assert logged["epoch_end_timestamps"][1] - logged["epoch_start_timestamps"][1] >= 1000
    assert committed.history[1].epoch_s >= 1000


# ---- a share that is away --------------------------------------------------------------------------------------------------


class Batches:
    """The same batch, again and again."""

    wait_s, preparation, loaders = 0.0, Preparation(), 1

    def __init__(self, batch: Batch, schedule: Schedule) -> None:
        self._batch = batch
        self._iterations = {"train": schedule.train_iterations, "val": schedule.val_iterations}

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        yield from [self._batch] * (self._iterations[split] - first_iteration)


def test_a_share_that_does_not_answer_ends_no_training_and_wishes_nothing(toys: Toys, tmp_path: Path) -> None:
    """Every look into this folder fails with an error of the system that does not say 'not there'."""
    away = RunFolder(tmp_path / ("x" * 300))
    with pytest.raises(OSError, match="File name too long"):
        away.stop_file.exists()
    assert (stop_request_seen(away), save_request_seen(away), is_save_open(away)) == (None, None, False)
    for note in (acknowledge_save, complete_save, withdraw_save):
        note(away)
    spec = toy_spec(toys("labels"), schedule=Schedule(epochs=1, train_iterations=1, val_iterations=1))
    plan = model_config(spec)
    learner = assemble(spec, plan, ALONE, fencing_token=1)
    source, mid_epoch = Batches(batch(0, plan.labels), spec.schedule), MidEpochSaver(spec, away, ALONE, learner, None)
    assert train(spec, away, ALONE, learner, source, mid_epoch, TrainingProgress()) == "TRAINED"


def test_a_wish_to_stop_that_the_start_before_left_open_is_obeyed_before_another_epoch(toys: Toys, tmp_path: Path) -> None:
    spec = toy_spec(toys("labels"), schedule=Schedule(epochs=3, train_iterations=1, val_iterations=1))
    plan, folder = model_config(spec), RunFolder(tmp_path)
    learner = assemble(spec, plan, ALONE, fencing_token=1)
    source, mid_epoch = Batches(batch(0, plan.labels), spec.schedule), MidEpochSaver(spec, folder, ALONE, learner, None)
    write_json_atomic(folder.stop_file, {"now": False})
    before = [tensor.clone() for tensor in learner.plain.state_dict().values()]
    assert train(spec, folder, ALONE, learner, source, mid_epoch, TrainingProgress((row(0, 0.5),))) == "STOPPED"
    assert all(map(torch.equal, before, learner.plain.state_dict().values()))
    assert train(spec, folder, ALONE, learner, source, mid_epoch, TrainingProgress((row(0, 0.5), row(1, 0.5), row(2, 0.5)))) == "TRAINED"
