"""Comparisons of models whose folds lie in run folders: what is compared, what is refused, what the report holds."""

import errno
import io
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli.compare import show
from orchestrator.compare.answer import answer as answer_of
from orchestrator.compare.choice import Compared, compared, left_out
from orchestrator.compare.models import Unfinished, models_of, read_fold
from orchestrator.compare.tables import as_json, classes_table, groups_table, models_table
from orchestrator.compare.text_table import TextTable, pairs_table
from orchestrator.errors import ConfigError
from orchestrator.report.case_pictures import shown_cases
from orchestrator.report.page import html
from orchestrator.run.names import Names
from orchestrator.statistics.pairs import holm
from orchestrator.statistics.verdict import sentence
from tests.fake_run import CLASSES, FakeRun
from tests.validated_model import metrics_of, score_cases, validated_model
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import read_json, write_json_atomic

FOLDS = [[f"case_{fold}{number}" for number in range(6)] for fold in range(3)]
ALL = tuple(case for fold in FOLDS for case in fold)
ALL_CASES: dict[str, Any] = {"fold": "all", "train_cases": ALL, "val_cases": ALL}
TRAINED_ON_ITS_CASES = "fold all was trained on every case that it validates"
DA5: dict[str, Any] = {"trainer": "nnUNetTrainerDA5"}


def folder_of(base: Path, name: str) -> Path:
    return base / "results" / "Dataset901_Toy" / name


