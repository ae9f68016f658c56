"""What nnU-Net itself trained, imported: the same Dice case by case, and compared beside a training of ours."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from orchestrator.compare.choice import compared
from orchestrator.imported.continuing import continue_folder
from orchestrator.imported.importing import import_folder
from orchestrator.tracking.client import Tracker
from tests.conftest import Toys
from tests.nnunet_begun import nnunets_trainer, trained_alone
from tests.nnunet_folder import nnunet_fold, tiny_with_split
from tests.nnunet_reference import trained_by_nnunet
from tests.unit.tiny_dataset import tiny_dataset
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import class_keys

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own

VARIANTS = [
    pytest.param("labels", "toy_2d", id="labels-2d"),
    pytest.param("regions", "toy_3d", id="regions-3d"),
    pytest.param("labels", "toy_3d", id="labels-3d", marks=pytest.mark.long),
    pytest.param("regions", "toy_2d", id="regions-2d", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("kind", "configuration"), VARIANTS)
def test_a_training_of_nnunet_is_imported_with_its_own_dice_and_curves(toys: Toys, tmp_path: Path, kind: str, configuration: str) -> None:
    toy = toys(kind)
    folder = RunFolder(trained_by_nnunet(toy, tmp_path, configuration))
    files = {path: path.read_bytes() for path in folder.model_folder.rglob("*") if path.is_file()}
    (imported,) = import_folder(folder.root, toy.preprocessed.parent)
    assert imported.lacking == ""
    assert {path: path.read_bytes() for path in files} == files

    labels = labels_of(load_dataset_json(toy.preprocessed))
    theirs = json.loads(folder.summary("final").read_text())["metric_per_case"]
    assert len(theirs) == len(folder.spec().val_cases)
    for case in theirs:
        result = read_result(folder, "final", Path(case["prediction_file"]).name.removesuffix(".nii.gz"))
        assert result is not None
        for name, key in class_keys(labels).items():
            expected = case["metrics"][key]["Dice"]
            assert result.metrics[name].dice == pytest.approx(expected, abs=1e-6, nan_ok=True)
            assert result.metrics[name].tp == case["metrics"][key]["TP"]

    committed = newest_committed(folder)
    assert committed is not None
    assert [row.epoch for row in committed.history] == [0, 1]
    assert all(math.isfinite(row.train_loss) and row.epoch_s > 0 for row in committed.history)
    assert len(committed.history[0].pseudo_dice) == len(labels.foreground)
    schedule = folder.spec().schedule
    assert (schedule.epochs, schedule.train_iterations, schedule.val_iterations, schedule.initial_lr) == (2, 2, 1, 0.01)
    assert set(folder.spec().imported.versions) >= {"torch"}  # type: ignore[union-attr]

    found = compared(tmp_path, [], "final")
    assert [model.spec.run_key for model in found.answer.models] == [imported.run_key]
    assert found.left == ()


def test_mlflow_gets_an_imported_run_with_its_tag_curves_and_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where its artifacts go
    tiny = tiny_with_split(tiny_dataset(tmp_path))
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    tracker.ensure_experiment(tiny.name)
    (fold,) = import_folder(nnunet_fold(tiny), tiny.preprocessed.parent, None, tracker.uri)
    assert fold.lacking == ""
    known = tracker.known_run(fold.run_key)
    assert known is not None
    assert known.tags["nnfleet.imported"] == "nnU-Net"
    assert known.tags["nnfleet.state"] == "SUCCEEDED"
    assert known.tags["nnfleet.version.torch"] == "2.9.0+cu128"
    assert known.metrics["full/final/dice_mean"] == pytest.approx(fold.dice)
    assert known.metrics["train/loss"] == -0.75
    assert {"workers", "time/train_s"}.isdisjoint(known.metrics)
    assert (fold.folder / "progress.png").read_bytes() == b"theirs"
    (again,) = import_folder(fold.folder, tiny.preprocessed.parent, None, tracker.uri)
    assert (again.note, again.delivered, again.lacking) == ("already imported", (), "")


def test_a_training_that_nnunet_left_after_one_of_three_epochs_is_finished_here(toys: Toys, tmp_path: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    toy = toys("labels")
    theirs = RunFolder(trained_by_nnunet(toy, tmp_path, stops_after=1))
    files = {path: path.read_bytes() for path in theirs.model_folder.rglob("*") if path.is_file()}
    (fold,) = continue_folder(theirs.root, toy.preprocessed.parent, workers={"gpus": 0, "cpus": 1})
    assert fold.lacking == ""
    assert fold.run_folder is not None
    folder = RunFolder(fold.run_folder)
    assert trained_alone(folder, acquire_token(folder, "driver")) == "TRAINED"
    assert {path: path.read_bytes() for path in files} == files

    committed = newest_committed(folder)
    assert committed is not None
    before = torch.load(theirs.root / "checkpoint_latest.pth", weights_only=False)
    assert [row.epoch for row in committed.history] == [0, 1, 2]
    assert [row.world_size for row in committed.history] == [0, 1, 1]
    assert committed.history[0].train_loss == before["logging"]["train_losses"][0]
    assert [row.learning_rate for row in committed.history] == pytest.approx([0.01 * (1 - epoch / 3) ** 0.9 for epoch in range(3)])
    first, second, _ = committed.history
    begun = before["logging"]["ema_fg_dice"][0]
    assert first.ema_pseudo_dice == begun
    assert second.ema_pseudo_dice == pytest.approx(0.9 * begun + 0.1 * second.pseudo_dice_mean)

    loaded = nnunets_trainer(toy, tmp_path / "again")
    loaded.load_checkpoint(str(folder.checkpoint("final")))
    assert loaded.current_epoch == 3
    assert len(loaded.logger.get_value("train_losses", step=None)) == 3
    for file in ("plans.json", "dataset.json"):
        shutil.copy(theirs.model_folder / file, folder.model_folder / file)  # as the opening of a campaign does
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(str(folder.model_folder), (0,), name)
