"""What is sent to MLflow next: pure decisions."""

import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError
from orchestrator.publishing.checkpoint_store import published
from orchestrator.publishing.files_channel import PICTURE_INTERVAL_S, FilesChannel, checkpoints_due, picture_due
from orchestrator.publishing.metrics_channel import MetricsChannel, epochs_missing
from orchestrator.publishing.publisher import Outage, Publisher
from orchestrator.tracking import client
from orchestrator.tracking.records import (
    MARKER_METRIC,
    MAX_CLASS_METRICS,
    epoch_metrics,
    metric_name,
    metric_names,
    metric_path,
)
from tests.fake_run import FakeRun, epoch_row
from trainers.contract.commits import Committed, Manifest
from trainers.contract.run_spec import CheckpointName


def manifest(name: CheckpointName, epoch: int) -> Manifest:
    return Manifest(
        checkpoint=name, file=f"{epoch}.pth", epoch=epoch, fencing_token=1, ema_pseudo_dice=0.5, sha256=f"{name}{epoch}", size_bytes=1
    )


def committed(best: int | None, final: int | None = None, epochs_done: int = 5) -> Committed:
    return Committed(
        run_key="k",
        epochs_done=epochs_done,
        fencing_token=1,
        history=(),
        best=None if best is None else manifest("best", best),
        final=None if final is None else manifest("final", final),
        state_sha256="",
        state_size_bytes=0,
    )


def test_epochs_that_mlflow_lacks_are_sent_in_order_and_gaps_are_filled() -> None:
    history = [epoch_row(number) for number in range(5)]
    assert epochs_missing(history, {0, 2}) == [1, 3, 4]
    assert epochs_missing(history, range(5)) == []


@pytest.mark.parametrize(
    ("held", "waited_s", "closing", "expected"),
    [
        (None, 0.0, False, ["best3"]),  # the first is sent at once
        (2, 10.0, False, []),  # too soon after the last one
        (2, 60.0, False, ["best3"]),
        (2, 0.0, True, ["best3"]),  # the time is up
        (3, 1e9, True, []),  # there already
    ],
)
def test_best_is_published_at_most_once_per_interval(held: int | None, waited_s: float, closing: bool, expected: list[str]) -> None:
    there = {"best": None if held is None else manifest("best", held), "final": None}
    due = checkpoints_due(committed(3), there, waited_s, 60.0, closing)  # type: ignore[arg-type]
    assert [m.sha256 for m in due] == expected


@pytest.mark.parametrize(("epochs_done", "expected"), [(4, []), (9, []), (10, [3])])
@pytest.mark.parametrize("closing", [False, True])
def test_a_best_of_an_epoch_that_the_run_has_not_reached_is_kept_until_it_has_passed_it(
    epochs_done: int, expected: list[int], closing: bool
) -> None:
    due = checkpoints_due(committed(3, epochs_done=epochs_done), {"best": manifest("best", 9)}, 1e9, 60.0, closing)
    assert [m.epoch for m in due] == expected


def test_mlflow_ends_with_the_committed_best_whatever_it_has() -> None:
    due = checkpoints_due(committed(3, final=4), {"best": manifest("best", 900), "final": manifest("final", 4)}, 0.0, 60.0, False)
    assert [m.sha256 for m in due] == ["best3"]


def test_final_is_published_with_the_last_best_without_waiting() -> None:
    due = checkpoints_due(committed(3, final=4), {"best": manifest("best", 2), "final": None}, 0.0, 60.0, False)
    assert [m.sha256 for m in due] == ["best3", "final4"]


class FakeStore:
    """Tags and artifacts of one run, in memory."""

    def __init__(self) -> None:
        self.tags_of_run: dict[str, str] = {}
        self.files: dict[str, int] = {}

    def ping(self) -> None:
        """It is there."""

    def restore_run(self, run_id: str) -> None:
        """Nobody has deleted it."""

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.tags_of_run)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.tags_of_run.update(tags)

    def upload_file(self, run_id: str, local: Path, directory: str, name: str) -> None:
        self.files[f"{directory}/{name}"] = local.stat().st_size

    def upload_bytes(self, run_id: str, content: bytes, path: str) -> None:
        self.files[path] = len(content)

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int]:
        return {path: size for path, size in self.files.items() if path.startswith(f"{directory}/")}