def noisy(shift: float, seed: int) -> Callable[[str, str], float]:
    """Difficulty by case, and noise by model."""
    own = random.Random(seed)
    return lambda case, name: random.Random(f"{case}{name}").uniform(0.5, 0.8) + shift + own.gauss(0, 0.02)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two trainers of three folds; DA5 is better by 0.1."""
    validated_model(tmp_path, noisy(0, 1), FOLDS)
    validated_model(tmp_path, noisy(0.1, 2), FOLDS, **DA5, model_folder=folder_of(tmp_path, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"))
    return tmp_path


def found(base: Path, *names: str, force: bool = False) -> Compared:
    return compared(base / "results", names, "final", is_forced=force)


def rewrite(folder: RunFolder, case: str, **changes: object) -> None:
    path = folder.cases("final") / f"{case}.json"
    write_json_atomic(path, {**read_json(path, "result"), **changes})


def test_the_better_trainer_is_named_with_the_evidence(base: Path) -> None:
    answer = found(base).answer
    assert [model.name for model in answer.models] == ["nnUNetTrainerDA5", "nnUNetTrainer"]
    assert answer.verdict.startswith("nnUNetTrainerDA5 is better than nnUNetTrainer by ")
    assert "18 paired cases, p < 0.001 (one comparison)." in answer.verdict
    assert not answer.notes


def test_the_mean_is_nnunets_over_all_cases_and_then_over_classes(tmp_path: Path) -> None:
    """Folds of 1 and 3 cases: the mean of fold means would be 0.55 for each class."""
    validated_model(tmp_path, {"a": 0.8, "b": 0.2, "c": 0.3, "d": 0.4}, [["a"], ["b", "c", "d"]])
    table = models_table(found(tmp_path).answer)
    assert table.rows[0][:4] == ("3d_fullres nnUNetTrainer", "0, 1", "4", "0.4250")
    assert found(tmp_path).answer.verdict == "3d_fullres nnUNetTrainer is the only model: there is nothing to compare it with."


def test_a_class_that_was_missed_is_counted_and_makes_no_model_look_better(tmp_path: Path) -> None:
    """The second model misses a class in one case: its mean HD95 is of the rest, so the count stands beside it."""
    validated_model(tmp_path, {"a": 0.5, "b": 0.5}, [["a", "b"]])
    validated_model(tmp_path, {"a": 0.0, "b": 0.9}, [["a", "b"]], **DA5, model_folder=folder_of(tmp_path, "DA5"))
    answer = found(tmp_path).answer
    rows = {row[0]: row for row in models_table(answer).rows}
    assert rows["nnUNetTrainerDA5"][4:] == ("1.00", "0.4500", "2", "0")
    assert rows["nnUNetTrainer"][4:] == ("5.00", "0.5000", "0", "0")
    hd95 = answer.pooled["hd95_mm"][0]
    assert (hd95.counts.missed_by_a, hd95.counts.missed_by_b) in [(1, 0), (0, 1)]


def test_seeds_of_one_model_count_as_one_and_their_spread_is_stated(tmp_path: Path) -> None:
    for seed in (0, 1):
        validated_model(tmp_path, noisy(0.02 * seed, seed), FOLDS, seed=seed, model_folder=folder_of(tmp_path, f"base_{seed}"))
        validated_model(
            tmp_path, noisy(0.1 + 0.02 * seed, seed + 5), FOLDS, **DA5, seed=seed, model_folder=folder_of(tmp_path, f"da5_{seed}")
        )
    answer = found(tmp_path).answer
    assert len(answer.models) == 4
    assert [(pair.a, pair.b) for pair in answer.pooled["dice"]] == [("nnUNetTrainer", "nnUNetTrainerDA5")]
    assert {name: spread.seeds for name, spread in answer.spreads.items()} == {"nnUNetTrainer": 2, "nnUNetTrainerDA5": 2}
    assert "is better than" in answer.verdict


def test_a_model_that_ended_early_is_compared_with_others_on_request_alone_and_named(tmp_path: Path) -> None:
    validated_model(tmp_path, noisy(0, 1), FOLDS)
    early = "after 1 of 1000 epochs, learning rate not annealed"
    validated_model(tmp_path, noisy(0.1, 2), FOLDS, is_ended_early=True, **DA5, model_folder=folder_of(tmp_path, "DA5"))
    with pytest.raises(ConfigError, match=f"was trained by another schedule than nnUNetTrainerDA5: early end [(]none instead of {early}"):
        found(tmp_path)
    notes = found(tmp_path, force=True).answer.notes
    assert f"nnUNetTrainerDA5 ended early, as asked: {early}." in notes


def test_two_models_that_ended_alike_are_compared_and_both_are_named(tmp_path: Path) -> None:
    validated_model(tmp_path, noisy(0, 1), FOLDS, is_ended_early=True)
    validated_model(tmp_path, noisy(0.1, 2), FOLDS, is_ended_early=True, **DA5, model_folder=folder_of(tmp_path, "DA5"))
    assert sorted(note.partition(" after ")[0] for note in found(tmp_path).answer.notes) == [
        "nnUNetTrainer ended early, as asked:",
        "nnUNetTrainerDA5 ended early, as asked:",
    ]


def test_a_fold_that_ended_early_is_no_fold_of_a_model_that_did_not(tmp_path: Path) -> None:
    validated_model(tmp_path, noisy(0, 1), FOLDS, trained=[0])
    validated_model(tmp_path, noisy(0, 1), FOLDS, trained=[1], is_ended_early=True)
    with pytest.raises(ConfigError, match="fold 1 differs from fold 0 in early_end [(]after 1 of 1000 epochs"):
        found(tmp_path)


def test_folds_that_are_missing_are_named(base: Path) -> None:
    validated_model(base, noisy(0, 3), FOLDS, trained=[0, 1], configuration="2d", model_folder=folder_of(base, "2d"))
    answer = found(base).answer
    assert answer.notes == ["2d nnUNetTrainer lacks fold 2: those cases are left out of its pairs."]
    assert "0, 1 (without 2)" in [row[1] for row in models_table(answer).rows]


def test_a_run_without_its_full_validation_is_left_out_and_named(base: Path) -> None:
    folder = RunFolder(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres") / "fold_1")
    (folder.cases("final") / "case_12.json").unlink()
    result = found(base)
    assert [sentence.split(": ", 1)[1] for sentence in result.left] == ["5 of 6 cases are validated with its final checkpoint."]
    assert result.answer.missing["nnUNetTrainerDA5"] == ("1",)


def fold_all(base: Path, shift: float = 0, **overrides: Any) -> RunFolder:
    """Validated on the cases that it was trained on."""
    run = FakeRun(base, f"901-all-{len(overrides)}", **ALL_CASES, **overrides)
    run.epoch()
    digest = run.finish().final
    assert digest is not None
    for name in ("dataset.json", "nnUNetPlans.json"):
        shutil.copy(run.spec.preprocessed_folder / name, run.folder.model_folder / name.replace("nnUNetPlans", "plans"))
    score_cases(run.folder, "final", digest.sha256, noisy(shift, 3))
    return run.folder


def test_fold_all_is_left_out_beside_the_folds_of_its_model_and_named(base: Path) -> None:
    fold_all(base)
    compared = found(base)
    assert compared.left == (f"901/3d_fullres/nnUNetTrainer/all (901-all-0): {TRAINED_ON_ITS_CASES}.",)
    assert {model.name: len(model.folds) for model in compared.answer.models} == {"nnUNetTrainerDA5": 3, "nnUNetTrainer": 3}


def test_models_of_fold_all_alone_get_no_verdict(tmp_path: Path) -> None:
    fold_all(tmp_path)
    fold_all(tmp_path, 0.1, **DA5, model_folder=folder_of(tmp_path, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"))
    with pytest.raises(ConfigError, match=f"no run has.*{TRAINED_ON_ITS_CASES}.*{TRAINED_ON_ITS_CASES}"):
        found(tmp_path)


def test_runs_that_are_not_validated_yet_are_left_out_in_one_sentence_with_five_names_at_most() -> None:
    waiting = [(Names(f"k{fold}", f"4/2d/t/{fold}"), Unfinished("0 of 6 cases are validated")) for fold in range(7)]
    broken = (Names("k9", "4/2d/t/9"), "its file cannot be read")
    assert left_out([*waiting, broken], "final") == [
        "7 runs whose final checkpoint is not fully validated yet: 4/2d/t/0, 4/2d/t/1, 4/2d/t/2, 4/2d/t/3, 4/2d/t/4 and 2 more.",
        "4/2d/t/9 (k9): its file cannot be read.",
    ]
    assert left_out(waiting[:1], "final") == ["4/2d/t/0 (k0): 0 of 6 cases are validated."]


@pytest.mark.parametrize(("cases", "shown"), [("a", ["worst"]), ("ab", ["worst", "best"]), ("abc", ["worst", "median", "best"])])
def test_of_few_cases_the_worst_is_shown_first(tmp_path: Path, cases: str, shown: list[str]) -> None:
    validated_model(tmp_path, {case: 0.9 - 0.1 * place for place, case in enumerate(cases)}, [list(cases)])
    model = found(tmp_path).answer.models[0]
    assert list(shown_cases(model, []).values()) == shown
    assert next(iter(shown_cases(model, []))) == cases[-1]


def test_models_are_chosen_by_name(base: Path) -> None:
    assert len(found(base, "901/3d_fullres/nnUNetTrainerDA5").answer.models) == 1
    with pytest.raises(ConfigError, match="there is no run '901/2d' below"):
        found(base, "901/2d")


def test_a_results_folder_that_was_moved_is_read_where_it_lies(base: Path) -> None:
    there = found(base).answer.verdict
    (base / "results").rename(base / "mounted")
    answer = compared(base / "mounted", (), "final").answer
    assert answer.verdict == there
    assert [model["folder"] for model in as_json(answer)["models"]] == [str(model.folder) for model in answer.models]
    assert {model.folder.parents[1] for model in answer.models} == {base / "mounted"}
    predictions = {Path(result.prediction_file).parents[3] for model in answer.models for result in model.results}
    assert predictions == {base / "mounted" / "Dataset901_Toy"}


def test_a_copied_model_folder_is_a_model_of_its_own_and_no_seed_of_its_original(base: Path) -> None:
    usual = "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"
    shutil.copytree(folder_of(base, usual), folder_of(base, "copy"))
    answer = found(base).answer
    copies = {f"nnUNetTrainerDA5 in {usual}", "nnUNetTrainerDA5 in copy"}
    assert {model.name for model in answer.models} == {*copies, "nnUNetTrainer"}
    assert {name for pair in answer.pooled["dice"] for name in (pair.a, pair.b)} == {*copies, "nnUNetTrainer"}
    assert not answer.spreads


def test_models_are_chosen_by_the_mlflow_ids_of_their_runs(base: Path) -> None:
    for fold in (0, 2):
        folder = RunFolder(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres") / f"fold_{fold}")
        write_json_atomic(folder.mlflow_file, {"run_id": f"{fold}" * 32, "experiment_id": "1", "tracking_uri": "http://127.0.0.1:5000"})
    [model] = found(base, "0" * 32, "2" * 32).answer.models
    assert (model.spec.trainer, [fold.spec.fold for fold in model.folds]) == ("nnUNetTrainerDA5", [0, 2])


def test_a_folder_that_is_away_is_left_out_and_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose run.json, and one whose commits cannot be read now."""
    da5 = folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres")
    away = {da5 / "fold_0" / "nnfleet", da5 / "fold_1" / "nnfleet" / "state"}
    sound = Path.open

    def open_unless_away(path: Path, *args: Any, **options: Any) -> Any:
        if path.parent in away:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return sound(path, *args, **options)

    monkeypatch.setattr(Path, "open", open_unless_away)
    result = found(base)
    assert result.answer.missing["nnUNetTrainerDA5"] == ("0", "1")
    assert [str(da5 / f"fold_{fold}") in sentence for fold, sentence in enumerate(result.left)] == [True, True]
    assert all("the file system is unavailable or broken (Stale file handle)" in sentence for sentence in result.left)


