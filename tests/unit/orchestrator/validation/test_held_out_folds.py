"""Which folds of a model predict a test set: the same that an export takes."""

import shutil
from pathlib import Path

import pytest

from orchestrator.dataset.previous_stage import contents_of_previous
from orchestrator.errors import ConfigError, DataError
from orchestrator.export.fold_sources import folds_below
from orchestrator.export.model import export_model
from orchestrator.validation.held_out_first_stage import first_stage_folds, first_stage_of
from orchestrator.validation.held_out_folds import folds_of
from tests.fake_run import FakeRun
from tests.unit.orchestrator.experiment.test_stages import write
from trainers.contract.cascade import predictions_of, read_record, record_of
from trainers.contract.commits import commit_files
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PreviousStage, Schedule
from trainers.storage.files import link_atomic, read_json, sha256_of, write_atomic, write_json_atomic

MODEL = "901/3d_fullres/nnUNetTrainer"
FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"
DATASET = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}


def trained(tmp_path: Path, fold: int = 0, **settings: object) -> FakeRun:
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


def of_both_stages(tmp_path: Path, sources: dict[str, str], fold: int = 0) -> RunFolder:
    """A trained fold of a second stage, whose cases are case_0 to case_2."""
    model_folder = tmp_path / "results" / "Dataset901_Toy" / f"nnUNetTrainer__nnUNetPlans__{SECOND}"
    stage = PreviousStage(configuration=FIRST, sources=sources)
    return trained(tmp_path, fold, configuration=SECOND, model_folder=model_folder, previous_stage=stage).folder


def first_stage_run(tmp_path: Path, fold: int, case: str) -> RunFolder:
    run = trained(tmp_path, fold, configuration=FIRST, model_folder=first_stage_place(tmp_path), val_cases=(case,))
    return run.folder


def first_stage_place(tmp_path: Path) -> Path:
    return tmp_path / "results" / "Dataset901_Toy" / f"nnUNetTrainer__nnUNetPlans__{FIRST}"


def nnunets_first_stage(tmp_path: Path, fold: int, case: str) -> RunFolder:
    """A fold that nnU-Net trained and validated."""
    folder = RunFolder(first_stage_place(tmp_path) / f"fold_{fold}")
    write_json_atomic(folder.summary("final"), {"metric_per_case": [{"prediction_file": rf"D:\results\{case}.nii.gz"}]})
    write_json_atomic(folder.model_folder / "dataset.json", DATASET)
    write_atomic(folder.checkpoint("final"), b"weights")
    return folder


def test_a_second_stage_predicts_with_the_runs_that_it_was_trained_on(tmp_path: Path) -> None:
    """Those that its record names, by fold, and no other one beside them."""
    first = [first_stage_run(tmp_path, fold, f"case_{fold}") for fold in range(4)]
    second = of_both_stages(tmp_path, {"case_0": "run k2", "case_1": "run k0", "case_2": "run k1"})
    assert first_stage_folds([second]) == first[:3]
    assert folds_of("901/3d_cascade_fullres", tmp_path / "results")[0] == [second]
    assert first_stage_folds(first) == []


@pytest.mark.parametrize(
    ("run", "file", "text"),
    [
        (
            "k2",
            "",
            r"is the second stage of a cascade, and .* '3d_lowres' .* is not all there: {place} does not hold k2\. Bring the folder",
        ),
        ("k1", "fold_1/checkpoint_final.pth", r"{place}/fold_1/checkpoint_final\.pth does not exist\. Put it back from a backup"),
    ],
)
def test_a_first_stage_whose_weights_are_away_is_refused_with_the_cure(tmp_path: Path, run: str, file: str, text: str) -> None:
    first_stage_run(tmp_path, 0, "case_0")
    first_stage_run(tmp_path, 1, "case_1")
    of_both_stages(tmp_path, {"case_0": "run k0", "case_1": "run k0", "case_2": f"run {run}"})
    if file:
        (first_stage_place(tmp_path) / file).unlink()
    with pytest.raises(ConfigError, match=text.format(place=first_stage_place(tmp_path))):
        folds_of("901/3d_cascade_fullres", tmp_path / "results")