def test_a_run_that_lost_its_newest_state_takes_no_best_from_mlflow_before_it_has_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, store = FakeRun(tmp_path), FakeStore()
    run.track("http://mlflow", "r")
    monkeypatch.setattr(client, "Tracker", lambda uri: store)
    tracker: Any = store

    def held_epoch() -> int:
        FilesChannel(run.folder, run.fencing_token).send_checkpoints(tracker, "r", closing=False)  # as the publisher of a new job
        record = published(tracker, "r", "best")
        assert record is not None
        return record.manifest.epoch

    run.epoch()
    older = run.best
    run.epoch()
    assert held_epoch() == 1
    max(run.folder.state.glob("*.json")).unlink()
    run.resume()
    run.rows.pop()
    run.best = older
    assert held_epoch() == 1
    run.epoch(is_best=False)  # on a GPU the same epoch may come out worse
    assert held_epoch() == 0
    assert published(tracker, "r", "best").manifest == older  # type: ignore[union-attr]


def test_nothing_is_due_without_a_checkpoint() -> None:
    assert checkpoints_due(committed(None), {}, 1e9, 0.0, True) == []


def test_picture_waits_for_its_interval_except_at_first_and_at_the_end() -> None:
    assert picture_due(1, 0, math.inf, False)
    assert not picture_due(2, 1, PICTURE_INTERVAL_S - 1, False)
    assert picture_due(2, 1, PICTURE_INTERVAL_S, False)
    assert picture_due(2, 1, 0.0, True)
    assert not picture_due(2, 2, math.inf, True)


def test_outage_is_logged_once_with_its_end(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("metrics")
    for _ in range(3):
        outage.failed(ConfigError("away."))
    outage.ended()
    outage.ended()
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]
    assert "no metrics since" in caplog.messages[0]
    assert "away." in caplog.messages[0]
    assert "again" in caplog.messages[1]


def test_best_score_is_logged_only_where_it_rises() -> None:
    emas = [None, 0.5, 0.4, 0.5, 0.6, math.nan, 0.55, 0.7]
    records = epoch_metrics([epoch_row(n, ema) for n, ema in enumerate(emas)], ("a", "b"))
    assert {r.epoch: r.values["best/ema_pseudo_dice"] for r in records if "best/ema_pseudo_dice" in r.values} == {1: 0.5, 4: 0.6, 7: 0.7}


def test_values_that_are_not_finite_are_left_out_but_every_epoch_has_its_marker() -> None:
    row = epoch_row(0, None).model_copy(update={"val_loss": math.inf, "epoch_s": math.nan})
    [record] = epoch_metrics([row], ("a", "b"))
    assert "val/loss" not in record.values
    assert "val/pseudo_dice/b" not in record.values
    assert "val/ema_pseudo_dice" not in record.values
    assert record.values["val/pseudo_dice/a"] == 0.5
    assert record.values[MARKER_METRIC] == 0.0
    assert record.timestamp_ms == 1_700_000_009_500


def test_hundreds_of_classes_get_no_curves_each() -> None:
    many = MAX_CLASS_METRICS + 1
    [record] = epoch_metrics([epoch_row(0, dice=(0.5,) * many)], [f"c{n}" for n in range(many)])
    assert not [key for key in record.values if key.startswith("val/pseudo_dice/")]


def test_class_names_become_names_that_mlflow_takes() -> None:
    assert metric_name("tumour (100%)/core") == "tumour _100__ _core".replace(" _core", "_core")
    assert metric_names(["a+", "a*", "a"]) == ["a_", "a__2", "a"]
    assert metric_path("full/best/dice/left#1") == "full/best/dice/left_1"


def test_a_publisher_that_begins_later_sends_nothing_before_it_is_asked_to_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, sent = FakeRun(tmp_path), list[bool]()

    def send(channel: object, closing: bool) -> bool:
        sent.append(closing)
        return True

    for channel in (MetricsChannel, FilesChannel):
        monkeypatch.setattr(channel, "send", send)
    publisher = Publisher(run.folder, run.fencing_token, first_s=600.0)
    publisher.start()
    assert publisher.flush(60.0)
    publisher.stop()
    assert sent == [True, True]
