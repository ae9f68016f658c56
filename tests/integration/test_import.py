"""What nnU-Net itself trained, imported: the same Dice case by case, and compared beside a training of ours."""

import json
import math
from pathlib import Path

import pytest

from orchestrator.compare.choice import compared
from orchestrator.imported.importing import import_folder
from tests.conftest import Toys
from tests.nnunet_reference import trained_by_nnunet
from trainers.contract.commits import newest_committed
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