def other_labels(base: Path) -> None:
    metrics = {name: metrics_of(0.5).model_dump() | {"fn": 101} for name in CLASSES}
    rewrite(RunFolder(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres") / "fold_0"), "case_00", metrics=metrics)


def other_split(base: Path) -> None:
    validated_model(base, noisy(0, 4), [FOLDS[0][:3], FOLDS[0][3:]], configuration="2d", model_folder=folder_of(base, "2d"))


def other_cases(base: Path) -> None:
    """One of two models; of three it would be left out."""
    shutil.rmtree(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"))
    validated_model(base, noisy(0, 4), [["x", "y"]], configuration="2d", model_folder=folder_of(base, "2d"))


def a_fold_twice(base: Path) -> None:
    validated_model(base, noisy(0, 4), [FOLDS[0], FOLDS[0]], configuration="2d", model_folder=folder_of(base, "2d"))


def other_patients(base: Path) -> None:
    """By one experiment the cases of a fold are one patient, by the other each case is one."""
    name_patients(base, "nnUNetTrainer__nnUNetPlans__3d_fullres", lambda case: case[:-1])
    name_patients(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres", lambda case: case)


def name_patients(base: Path, model: str, patient_of: Callable[[str], str]) -> None:
    for folder in map(RunFolder, sorted(folder_of(base, model).glob("fold_*"))):
        content = read_json(folder.spec_file, "run")
        write_json_atomic(folder.spec_file, {**content, "patients": {case: patient_of(case) for case in content["val_cases"]}})


def other_schedule(base: Path) -> None:
    folder = RunFolder(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres") / "fold_2")
    content = read_json(folder.spec_file, "run")
    write_json_atomic(folder.spec_file, {**content, "schedule": {**content["schedule"], "epochs": 7}})


def other_tolerance(base: Path) -> None:
    rewrite(RunFolder(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres") / "fold_0"), "case_00", surface_tolerance_mm=2.0)


def older_scoring(base: Path) -> None:
    rewrite(RunFolder(folder_of(base, "nnUNetTrainerDA5__nnUNetPlans__3d_fullres") / "fold_0"), "case_00", scoring=0)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (other_labels, "were validated against different reference labels: case_00"),
        (other_split, "the splits differ"),
        (other_cases, "have no validated case in common"),
        (a_fold_twice, "case_00, case_01, case_02 and 3 more cases validated in more than one fold"),
        (other_patients, "name other patients for case_00, case_01, case_02 and 15 more cases"),
        (other_tolerance, "have surface Dice at different tolerances: 1 and 2 mm"),
        (older_scoring, "of nnUNetTrainerDA5 are by the rules of another version: `nnfleet validate` scores"),
    ],
)
def test_models_that_are_not_alike_are_refused_with_what_differs(base: Path, change: Callable[[Path], None], difference: str) -> None:
    change(base)
    with pytest.raises(ConfigError, match=difference) as refused:
        found(base)
    assert "Name models that are alike (here: 901/" in str(refused.value)


def test_the_command_for_the_largest_group_of_models_that_are_alike_is_printed(tmp_path: Path) -> None:
    validated_model(tmp_path, noisy(0, 1), FOLDS, is_ended_early=True)
    for number, configuration in enumerate(("2d", "3d_lowres")):
        validated_model(tmp_path, noisy(0, number), FOLDS, configuration=configuration, model_folder=folder_of(tmp_path, configuration))
    with pytest.raises(ConfigError, match="another schedule") as refused:
        found(tmp_path, "901")
    two = "901/2d/nnUNetTrainer", "901/3d_lowres/nnUNetTrainer"
    assert f"alike (here: {', '.join(two)}; 901/3d_fullres/nnUNetTrainer): nnfleet compare {' '.join(two)}, or compare them all" in str(
        refused.value
    )
    assert len(found(tmp_path, *two).answer.models) == 2


def test_a_model_of_unlike_folds_is_left_out_by_its_address_unless_it_is_named(base: Path) -> None:
    other_schedule(base)
    for names in ((), ("901",)):
        others = found(base, *names)
        assert [model.name for model in others.answer.models] == ["nnUNetTrainer"]
        (left,) = others.left
        assert left == (
            "901/3d_fullres/nnUNetTrainerDA5: its folds are not alike: fold 2 differs from fold 0 in epochs (7 instead of 1000)."
        )
    assert len(found(base, force=True).answer.models) == 2
    with pytest.raises(ConfigError, match="fold 2 differs from fold 0"):
        found(base, "901/3d_fullres/nnUNetTrainerDA5")


def with_folds(base: Path, **trained: list[int]) -> list[str]:
    """A model of these folds for each configuration; their addresses."""
    for number, (configuration, folds) in enumerate(trained.items()):
        where: dict[str, Any] = {"configuration": configuration, "model_folder": folder_of(base, configuration)}
        validated_model(base, noisy(0.01 * number, number), FOLDS, trained=folds, **where)
    return [f"901/{configuration}/nnUNetTrainer" for configuration in trained]


@pytest.mark.parametrize("names", [(), ("901",)])
def test_a_model_without_a_case_of_the_others_is_left_out_by_its_address(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Also where it comes first; and a pair of the others may have none, as long as one model has cases of both."""
    apart, *others = with_folds(tmp_path, **{"2d": [2], "3d_a": [0], "3d_b": [1], "3d_c": [0, 1]})
    chosen = found(tmp_path, *names)
    assert {model.name for model in chosen.answer.models} == {"3d_a", "3d_b", "3d_c"}
    assert chosen.left == (
        f"{apart}: its validated folds (2) have no case in common with {others[2]}; named with models that have its cases it is compared.",
    )
    assert len(chosen.answer.pooled["dice"]) == 3


def test_models_without_a_common_case_are_refused_where_each_is_named_or_no_two_have_one(tmp_path: Path) -> None:
    addresses = with_folds(tmp_path, **{"2d": [0], "3d_a": [0], "3d_b": [1]})
    assert len(found(tmp_path, "901").left) == 1
    for names in (addresses, addresses[1:]):
        with pytest.raises(ConfigError, match="3d_b have no validated case in common"):
            found(tmp_path, *names)
    shutil.rmtree(folder_of(tmp_path, "2d"))
    with pytest.raises(ConfigError, match="3d_a and 3d_b have no validated case in common"):
        found(tmp_path, "901")


def test_a_forced_comparison_says_so_in_every_output(base: Path) -> None:
    other_labels(base)
    answer = found(base, force=True).answer
    page, plain = html(answer), as_json(answer)
    reason = "were validated against different reference labels: case_00"
    assert reason in page
    assert reason in plain["not_comparable"][0]
    shown = CliRunner().invoke(app, ["compare", "--results", str(base / "results"), "--force"])
    assert "NOT COMPARABLE, compared on request" in shown.output
    printed = json.loads(CliRunner().invoke(app, ["compare", "--results", str(base / "results"), "--force", "--json"]).stdout)
    assert reason in printed["not_comparable"][0]
    copies = re.findall(r"<textarea.*?aria-label=\"(LaTeX|CSV)\">(.*?)</textarea>", page, re.DOTALL)
    assert {kind for kind, _ in copies} == {"LaTeX", "CSV"}
    assert all("NOT COMPARABLE, compared on request" in copy for _, copy in copies)


def test_the_best_checkpoints_are_called_optimistic(tmp_path: Path) -> None:
    validated_model(tmp_path, {"a": 0.5, "b": 0.6}, [["a", "b"]], checkpoint="best")
    assert "optimistic" in compared(tmp_path / "results", (), "best").answer.notes[0]
    with pytest.raises(ConfigError, match="no run has a full validation of its final checkpoint"):
        compared(tmp_path / "results", (), "final")


def test_runs_that_are_not_validated_yet_are_to_be_waited_for(tmp_path: Path) -> None:
    validated_model(tmp_path, {"a": 0.5, "b": 0.6}, [["a", "b"]], checkpoint="best")
    with pytest.raises(ConfigError, match=r"compared once their full validation is done: `nnfleet status`") as refused:
        compared(tmp_path / "results", (), "final")
    assert "Train first" not in str(refused.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"Train first\.$"):
        compared(tmp_path / "empty", (), "final")


def test_patients_are_found_in_case_ids(base: Path) -> None:
    answer = compared(base / "results", (), "final", r"case_\d").answer
    assert "18 paired cases of 3 patients" in answer.verdict
    with pytest.raises(ConfigError, match="finds no patient in the case id 'case_"):
        compared(base / "results", (), "final", "patient")
    with pytest.raises(ConfigError, match="is no regular expression"):
        compared(base / "results", (), "final", "(")


def test_patients_that_the_experiment_named_are_the_unit(base: Path) -> None:
    name_patients(base, "nnUNetTrainer__nnUNetPlans__3d_fullres", lambda case: case[:-1])
    assert "18 paired cases of 3 patients" in found(base).answer.verdict, "a run that names none says nothing"


def test_other_patients_do_not_matter_where_those_of_all_are_named(base: Path) -> None:
    other_patients(base)
    assert "of 3 patients" in compared(base / "results", (), "final", r"case_\d").answer.verdict


def test_patients_of_some_cases_only_are_refused(base: Path) -> None:
    folder = RunFolder(folder_of(base, "nnUNetTrainer__nnUNetPlans__3d_fullres") / "fold_0")
    write_json_atomic(folder.spec_file, {**read_json(folder.spec_file, "run"), "patients": dict.fromkeys(FOLDS[0], "a")})
    with pytest.raises(ConfigError, match="none of them that of case_10, case_11, case_12 and 9 more cases.*--patients"):
        found(base)


def test_a_table_names_the_patients(base: Path) -> None:
    table = base / "patients.csv"
    table.write_text("case,patient\n" + "".join(f"{case},{case[:-1]}\n" for fold in FOLDS for case in fold))
    assert "of 3 patients" in compared(base / "results", (), "final", str(table)).answer.verdict


def test_the_command_prints_the_verdict_and_writes_one_file_that_needs_no_network(base: Path) -> None:
    target = base / "report.html"
    shown = CliRunner().invoke(app, ["compare", "--results", str(base / "results"), "--report", str(target)])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.startswith("nnUNetTrainerDA5 is better than nnUNetTrainer by ")
    assert f"Report: {target}" in shown.stderr
    page = target.read_text()
    assert "nnUNetTrainerDA5 is better than nnUNetTrainer by " in page
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
    assert "<script" not in page
    assert r"\toprule" in page
    assert len(page) < 2_000_000


def test_a_narrow_terminal_shows_missed_and_false_classes(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Console(width=72, file=io.StringIO())
    monkeypatch.setattr("orchestrator.cli.compare.console", lambda: narrow)
    show(found(base).answer)
    assert isinstance(narrow.file, io.StringIO)
    lines = [line.split() for line in narrow.file.getvalue().splitlines()]
    assert ["model", "folds", "cases", "Dice", "HD95", "mm", "missed", "false"] in lines


def test_the_json_holds_every_number(base: Path) -> None:
    shown = CliRunner().invoke(app, ["compare", "--results", str(base / "results"), "--json"])
    content = json.loads(shown.stdout)
    assert content["verdict"].startswith("nnUNetTrainerDA5 is better")
    pair = content["pairs"]["dice"][0]
    assert pair["mean_interval"][0] < pair["mean_b_better_by"] < pair["mean_interval"][1]
    assert pair["cases"] == 18
    assert content["models"][0]["folds"] == ["0", "1", "2"]
    assert math.isclose(sum(content["rank_shares"]["mean-then-rank"]["nnUNetTrainer"]), 1)


def test_tables_are_latex_and_csv(base: Path) -> None:
    assert TextTable(("a_b", "n"), (("x, 50 %", "1"),)).latex.splitlines()[2:5] == [r"a\_b & n \\", r"\midrule", r"x, 50 \% & 1 \\"]
    assert TextTable(("a", "n"), (("x, y", "1"),)).csv == 'a,n\n"x, y",1\n'
    assert [row[0] for row in classes_table(found(base).answer).rows] == list(CLASSES)


def test_a_difference_has_the_sign_that_its_name_states_also_where_lower_is_better(tmp_path: Path) -> None:
    """HD95 5 and 4 mm, of DA5 1 and 2: DA5 minus the other is -4 and -2, and Student's t of two values is 12.706 with an error of 1."""
    validated_model(tmp_path, {"a": 0.5, "b": 0.6}, [["a", "b"]])
    validated_model(tmp_path, {"a": 0.9, "b": 0.8}, [["a", "b"]], **DA5, model_folder=folder_of(tmp_path, "DA5"))
    answer = found(tmp_path).answer
    assert pairs_table(answer.pooled["dice"]).rows[0][:3] == ("nnUNetTrainerDA5 minus nnUNetTrainer", "2", "30.00")
    row = pairs_table(answer.pooled["hd95_mm"]).rows[0]
    assert row[:6] == ("nnUNetTrainerDA5 minus nnUNetTrainer", "2", "-3.00", "[-15.71, 9.71]", "-3.00", "2 / 0 / 0")
    assert html(answer).count("Lower is better: a negative difference is in favour of the first of the two models.") == 1
    assert as_json(answer)["pairs"]["hd95_mm"][0]["mean_b_better_by"] == pytest.approx(3)


def test_a_variant_is_a_model_of_its_own_whose_seeds_count_as_one(tmp_path: Path) -> None:
    usual = "nnUNetTrainer__nnUNetPlans__3d_fullres"
    validated_model(tmp_path, noisy(0, 1), FOLDS)
    for seed in (0, 1):
        place = folder_of(tmp_path, f"{usual}__lowlr" + (f"__seed{seed}" if seed else ""))
        validated_model(tmp_path, noisy(0.1, 2 + seed), FOLDS, variant="lowlr", seed=seed, model_folder=place)
    answer = found(tmp_path).answer
    names = {f"3d_fullres nnUNetTrainer{rest} {seed}" for rest, seed in (("", "seed 0"), (" lowlr", "seed 0"), (" lowlr", "seed 1"))}
    assert {model.name for model in answer.models} == names
    assert answer.verdict.startswith("3d_fullres nnUNetTrainer lowlr is better than 3d_fullres nnUNetTrainer by ")


@pytest.mark.parametrize(("what", "name"), [({"variant": "long"}, "long"), ({"plans": "nnUNetResEncUNetMPlans"}, "nnUNetResEncUNetMPlans")])
def test_a_model_alone_is_not_called_by_the_name_of_another(tmp_path: Path, what: dict[str, Any], name: str) -> None:
    usual = "901/3d_fullres/nnUNetTrainer"
    validated_model(tmp_path, noisy(0, 1), FOLDS)
    folds = validated_model(tmp_path, noisy(0.1, 2), FOLDS, **what, model_folder=folder_of(tmp_path, "other"))
    address = folds[0].spec().model
    assert [model.name for model in found(tmp_path, usual).answer.models] == ["3d_fullres nnUNetTrainer"]
    assert [model.name for model in found(tmp_path, address).answer.models] == [f"3d_fullres nnUNetTrainer {name}"]
    written = read_json(folds[1].spec_file, "run")
    written["schedule"]["epochs"] = 7
    write_json_atomic(folds[1].spec_file, written)
    with pytest.raises(ConfigError, match=f"compare: 3d_fullres nnUNetTrainer {name}: fold 1 differs from fold 0 in epochs"):
        found(tmp_path, address)


def scheduled(base: Path, name: str, epochs: int, **what: Any) -> None:
    schedule = {"epochs": epochs}
    validated_model(base, noisy(0.1, len(name)), FOLDS, schedule=schedule, model_folder=folder_of(base, name), **what)


def test_a_seed_of_another_schedule_is_no_seed_of_its_model(base: Path) -> None:
    scheduled(base, "seed1", 5, seed=1)
    difference = r"another schedule than .*: epochs \((5 instead of 1000|1000 instead of 5)\)"
    with pytest.raises(ConfigError, match=difference):
        found(base)
    with pytest.raises(ConfigError, match=difference):
        found(base, "901/3d_fullres/nnUNetTrainer", "901/3d_fullres/nnUNetTrainer+seed1")


def test_trainers_of_different_schedules_are_refused_and_when_forced_the_verdict_says_so(tmp_path: Path) -> None:
    scheduled(tmp_path, "long", 1000)
    scheduled(tmp_path, "short", 100, **DA5)
    with pytest.raises(
        ConfigError, match=r"nnUNetTrainerDA5 was trained by another schedule than nnUNetTrainer: epochs \(100 instead of 1000\)"
    ):
        found(tmp_path)
    assert found(tmp_path, force=True).answer.verdict.endswith(" These models are not comparable, and were compared on request.")


def test_variants_of_different_schedules_are_compared_and_the_verdict_says_so(tmp_path: Path) -> None:
    scheduled(tmp_path, "long", 1000)
    scheduled(tmp_path, "short", 100, variant="short")
    answer = found(tmp_path).answer
    assert answer.verdict.endswith(" The schedules of these variants differ in epochs.")
    assert answer.notes == ["The variant short has another schedule than the models that are no variants: epochs (100 instead of 1000)."]


def test_within_a_variant_the_schedule_is_one_also_where_the_first_model_is_another_variant(tmp_path: Path) -> None:
    scheduled(tmp_path, "a_short", 100, variant="short")
    scheduled(tmp_path, "b_long", 1000)
    scheduled(tmp_path, "c_long", 500, **DA5)
    with pytest.raises(ConfigError, match=r"epochs \(500 instead of 1000\)"):
        found(tmp_path)


def test_the_report_shows_the_ranking_in_each_fold_and_of_each_seed(base: Path) -> None:
    """DA5 is better, but not in fold 2; its third seed is worse altogether."""
    in_fold_2 = {case: 0.3 for case in FOLDS[2]} | {case: 0.9 for fold in FOLDS[:2] for case in fold}
    validated_model(base, in_fold_2, FOLDS, **DA5, seed=2, model_folder=folder_of(base, "da5_seed2"))
    validated_model(base, noisy(0, 6), FOLDS, seed=2, model_folder=folder_of(base, "seed2"))
    validated_model(base, noisy(-0.3, 7), FOLDS, **DA5, seed=3, model_folder=folder_of(base, "da5_seed3"))
    validated_model(base, noisy(0, 8), FOLDS, seed=3, model_folder=folder_of(base, "seed3"))
    answer = found(base).answer
    table = groups_table(answer)
    assert table is not None
    order = [table.head[1:3].index(name) for name in ("nnUNetTrainer", "nnUNetTrainerDA5")]
    ranks = {row[0]: [row[1:3][place] for place in order] for row in table.rows}
    assert ranks["fold 2"] == ["1", "2"]
    assert [ranks[f"seed {seed}"] for seed in (0, 2, 3)] == [["2", "1"], ["2", "1"], ["1", "2"]]
    assert {row[0]: row[3] for row in table.rows} == {f"fold {n}": "6" for n in range(3)} | {f"seed {n}": "18" for n in (0, 2, 3)}
    assert "<td>seed 3</td>" in html(answer)
    assert as_json(answer)["ranks_by_fold"]["2"]["ranks"] == {"nnUNetTrainer": 1, "nnUNetTrainerDA5": 2}


def test_one_fold_of_one_seed_has_no_table_of_ranks(tmp_path: Path) -> None:
    validated_model(tmp_path, noisy(0, 1), FOLDS[:1])
    validated_model(tmp_path, noisy(0.1, 2), FOLDS[:1], **DA5, model_folder=folder_of(tmp_path, "DA5"))
    assert groups_table(found(tmp_path).answer) is None


def by_class(shifts: dict[str, float], seed: int) -> Callable[[str, str], float]:
    """As `noisy`, with a shift of its own in each class."""
    own = random.Random(seed)
    return lambda case, name: random.Random(f"{case}{name}").uniform(0.5, 0.8) + shifts[name] + own.gauss(0, 0.02)


def test_classes_are_adjusted_together_with_the_pairs(base: Path) -> None:
    pairs = [pair for found_in in found(base).answer.per_class.values() for pair in found_in]
    assert [pair.comparisons for pair in pairs] == [2, 2]  # one pair of models, two classes
    assert [pair.p_holm for pair in pairs] == holm([pair.test.p for pair in pairs])


def test_a_difference_in_one_class_or_in_distances_has_to_exceed_their_own_spread_over_seeds(tmp_path: Path) -> None:
    """Of DA5 the seeds lie apart in the kidney, in opposite ways in the tumour: pooled they hardly differ."""
    kidney, tumour = CLASSES
    for seed, apart in ((0, 0.09), (1, -0.09)):
        validated_model(tmp_path, noisy(0, seed), FOLDS, seed=seed, model_folder=folder_of(tmp_path, f"base_{seed}"))
        of_da5 = by_class({kidney: 0.05 + apart, tumour: 0.05 - apart}, 5 + seed)
        validated_model(tmp_path, of_da5, FOLDS, **DA5, seed=seed, model_folder=folder_of(tmp_path, f"da5_{seed}"))
    answer = found(tmp_path).answer
    assert answer.verdict.startswith("nnUNetTrainerDA5 is better than nnUNetTrainer by ")
    for name in CLASSES:
        [of_class] = answer.per_class[name]
        assert of_class.p_holm < 0.05
        assert of_class.seed_sd == pytest.approx(100 * 0.18 / 2**0.5, rel=0.1)
        assert sentence(of_class).startswith(f"{name}: the data do not distinguish nnUNetTrainer from nnUNetTrainerDA5 beyond the spread")
    [distances] = answer.pooled["hd95_mm"]
    assert distances.seed_sd == pytest.approx(max(spread.sd for spread in answer.spreads.values()) / 10)  # 10 mm per 1 of Dice


def test_the_pseudo_dice_is_judged_within_folds_that_hold_the_same_cases(base: Path) -> None:
    """The better trainer has the lower pseudo-Dice in every fold, though both rise together from fold to fold."""
    validated_model(
        base, noisy(0, 4), [[f"{case}x" for case in fold] for fold in FOLDS], configuration="2d", model_folder=folder_of(base, "2d")
    )
    folders = [RunFolder(path) for path in sorted((base / "results").glob("*/*/fold_*"))]
    folds = [fold for folder in folders if not isinstance(fold := read_fold(folder, folder.spec(), "final"), str)]
    ema = {"nnUNetTrainer": 0.2, "nnUNetTrainerDA5": 0.1}
    known = [replace(fold, ema_pseudo_dice=ema[fold.spec.trainer] + 0.3 * int(fold.spec.fold)) for fold in folds]
    cheap = answer_of(models_of(known), "final", is_forced=True).cheap
    assert (cheap.pairs, cheap.folds, cheap.tau) == (3, 3, -1)
    page = html(answer_of(models_of(known), "final", is_forced=True))
    assert "over 3 pairs of models within one of 3 folds: -1.00." in page
