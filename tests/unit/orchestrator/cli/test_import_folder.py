"""`nnfleet import` on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import api
from orchestrator.cli import app
from orchestrator.errors import ConfigError, DataError
from orchestrator.imported.importing import ImportedFold
from tests.nnunet_folder import nnunet_fold, tiny_with_split
from tests.unit.tiny_dataset import tiny_dataset

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SimpleITK's own


def test_each_fold_has_its_line_and_one_that_is_refused_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_with_split(tiny_dataset(tmp_path))
    monkeypatch.setenv("nnUNet_preprocessed", str(tiny.preprocessed.parent))
    monkeypatch.setenv("NNFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    roots = [nnunet_fold(tiny, fold) for fold in (0, 1)]
    (roots[1] / "checkpoint_final.pth").unlink()
    said = CliRunner().invoke(app, ["import", str(roots[0].parent)])
    assert said.exit_code == DataError.exit_code
    assert "17/3d_fullres/nnUNetTrainer+imported/0 (" in said.stdout
    assert "mean Dice 0.3333" in said.stdout
    assert "its training has not ended" in said.stdout.replace("\n", " ")
    again = CliRunner().invoke(app, ["import", str(roots[0]), "--json"])
    assert again.exit_code == 0
    assert [fold["note"] for fold in json.loads(again.stdout)] == ["already imported"]


def test_a_half_done_training_is_imported_with_the_workers_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def import_folder(*names: Any, **options: Any) -> list[ImportedFold]:
        asked.update(options)
        return [ImportedFold(folder=names[0], run_key="key", address="17/2d/nnUNetTrainer+continued/0", note="imported.")]

    monkeypatch.setattr(api, "import_folder", import_folder)
    monkeypatch.setattr(api, "is_local", lambda: False)
    said = CliRunner().invoke(app, ["import", "fold_0", "--continue", "-num_gpus", "2", "--cpus", "4"])
    assert (said.exit_code, said.stdout.split()[0]) == (0, "17/2d/nnUNetTrainer+continued/0")
    assert asked == {"continues": True, "workers": {"count": 2, "cpus": 4}}


def test_workers_for_what_is_only_read_are_refused() -> None:
    said = CliRunner().invoke(app, ["import", "fold_0", "--cpu"])
    assert isinstance(said.exception, ConfigError)
    assert "--continue" in str(said.exception)
