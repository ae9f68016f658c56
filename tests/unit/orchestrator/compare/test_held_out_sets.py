"""Models compared on held-out test sets: which of them count, who is missing, and where they stand in every output."""

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.compare.answer import Answer
from orchestrator.compare.choice import compared
from orchestrator.compare.tables import models_table
from orchestrator.report.page import html
from tests.fake_run import CLASSES
from tests.validated_model import metrics_of, validated_model
from trainers.contract.held_out import HeldOutScores, digest_of_cases, scores_file
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import SCORING, CaseResult
from trainers.storage.files import write_json_atomic

FOLDS = [["a", "b", "c", "d"], ["e", "f", "g", "h"]]
TEST_CASES = [f"test_{number}" for number in range(10)]


def noise(name: str) -> float:
    """Between -0.02 and 0.02, the same for the same name."""
    return sha256(name.encode()).digest()[0] / 255 * 0.04 - 0.02


def model(base: Path, trainer: str, dice: float, **settings: Any) -> list[RunFolder]:
    folder = base / "results" / "Dataset901_Toy" / "_".join([trainer, *map(str, settings.values())])
    return validated_model(
        base, lambda case, name: dice + noise(case + name + trainer), FOLDS, trainer=trainer, model_folder=folder, **settings
    )


def scored(case: str, dice: float, labels: str) -> CaseResult:
    return CaseResult(
        case_id=case,
        checkpoint_sha256="of the images",
        reference_file=f"/labelsTs/{case}.nii.gz",
        image_sha256=(f"image of {case}",),
        reference_sha256=f"{labels} of {case}",
        prediction_file=f"/predicted/{case}.nii.gz",
        surface_tolerance_mm=1.0,
        scoring=SCORING,
        metrics=dict.fromkeys(CLASSES, metrics_of(dice)),
        seconds=1.0,
    )


def evaluated(
    folds: Sequence[RunFolder], dice: Callable[[str], float], /, labels: str = "labels", cases: Sequence[str] = TEST_CASES, **changes: Any
) -> HeldOutScores:
    """Leave what `nnfleet evaluate` leaves in a model folder."""
    weights = [read_result(fold, "final", fold.spec().val_cases[0]) for fold in folds]
    results = tuple(scored(case, dice(case), labels) for case in cases)
    scores = HeldOutScores(
        name="imagesTs",
        sha256=digest_of_cases(results),
        checkpoint="final",
        folds=tuple(str(fold.spec().fold) for fold in folds),
        weights_sha256=tuple(found.checkpoint_sha256 for found in weights if found is not None),
        images=Path("/site/imagesTs"),
        labels=Path("/site/labels Ts"),
        output=Path("/predicted"),
        results=results,
    ).model_copy(update=changes)
    write_json_atomic(scores_file(folds[0].model_folder, scores), scores.model_dump(mode="json"))
    return scores


@pytest.fixture
def usual(tmp_path: Path) -> list[RunFolder]:
    return model(tmp_path, "nnUNetTrainer", 0.6)


@pytest.fixture
def da5(tmp_path: Path) -> list[RunFolder]:
    """Better by 0.1 in the cross-validation."""
    return model(tmp_path, "nnUNetTrainerDA5", 0.7)


def found(base: Path, patients: str | None = None) -> Answer:
    return compared(base / "results", (), "final", patients).answer


def low(case: str) -> float:
    return 0.5 + noise(case)


def high(case: str) -> float:
    return 0.6 + noise(f"{case} again")


def test_a_test_set_of_all_models_ranks_them_before_their_cross_validation(
    tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]
) -> None:
    """There the usual trainer is better by 0.1, so it stands first, and the verdict says what it stands on."""
    label = evaluated(usual, high).label
    evaluated(da5, low)
    answer = found(tmp_path)
    on_test, in_validation = answer.verdict.split(" In cross-validation, ")
    assert on_test.startswith(f"On the test set {label}, nnUNetTrainer is better than nnUNetTrainerDA5 by ")
    assert "10 paired cases, p = 0.002 (one comparison)" in on_test, "ten differences of one sign: 2 / 2^10"
    assert in_validation.startswith("nnUNetTrainerDA5 is better than nnUNetTrainer by ")
    table = models_table(answer)
    assert table.head[:5] == ("model", "folds", f"Dice, {label}", "cases", "Dice")
    assert [row[0] for row in table.rows] == ["nnUNetTrainer", "nnUNetTrainerDA5"]
    assert [round(float(row[2]), 1) for row in table.rows] == [0.6, 0.5]
    assert not answer.notes
    page = html(answer)
    assert page.index(f"<h2>Test set {label}") < page.index("<h2>Differences in Dice</h2>")
    assert f"<h2>Differences in Dice on the test set {label}" in page


def test_the_command_and_its_json_show_the_test_set(tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]) -> None:
    scores = evaluated(usual, high)
    evaluated(da5, low)
    shown = CliRunner().invoke(app, ["compare", "--results", str(tmp_path / "results")], env={"COLUMNS": "140"})
    assert shown.stdout.startswith(f"On the test set {scores.label}, nnUNetTrainer is better")
    assert f"Dice, {scores.label}" in " ".join(shown.stdout.split())
    [test_set] = json.loads(CliRunner().invoke(app, ["compare", "--results", str(tmp_path / "results"), "--json"]).stdout)["test_sets"]
    assert (test_set["name"], test_set["sha256"], test_set["cases"]) == (scores.label, scores.sha256, 10)
    assert (test_set["missing"], test_set["models"]["nnUNetTrainer"]["folds"]) == ([], ["0", "1"])
    assert {metric: len(pairs) for metric, pairs in test_set["pairs"].items()} == {"dice": 1, "hd95_mm": 1, "nsd": 1}
    assert test_set["pairs"]["dice"][0]["cases"] == 10
    assert {name: pairs[0]["comparisons"] for name, pairs in test_set["pairs_per_class"].items()} == dict.fromkeys(CLASSES, 2)


