"""Bad and hostile addresses and answers of MLflow, each with the error that answers it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.export.mlflow_folds import fold_in
from orchestrator.publishing.checkpoint_store import download_checkpoint
from orchestrator.run.names import NoSuchRun, resolve
from orchestrator.tracking.address import check_tracking_uri
from tests.hostile import Place, Row, check
from trainers.contract.commits import Manifest


class FakeTracker:
    """An MLflow server whose answers are written by hand."""

    uri = "http://mlflow"

    def __init__(self, tags: Mapping[str, str], content: bytes = b"") -> None:
        self._tags, self._content = dict(tags), content

    def tags(self, run_id: str) -> dict[str, str]:
        return self._tags

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        return {f"{directory}/checkpoint_best.pth": len(self._content)}

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        local = folder / "file"
        local.write_bytes(self._content)
        return local


def answer(directory: str, content: bytes = b"x") -> FakeTracker:
    manifest = Manifest(checkpoint="best", file="f", epoch=1, fencing_token=1, ema_pseudo_dice=0.5, sha256="0" * 64, size_bytes=1)
    tag = {"directory": directory, "manifest": manifest.model_dump()}
    return FakeTracker({"nnfleet.best": json.dumps(tag)}, content)


def fetched(place: Place, tracker: Any) -> object:
    return download_checkpoint(tracker, "run", "best", place.base / "out" / "checkpoint_best.pth")


ROWS: tuple[Row, ...] = (
    Row(
        "experiment",
        "a file as server",
        lambda p: check_tracking_uri("file:///etc/passwd"),
        ConfigError,
        ("tracking.uri: it is not the address of an MLflow server",),
    ),
    Row(
        "experiment",
        "a newline in the server's address",
        lambda p: check_tracking_uri("http://host\n:80"),
        ConfigError,
        ("tracking.uri: it is not the address of an MLflow server",),
    ),
    Row(
        "experiment",
        "a port that is none",
        lambda p: check_tracking_uri("http://host:port"),
        ConfigError,
        ("tracking.uri: it is not the address of an MLflow server",),
    ),
    Row(
        "MLflow",
        "bytes that are not those published",
        lambda p: fetched(p, answer("checkpoints/best/e00001-00000000")),
        CheckpointError,
        ("is not the file of its manifest", "It is not used"),
    ),
    Row(
        "MLflow",
        "a checkpoint outside its folder",
        lambda p: fetched(p, answer("checkpoints/best/../../../etc")),
        CheckpointError,
        ("has no best checkpoint",),
    ),
    Row(
        "MLflow",
        "a tag that is no record",
        lambda p: fetched(p, FakeTracker({"nnfleet.best": '{"directory": 7}'})),
        CheckpointError,
        ("has no best checkpoint",),
    ),
    Row(
        "MLflow",
        "a fold outside its folder",
        lambda p: fold_in({"nnfleet.fold": "../../x"}),
        CheckpointError,
        ("tag nnfleet.fold is '../../x'", "Nothing was written"),
    ),
    Row(
        "MLflow",
        "a run nobody knows",
        lambda p: resolve("x\n'; --", [], "in MLflow"),
        NoSuchRun,
        ('there is no run "x\\n\'; --" in MLflow',),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)
