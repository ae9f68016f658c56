"""The full Dice of a model is the mean over the cases of all folds, class by class, as nnU-Net takes it of a cross-validation."""

import json
import math
from pathlib import Path

import pytest

from orchestrator.compare.models import models_of, read_fold
from orchestrator.run.model_dice import dice_over_cases
from tests.validated_model import validated_model
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import extended_summary

FOLDS = (("a", "b", "c"), ("d",), ("e", "f"))
NAN = math.nan


def dice(case: str, name: str) -> float:
    scores = {"a": 0.9, "b": 0.4, "c": NAN, "d": 0.7, "e": 0.1, "f": 0.95}
    return scores[case] if name == "organ" or case in "ad" else NAN


def leave_numbers(folder: RunFolder) -> None:
    """What a validation leaves in its run folder."""
    fold = read_fold(folder, folder.spec(), "final")
    assert not isinstance(fold, str)
    summary = extended_summary(fold.results, labels_of(load_dataset_json(folder.model_folder)))
    (folder.own / "validation_final.json").write_text(json.dumps(summary))


def test_cases_count_alike_whatever_the_size_of_their_fold(tmp_path: Path) -> None:
    folders = validated_model(tmp_path, dice, FOLDS)
    for folder in folders:
        leave_numbers(folder)
    folds = [fold for folder in folders if not isinstance(fold := read_fold(folder, folder.spec(), "final"), str)]
    (model,) = models_of(folds)
    expected = model.summary["dice_mean"]
    found = dice_over_cases([folder.root for folder in folders], "final")
    assert found == pytest.approx(expected)
    means = [json.loads((folder.own / "validation_final.json").read_text())["dice_mean"] for folder in folders]
    assert found != pytest.approx(sum(means) / 3)


def test_a_fold_that_is_not_seen_here_leaves_no_number(tmp_path: Path) -> None:
    folders = validated_model(tmp_path, dice, FOLDS)
    assert dice_over_cases([folders[0].root, tmp_path / "elsewhere"], "final") is None
