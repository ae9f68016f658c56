"""What a scored test set leaves: nnU-Net's summary, a record for comparisons, and names in MLflow that keep test sets apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.validation.held_out_scores import column_of, metrics_of, record_scores, write_scores
from tests.unit.orchestrator.compare.test_held_out_sets import evaluated, high, low, model
from trainers.contract.held_out import SCORES_FOLDER, HeldOutScores, scores_below
from trainers.contract.run_folder import RunFolder


@pytest.fixture
def folds(tmp_path: Path) -> list[RunFolder]:
    return model(tmp_path, "nnUNetTrainer", 0.6)


def unrecorded(folds: list[RunFolder], output: Path, /, **changes: Any) -> HeldOutScores:
    """The scores alone, without a record in the model folder."""
    scores = evaluated(folds, changes.pop("dice", high), output=output, **changes)
    for path in (folds[0].model_folder / SCORES_FOLDER).iterdir():
        path.unlink()
    (output / "nnfleet").mkdir(parents=True, exist_ok=True)
    return scores


def test_two_test_sets_of_one_name_have_metrics_of_their_own(folds: list[RunFolder], tmp_path: Path) -> None:
    scores, other = (unrecorded(folds, tmp_path / "out", labels=labels) for labels in ("labels", "other labels"))
    summary = write_scores(scores, folds[0].model_folder)
    names = [set(metrics_of(summary, column_of(each, ["0", "1"]))) for each in (scores, other)]
    assert f"test/{scores.label}/dice_mean" in names[0]
    assert f"test/{scores.label}/dice/tumour _solid_" in names[0]
    assert not names[0] & names[1]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["foreground_mean"]["Dice"] == pytest.approx(summary["dice_mean"])


@pytest.mark.parametrize(
    ("changes", "whole", "behind"),
    [
        ({}, ["0", "1"], ""),
        ({"checkpoint": "best"}, ["0", "1"], "-best"),
        ({"folds": ("0", "1")}, ["0", "1", "2"], "-folds-0-1"),
        ({"folds": ("0",), "checkpoint": "best"}, ["0", "1"], "-best-folds-0"),
    ],
)
def test_other_checkpoints_and_fewer_folds_have_columns_of_their_own(
    folds: list[RunFolder], tmp_path: Path, changes: dict[str, Any], whole: list[str], behind: str
) -> None:
    scores = unrecorded(folds, tmp_path / "out", **changes)
    assert column_of(scores, whole) == scores.label + behind


def test_scores_by_corrected_labels_replace_those_before_and_another_test_set_stays(folds: list[RunFolder], tmp_path: Path) -> None:
    place = folds[0].model_folder
    first, second, elsewhere = (
        unrecorded(folds, tmp_path / output, labels=labels, dice=dice)
        for output, labels, dice in (("out", "labels", high), ("out", "corrected labels", low), ("site_b", "site b's labels", low))
    )
    for scores in (first, elsewhere, second):
        assert record_scores(scores, place) == ""
    assert {scores.label for scores in scores_below(place)[0]} == {second.label, elsewhere.label}


def test_a_model_folder_that_takes_nothing_costs_the_record_alone(folds: list[RunFolder], tmp_path: Path) -> None:
    scores = unrecorded(folds, tmp_path / "out")
    (folds[0].model_folder / SCORES_FOLDER).rmdir()
    (folds[0].model_folder / SCORES_FOLDER).write_text("in the way")
    assert f"{SCORES_FOLDER}/{scores.label}_final_0_1.json cannot be written: " in record_scores(scores, folds[0].model_folder)
