"""The MLflow run of a model's cross-validation: what it holds, when it is due, and that there is one for each model."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from orchestrator.compare import model_run
from orchestrator.compare.cross_validation import CrossValidation, cross_validation
from orchestrator.compare.model_run import metrics_of, missing_folds, model_key, publish_cross_validation, report_of, with_models
from orchestrator.publishing.reconcile import Synced
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.tracking.records import FOLDER_TAG, MODEL_KEY_TAG, KnownRun, ModelRun, metric_path
from orchestrator.tracking.saved_views import METRICS
from orchestrator.validation.job import deliver_cross_validation
from tests.fake_run import CLASSES
from tests.validated_model import validated_model
from trainers.contract.records import MlflowRun, write_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.errors import TrackingError
from trainers.storage.files import read_json, write_json_atomic

FOLDS = [["case_0", "case_1"], ["case_2"], ["case_3"]]
DICE = {"case_0": 0.5, "case_1": 0.6, "case_2": 0.8, "case_3": 0.9}


def dice(case: str, name: str) -> float:
    """The second class is absent in case_3."""
    return math.nan if (case, name) == ("case_3", CLASSES[1]) else DICE[case]


class Server:
    """An MLflow server that keeps the runs of models."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.sent: list[str] = []
        self.is_away = False

    def known_run(self, key: str, key_tag: str) -> KnownRun | None:
        assert key_tag == MODEL_KEY_TAG
        return KnownRun(key, self.runs[key]["tags"], self.runs[key]["metrics"]) if key in self.runs else None

    def ensure_experiment(self, name: str) -> str:
        return name

    def get_or_create_model_run(self, experiment_id: str, wanted: ModelRun) -> str:
        if self.is_away:
            raise TrackingError("mlflow: away")
        run = self.runs.setdefault(wanted.key, {"tags": {}, "metrics": {}, "files": {}, "name": wanted.name, "params": wanted.params})
        run["tags"] |= wanted.tags
        run["experiment"] = experiment_id
        return wanted.key

    def log_scores(self, run_id: str, values: Mapping[str, float], unix: float) -> None:
        self.runs[run_id]["metrics"] |= values
        self.sent.append(run_id)

    def upload_bytes(self, run_id: str, content: bytes, path: str) -> None:
        self.runs[run_id]["files"][path] = content

    def log_table(self, run_id: str, path: str, table: Sequence[Mapping[str, Any]]) -> None:
        self.runs[run_id]["files"][path] = table

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.runs[run_id]["tags"])

    def show_test_sets(self, run_id: str) -> None:
        self.sent.append(f"view of {run_id}")

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.runs[run_id]["tags"] |= tags


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(model_run, "server_of", lambda bound: made)
    return made


def tracked(folders: Sequence[RunFolder]) -> list[RunFolder]:
    for number, folder in enumerate(folders):
        write_mlflow_run(folder, MlflowRun(run_id=f"r{number}", experiment_id="1", tracking_uri="http://mlflow"))
    return list(folders)


@pytest.fixture
def folds(tmp_path: Path) -> list[RunFolder]:
    return tracked(validated_model(tmp_path, dice, FOLDS))


def found(folders: Sequence[RunFolder]) -> CrossValidation:
    made = cross_validation(folders[0].model_folder)
    assert isinstance(made, CrossValidation)
    return made


def change(folder: RunFolder, **changes: object) -> None:
    write_json_atomic(folder.spec_file, {**read_json(folder.spec_file, "run"), **changes})


def test_the_headline_is_the_mean_over_all_cases_and_each_class_has_its_interval(folds: list[RunFolder]) -> None:
    metrics = metrics_of(found(folds))
    first, second = [0.5, 0.6, 0.8, 0.9], [0.5, 0.6, 0.8]
    assert metrics["cv/dice_mean"] == pytest.approx((np.mean(first) + np.mean(second)) / 2)
    for name, values in zip(CLASSES, (first, second), strict=True):
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        sent = [metrics[metric_path(f"cv/{score}/{name}")] for score in ("dice", "dice_low", "dice_high")]
        assert sent == pytest.approx([np.mean(values), low, high])
    assert (metrics["cv/num_cases"], metrics["cv/num_folds"]) == (4, 3)
    assert "cv/dice_mean" in METRICS, "the saved views show it"


