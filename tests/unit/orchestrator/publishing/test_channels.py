"""Two publishers of one run at the same time: links of uploads, and who may still deliver."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.publishing.metrics_channel import MetricsChannel
from orchestrator.publishing.publisher import Publisher, deliver_run
from orchestrator.publishing.upload_links import LONGEST_UPLOAD_S, UploadLinks, clear_uploads
from orchestrator.publishing.validation_report import ValidationReport, deliver_reports, picture_name
from orchestrator.run.undelivered import undelivered_text
from orchestrator.tracking import client
from orchestrator.tracking.binding import bound_run, noted_run_id
from orchestrator.tracking.groups import grouping_tags
from orchestrator.tracking.records import EARLY_END_TAG
from orchestrator.validation.job import deliver_all
from tests.fake_run import FakeRun
from tests.validated_model import validated_model
from trainers.contract.commits import Manifest
from trainers.contract.records import PublishedFiles, read_mlflow_run, read_published_files, read_result, write_published_files
from trainers.errors import DataError, TrackingError


def best_of(run: FakeRun) -> Manifest:
    run.epoch()
    assert run.best is not None
    return run.best


def test_a_second_publisher_leaves_the_first_ones_upload_alone(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    manifest = best_of(run)
    with UploadLinks(run.folder, run.fencing_token).link(manifest) as first:
        second = Publisher(run.folder, run.fencing_token, interval_s=0.02)
        second.start()
        assert second.flush(60.0)
        second.stop()
        assert first is not None
        assert first.is_file()
        with UploadLinks(run.folder, run.fencing_token).link(manifest) as beside:
            assert beside is not None
            assert beside != first
        assert first.is_file()
    assert list(run.folder.uploading.iterdir()) == []


def test_what_dead_publishers_left_is_cleared(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    manifest = best_of(run)
    with UploadLinks(run.folder, run.fencing_token).link(manifest) as link:
        assert link is not None
        (run.folder.uploading / "best_0123.pth").write_bytes(b"as the version before named it")
        clear_uploads(run.folder, time.time())
        assert len(list(run.folder.uploading.iterdir())) == 2
        run.resume("driver-2")
        clear_uploads(run.folder, time.time())
        assert [path.name for path in run.folder.uploading.iterdir()] == ["best_0123.pth"], "its driver was superseded"
        clear_uploads(run.folder, time.time() + 2 * LONGEST_UPLOAD_S)
        assert list(run.folder.uploading.iterdir()) == []


class FakeTracker:
    """Takes everything and remembers the calls that change something."""

    calls: list[str]

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            return {"logged_epochs": frozenset(), "log_epochs": frozenset(range(9))}.get(name, {})

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    FakeTracker.calls = []
    monkeypatch.setattr(client, "Tracker", FakeTracker)
    return FakeTracker.calls


def test_a_validation_delivers_nothing_once_another_driver_owns_the_run(tmp_path: Path, calls: list[str]) -> None:
    run = FakeRun(tmp_path)
    run.track("http://mlflow", "r")
    run.epoch()
    validated = run.fencing_token
    run.resume("driver-2")
    run.epoch()
    report = ValidationReport("best", {"dice_mean": 0.5}, [], run.folder.spec_file, {"fullval/best/overlays/c.png": run.folder.spec_file})
    assert "was superseded" in str(deliver_all(run.folder, validated, [report], ()))
    assert not deliver_run(run.folder, validated, 30.0)
    assert set(calls) <= {"ping"}
    assert deliver_reports(run.folder, run.spec, [report], run.fencing_token, ()) is None
    assert calls[-2:] == ["upload_file", "log_validation"], "the scores, which vouch for the pictures, come last"


def test_scores_that_mlflow_does_not_take_are_said_until_it_takes_them(
    tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TrackingError("mlflow: takes no scores.")

    run = FakeRun(tmp_path)
    run.track("http://mlflow", "r")
    report = ValidationReport("best", {"dice_mean": 0.5}, [], run.folder.spec_file, {})
    with monkeypatch.context() as patched:
        patched.setattr(FakeTracker, "log_validation", refuse, raising=False)
        assert deliver_reports(run.folder, run.spec, [report], run.fencing_token, ()) == "mlflow: takes no scores."
    assert "MLflow lacks full validation" in undelivered_text(run.folder, has_ended=True)
    assert deliver_reports(run.folder, run.spec, [report], run.fencing_token, ()) is None
    assert undelivered_text(run.folder) == ""


def test_files_of_the_version_before_are_read(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    assert (bound_run(run.folder, run.spec), noted_run_id(run.folder)) == (None, "")
    run.folder.mlflow_file.write_text(json.dumps({"run_id": "r", "experiment_id": "1", "tracking_uri": "http://mlflow"}, indent=1))
    run.folder.published_file.write_text(json.dumps({"run_id": "r", "files": {"plans.json": "0" * 64}}, indent=1))
    bound = read_mlflow_run(run.folder)
    assert bound is not None
    assert (bound.run_id, bound.tracking_uri) == ("r", "http://mlflow")
    published = read_published_files(run.folder)
    assert published == PublishedFiles(run_id="r", files={"plans.json": "0" * 64})
    before = run.folder.published_file.read_bytes()
    write_published_files(run.folder, published)
    assert run.folder.published_file.read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"run_id": 7}', '{"run_id": "r", "tracking_uri": null}'])
def test_records_that_are_broken_are_said_or_done_without(content: str, tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.folder.mlflow_file.write_text(content)
    run.folder.published_file.write_text(content)
    with pytest.raises(DataError, match=r"mlflow\.json"):
        read_mlflow_run(run.folder)
    assert noted_run_id(run.folder) == ""
    assert read_published_files(run.folder).files == {}


def test_a_closing_upload_folder_of_another_user_is_no_harm(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.folder.uploading.mkdir()
    os.chmod(run.folder.uploading, 0)
    try:
        clear_uploads(run.folder, time.time())
    finally:
        os.chmod(run.folder.uploading, 0o700)


def test_the_name_of_a_picture_begins_with_the_dice_of_its_case(tmp_path: Path) -> None:
    [folder] = validated_model(tmp_path, {"case_0": 0.5, "case_1": math.nan}, [["case_0", "case_1"]])
    results = [result for case in ("case_0", "case_1") if (result := read_result(folder, "final", case)) is not None]
    assert [picture_name(result, None) for result in results] == ["0.500_case_0.png", "none_case_1.png"]
    hidden = picture_name(results[0], "salt")
    assert hidden.startswith("0.500_")
    assert "case_0" not in hidden


def test_an_early_end_is_a_tag_and_groups_the_run_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, str] = {}
    monkeypatch.setattr(client, "Tracker", FakeTracker)
    monkeypatch.setattr(FakeTracker, "calls", [], raising=False)
    monkeypatch.setattr(FakeTracker, "set_tags", lambda self, run_id, new: tags.update(new), raising=False)
    run = FakeRun(tmp_path)
    run.track("http://mlflow", "r")
    run.epoch()
    channel = MetricsChannel(run.folder, run.fencing_token)
    channel.send(closing=False)
    assert EARLY_END_TAG not in tags
    run.end_early()
    channel.send(closing=True)
    early = "after 1 of 1000 epochs, learning rate not annealed"
    assert tags[EARLY_END_TAG] == early
    assert tags["nnfleet.schedule"] == f"1000 epochs (ended early {early})"
    assert tags["nnfleet.group"] != grouping_tags(run.spec)["nnfleet.group"]
    tags.clear()
    channel.send(closing=False)
    assert not tags, "once is enough"
