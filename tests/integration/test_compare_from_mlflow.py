"""A machine that sees no run folder compares from MLflow alone: a real store, filled by the same code that publishes validations."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator import api
from orchestrator.campaign import control_job
from orchestrator.campaign.comparisons import COMPARISONS
from orchestrator.campaign.events import ComparisonMade
from orchestrator.compare.choice import Compared
from orchestrator.compare.model_run import publish_cross_validation
from orchestrator.compare.tables import as_json
from orchestrator.publishing.published import Published, published_tag
from orchestrator.publishing.shared_files import shared_files
from orchestrator.publishing.validation_report import write_report
from orchestrator.run.events import events_in
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.saved_views import TAG_PREFIX, TESTS, view_of_test_sets
from orchestrator.validation.held_out_scores import publish_scores, write_scores
from tests.fake_run import CLASSES
from tests.integration.mlflow_server import client_of
from tests.unit.orchestrator.compare.test_held_out_sets import evaluated, high, low, model
from tests.validated_model import validated_model
from trainers.contract.commits import newest_committed
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import MlflowRun, read_result, write_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_json_atomic

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's and SQLAlchemy's own
FOLDS = [["case_a", "case_b", "case_c"], ["case_d", "case_e", "case_f"]]
DICE = {"case_a": 0.5, "case_b": 0.61, "case_c": 0.0, "case_d": 0.8, "case_e": 0.7, "case_f": float("nan")}


def publish(tracker: Tracker, folder: RunFolder) -> None:
    """What the jobs of a run send, without its checkpoints."""
    spec = folder.spec()
    run_id = tracker.get_or_create_run(tracker.ensure_experiment("Toy"), spec)
    for path, file in shared_files(folder, spec, closing=False).items():
        tracker.upload_file(run_id, file, "", path)
    results = [result for case in spec.val_cases if (result := read_result(folder, "final", case)) is not None]
    report = write_report(folder, spec, labels_of(load_dataset_json(folder.model_folder)), "final", results)
    committed = newest_committed(folder)
    assert committed is not None
    tracker.log_epochs(run_id, committed.history, CLASSES)
    tracker.log_validation(run_id, "final", report.metrics, report.table, report.summary_file, 1.7e9)
    assert committed.final is not None
    weights = Published(directory=f"checkpoints/final/e0-{committed.final.sha256[:8]}", manifest=committed.final)
    tracker.set_tags(run_id, {published_tag("final"): weights.model_dump_json(by_alias=True)})
    write_mlflow_run(folder, MlflowRun(run_id=run_id, experiment_id="1", tracking_uri=tracker.uri))


def content(found: Compared) -> dict[str, Any]:
    """The whole answer, but for where it was read."""
    plain = as_json(found.answer)
    for each in plain["models"]:
        del each["sources"]
    return {key: value for key, value in plain.items() if key != "notes"}


def test_the_answer_from_mlflow_is_that_from_the_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    da5 = tmp_path / "results" / "Dataset901_Toy" / "nnUNetTrainerDA5__nnUNetPlans__3d_fullres"
    plain = validated_model(tmp_path, DICE, FOLDS)
    better = {case: value + 0.1 for case, value in DICE.items()}
    folders = plain + validated_model(tmp_path, better, FOLDS, trainer="nnUNetTrainerDA5", model_folder=da5)
    for folder in folders:
        publish(Tracker(uri), folder)
    expected = repr(content(api.compare(results=tmp_path / "results")))

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    shutil.rmtree(folders[0].root)
    both = api.compare(tracking_uri=uri)
    assert repr(content(both)) == expected
    assert [set(model["sources"].values()) for model in as_json(both.answer)["models"]] == [
        {"run folder"},
        {"run folder", f"MLflow at {uri}"},
    ]
    assert f"from MLflow at {uri}: nnUNetTrainer fold 0." in both.answer.notes[-1]

    shutil.rmtree(tmp_path / "results")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    from_mlflow = api.compare(["901"])
    assert repr(content(from_mlflow)) == expected
    assert from_mlflow.left == ()
    assert f"All results are read from MLflow at {uri}." in from_mlflow.answer.notes[-1]


def test_test_sets_rank_models_from_mlflow_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of two folds and one of a single fold: the records lie in the run of the cross-validation, and in the fold's own."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    whole, single = model(tmp_path, "nnUNetTrainer", 0.6), model(tmp_path, "nnUNetTrainerDA5", 0.7, trained=[0])
    tracker = Tracker(uri)
    for folder in (*whole, *single):
        publish(tracker, folder)
    publish_cross_validation(whole[0].model_folder)
    for folds, dice in ((whole, high), (single, low)):
        output = tmp_path / "predicted" / str(len(folds))
        scores = evaluated(folds, dice, output=output)
        (output / "nnfleet").mkdir(parents=True)
        assert publish_scores(scores, folds, write_scores(scores, folds[0].model_folder), is_private=False) == ""
    experiment = client_of(tracker).get_experiment_by_name("Toy")
    _, view = view_of_test_sets([scores.label])
    assert experiment.tags[f"{TAG_PREFIX}{TESTS}"] == view, "both runs have this test set"
    tracker.ensure_experiment("Toy")
    assert client_of(tracker).get_experiment_by_name("Toy").tags[f"{TAG_PREFIX}{TESTS}"] == view, "it is kept"
    expected = repr(content(api.compare()))
    assert "On the test set imagesTs-" in expected
    shutil.rmtree(tmp_path / "results")
    monkeypatch.delenv("nnUNet_results")
    assert repr(content(api.compare(tracking_uri=uri))) == expected
    [run_id] = tracker.models_in(str(whole[0].model_folder))
    tracker.upload_bytes(run_id, b'{"name": "of another version"}', f"test/{scores.label}/scores.json")
    damaged = api.compare(tracking_uri=uri).answer
    assert "The scores of a test set of nnUNetTrainer in MLflow cannot be read: " in damaged.unread[0]
    assert f"nnUNetTrainer has no scores of these weights on the test set {scores.label} in MLflow" in " ".join(damaged.notes)


def test_the_job_at_the_end_of_a_campaign_compares_its_models_and_renews_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, results = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "results"
    monkeypatch.chdir(tmp_path)
    models = ["901/3d_fullres/nnUNetTrainer", "901/3d_fullres/nnUNetTrainerDA5"]
    arguments = ["compare", *models, "--results", str(results), "--tracking-uri", uri]

    def made() -> ComparisonMade:
        assert control_job.main(arguments) == 0
        (event,) = events_in(capsys.readouterr().out, COMPARISONS)
        assert event.models == tuple(models)
        return event

    validated_model(tmp_path, DICE, FOLDS, trained=[0])
    assert "no run 'DA5" in made().why_not.replace(models[1], "DA5")
    da5: dict[str, Any] = {"trainer": "nnUNetTrainerDA5", "model_folder": results / "Dataset901_Toy" / "nnUNetTrainerDA5__p__3d"}
    better = {case: value + 0.1 for case, value in DICE.items()}
    (fold,) = validated_model(tmp_path, better, FOLDS, trained=[0], **da5)
    first = made()
    assert first.verdict == api.compare(models, results).answer.verdict
    validated_model(tmp_path, better, FOLDS, trained=[1], **da5)
    assert made().link == first.link == api.publish_report(api.compare(models, results).answer, uri), "one run, as by hand"
    spec = fold.spec()
    write_json_atomic(fold.spec_file, spec.model_copy(update={"train_cases": spec.train_cases[:1]}).model_dump(mode="json"))
    unlike = made()
    assert (unlike.link, unlike.verdict) == ("", "")
    assert "the splits differ" in unlike.why_not


def test_a_report_is_a_run_of_its_own_that_the_same_comparison_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    folders = validated_model(tmp_path, DICE, FOLDS)
    first, again = (api.publish_report(api.compare(results=tmp_path / "results").answer, uri) for _ in range(2))
    assert first == again
    run_id = first.removeprefix("run ").partition(" ")[0]
    tracker = Tracker(uri)
    assert list(tracker.list_files(run_id)) == ["comparison.html"]
    tags = tracker.tags(run_id)
    assert tags["nnfleet.kind"] == "comparison"
    assert "is the only model" in tags["mlflow.note.content"]
    assert tracker.download(run_id, "comparison.html", tmp_path).read_text().startswith("<!")
    shutil.rmtree(folders[1].root)
    assert api.publish_report(api.compare(results=tmp_path / "results").answer, uri) == first
