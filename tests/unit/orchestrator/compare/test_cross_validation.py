"""The cross-validation of a model folder: nnU-Net's crossval_results folder beside nnU-Net's own function, and when there is one."""

import errno
import json
import multiprocessing.dummy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

from orchestrator.compare.cross_validation import CrossValidation, cross_validation
from orchestrator.compare.crossval_folder import refresh_crossval
from orchestrator.run.crossvals import MARK, drop_crossval, remove_crossvals
from tests.validated_model import model_with_predictions
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import read_json, write_atomic, write_json_atomic
from trainers.validation.case_metrics import case_metrics

FOLDS = [["case_b", "case_d"], ["case_a"], ["case_c"]]
SHAPE = (4, 5, 6)


@pytest.fixture
def folds(tmp_path: Path) -> list[RunFolder]:
    """Three validated folds with a prediction file for each case."""
    return model_with_predictions(tmp_path, FOLDS)


def write_labels(path: Path, values: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))


def score_random_predictions(folds: Sequence[RunFolder]) -> None:
    """Real label files in reference and prediction of every case, and the scores that a validation finds; `case_c` has no foreground."""
    generator = np.random.default_rng(0)
    labels = labels_of(load_dataset_json(folds[0].model_folder))
    for folder in folds:
        for case in folder.spec().val_cases:
            reference, prediction = generator.integers(0, 1 if case == "case_c" else 3, (2, *SHAPE)).astype(np.uint8)
            file = folder.spec().preprocessed_folder / "gt_segmentations" / f"{case}.nii.gz"
            write_labels(file, reference)
            write_labels(folder.validation("final") / f"{case}.nii.gz", prediction)
            result = read_json(folder.cases("final") / f"{case}.json", "result")
            metrics = case_metrics(reference, prediction, (1.0, 1.0, 1.0), labels, 1.0)
            changes = {"reference_file": str(file), "metrics": {name: found.model_dump() for name, found in metrics.items()}}
            write_json_atomic(folder.cases("final") / f"{case}.json", {**result, **changes})


