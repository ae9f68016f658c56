"""Models compared by their lesions, and what training's own number says beside the full validation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.choice import Compared, compared
from orchestrator.compare.models import models_of, read_fold
from orchestrator.compare.tables import as_json, checkpoints_table, models_table
from orchestrator.publishing.validation_report import write_report
from orchestrator.report.page import html
from tests.validated_model import validated_model
from trainers.contract.lesions import LESION_SCORES, Lesions
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_json_atomic

FOLDS = [[f"case_{fold}{number}" for number in range(8)] for fold in range(2)]
CASES = [case for fold in FOLDS for case in fold]
DA5: dict[str, Any] = {"trainer": "nnUNetTrainerDA5"}


def count_lesions(folders: list[RunFolder], of_case: Callable[[int], tuple[int, int, int, float]]) -> None:
    """Give every result of these folds lesions: true, detected, false, Dice by the number of the case."""
    for folder in folders:
        for case in folder.spec().val_cases:
            result = read_result(folder, "final", case)
            assert result is not None
            numbers = dict(zip(("num_true", "num_detected", "num_false", "dice"), of_case(CASES.index(case)), strict=True))
            counted = {name: m.model_copy(update={"lesions": Lesions.model_validate(numbers)}) for name, m in result.metrics.items()}
            write_json_atomic(folder.cases("final") / f"{case}.json", result.model_copy(update={"metrics": counted}).model_dump())


@pytest.fixture
def two(tmp_path: Path) -> tuple[list[RunFolder], list[RunFolder]]:
    """The folds of two trainers with the same Dice."""
    da5 = tmp_path / "results" / "Dataset901_Toy" / "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"
    dice = {case: 0.5 + 0.01 * number for number, case in enumerate(CASES)}
    return validated_model(tmp_path, dice, FOLDS), validated_model(tmp_path, dice, FOLDS, **DA5, model_folder=da5)


def found(folders: list[RunFolder]) -> Compared:
    return compared(folders[0].model_folder.parents[1], (), "final")


def test_models_are_compared_by_sensitivity_false_positives_and_lesion_dice(two: tuple[list[RunFolder], list[RunFolder]]) -> None:
    """DA5 detects one lesion of ten more in every case, and has one or two false ones less."""
    count_lesions(two[0], lambda number: (10, 5, 3 + number % 2, 0.4))
    count_lesions(two[1], lambda number: (10, 6, 2, 0.5 + 0.001 * number))
    answer = found(two[0]).answer
    sensitivity, false, dice = (answer.pooled[name][0] for name in LESION_SCORES)
    sign = 1 if sensitivity.b == "nnUNetTrainerDA5" else -1
    assert sensitivity.mean * sign == pytest.approx(10)
    assert false.mean * sign == pytest.approx(1.5), "fewer false positives are better"
    assert dice.mean * sign == pytest.approx(10.75)
    table = models_table(answer)
    by_name = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    assert by_name["nnUNetTrainerDA5"]["lesion sensitivity"] == "0.6000"
    assert by_name["nnUNetTrainer"]["false lesions per case"] == "3.50"
    assert as_json(answer)["models"][0].keys() >= set(LESION_SCORES)
    assert "Differences in lesion sensitivity" in html(answer)


def test_lesions_that_one_model_lacks_are_not_compared_and_a_note_names_it(two: tuple[list[RunFolder], list[RunFolder]]) -> None:
    count_lesions(two[1], lambda number: (1, 1, 0, 1.0))
    answer = found(two[0]).answer
    assert not set(LESION_SCORES) & answer.pooled.keys()
    assert "lesion Dice" not in models_table(answer).head
    (note,) = answer.notes
    assert note.startswith("Lesions are not compared, as they were not counted in all cases of nnUNetTrainer:")


def test_without_lesions_a_comparison_does_not_mention_them(two: tuple[list[RunFolder], list[RunFolder]]) -> None:
    answer = found(two[0]).answer
    assert answer.notes == []
    page = html(answer)
    assert not any(word in page for word in ("lesion sensitivity", "false lesions", "lesion-wise Dice"))


def test_the_report_shows_pseudo_dice_and_full_dice_of_both_checkpoints_of_every_run(tmp_path: Path) -> None:
    """Of both folds the final checkpoint is validated; the record of one is damaged."""
    folders = validated_model(tmp_path, dict.fromkeys(CASES, 0.5), FOLDS)
    labels = labels_of(load_dataset_json(folders[0].model_folder))
    for folder in folders:
        fold = read_fold(folder, folder.spec(), "final")
        assert not isinstance(fold, str)
        write_report(folder, fold.spec, labels, "final", fold.results)
        assert fold.ema_pseudo_dice is not None
        assert fold.checkpoints["final"] == pytest.approx((fold.ema_pseudo_dice, 0.5))
        assert set(fold.checkpoints) == {"final"}
    folders[1].extended_summary("final").write_text("{")
    answer = found(folders).answer
    rows = {row[0].rpartition(", ")[2]: row[1:] for row in checkpoints_table(answer).rows}
    assert rows["fold 0"][1:] == ("0.5000", "-", "-")
    assert rows["fold 1"] == ("-",) * 4, "a damaged record"
    assert "final: EMA pseudo-Dice" in html(answer)


def test_a_fold_of_a_model_keeps_the_results_that_were_read(two: tuple[list[RunFolder], list[RunFolder]]) -> None:
    count_lesions(two[0], lambda number: (2, 1, 0, 0.5))
    folds = [fold for folder in two[0] if not isinstance(fold := read_fold(folder, folder.spec(), "final"), str)]
    (model,) = models_of(folds)
    assert [model.summary[name] for name in LESION_SCORES] == [0.5, 0.0, 0.5]