def test_a_model_without_the_test_set_is_named_with_the_command_that_evaluates_it(
    tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]
) -> None:
    label = evaluated(usual, high).label
    answer = found(tmp_path)
    assert answer.verdict.startswith("In cross-validation, nnUNetTrainerDA5 is better than nnUNetTrainer by ")
    assert answer.notes == [
        f"nnUNetTrainerDA5 has no scores of these weights on the test set {label}, so that models are not compared on it: "
        "`nnfleet evaluate 901/3d_fullres/nnUNetTrainerDA5 --images /site/imagesTs --labels '/site/labels Ts'`."
    ]
    assert models_table(answer).rows[0][2] == "-", "the order is that of the cross-validation"
    assert not answer.held_out[0].pooled


def test_unlike_test_sets_never_meet(tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]) -> None:
    """The same folder and cases, but corrected labels."""
    one, other = evaluated(usual, high), evaluated(da5, low, labels="corrected labels")
    answer = found(tmp_path)
    assert {each.label for each in answer.held_out} == {one.label, other.label}
    assert one.label != other.label
    assert not any(each.pooled for each in answer.held_out)
    assert len(answer.notes) == 2
    assert [sorted(row[2:4])[0] for row in models_table(answer).rows] == ["-", "-"]


@pytest.mark.parametrize(
    "changes",
    [{"weights_sha256": ("other", "weights")}, {"checkpoint": "best"}, {"folds": ("0",), "weights_sha256": ("w",)}],
    ids=["trained anew", "best checkpoint", "one fold alone"],
)
def test_scores_of_other_weights_do_not_count(
    tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder], changes: dict[str, Any]
) -> None:
    evaluated(usual, high)
    evaluated(da5, low, **changes)
    [test_set] = found(tmp_path).held_out
    assert set(test_set.scores) == {"nnUNetTrainer"}


def test_seeds_of_one_model_count_as_one_on_a_test_set(tmp_path: Path, da5: list[RunFolder]) -> None:
    for seed in (0, 1):
        scores = {case: low(case) + 0.01 * seed for case in TEST_CASES}
        evaluated(model(tmp_path, "nnUNetTrainer", 0.6, seed=seed), scores.__getitem__)
    evaluated(da5, high)
    [test_set] = found(tmp_path).held_out
    [pair] = test_set.pooled["dice"]
    assert {pair.a, pair.b} == {"nnUNetTrainer", "nnUNetTrainerDA5"}
    assert pair.seed_sd == pytest.approx(1 / 2**0.5, abs=0.01), "1 point apart: SD of two values"


def test_patients_are_the_unit_of_a_test_set_too(tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]) -> None:
    evaluated(usual, high)
    evaluated(da5, low)
    assert "10 paired cases of 1 patients" in found(tmp_path, r"test|[a-h]").held_out[0].verdict
    cases = tmp_path / "patients.csv"
    cases.write_text("case,patient\n" + "".join(f"{case},{case}\n" for fold in FOLDS for case in fold))
    answer = found(tmp_path, str(cases))
    assert not answer.held_out[0].pooled
    assert "--patients names no patient of some of its cases" in answer.notes[0]
    assert "test_0" not in answer.notes[0], "reports of runs with pseudonyms show this sentence"


def test_a_test_set_of_training_cases_is_questioned(tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]) -> None:
    for folds, dice in ((usual, high), (da5, low)):
        label = evaluated(folds, dice, cases=["a", "b", "test_0"]).label
    assert found(tmp_path).notes == [f"2 of 3 cases of the test set {label} are called as cases of the training: is it held out?"]


def test_a_test_set_of_training_cases_is_questioned_where_models_are_not_compared_on_it(
    tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]
) -> None:
    """Since one lacks it, and then since `--patients` knows no patient of some of its cases."""
    label = evaluated(usual, high, cases=["a", "b", "test_0"]).label
    doubt = f"2 of 3 cases of the test set {label} are called as cases of the training: is it held out?"
    notes = found(tmp_path).notes
    assert notes[0] == doubt
    assert "nnUNetTrainerDA5 has no scores of these weights" in notes[1]
    evaluated(da5, low, cases=["a", "b", "test_0"])
    patients = tmp_path / "patients.csv"
    patients.write_text("case,patient\n" + "".join(f"{case},{case}\n" for fold in FOLDS for case in fold))
    notes = found(tmp_path, str(patients)).notes
    assert notes[0] == doubt
    assert "--patients names no patient of some of its cases" in notes[1]


def test_a_damaged_record_is_named_and_the_rest_is_compared(tmp_path: Path, usual: list[RunFolder], da5: list[RunFolder]) -> None:
    path = scores_file(usual[0].model_folder, evaluated(usual, high))
    path.write_text("{")
    answer = found(tmp_path)
    assert answer.notes == [f"{path} is no record of a test set's scores that can be read: run its `nnfleet evaluate` again."]
    assert answer.verdict.startswith("nnUNetTrainerDA5 is better")