def nnunets_folder(model_folder: Path, preprocessed: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What nnU-Net's own function makes of the folds, with threads in place of its pool of spawned processes."""
    from nnunetv2.evaluation import accumulate_cv_results as theirs
    from nnunetv2.evaluation import evaluate_predictions

    threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    monkeypatch.setattr(evaluate_predictions, "multiprocessing", threads)
    monkeypatch.setattr(theirs, "nnUNet_raw", str(target.parent / "no_raw"))
    monkeypatch.setattr(theirs, "nnUNet_preprocessed", str(preprocessed))
    theirs.accumulate_cv_results(str(model_folder), str(target), (0, 1, 2), num_processes=1)
    return dict(json.loads((target / "summary.json").read_text()))


@pytest.mark.filterwarnings("ignore")  # nnU-Net's and its readers' own
def test_the_folder_and_its_summary_are_nnunets(folds: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder = folds[0].model_folder
    plans = {**read_json(model_folder / "plans.json", "plans"), "dataset_name": "Dataset901_Toy", "label_manager": "LabelManager"}
    write_json_atomic(model_folder / "plans.json", {**plans, "image_reader_writer": "SimpleITKIO"})
    score_random_predictions(folds)
    made = refresh_crossval(model_folder)
    assert made == model_folder / "crossval_results_folds_0_1_2"
    theirs = nnunets_folder(model_folder, tmp_path / "preprocessed", tmp_path / "theirs", monkeypatch)
    assert {path.name for path in made.iterdir()} - {MARK} == {path.name for path in (tmp_path / "theirs").iterdir()}
    for file in ("plans.json", "dataset.json", *(f"case_{letter}.nii.gz" for letter in "abcd")):
        assert (made / file).read_bytes() == (tmp_path / "theirs" / file).read_bytes(), file
    ours = json.loads((made / "summary.json").read_text())
    cases = json.dumps(theirs["metric_per_case"], sort_keys=True).replace(str(tmp_path / "theirs"), str(made))
    assert json.dumps(ours["metric_per_case"], sort_keys=True) == cases, "as text, NaN equals NaN"
    for key, values in theirs["mean"].items():
        assert ours["mean"][key] == pytest.approx(values, nan_ok=True, rel=1e-12)
    assert ours["foreground_mean"] == pytest.approx(theirs["foreground_mean"], rel=1e-12)


def test_predictions_are_second_names_and_nothing_is_written_twice(folds: list[RunFolder]) -> None:
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None
    assert os.path.samefile(made / "case_b.nii.gz", folds[0].validation("final") / "case_b.nii.gz")
    before = made.stat().st_ino
    assert refresh_crossval(folds[0].model_folder) == made
    assert made.stat().st_ino == before
    assert not list(made.parent.glob(".crossval*"))


@pytest.mark.parametrize("changed", ["its prediction", "its score"])
def test_it_is_made_anew_when_a_fold_was_validated_anew(folds: list[RunFolder], changed: str) -> None:
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None
    summary = (made / "summary.json").read_bytes()
    if changed == "its prediction":
        write_atomic(folds[1].validation("final") / "case_a.nii.gz", b"new")
    else:
        score_random_predictions(folds[1:2])
    assert refresh_crossval(made.parent) == made
    assert (made / "case_a.nii.gz").read_bytes() == (folds[1].validation("final") / "case_a.nii.gz").read_bytes()
    assert ((made / "summary.json").read_bytes() == summary) is (changed == "its prediction")


def test_there_is_none_until_every_fold_is_validated_and_one_of_fewer_folds_is_replaced(tmp_path: Path, folds: list[RunFolder]) -> None:
    model_folder, result = folds[0].model_folder, folds[2].cases("final") / "case_c.json"
    (hidden := tmp_path / "hidden").mkdir()
    folds[2].root.rename(hidden / "fold_2")
    made = refresh_crossval(model_folder)
    assert made is not None
    assert made.name == "crossval_results_folds_0_1"
    (hidden / "fold_2").rename(folds[2].root)
    content = result.read_bytes()
    result.unlink()
    assert refresh_crossval(model_folder) is None
    assert made.is_dir(), "of the folds 0 and 1 it is true still"
    result.write_bytes(content)
    assert refresh_crossval(model_folder) == model_folder / "crossval_results_folds_0_1_2"
    assert not made.exists()


def test_a_fold_that_is_validated_anew_takes_the_folder_away_first(folds: list[RunFolder]) -> None:
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None
    drop_crossval(made.parent, 7)
    assert made.is_dir()
    drop_crossval(made.parent, 1)
    assert not made.exists()


def test_a_folder_of_nnunets_own_is_never_touched(folds: list[RunFolder]) -> None:
    theirs = folds[0].model_folder / "crossval_results_folds_0_1_2"
    write_atomic(theirs / "summary.json", b"theirs")
    assert refresh_crossval(theirs.parent) is None
    drop_crossval(theirs.parent, 0)
    assert [path.read_bytes() for path in theirs.iterdir()] == [b"theirs"]


def test_without_hard_links_it_holds_the_summary_alone(folds: list[RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr("orchestrator.compare.crossval_folder.os.link", link)
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None
    assert {path.name for path in made.iterdir()} == {"summary.json", "plans.json", "dataset.json", MARK}
    cases = json.loads((made / "summary.json").read_text())["metric_per_case"]
    assert [Path(case["prediction_file"]).parent.parent.name for case in cases] == ["fold_1", "fold_0", "fold_2", "fold_0"]
    before = made.stat().st_ino
    assert refresh_crossval(made.parent) == made
    assert made.stat().st_ino == before


def test_what_lacks_and_what_does_not_go_together_is_stated(folds: list[RunFolder]) -> None:
    model_folder = folds[0].model_folder
    (model_folder / "fold_3" / "validation").mkdir(parents=True)
    (model_folder / "fold_all").mkdir()
    found = cross_validation(model_folder)
    assert isinstance(found, CrossValidation)
    assert found.folds == ("0", "1", "2")
    assert found.lacking == {"3": "it was not trained by nnfleet"}
    spec = read_json(folds[2].spec_file, "run")
    write_json_atomic(folds[2].spec_file, {**spec, "schedule": {**spec["schedule"], "epochs": 7}})
    assert cross_validation(model_folder) == ("901/3d_fullres/nnUNetTrainer: fold 2 differs from fold 0 in epochs (7 instead of 1000)")
    assert refresh_crossval(model_folder) is None


def test_one_with_files_that_are_not_ours_is_kept_beside_its_place_and_named(
    folds: list[RunFolder], caplog: pytest.LogCaptureFixture
) -> None:
    """As nnU-Net's determine_postprocessing leaves them there."""
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None
    steps: tuple[Callable[[], object], ...] = (
        lambda: score_random_predictions(folds[1:2]),
        lambda: drop_crossval(made.parent, 1),
    )
    for again in steps:
        (made / "postprocessing.pkl").write_bytes(b"theirs")
        caplog.clear()
        again()
        refresh_crossval(made.parent)
        kept = max(made.parent.glob(f"kept-{made.name}-*"), key=lambda path: path.stat().st_ctime_ns)
        assert caplog.messages == [f"{made} holds files that nnfleet did not make (postprocessing.pkl): it is kept as {kept}"]
        assert (kept / "postprocessing.pkl").read_bytes() == b"theirs"
        assert (kept / "case_a.nii.gz").is_file()
        assert made.is_dir()
        assert not (made / "postprocessing.pkl").exists()


def test_what_cannot_be_deleted_yet_has_left_its_place_and_goes_at_the_next_drop(
    folds: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill within the removal, or a file that NFS keeps while it is open."""
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None
    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.run.crossvals.shutil.rmtree", lambda folder, ignore_errors: (folder / MARK).unlink(missing_ok=True))
        assert remove_crossvals([made, made]) == [made]
    assert not made.exists()
    assert len(list(made.parent.glob(f".{made.name}.gone-*"))) == 1
    drop_crossval(made.parent, 7)
    assert not list(made.parent.glob(".*"))
    assert refresh_crossval(made.parent) == made


def test_one_that_cannot_be_renamed_keeps_its_mark_and_is_named(
    folds: list[RunFolder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = refresh_crossval(folds[0].model_folder)
    assert made is not None

    def rename(self: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", rename)
    assert remove_crossvals([made]) == []
    assert f"{made} cannot be removed: Permission denied." in caplog.text
    assert (made / MARK).is_file()
    assert (made / "case_a.nii.gz").is_file()
