"""In what two runs differ, and what is said of equal ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import nnfleet
from orchestrator.cli import app
from orchestrator.compare.run_differences import PARTS, Difference, RunFacts, differences_of
from orchestrator.errors import ConfigError
from tests.fake_run import FakeRun, epoch_row
from trainers.contract.records import TokenClaim
from trainers.contract.run_spec import PreviousStage, RunSpec
from trainers.storage.files import write_json_atomic

DIGESTS = {"case_0": ("a", "b", "c"), "case_1": ("a", "b", "c"), "case_2": ("a", "b", "c")}


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return made(tmp_path, "901-a")


def made(base: Path, key: str, fold: int = 0, **overrides: Any) -> FakeRun:
    run = FakeRun(base, key, fold, case_digests=DIGESTS, **overrides)
    write_json_atomic(
        run.folder.model_folder / "plans.json",
        {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {"patch_size": [32, 48, 64], "batch_size": 2}}},
    )
    return run


def other(spec: RunSpec, **changes: Any) -> RunSpec:
    return RunSpec.model_validate({**spec.model_dump(), **changes})


def rows(a: RunFacts, b: RunFacts) -> list[tuple[str, str, str, str]]:
    return [(row.part, row.what, row.first, row.second) for row in differences_of(a, b)]


def test_each_part_says_what_differs_and_nothing_else(run: FakeRun) -> None:
    digests = {**DIGESTS, "case_1": ("other", "b", "c")}
    changed = other(
        run.spec,
        case_digests=digests,
        train_cases=("case_0", "case_2"),
        val_cases=("case_1",),
        trainer="nnUNetTrainerDA5",
        workers={"count": 2},
        schedule={"epochs": 7},
    )
    tags = {"nnfleet.version.nnfleet": "0.1.0", "nnfleet.version.torch": "2.8.0", "nnfleet.version.ray": "2.60.0"}
    newer = {**tags, "nnfleet.version.torch": "2.9.0", "mlflow.source.git.commit": "abc"}
    claims = [TokenClaim(fencing_token=1, driver="d", job="j"), TokenClaim(fencing_token=2, driver="d", role="workers", node="0123456789")]
    a = RunFacts(run.spec, {"batch_size": 2, "patch_size": [32, 48, 64]}, tags)
    b = RunFacts(changed, {"batch_size": 2, "patch_size": [32, 32, 64]}, newer, claims, [epoch_row(0)])
    assert rows(a, b) == [
        ("data", "label files", "1 cases", "other content: case_1"),
        ("split", "case case_1", "training", "validation"),
        ("split", "case case_2", "validation", "training"),
        ("plans", "patch_size", "32 48 64", "32 32 64"),
        ("settings", "trainer", "nnUNetTrainer", "nnUNetTrainerDA5"),
        ("settings", "workers.count", "1", "2"),
        ("schedule", "epochs", "1000", "7"),
        ("code", "commit", "-", "abc"),
        ("libraries", "torch", "2.8.0", "2.9.0"),
        ("hardware", "nodes of rank 0", "-", "01234567"),
        ("hardware", "workers", "-", "2"),
        ("restarts", "fencing tokens", "0", "2"),
        ("restarts", "drivers", "0", "1"),
        ("restarts", "jobs", "0", "1"),
    ]
    assert {row[0] for row in rows(a, b)} == set(PARTS)


def test_a_run_is_equal_to_itself_and_names_and_places_are_no_difference(run: FakeRun) -> None:
    facts = RunFacts(run.spec)
    moved = other(run.spec, run_key="901-b", model_folder="/elsewhere", preprocessed_folder="/data")
    assert rows(facts, facts) == []
    assert rows(facts, RunFacts(moved)) == []


def test_data_that_differ_in_nothing_named_are_told_by_their_digest(run: FakeRun) -> None:
    unnamed = other(run.spec, data_digest="f" * 64, case_digests=None, seed=1)
    assert differences_of(RunFacts(run.spec), RunFacts(unnamed)) == [
        Difference("data", "digest", run.spec.data_digest[:12], "f" * 12),
        Difference("settings", "seed", "0", "1"),
    ]


def test_other_patients_are_data(run: FakeRun) -> None:
    named = [RunFacts(other(run.spec, patients={"case_2": patient})) for patient in "ab"]
    assert rows(*named) == [("data", "patients", "1 cases", "1 cases; other: case_2")]
    assert rows(named[0], named[0]) == []


def test_other_segmentations_of_the_first_stage_of_a_cascade_are_data(run: FakeRun) -> None:
    """Of the cases that both have: another split has others."""
    seen = [{"a": "run k0", "b": "0" * 16}, {"a": "run k1", "b": "0" * 16, "c": "run k1"}]
    stages = [PreviousStage(configuration="3d_lowres", sources=sources) for sources in seen]
    first, second = (RunFacts(other(run.spec, previous_stage=stage)) for stage in stages)
    assert rows(first, second) == [("data", "previous stage's segmentations", "1 cases", "others: a")]
    assert rows(first, RunFacts(run.spec)) == []


def test_versions_that_are_known_of_one_run_only_are_not_compared(run: FakeRun) -> None:
    assert rows(RunFacts(run.spec), RunFacts(run.spec, tags={"nnfleet.version.torch": "2.8.0"})) == []


def test_the_command_fits_80_columns_and_ends_as_diff_does(run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "901-b", 1, schedule={"epochs": 7}, variant="a-variant-with-a-rather-long-name-of-its-own-and-more")
    results = str(tmp_path / "results")
    monkeypatch.setattr("orchestrator.cli.output.PIPED_WIDTH", 80)
    shown = CliRunner().invoke(app, ["diff", "901-a", "901-b", "--results", results])
    assert shown.exit_code == 1
    lines = shown.stdout.splitlines()
    assert lines[:2] == [f"first:  {run.spec.address} (901-a)", "second: 901/3d_fullres/nnUNetTrainer+" + lines[1].split("+")[1]]
    assert max(map(len, lines[2:])) <= 80
    assert [line.split() for line in lines if line.startswith("schedule")] == [["schedule", "epochs", "1000", "7"]]
    assert "Not compared: Versions of code and libraries, which MLflow keeps: MLflow does not know" in shown.stderr
    same = CliRunner().invoke(app, ["diff", "901-a", "901-a", "--results", results])
    assert same.exit_code == 0
    assert same.stdout.splitlines()[-1] == "They are equal in all that was compared."


def test_for_scripts_it_is_one_document(run: FakeRun, tmp_path: Path) -> None:
    made(tmp_path, "901-b", 1)
    shown = CliRunner().invoke(app, ["diff", "901-a", "901-b", "--results", str(tmp_path / "results"), "--json"])
    content = json.loads(shown.stdout)
    assert (content["are_equal"], content["differences"]) == (False, [{"part": "split", "what": "fold", "first": "0", "second": "1"}])
    found = nnfleet.diff("901-a", "901-b", tmp_path / "results")
    assert [row.what for row in found.differences] == ["fold"]


def test_a_name_that_means_several_runs_is_refused(run: FakeRun, tmp_path: Path) -> None:
    made(tmp_path, "901-b", 1)
    with pytest.raises(ConfigError, match="means 2 runs"):
        nnfleet.diff("901/3d_fullres", "901-b", tmp_path / "results")
