"""Whether MLflow has the scores that a run folder keeps, and which validations are sent again."""

from pathlib import Path

import pytest

from orchestrator.publishing.validation_report import stored_reports, write_report
from orchestrator.tracking.scores import holds_scores, scored_unix
from tests.fake_run import FakeRun
from tests.validated_model import validated_model
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import CaseResult
from trainers.storage.files import write_json_atomic


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a run whose full validation of the final checkpoint is reported."""
    (made,) = validated_model(tmp_path, {"a": 0.5, "b": 0.75}, [["a", "b"]], validation={"checkpoints": ["final"]})
    results = [CaseResult.model_validate_json((made.cases("final") / f"{case}.json").read_bytes()) for case in "ab"]
    write_report(made, made.spec(), labels_of(load_dataset_json(made.model_folder), "x"), "final", results)
    return made


def test_a_validation_is_sent_until_mlflow_has_every_score_with_its_value(folder: RunFolder) -> None:
    (report,) = stored_reports(folder, folder.spec(), {})
    held = {f"full/final/{key}".replace("(", "_").replace(")", "_"): value for key, value in report.metrics.items()}
    assert held["full/final/dice_mean"] == 0.625
    assert stored_reports(folder, folder.spec(), held) == []
    for other in ({"full/final/dice_mean": 0.5}, {"full/best/dice_mean": 0.625}):
        assert len(stored_reports(folder, folder.spec(), other)) == 1
    assert len(stored_reports(folder, folder.spec(), held | {"full/final/dice_mean": 0.6})) == 1, "of a validation before"


def test_scores_that_are_all_nan_are_none_to_lack_and_unreadable_ones_are_taken_as_sent(tmp_path: Path) -> None:
    folder = FakeRun(tmp_path).folder
    assert not holds_scores({}, folder, "best")
    for content in ("{", "[]", '{"classes": 7}', '{"dice_mean": "high"}'):
        (folder.own / "validation_best.json").write_text(content)
        assert holds_scores({"full/best/dice_mean": 0.5}, folder, "best")
        assert not holds_scores({"full/final/dice_mean": 0.5}, folder, "best")
    write_json_atomic(folder.own / "validation_best.json", {"dice_mean": float("nan")})
    assert holds_scores({}, folder, "best")


def test_scores_that_changed_carry_a_newer_time_though_the_summary_is_the_same(folder: RunFolder) -> None:
    before = scored_unix(folder, "final")
    results = [CaseResult.model_validate_json((folder.cases("final") / f"{case}.json").read_bytes()) for case in "ab"]
    labels = labels_of(load_dataset_json(folder.model_folder), "x")
    write_report(folder, folder.spec(), labels, "final", results)
    assert scored_unix(folder, "final") == before, "nothing is new"
    changed = [r.model_copy(update={"metrics": {n: m.model_copy(update={"nsd": 0.1}) for n, m in r.metrics.items()}}) for r in results]
    summary = (folder.validation("final") / "summary.json").read_bytes()
    write_report(folder, folder.spec(), labels, "final", changed)
    assert (folder.validation("final") / "summary.json").read_bytes() == summary
    assert scored_unix(folder, "final") > before
