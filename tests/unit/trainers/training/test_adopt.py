"""A training that nnU-Net began: the first steps after it are those that nnU-Net itself would make."""

from pathlib import Path

import pytest
import torch

from tests.conftest import Toys
from tests.nnunet_begun import ALONE, EPOCHS, begun_checkpoint, logged, nnunets_steps, nnunets_trainer
from tests.own_batches import OwnBatches
from tests.toy import Toy, toy_spec
from trainers.contract.commits import EpochRow
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Continued, RunSpec, Schedule
from trainers.errors import CheckpointError
from trainers.storage.files import sha256_of
from trainers.training.adopt import adopt
from trainers.training.assemble import assemble, model_config, restore
from trainers.training.state import newest_valid

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own


def history_of(emas: list[float]) -> tuple[EpochRow, ...]:
    lists = logged(emas)
    times = {"train_s": 0, "val_s": 0, "wait_data_s": 0, "save_s": 0, "samples_per_s": 0, "gpu_memory_gib": 0, "epoch_s": 8}
    rest = {"attempt": 1, "world_size": 0, "learning_rate": 0.01, "started_unix": 0, "ended_unix": 8, "train_loss": 0, "val_loss": 0}
    return tuple(
        EpochRow.model_validate(
            {"epoch": n, "pseudo_dice": (mean, mean), "pseudo_dice_mean": mean, "ema_pseudo_dice": ema, **times, **rest}
        )
        for n, (mean, ema) in enumerate(zip(lists["mean_fg_dice"], emas, strict=True))
    )


def run_of(toy: Toy, base: Path) -> tuple[RunSpec, RunFolder, int]:
    spec = toy_spec(toy, schedule=Schedule(epochs=EPOCHS, train_iterations=2, val_iterations=1), model_folder=base / "ours" / "model")
    folder = RunFolder(spec.run_folder)
    return spec, folder, acquire_token(folder, "import")


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_learning_rate_and_steps_are_those_of_nnunets_own_continuation(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    source = OwnBatches(spec, range(model_config(spec).global_batch))
    before, after = (list(source.batches("train", epoch)) for epoch in (0, 1))
    begun = nnunets_trainer(toy, tmp_path / "theirs")
    nnunets_steps(begun, before)
    for key, values in logged([0.3]).items():
        begun.logger.local_logger.my_fantastic_logging[key] = list(values)
    begun._best_ema = 0.3
    latest = tmp_path / "checkpoint_latest.pth"
    begun.save_checkpoint(str(latest))
    theirs = nnunets_trainer(toy, tmp_path / "again")
    theirs.load_checkpoint(str(latest))
    expected_rate = nnunets_steps(theirs, after)

    adopt(spec, folder, token, history_of([0.3]), latest)
    learner = assemble(spec, model_config(spec), ALONE, token)
    restore(spec, folder, learner, newest_valid(folder))
    learner.network.train()
    assert learner.start_epoch(1) == expected_rate == pytest.approx(0.01 * (1 - 1 / 3) ** 0.9)
    for batch in after:
        learner.step(batch)

    expected = theirs.network.state_dict()
    untrained = begun.network.state_dict()
    for name, weight in learner.tensors()["network_weights"].items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)  # sums in another order
    assert max(float((expected[name] - untrained[name]).abs().max()) for name in expected) > 1e-3
    for mine, other in zip(learner.plain.parameters(), theirs.network.parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(
                learner.optimizer.state[mine]["momentum_buffer"], theirs.optimizer.state[other]["momentum_buffer"], rtol=0, atol=1e-5
            )


def test_the_best_epoch_so_far_keeps_its_checkpoint(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    emas = [0.4, 0.3]
    latest, best = (saved(tmp_path / f"{n}.pth", begun_checkpoint(toy, emas[:n], seed=n)) for n in (2, 1))
    adopt(spec, folder, token, history_of(emas), latest, best)
    committed = newest_valid(folder)
    assert committed is not None
    assert (committed.epochs_done, committed.best_policy.best_epoch) == (2, 0)
    assert (committed.best_policy.ema, committed.best_policy.score) == pytest.approx((0.3, 0.4))
    assert committed.best is not None
    assert (committed.best.epoch, committed.best.ema_pseudo_dice) == (0, 0.4)
    for name, source in (("best", best), ("latest", latest)):
        weights = torch.load(folder.root / f"checkpoint_{name}.pth", weights_only=True)["network_weights"]
        expected = torch.load(source, weights_only=True)["network_weights"]
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_best_checkpoint_of_a_later_epoch_is_not_taken(toys: Toys, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """nnU-Net went on after checkpoint_latest.pth, and those epochs are trained again here."""
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    latest = saved(tmp_path / "latest.pth", begun_checkpoint(toy, [0.4, 0.3]))
    best = saved(tmp_path / "best.pth", begun_checkpoint(toy, [0.4, 0.3, 0.5]))
    adopt(spec, folder, token, history_of([0.4, 0.3]), latest, best)
    committed = newest_valid(folder)
    assert committed is not None
    assert committed.best is None
    assert committed.best_policy.score == pytest.approx(0.4)
    assert "of the best epoch, 0, is of epoch 2: the next epoch that beats it gives a new one" in caplog.text


def test_a_new_best_in_the_last_epoch_counts_though_nnunet_saved_before_it_looked(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    latest = saved(tmp_path / "latest.pth", begun_checkpoint(toy, [0.3, 0.4]) | {"_best_ema": 0.3})
    adopt(spec, folder, token, history_of([0.3, 0.4]), latest)
    committed = newest_valid(folder)
    assert committed is not None
    assert committed.best is not None
    assert committed.best.epoch == 1
    assert committed.best_policy.score == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network_weights": {"a": torch.zeros(1)}}, "does not fit the network of nnUNetPlans"),
        ({"optimizer_state": None}, "does not fit the network of nnUNetPlans"),
        ({"optimizer_state": {"state": {}, "param_groups": []}}, "does not fit the network of nnUNetPlans"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_before_anything_is_written(
    toys: Toys, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    latest = saved(tmp_path / "latest.pth", begun_checkpoint(toy, [0.3]) | changes)
    with pytest.raises(CheckpointError, match=words):
        adopt(spec, folder, token, history_of([0.3]), latest)
    assert not folder.state.exists()


def test_a_checkpoint_that_nnunet_replaced_after_its_curves_were_read_is_refused(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    latest = saved(tmp_path / "latest.pth", begun_checkpoint(toy, [0.3, 0.4]))
    with pytest.raises(
        CheckpointError, match=r"read with 1 epochs done and has been replaced since by one with 2: nnU-Net still trains there\. End that"
    ):
        adopt(spec, folder, token, history_of([0.3]), latest)
    assert not folder.state.exists()


def test_a_checkpoint_of_other_bytes_than_the_run_is_named_after_is_refused(toys: Toys, tmp_path: Path) -> None:
    toy = toys("labels")
    spec, folder, token = run_of(toy, tmp_path)
    latest = saved(tmp_path / "latest.pth", begun_checkpoint(toy, [0.3]))
    spec = spec.model_copy(update={"continued": Continued(folder=tmp_path, epochs=1, sha256=sha256_of(latest))})
    saved(latest, begun_checkpoint(toy, [0.3], seed=2))
    with pytest.raises(
        CheckpointError, match=r"has been replaced since: nnU-Net still trains there\. End that training, then import again\."
    ):
        adopt(spec, folder, token, history_of([0.3]), latest)
    assert not folder.state.exists()