def test_a_run_of_its_own_holds_the_result_with_the_grouping_keys_of_its_folds(folds: list[RunFolder], server: Server) -> None:
    assert publish_cross_validation(folds[0].model_folder) == "cross-validation of folds 0, 1, 2"
    [(key, run)] = server.runs.items()
    assert run["name"] == "901/3d_fullres/default"
    assert run["tags"]["nnfleet.model"] == "901/3d_fullres/nnUNetTrainer"
    assert run["files"]["dice.png"].startswith(b"\x89PNG")
    assert run["experiment"] == "Dataset901_Toy"
    assert run["tags"]["nnfleet.kind"] == "cv"
    assert (run["tags"]["nnfleet.folds"], run["tags"]["nnfleet.missing_folds"]) == ("0, 1, 2", "")
    assert "nnfleet.run_key" not in run["tags"], "it is none of the runs that names mean"
    grouping = {"dataset": "Dataset901_Toy", "configuration": "3d_fullres", "trainer": "nnUNetTrainer", "plans": "nnUNetPlans", "seed": "0"}
    assert grouping.items() <= run["params"].items()
    assert {f"nnfleet.{name}": value for name, value in grouping.items()}.items() <= run["tags"].items()
    assert {"fold", "data_digest"}.isdisjoint(run["params"])
    table = run["files"]["fullval/final/per_case.json"]
    assert [(row["case"], row["fold"]) for row in table] == [("case_0", "0"), ("case_1", "0"), ("case_2", "1"), ("case_3", "2")]
    assert b'"foreground_mean"' in run["files"]["fullval/final/summary.json"]
    assert key.startswith("901-3d_fullres-nnUNetTrainer-")


def test_the_description_has_every_class_the_worst_cases_and_one_picture(folds: list[RunFolder], server: Server) -> None:
    publish_cross_validation(folds[0].model_folder)
    [(key, run)] = server.runs.items()
    note = run["tags"]["mlflow.note.content"]
    assert "| left kidney | 0.700 [" in note
    assert "Worst cases: case_0 (0.500), case_1 (0.600), case_2 (0.800)." in note
    assert note.endswith(f"![Dice of every case in each class](get-artifact?path=dice.png&run_uuid={key})")


def test_the_table_of_cases_begins_with_the_worst(tmp_path: Path) -> None:
    scores = {"case_0": 0.9, "case_1": math.nan, "case_2": 0.2, "case_3": 0.5}
    folders = validated_model(tmp_path, scores, FOLDS)
    assert [row["case"] for row in report_of(found(folders)).table] == ["case_2", "case_3", "case_0", "case_1"]


def test_the_same_result_is_sent_once_and_another_one_updates_the_run(folds: list[RunFolder], server: Server) -> None:
    model_folder = folds[0].model_folder
    publish_cross_validation(model_folder)
    assert publish_cross_validation(model_folder) == ""
    assert len(server.sent) == 1
    result = folds[1].cases("final") / "case_2.json"
    content = read_json(result, "result")
    content["metrics"][CLASSES[0]]["dice"] = 0.1
    write_json_atomic(result, content)
    assert publish_cross_validation(model_folder)
    assert len(server.runs) == 1
    assert len(server.sent) == 2


def test_it_waits_for_folds_under_way_and_names_those_that_are_missing(folds: list[RunFolder], server: Server) -> None:
    write_json_atomic(folds[0].spec().preprocessed_folder / "splits_final.json", [{"train": [], "val": []}] * 5)
    (folds[2].cases("final") / "case_3.json").unlink()
    assert publish_cross_validation(folds[0].model_folder) == ""
    assert server.runs == {}
    write_outcome(folds[2], Outcome(job="validation", state="FAILED_CODE", fencing_token=1, message="m"))
    assert publish_cross_validation(folds[0].model_folder) == "cross-validation of folds 0, 1"
    [run] = server.runs.values()
    assert (run["tags"]["nnfleet.folds"], run["tags"]["nnfleet.missing_folds"]) == ("0, 1", "2, 3, 4")
    assert "Folds 2, 3, 4 are missing." in run["tags"]["mlflow.note.content"]