def test_segmentations_of_nnunets_are_of_the_folds_that_were_validated_on_the_cases(tmp_path: Path) -> None:
    """By its summary.json, also of another system; fold `all` only where no other one was."""
    first = [nnunets_first_stage(tmp_path, fold, f"case_{fold}") for fold in range(2)]
    every = RunFolder(first_stage_place(tmp_path) / "fold_all")
    write_json_atomic(every.summary("final"), {"metric_per_case": [{"prediction_file": f"/x/case_{n}.nii.gz"} for n in range(2)]})
    second = of_both_stages(tmp_path, {"case_0": "0" * 16, "case_1": "1" * 16})
    with pytest.raises(ConfigError, match=r"no fold in .*3d_lowres was validated on case_2\. Bring all folds back"):
        first_stage_folds([second])
    third = nnunets_first_stage(tmp_path, 2, "case_2")
    assert first_stage_folds([second]) == [*first, third]
    write_json_atomic(third.summary("final"), [])
    with pytest.raises(DataError, match=r"summary\.json is no summary\.json of nnU-Net's"):
        first_stage_folds([second])


def test_folds_that_were_trained_on_different_first_stages_do_not_predict_together(tmp_path: Path) -> None:
    first_stage_run(tmp_path, 0, "case_0")
    for fold, source in enumerate(("run k0", "f" * 16)):
        of_both_stages(tmp_path, dict.fromkeys(("case_0", "case_1", "case_2"), source), fold=fold)
    with pytest.raises(
        ConfigError, match=r"fold 1 differs from fold 0 in the first stage's segmentations of case_0, case_1, case_2\. Name one of them"
    ):
        folds_of(f"901/{SECOND}", tmp_path / "results")
    assert len(folds_of(f"901/{SECOND}/nnUNetTrainer/0", tmp_path / "results")[0]) == 1


def with_segmentations(tmp_path: Path) -> tuple[list[RunFolder], RunFolder]:
    """Three folds of a first stage with the segmentations that they left, and a fold of the second that noted them when it began."""
    first = [first_stage_run(tmp_path, fold, f"case_{fold}") for fold in range(3)]
    second = of_both_stages(tmp_path, {f"case_{fold}": f"run k{fold}" for fold in range(3)})
    place = first_stage_place(tmp_path)
    for fold, folder in enumerate(first):
        leave(folder, fold)
    write_json_atomic(place / "dataset.json", DATASET)
    plans = read_json(second.spec().preprocessed_folder / "nnUNetPlans.json", "plans")
    write_json_atomic(place / "plans.json", {**plans, "configurations": {FIRST: plans["configurations"]["3d_fullres"]}})
    values = contents_of_previous(predictions_of(place, SECOND), ["case_0", "case_1", "case_2"], tmp_path)
    write_json_atomic(second.previous_stage_file, {case: reading.sha256[:16] for case, reading in values.items()})
    return first, second


def leave(folder: RunFolder, fold: int, value: int = 1) -> None:
    """The segmentation of its case by the present final weights."""
    place = predictions_of(folder.model_folder, SECOND)
    write(place, f"case_{fold}", value, f"k{fold}")
    record = read_record(place, f"case_{fold}")
    assert record is not None
    record = record.model_copy(update={"checkpoint_sha256": sha256_of(folder.checkpoint("final"))})
    write_json_atomic(record_of(place, f"case_{fold}"), record.model_dump())


def with_other_weights(folder: RunFolder) -> None:
    """As after another training under the same run key."""
    for file in commit_files(folder):
        file.unlink()
    write_atomic(folder.checkpoint("final"), b"other weights")


def test_a_first_stage_with_other_weights_under_the_same_key_is_refused(tmp_path: Path) -> None:
    """By what made the segmentations, before it is validated again; after that by the segmentations themselves."""
    first, second = with_segmentations(tmp_path)
    found = first_stage_of([second])
    assert found is not None
    assert found.weights_sha256 == tuple(sha256_of(fold.checkpoint("final")) for fold in first)
    with_other_weights(first[1])
    with pytest.raises(
        ConfigError, match=r"final weights in .* did not make the segmentation of case_1 in .* train '3d_cascade_fullres' anew"
    ):
        first_stage_of([second])
    leave(first[1], 1)
    assert first_stage_of([second]) is not None, "the same segmentation all the same"
    leave(first[1], 1, value=2)
    with pytest.raises(ConfigError, match=r"the segmentation of case_1 is not the one that it was trained on\. Put"):
        first_stage_of([second])
    shutil.rmtree(predictions_of(first_stage_place(tmp_path), SECOND))
    assert first_stage_of([second]) is not None, "nothing is known of them"
