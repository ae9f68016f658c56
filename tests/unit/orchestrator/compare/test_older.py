"""Folds of one model that were trained by older code of the user's: which these are, and what `compare` does with them."""

import os
import shutil
from pathlib import Path

import pytest

from orchestrator.compare.choice import compared
from orchestrator.compare.older import Coded, older_code
from orchestrator.errors import ConfigError
from orchestrator.resume.stored import status_of_stored
from orchestrator.resume.unfinished import find_runs
from orchestrator.run.outcome import Outcome, write_outcome
from tests.validated_model import validated_model
from trainers.contract.commits import commit_files
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import OwnCode, OwnParts
from trainers.storage.files import read_json, write_json_atomic

FOLDS = [[f"case_{fold}{number}" for number in range(6)] for fold in range(3)]
OLD, NEW = (OwnParts(trainer=OwnCode(name="mine:Mine", sha256=digit * 64)) for digit in "12")


def test_the_newest_code_is_that_of_the_fold_that_began_last() -> None:
    assert older_code([Coded("a", 5.0), Coded("b", 9.0), Coded("a", 7.0), Coded("b", 1.0)]) == ["a, now b", "", "a, now b", ""]
    assert older_code([Coded("a", 5.0), Coded("a", 9.0)]) == ["", ""]


@pytest.mark.parametrize("unknown", [Coded("", 3.0), Coded("a", 0.0)])
def test_a_fold_of_which_code_or_begin_is_not_known_is_not_judged(unknown: Coded) -> None:
    assert older_code([Coded("b", 9.0), unknown]) == ["", ""]


def trained_by(folder: RunFolder, own: OwnParts, begun_unix: float) -> None:
    write_json_atomic(folder.spec_file, {**read_json(folder.spec_file, "run"), "own": own.model_dump(mode="json")})
    for file in commit_files(folder):
        committed = read_json(file, "commit")
        committed["history"][0]["started_unix"] = begun_unix
        write_json_atomic(file, committed)


def test_folds_of_older_code_are_left_out_with_both_digests(tmp_path: Path) -> None:
    folders = validated_model(tmp_path, lambda case, name: 0.7, FOLDS)
    for folder, own, begun_unix in zip(folders, (OLD, NEW, NEW), (30.0, 40.0, 20.0), strict=True):
        trained_by(folder, own, begun_unix)
    for names in ((), ("901/3d_fullres/nnUNetTrainer",)):
        found = compared(tmp_path / "results", names, "final")
        (model,) = found.answer.models
        assert [fold.spec.fold for fold in model.folds] == [1, 2]
        assert found.left == (
            "901/3d_fullres/nnUNetTrainer/0 (901-0): trained by older code: trainer mine:Mine (SHA-256 111111111111...), now trainer "
            "mine:Mine (SHA-256 222222222222...); named by its key alone it is compared.",
        )
    (alone,) = compared(tmp_path / "results", ("901-0",), "final").answer.models
    assert [fold.spec.fold for fold in alone.folds] == [0], "named, there is no newer one beside it"
    assert len(compared(tmp_path / "results", (), "final", is_forced=True).answer.models[0].folds) == 3


def test_code_of_a_run_that_is_not_validated_yet_makes_others_older_too(tmp_path: Path) -> None:
    first, second = validated_model(tmp_path, lambda case, name: 0.7, FOLDS[:2])
    for folder, own, begun_unix in ((first, OLD, 30.0), (second, NEW, 40.0)):
        trained_by(folder, own, begun_unix)
    shutil.rmtree(second.cases("final"))
    with pytest.raises(
        ConfigError, match=r"no run has a full validation .* trained by older code: .* named by its key alone it is compared"
    ):
        compared(tmp_path / "results", (), "final")
    (alone,) = compared(tmp_path / "results", ("901-0",), "final").answer.models
    assert len(alone.folds) == 1
    for file in commit_files(second):
        file.unlink()
    with pytest.raises(ConfigError, match="trained by older code"):
        compared(tmp_path / "results", (), "final")
    write_outcome(second, Outcome(job="training", state="FAILED_CODE", fencing_token=1, message="a line of it"))
    (model,) = compared(tmp_path / "results", (), "final").answer.models
    assert [fold.spec.fold for fold in model.folds] == [0], "the newer code has trained nothing"


def test_status_and_compare_judge_by_one_time_whenever_a_run_has_failed(tmp_path: Path) -> None:
    """A run of the old code fails before its first epoch, after the new code has begun."""
    first, second = validated_model(tmp_path, lambda case, name: 0.7, FOLDS[:2])
    for folder, own, begun_unix in ((first, OLD, 30.0), (second, NEW, 40.0)):
        trained_by(folder, own, begun_unix)
    for file in commit_files(first):
        file.unlink()
    shutil.rmtree(first.cases("final"))
    os.utime(first.spec_file, (30.0, 30.0))

    def judged() -> list[float]:
        return [status_of_stored(run).begun_unix for run in find_runs(tmp_path / "results")[0]]

    assert judged() == [30.0, 40.0]
    write_outcome(first, Outcome(job="training", state="FAILED_CODE", fencing_token=1, message="a line of it"))
    assert judged() == [0.0, 40.0]
    (model,) = compared(tmp_path / "results", (), "final").answer.models
    assert [fold.spec.fold for fold in model.folds] == [1]
