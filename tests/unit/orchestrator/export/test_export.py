"""What a tracking server says is checked before it decides where a file goes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.export import mlflow_folds
from orchestrator.export.mlflow_folds import fold_in, folds_in_mlflow
from orchestrator.export.model import Exported, export_model
from orchestrator.publishing.checkpoint_store import directory_of
from orchestrator.publishing.published import Published
from orchestrator.run.names import Names, resolve
from orchestrator.tracking.binding import owners_last
from tests.away import BROKEN
from tests.fake_run import FakeRun
from trainers.contract.commits import Manifest


class HostileTracker:
    """A server on which somebody changed the tags of a run."""

    uri = "http://mlflow"

    def __init__(self, tags: dict[str, str]) -> None:
        self._tags = tags

    def ping(self) -> None:
        """It answers."""

    def find_runs(self, text: str) -> list[str]:
        return ["r"]

    def params(self, run_id: str) -> dict[str, str]:
        return {}

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        return {}

    def tags(self, run_id: str) -> dict[str, str]:
        return self._tags


Serve = Callable[[dict[str, str]], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """From now on every address is that of a server with these tags."""
    return lambda tags: monkeypatch.setattr(mlflow_folds, "Tracker", lambda uri: HostileTracker(tags))


def from_mlflow(name: str, target: Path) -> Exported:
    return export_model(name, target, folds_in_mlflow("http://mlflow", name), "in MLflow at http://mlflow")


def with_a_best(tmp_path: Path, **tags: str) -> dict[str, str]:
    best = best_of(tmp_path)
    return {"nnfleet.best": Published(directory=directory_of(best), manifest=best).model_dump_json(), **tags}


def best_of(tmp_path: Path) -> Manifest:
    best = FakeRun(tmp_path).epoch().best
    assert best is not None
    return best


@pytest.mark.parametrize("fold", ["x/../../../victim/fold_0", "..", "", "0\n", "/tmp", "٣"])
def test_a_fold_that_is_no_fold_writes_nothing(fold: str, tmp_path: Path, serve: Serve) -> None:
    serve(with_a_best(tmp_path, **{"nnfleet.fold": fold}))
    with pytest.raises(CheckpointError, match=r"nnfleet\.fold"):
        from_mlflow("key0", tmp_path / "place" / "model")
    assert not (tmp_path / "place").exists()


def test_a_run_without_a_checkpoint_is_a_wish_too_early_and_no_damage(tmp_path: Path, serve: Serve) -> None:
    serve({})
    with pytest.raises(
        ConfigError, match=r"export: key0 in MLflow at http://mlflow has no published checkpoint yet\. .* or resume it if it has stopped"
    ):
        from_mlflow("key0", tmp_path / "model")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "file").touch()
    serve(with_a_best(tmp_path))
    with pytest.raises(ConfigError, match=r"file/deeper cannot be made: .* Name a folder that you may write"):
        from_mlflow("key0", tmp_path / "file" / "deeper" / "model")


def test_folds_of_nnunet_are_folds() -> None:
    assert [fold_in({"nnfleet.fold": fold}) for fold in ("0", "12", "all")] == ["0", "12", "all"]


@pytest.mark.parametrize(
    "directory", ["../../other", "checkpoints/best/../../x", "checkpoints/best/e00001-0123456z", "/etc", "checkpoints/best/e1-01234567\n"]
)
def test_a_published_directory_of_another_form_is_refused(directory: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        Published(directory=directory, manifest=best_of(tmp_path))


def test_the_directory_that_we_write_is_accepted(tmp_path: Path) -> None:
    best = best_of(tmp_path)
    assert Published(directory=directory_of(best), manifest=best).file.endswith("/checkpoint_best.pth")


def test_of_two_runs_at_one_address_the_one_that_their_folder_notes_comes_last(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    address, folder = run.spec.address, str(run.folder.root)
    older, newer = Names("901-old", address, "aaa1", folder), Names("901-new", address, "bbb2", folder)
    elsewhere = Names("901-other", address, "ccc3", "/nowhere/fold_0")
    names = [older, newer, elsewhere]
    assert owners_last(names) == names, "the folder notes none: the newest owns it"
    run.track("http://127.0.0.1:9", "aaa1")
    assert owners_last(names) == [newer, elsewhere, older]
    assert resolve("901-old", owners_last(names), "here") == [2]
    run.folder.mlflow_file.unlink()
    run.folder.mlflow_file.symlink_to(BROKEN)
    assert owners_last(names) == names, "a disk that does not answer says nothing"
