"""A run that somebody asks to end early as a trained run: after which epoch, by which learning rates, and what a kill changes: nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Toys
from tests.toy import toy_spec
from tests.unit.trainers.network.test_learner import ALONE, batch
from tests.unit.trainers.training.test_mid_epoch import Batches
from trainers.contract.commits import Committed, early_end_of, epochs_of, newest_committed
from trainers.contract.early_end import EarlyEnd, early_end_after
from trainers.contract.fencing import acquire_token
from trainers.contract.records import Heartbeat
from trainers.contract.requests import (
    FinishRequest,
    PauseRequest,
    end_pause,
    finish_request_seen,
    request_finish,
    request_pause,
    request_stop,
)
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointSpec, RunSpec, Schedule
from trainers.data.batches import Batch, SplitName
from trainers.network.learner import learning_rate
from trainers.storage.files import write_atomic, write_json_atomic
from trainers.training.asked import Asked
from trainers.training.assemble import assemble, model_config, newest_everywhere, progress_from, restore, state_writer
from trainers.training.loop import train
from trainers.training.mid_epoch import MidEpochSaver

SCHEDULE = Schedule(epochs=6, train_iterations=2, val_iterations=1)


def test_the_run_ends_after_the_epoch_or_after_so_many_more() -> None:
    assert early_end_after(3, 0, 10, None) == EarlyEnd(epochs=3, anneal_from=3)
    assert early_end_after(3, 4, 10, None) == EarlyEnd(epochs=7, anneal_from=3, anneal_epochs=4)


@pytest.mark.parametrize(("done", "anneal"), [(10, 0), (8, 2), (3, 7), (3, 99)])
def test_a_request_never_makes_a_schedule_longer(done: int, anneal: int) -> None:
    assert early_end_after(done, anneal, 10, None) is None


def test_another_request_can_only_end_it_sooner_and_an_annealing_that_has_begun_keeps_its_curve() -> None:
    before = EarlyEnd(epochs=7, anneal_from=3, anneal_epochs=4)
    assert early_end_after(4, 4, 10, before) == before, "the same request, seen again after the next epoch"
    sooner = early_end_after(5, 0, 10, before)
    assert sooner == EarlyEnd(epochs=5, anneal_from=3, anneal_epochs=4)
    assert sooner.text(10) == "after 5 of 10 epochs, learning rate annealed over the last 2 (meant for 4)"


def test_it_is_said_after_how_many_epochs_and_whether_the_rate_was_annealed() -> None:
    assert EarlyEnd(epochs=3, anneal_from=3).text(10) == "after 3 of 10 epochs, learning rate not annealed"
    assert EarlyEnd(epochs=7, anneal_from=3, anneal_epochs=4).text(10) == "after 7 of 10 epochs, learning rate annealed over the last 4"


def test_the_rate_falls_from_where_the_schedule_had_it_to_nearly_nothing() -> None:
    """By hand: with N = 4, (1 - i / 5)^0.9 for i = 1 to 4."""
    early = EarlyEnd(epochs=7, anneal_from=3, anneal_epochs=4)
    assert [early.rate(epoch, 1.0) for epoch in (3, 4, 5, 6)] == pytest.approx([0.8**0.9, 0.6**0.9, 0.4**0.9, 0.2**0.9])
    assert early.rate(2, 1.0) == 1.0
    assert EarlyEnd(epochs=3, anneal_from=3).rate(3, 1.0) == 1.0


def test_requests_of_all_ranks_add_up_to_those_of_rank_0() -> None:
    for asked in (Asked(), Asked("STOPPED"), Asked("PAUSED"), Asked(anneal_epochs=0), Asked("STOPPED", 7)):
        sums = [sum(numbers) for numbers in zip(asked.as_numbers, Asked().as_numbers, Asked().as_numbers, strict=True)]
        assert Asked.of_numbers(*sums) == asked


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"run_key": "k", "anneal_epochs": -1}', '{"run_key": "other", "anneal_epochs": 5}'])
def test_a_request_that_is_not_understood_or_of_another_run_ends_nothing(tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path)
    assert finish_request_seen(folder, "k") is None
    write_atomic(folder.finish_file, content.encode())
    assert finish_request_seen(folder, "k") is None
    request_finish(folder, "k", anneal_epochs=5)
    assert finish_request_seen(folder, "k") == FinishRequest(run_key="k", anneal_epochs=5)


# ---- the loop, with a real network and the real writer of states -----------------------------------------------------------------


class Killed(Exception):
    """A start of the workers that dies."""


class Ordered(Batches):
    """A batch of its own for each iteration; somebody asks while epoch `ask_in` trains, and the start dies in `dies_at`."""

    def __init__(self, run: "Run", ask_in: int | None, dies_at: tuple[int, int] | None) -> None:
        super().__init__(batch(0, run.plan.labels), SCHEDULE)
        self.run, self.ask_in, self.dies_at = run, ask_in, dies_at

    def batches(self, split: SplitName, epoch: int, first_iteration: int = 0) -> Iterator[Batch]:
        for iteration in range(first_iteration, self._iterations[split]):
            if split == "train" and (epoch, iteration) == self.dies_at:
                raise Killed
            yield batch(10 * epoch + iteration, self.run.plan.labels)
        if split == "train" and epoch == self.ask_in:
            self.run.ask()


class Run:
    """A run of six short epochs of one worker."""

    def __init__(self, toys: Toys, base: Path, anneal: int, **overrides: Any) -> None:
        self.spec: RunSpec = toy_spec(toys("labels"), schedule=SCHEDULE, model_folder=base / "model", **overrides)
        self.folder, self.plan, self.anneal = RunFolder(self.spec.run_folder), model_config(self.spec), anneal
        write_atomic(self.folder.spec_file, self.spec.model_dump_json().encode())

    def ask(self) -> None:
        request_finish(self.folder, self.spec.run_key, anneal_epochs=self.anneal)

    def start(self, ask_in: int | None = None, dies_at: tuple[int, int] | None = None) -> str:
        """One start of the workers, from the newest state."""
        token = acquire_token(self.folder, "driver")
        newest = newest_everywhere(self.folder, ALONE)
        learner = assemble(self.spec, self.plan, ALONE, token)
        restore(self.spec, self.folder, learner, newest)
        writer = state_writer(self.spec, self.folder, self.plan, token, newest)
        saver = MidEpochSaver(self.spec, self.folder, ALONE, learner, writer)
        try:
            return train(self.spec, self.folder, ALONE, learner, Ordered(self, ask_in, dies_at), saver, progress_from(newest, SCHEDULE))
        except Killed:
            writer.drain()
            return "died"

    @property
    def committed(self) -> Committed:
        found = newest_committed(self.folder)
        assert found is not None
        return found

    def weights(self) -> list[torch.Tensor]:
        return list(torch.load(self.folder.checkpoint("final"), weights_only=True)["network_weights"].values())


def test_a_run_that_is_asked_to_end_early_is_trained_after_that_epoch(toys: Toys, tmp_path: Path) -> None:
    run = Run(toys, tmp_path, anneal=0)
    assert run.start(ask_in=1) == "TRAINED"
    assert run.committed.epochs_done == epochs_of(run.spec, run.committed) == 2
    assert run.committed.final is not None
    assert early_end_of(run.spec, run.committed) == "after 2 of 6 epochs, learning rate not annealed"
    assert run.folder.checkpoint("final").is_file()
    assert [row.learning_rate for row in run.committed.history] == [learning_rate(SCHEDULE, epoch) for epoch in (0, 1)]
    assert run.start() == "TRAINED", "nothing is left to train"
    assert run.committed.epochs_done == 2


def test_a_kill_between_the_request_and_the_end_changes_no_bit(toys: Toys, tmp_path: Path) -> None:
    unbroken, killed = (Run(toys, tmp_path / name, anneal=2, checkpoint=CheckpointSpec(every_minutes=1e-9)) for name in "ab")
    assert unbroken.start(ask_in=1) == "TRAINED"
    assert killed.start(ask_in=1, dies_at=(2, 1)) == "died"
    assert killed.committed.position == (2, 1), "a state within the first epoch that is annealed"
    killed.folder.finish_file.unlink()  # the request is part of the state
    assert killed.start() == "TRAINED"
    assert early_end_of(killed.spec, killed.committed) == "after 4 of 6 epochs, learning rate annealed over the last 2"
    rate = learning_rate(SCHEDULE, 2)
    rates = [row.learning_rate for row in killed.committed.history]
    assert rates[2:] == pytest.approx([rate * (2 / 3) ** 0.9, rate * (1 / 3) ** 0.9])
    assert rates == [row.learning_rate for row in unbroken.committed.history]
    assert [row.train_loss for row in killed.committed.history] == [row.train_loss for row in unbroken.committed.history]
    assert all(map(torch.equal, killed.weights(), unbroken.weights()))


@pytest.mark.parametrize("anneal", [0, 2])
def test_a_kill_between_the_request_and_the_end_of_its_epoch_changes_no_bit(toys: Toys, tmp_path: Path, anneal: int) -> None:
    unbroken, killed = (Run(toys, tmp_path / name, anneal) for name in "ab")
    assert unbroken.start(ask_in=2) == "TRAINED"
    assert killed.start(dies_at=(2, 1)) == "died"
    killed.ask()
    assert (killed.committed.epochs_done, killed.committed.early_end) == (2, None)
    assert killed.start() == "TRAINED"
    assert killed.committed.early_end == unbroken.committed.early_end == EarlyEnd(epochs=3 + anneal, anneal_from=3, anneal_epochs=anneal)
    rates = [[row.learning_rate for row in run.committed.history] for run in (killed, unbroken)]
    assert rates[0] == rates[1]
    assert all(map(torch.equal, killed.weights(), unbroken.weights()))
    assert not (killed.folder.root / "checkpoint_latest.pth").exists()


def test_a_request_holds_from_the_epoch_in_which_it_was_made_also_where_earlier_ones_are_trained_again(toys: Toys, tmp_path: Path) -> None:
    """The state of the epoch before had not reached the disk when the run was killed."""
    run = Run(toys, tmp_path, anneal=0)
    assert run.start(dies_at=(1, 0)) == "died"
    write_json_atomic(run.folder.progress_file, Heartbeat(epoch=2, phase="train").model_dump())
    run.ask()
    assert run.start() == "TRAINED"
    assert run.committed.epochs_done == 3


def test_a_run_stopped_while_its_rate_is_annealed_goes_on_to_the_same_end(toys: Toys, tmp_path: Path) -> None:
    run = Run(toys, tmp_path, anneal=2)
    assert run.start(ask_in=0, dies_at=(2, 0)) == "died"
    request_stop(run.folder, is_now=False)
    assert run.start() == "STOPPED"
    assert run.committed.epochs_done == 2
    run.folder.stop_file.unlink()
    assert run.start() == "TRAINED"
    assert run.committed.epochs_done == 3


class Pausing(Run):
    """A campaign asks it to pause, in the place of a person who asks for an early end."""

    def ask(self) -> None:
        request_pause(self.folder, PauseRequest(rung=1))


def test_a_run_that_is_paused_ends_with_its_epoch_and_goes_on_with_the_same_bits(toys: Toys, tmp_path: Path) -> None:
    unbroken, paused = Run(toys, tmp_path / "unbroken", anneal=0), Pausing(toys, tmp_path / "paused", anneal=0)
    assert unbroken.start() == "TRAINED"
    assert paused.start(ask_in=1) == "PAUSED"
    assert (paused.committed.epochs_done, paused.committed.in_flight) == (2, None)
    assert paused.start() == "PAUSED", "it was not asked to go on"
    assert paused.committed.epochs_done == 2
    end_pause(paused.folder)
    assert paused.start() == "TRAINED"
    losses = [[(row.train_loss, row.val_loss, row.ema_pseudo_dice) for row in run.committed.history] for run in (paused, unbroken)]
    assert losses[0] == losses[1]
    assert all(map(torch.equal, paused.weights(), unbroken.weights()))


def test_a_run_that_is_asked_to_pause_in_its_last_epoch_is_trained(toys: Toys, tmp_path: Path) -> None:
    run = Pausing(toys, tmp_path, anneal=0)
    assert run.start(ask_in=SCHEDULE.epochs - 1) == "TRAINED"
    assert run.committed.final is not None


def test_a_person_who_asks_for_the_early_end_of_a_run_that_pauses_gets_it(toys: Toys, tmp_path: Path) -> None:
    run = Pausing(toys, tmp_path, anneal=0)
    assert run.start(ask_in=1) == "PAUSED"
    request_finish(run.folder, run.spec.run_key, anneal_epochs=1)
    end_pause(run.folder)
    assert run.start() == "TRAINED"
    assert run.committed.early_end == EarlyEnd(epochs=4, anneal_from=3, anneal_epochs=1)
