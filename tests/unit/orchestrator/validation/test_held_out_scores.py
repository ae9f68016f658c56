"""What a scored test set leaves: nnU-Net's summary, a record for comparisons, and names in MLflow that keep test sets apart."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare import model_run
from orchestrator.compare.model_run import publish_cross_validation
from orchestrator.validation import held_out_scores
from orchestrator.validation.held_out_scores import column_of, metrics_of, publish_scores, record_scores, write_scores
from tests.unit.orchestrator.compare.test_held_out_sets import TEST_CASES, evaluated, high, low, model
from tests.unit.orchestrator.compare.test_model_run import Server, tracked
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    for module in (model_run, held_out_scores):
        monkeypatch.setattr(module, "server_of", lambda bound: made)
    return made


def test_a_second_test_set_leaves_the_first_in_the_run_of_the_cross_validation(
    folds: list[RunFolder], tmp_path: Path, server: Server
) -> None:
    tracked(folds)
    first, second = (unrecorded(folds, tmp_path / place, labels=place, dice=dice) for place, dice in (("a", high), ("b", low)))
    summaries = {scores.label: write_scores(scores, folds[0].model_folder) for scores in (first, second)}
    assert "`nnfleet sync` makes it" in publish_scores(first, folds, summaries[first.label], is_private=False)
    assert publish_cross_validation(folds[0].model_folder)
    assert [publish_scores(scores, folds, summaries[scores.label], is_private=False) for scores in (first, second)] == ["", ""]
    [run] = server.runs.values()
    assert {f"test/{label}/dice_mean": summary["dice_mean"] for label, summary in summaries.items()}.items() <= run["metrics"].items()
    assert "cv/dice_mean" in run["metrics"]
    assert {
        f"test/{scores.label}/{name}" for scores in (first, second) for name in ("per_case.json", "summary.json", "scores.json")
    } <= run["files"].keys()
    assert run["tags"]["nnfleet.test_sets"] == ", ".join(sorted([first.label, second.label]))
    assert server.sent[-1].startswith("view of ")
    assert run["tags"][f"nnfleet.test.{second.label}"] == (
        f"10 cases of /site/imagesTs, final checkpoints of folds 0, 1, predictions in {tmp_path / 'b'}"
    )


def test_with_pseudonyms_no_case_of_a_test_set_goes_to_mlflow(folds: list[RunFolder], tmp_path: Path, server: Server) -> None:
    tracked(folds)
    publish_cross_validation(folds[0].model_folder)
    scores = unrecorded(folds, tmp_path / "out")
    assert publish_scores(scores, folds, write_scores(scores, folds[0].model_folder), is_private=True) == ""
    [run] = server.runs.values()
    sent = {path: str(content) for path, content in run["files"].items() if path.startswith("test/")}
    assert list(sent) == [f"test/{scores.label}/per_case.json"]
    assert not [case for case in TEST_CASES if case in sent[f"test/{scores.label}/per_case.json"]]


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
