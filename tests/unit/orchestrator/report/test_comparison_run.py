"""What MLflow gets of a comparison: which run it is, and a report that is not too large."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import api
from orchestrator.cli import app
from orchestrator.compare.answer import Answer
from orchestrator.compare.choice import compared
from orchestrator.errors import ConfigError
from orchestrator.report.case_pictures import CasePictures, shown_names
from orchestrator.report.comparison_run import bounded, comparison_key, note_of, run_of
from orchestrator.tracking.records import ModelRun
from tests.validated_model import metrics_of, validated_model
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_json_atomic

FOLDS = [["case_0", "case_1"], ["case_2", "case_3"]]
DICE = {"case_0": 0.5, "case_1": 0.6, "case_2": 0.7, "case_3": 0.9}
DA5: dict[str, Any] = {"trainer": "nnUNetTrainerDA5"}


@pytest.fixture
def folders(tmp_path: Path) -> list[RunFolder]:
    da5 = tmp_path / "results" / "Dataset901_Toy" / "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"
    return validated_model(tmp_path, DICE, FOLDS) + validated_model(tmp_path, DICE, FOLDS, **DA5, model_folder=da5)


def answer_of(folders: list[RunFolder], *names: str) -> Answer:
    return compared(folders[0].model_folder.parents[1], names, "final").answer


def test_the_same_models_are_the_same_comparison_whatever_folds_are_validated(folders: list[RunFolder]) -> None:
    whole = comparison_key(answer_of(folders))
    assert whole.startswith("comparison-Dataset901_Toy-")
    assert comparison_key(answer_of(folders, "901/3d_fullres/nnUNetTrainerDA5")) != whole
    shutil.rmtree(folders[3].root)
    assert comparison_key(answer_of(folders)) == whole


def test_it_is_found_by_its_kind_and_says_the_verdict_and_the_table(folders: list[RunFolder]) -> None:
    answer = answer_of(folders)
    run = run_of(answer)
    assert (run.tags["nnfleet.kind"], run.tags["nnfleet.checkpoint"]) == ("comparison", "final")
    assert run.tags["nnfleet.verdict"] == answer.verdict
    assert run.name.endswith(" and 1 more, final")
    note = note_of(answer)
    assert note.startswith(f"**{answer.verdict}**")
    assert "| nnUNetTrainerDA5 |" in note
    assert "case_0" not in note


def test_a_comparison_on_other_terms_has_a_run_of_its_own(folders: list[RunFolder], tmp_path: Path) -> None:
    """Named patients by what they are, wherever their table lies; a forced one says so in its name, key and tags."""
    results = folders[0].model_folder.parents[1]

    def run(patients: str | None = None, *, is_forced: bool = False) -> ModelRun:
        return run_of(compared(results, (), "final", patients, is_forced=is_forced).answer)

    usual = run()
    assert run(is_forced=True) == usual, "these models are alike: nothing was forced"
    pattern, other_pattern = run(r"(\d)$"), run(r"case_\d")
    rows = ["case,patient", *(f"{case},P{number // 2}" for number, case in enumerate(DICE))]
    tables = []
    for name, lines in {"a.csv": rows, "b.csv": [rows[0], *rows[:0:-1]], "c.csv": [*rows[:-1], "case_3,P9"]}.items():
        (tmp_path / name).write_text("\n".join(lines))
        tables.append(run(str(tmp_path / name)))
    assert tables[0] == tables[1]
    assert re.fullmatch(r"comparison: .*, final, patients [0-9a-f]{8}", pattern.name)
    result = read_result(folders[2], "final", "case_0")
    assert result is not None
    smaller = metrics_of(0.5).model_copy(update={"fn": 0})
    write_json_atomic(
        folders[2].cases("final") / "case_0.json",
        result.model_copy(update={"metrics": dict.fromkeys(result.metrics, smaller)}).model_dump(),
    )
    forced = run(is_forced=True)
    assert forced.name.endswith(", final, NOT COMPARABLE")
    assert "different reference labels: case_0" in forced.tags["nnfleet.not_comparable"]
    assert "nnfleet.not_comparable" not in usual.tags
    both = run(r"(\d)$", is_forced=True)
    keys = [each.key for each in (usual, pattern, other_pattern, tables[0], tables[2], forced, both)]
    assert len(set(keys)) == len(keys)


def test_with_pseudonyms_a_forced_comparison_names_no_case(tmp_path: Path) -> None:
    """Of the split one fold is validated; in one of its cases the reference of the second model is another one."""
    asked: dict[str, Any] = {"trained": [0], "pseudonyms": True}
    da5 = tmp_path / "results" / "Dataset901_Toy" / "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"
    [usual] = validated_model(tmp_path, DICE, FOLDS, **asked)
    [other] = validated_model(tmp_path, DICE, FOLDS, **asked, **DA5, model_folder=da5)
    result = read_result(other, "final", "case_0")
    assert result is not None
    smaller = metrics_of(0.5).model_copy(update={"fn": 0})
    relabelled = result.model_copy(update={"metrics": dict.fromkeys(result.metrics, smaller)})
    write_json_atomic(other.cases("final") / "case_0.json", relabelled.model_dump())
    answer = compared(usual.model_folder.parents[1], (), "final", is_forced=True).answer
    assert "different reference labels: case_0" in answer.marks[0]
    note, names = note_of(answer), shown_names(answer.models)
    assert f"labels: {names['case_0']}" in run_of(answer).tags["nnfleet.not_comparable"]
    assert f"different reference labels: {names['case_0']}.**" in note
    assert "case_" not in note
    assert names.keys() == DICE.keys(), "a sentence may name cases of the training too"


def test_pictures_that_would_make_the_report_too_large_are_left_out_and_said(folders: list[RunFolder]) -> None:
    answer, pictures = answer_of(folders, "901/3d_fullres/nnUNetTrainerDA5"), CasePictures({"worst case": b"png" * 1000})
    whole = bounded(answer, pictures)
    assert b"worst case" in whole
    bare = bounded(answer, pictures, len(whole) - 1)
    assert b"worst case" not in bare
    assert b"Pictures of cases are left out: with them the report has more than 20 MB" in bare


def test_the_command_prints_where_the_report_is_in_mlflow(folders: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def publish_report(answer: Answer, tracking_uri: str | None, *, images: bool) -> str:
        sent.append(answer.dataset)
        return f"{tracking_uri}/#/experiments/1/runs/2"

    monkeypatch.setattr(api, "publish_report", publish_report)
    results, uri = str(folders[0].model_folder.parents[1]), "http://host"
    monkeypatch.setattr(api, "compare", lambda *_, **__: compared(Path(results), (), "final"))
    said = CliRunner().invoke(app, ["compare", "--results", results, "--tracking-uri", uri, "--mlflow"])
    assert said.exit_code == 0
    assert sent == ["Dataset901_Toy"]
    assert "Report in MLflow: http://host/#/experiments/1/runs/2" in said.output.replace("\n", " ").replace("  ", " ")


def test_without_any_server_the_report_is_refused_with_the_cure(
    folders: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NNFLEET_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match=r"no MLflow server is known for the report. Name one \(--tracking-uri\)"):
        api.publish_report(answer_of(folders))