def test_a_fold_that_is_added_updates_the_same_run(tmp_path: Path, server: Server) -> None:
    folds = tracked(validated_model(tmp_path, dice, FOLDS, trained=[0, 1]))
    publish_cross_validation(folds[0].model_folder)
    tracked(validated_model(tmp_path, dice, FOLDS, trained=[2]))
    publish_cross_validation(folds[0].model_folder)
    assert [run["tags"]["nnfleet.folds"] for run in server.runs.values()] == ["0, 1, 2"]


@pytest.mark.parametrize(
    "changes",
    [
        {"replicate": "again"},
        {"seed": 3},
        {"schedule": {"epochs": 7}},
        {"trainer": "nnUNetTrainerDA5"},
        {"variant": "v"},
        {"batch_size": 8},
        {"patch_size": [16, 16, 16]},
    ],
)
def test_another_training_has_a_run_of_its_own(folds: list[RunFolder], changes: dict[str, object]) -> None:
    before = model_key(found(folds))
    for folder in folds:
        change(folder, **changes)
    assert model_key(found(folds)) != before


def test_other_data_have_a_run_of_their_own(folds: list[RunFolder]) -> None:
    digests = {case: ["a", "b", "c"] for case in DICE}
    keys = set()
    for changed in ({}, {"case_1": ["a", "x", "c"]}):
        for folder in folds:
            change(folder, case_digests={**digests, **changed})
        keys.add(model_key(found(folds)))
    assert len(keys) == 2


def test_unlike_folds_never_meet(folds: list[RunFolder], server: Server) -> None:
    change(folds[1], schedule={"epochs": 7})
    assert publish_cross_validation(folds[0].model_folder) == ""
    assert server.runs == {}


def test_pseudonyms_stand_for_the_cases(folds: list[RunFolder]) -> None:
    for folder in folds:
        change(folder, pseudonyms=True)
    report = report_of(found(folds))
    assert "case_" not in str((report.run, report.metrics, report.table, report.summary, report.note))
    assert len({row["case"] for row in report.table}) == 4


def test_a_copy_of_a_model_elsewhere_does_not_replace_its_result(folds: list[RunFolder], server: Server, tmp_path: Path) -> None:
    publish_cross_validation(folds[0].model_folder)
    [run] = server.runs.values()
    run["tags"] |= {FOLDER_TAG: str(tmp_path), model_run.CONTENT_TAG: "another"}
    assert publish_cross_validation(folds[0].model_folder) == ""
    run["tags"][FOLDER_TAG] = str(tmp_path / "gone")
    assert publish_cross_validation(folds[0].model_folder)


def test_sync_brings_models_up_to_date_after_their_runs(folds: list[RunFolder], server: Server) -> None:
    runs = [Synced(run_key=folder.spec().run_key, run_folder=folder.root) for folder in folds]
    lines = [one.line for one in with_models(runs, [])]
    assert lines[3:] == ["nnUNetTrainer__nnUNetPlans__3d_fullres: cross-validation of folds 0, 1, 2"]
    assert [one.line for one in with_models(runs, [])] == lines[:3], "nothing was due"
    server.runs.clear()
    server.is_away = True
    assert [one.lacking for one in with_models(runs, [])][3:] == ["the cross-validation: mlflow: away"]


def test_the_validation_of_the_last_fold_sends_it_and_fails_by_nothing_but_the_server(
    folds: list[RunFolder], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.is_away = True
    assert deliver_cross_validation(folds[2]) == "mlflow: away"
    server.is_away = False
    assert deliver_cross_validation(folds[2]) is None
    assert len(server.runs) == 1
    (folds[0].model_folder / "dataset.json").unlink()
    assert deliver_cross_validation(folds[2]) is None
    assert "is not in MLflow: " in caplog.text


def test_untracked_runs_send_nothing(tmp_path: Path, server: Server) -> None:
    folds = validated_model(tmp_path, dice, FOLDS)
    assert publish_cross_validation(folds[0].model_folder) == ""
    assert missing_folds(found(folds)) == []


def test_the_validation_of_an_earlier_fold_loads_no_statistics(
    folds: list[RunFolder], server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for case in folds[1].cases("final").glob("*.json"):
        case.unlink()
    monkeypatch.setitem(sys.modules, "orchestrator.compare.model_run", None)  # importing it raises
    assert deliver_cross_validation(folds[0]) is None
    assert "is not in MLflow" not in caplog.text
    assert server.runs == {}
