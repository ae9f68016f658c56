"""Which folds of a model predict a test set: the same that an export takes."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.export.fold_sources import folds_below
from orchestrator.export.model import export_model
from orchestrator.validation.held_out_folds import folds_of
from tests.fake_run import FakeRun
from trainers.contract.run_spec import PreviousStage, Schedule
from trainers.storage.files import link_atomic

MODEL = "901/3d_fullres/nnUNetTrainer"


def trained(tmp_path: Path, fold: int, **settings: object) -> FakeRun:
    run = FakeRun(tmp_path, f"k{fold}", fold, **settings)
    run.epoch()
    committed = run.finish()
    assert committed.best is not None
    link_atomic(run.folder.root / committed.best.file, run.folder.checkpoint("best"))
    return run


def test_a_fold_without_a_checkpoint_is_left_out_by_name_as_an_export_does(tmp_path: Path) -> None:
    first, third = trained(tmp_path, 0), trained(tmp_path, 2)
    FakeRun(tmp_path, "k1", 1, schedule=Schedule(epochs=7))
    folds, left = folds_of(MODEL, tmp_path / "results")
    assert folds == [first.folder, third.folder]
    assert left == ["fold 1 has no checkpoint yet and does not predict."]
    exported = export_model(MODEL, tmp_path / "model", folds_below(tmp_path / "results", MODEL), "here")
    assert [*exported.folds] == ["0", "2"]
    assert [sentence.split(" has")[0] for sentence in exported.left] == ["fold 1"]


def test_a_model_without_any_checkpoint_and_folds_of_unlike_schedules_are_refused(tmp_path: Path) -> None:
    FakeRun(tmp_path, "k0", 0)
    with pytest.raises(ConfigError, match=r"test set: 901 has no checkpoint yet\. Wait for its first epochs"):
        folds_of("901", tmp_path / "results")
    trained(tmp_path, 1)
    trained(tmp_path, 2, schedule=Schedule(epochs=7))
    with pytest.raises(ConfigError, match=r"fold 2 differs from fold 1 in epochs \(7 instead of 1000\)"):
        folds_of(MODEL, tmp_path / "results")


def test_the_second_stage_of_a_cascade_is_refused_before_a_job_starts(tmp_path: Path) -> None:
    trained(tmp_path, 0, previous_stage=PreviousStage(configuration="3d_lowres", sources={"a": "0" * 16}))
    with pytest.raises(ConfigError, match="predicts new images with one stage alone. .* with 3d_lowres, .* -prev_stage_predictions"):
        folds_of(MODEL, tmp_path / "results")
