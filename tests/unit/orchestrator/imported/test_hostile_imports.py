"""Bad and hostile folders of nnU-Net's, each with the error that answers it."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.errors import CheckpointError, DataError
from orchestrator.imported.scores import dice_of_summary
from orchestrator.imported.trained_fold import read_trained_fold
from tests.hostile import Evil, Place, Row, check
from tests.nnunet_folder import DEBUG, checkpoint_of
from trainers.contract.run_folder import RunFolder


def _fold(place: Place, write: Callable[[Path], object]) -> object:
    """A fold whose checkpoint_final.pth, at the path that is given, or other files are as `write` makes them."""
    root = place.base / "Dataset017_Tiny" / "nnUNetTrainer__nnUNetPlans__2d" / "fold_0"
    root.mkdir(parents=True)
    torch.save(_content(), root / "checkpoint_final.pth")
    write(root / "checkpoint_final.pth")
    return read_trained_fold(RunFolder(root))


def _content(**changes: Any) -> dict[str, Any]:
    return checkpoint_of("nnUNetTrainer", "2d", 0, **changes)


def _saved(**changes: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(_content(**changes), path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _packed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))


def _empty(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/version", "3")


def _debug(content: str) -> Callable[[Path], object]:
    return lambda path: path.with_name("debug.json").write_text(content)


def _summary(place: Place, content: str) -> object:
    folder = RunFolder(place.base)
    folder.validation("final").mkdir()
    folder.summary("final").write_text(content)
    return dice_of_summary(folder, ".nii")


def _case(**changes: Any) -> str:
    case = {"prediction_file": "/p/case_0.nii", "metrics": {"1": {"Dice": 0.5}}} | changes
    return json.dumps({"metric_per_case": [case]})


ROWS: tuple[Row, ...] = (
    Row(
        "nnU-Net's checkpoint",
        "pickled code",
        lambda p: _fold(p, _saved(x=Evil(p.mark))),
        CheckpointError,
        ("posix.system", "could run code"),
    ),
    Row("nnU-Net's checkpoint", "truncated", lambda p: _fold(p, _cut), CheckpointError, ("checkpoint_final.pth is not read", "Restore")),
    Row("nnU-Net's checkpoint", "packed pickle", lambda p: _fold(p, _packed), CheckpointError, ("is compressed or larger",)),
    Row("nnU-Net's checkpoint", "no pickle", lambda p: _fold(p, _empty), CheckpointError, ("holds 0 pickles",)),
    Row(
        "nnU-Net's checkpoint",
        "no checkpoint",
        lambda p: _fold(p, lambda path: torch.save([1], path)),
        CheckpointError,
        ("is no nnU-Net checkpoint", "Take another one"),
    ),
    Row(
        "nnU-Net's checkpoint",
        "no arguments",
        lambda p: _fold(p, _saved(init_args=3)),
        DataError,
        ("is by its own words of", "Bring it back"),
    ),
    Row(
        "nnU-Net's checkpoint",
        "epochs",
        lambda p: _fold(p, _saved(current_epoch=-1)),
        DataError,
        ("has -1 as its number of epochs", "Restore the file"),
    ),
    Row("nnU-Net's checkpoint", "curves", lambda p: _fold(p, _saved(logging={"lrs": 1})), DataError, ("holds no curves", "mean_fg_dice")),
    Row(
        "nnU-Net's debug.json",
        "a setting that is none",
        lambda p: _fold(p, _debug(json.dumps(DEBUG | {"initial_lr": "fast"}))),
        DataError,
        ("debug.json gives initial_lr as 'fast'", "Restore the file, or remove it"),
    ),
    Row("nnU-Net's debug.json", "a list", lambda p: _fold(p, _debug("[]")), DataError, ("debug.json must hold an object, got []",)),
    Row("nnU-Net's summary.json", "other keys", lambda p: _summary(p, "{}"), DataError, ("is no summary.json of nnU-Net's", "--val again")),
    Row("nnU-Net's summary.json", "a number", lambda p: _summary(p, "3"), DataError, ("is no summary.json of nnU-Net's",)),
    Row(
        "nnU-Net's summary.json",
        "a Dice of words",
        lambda p: _summary(p, _case(metrics={"1": {"Dice": "x"}})),
        DataError,
        ("no summary.json",),
    ),
    Row(
        "nnU-Net's summary.json",
        "a Dice beyond all floats",
        lambda p: _summary(p, _case(metrics={"1": {"Dice": 10**400}})),
        DataError,
        ("no summary.json",),
    ),
    Row(
        "nnU-Net's summary.json",
        "another ending",
        lambda p: _summary(p, _case(prediction_file="/p/case_0.mha")),
        DataError,
        ("'case_0.mha' does not end in .nii",),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)
