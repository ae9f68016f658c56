"""Folds of a cascade's second stage that nnU-Net trained, as runs of ours, with its first stage imported or not."""

import os
from pathlib import Path

import pytest

from orchestrator.compare.choice import compared
from orchestrator.errors import ConfigError
from orchestrator.imported.importing import ImportedFold, import_folder
from orchestrator.validation.held_out_first_stage import first_stage_folds, first_stage_of
from orchestrator.validation.held_out_folds import folds_of
from tests.nnunet_folder import START_UNIX, nnunet_fold, tiny_with_split
from tests.unit.orchestrator.experiment.test_stages import FIRST, SECOND, write
from tests.unit.tiny_dataset import CASES, CONFIGURATIONS, Tiny, tiny_dataset
from trainers.contract.cascade import first_stage_folder, previous_predictions
from trainers.contract.run_folder import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SimpleITK's own
MODEL = f"17/{SECOND}/nnUNetTrainer+imported"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """With both stages in its plans."""
    tiny = tiny_with_split(tiny_dataset(tmp_path))
    tiny.write_plans(configurations={**CONFIGURATIONS, FIRST: {"inherits_from": "3d_fullres", "next_stage": SECOND}})
    return tiny


def both_stages(tiny: Tiny, results: Path | None = None) -> tuple[list[RunFolder], RunFolder]:
    """Both folds of a first stage, with the segmentations that it left before the second was trained, and a fold of that."""
    first = [RunFolder(nnunet_fold(tiny, fold, configuration=FIRST, results=results)) for fold in (0, 1)]
    second = RunFolder(nnunet_fold(tiny, configuration=SECOND, results=results))
    for case in CASES:
        write(segmentations(first[0]), case)
        os.utime(segmentations(first[0]) / f"{case}.b2nd", (START_UNIX - 1, START_UNIX - 1))
    return first, second


def segmentations(first: RunFolder) -> Path:
    return first.model_folder / "predicted_next_stage" / SECOND


def imported(tiny: Tiny, folder: Path, results: Path | None = None) -> list[ImportedFold]:
    return list(import_folder(folder, tiny.preprocessed.parent, results))


def test_it_is_imported_with_a_record_of_what_nnunet_left_for_it(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    first, second = both_stages(tiny)
    (fold,) = imported(tiny, second.root)
    assert (fold.lacking, fold.address, "segmentation" in caplog.text) == ("", f"{MODEL}/0", False)
    spec = second.spec()
    assert spec.previous_stage is not None
    assert (spec.previous_stage.configuration, spec.previous_stage.run_keys) == (FIRST, ())
    assert set(spec.previous_stage.sources) == set(CASES)
    assert previous_predictions(spec, FIRST) == segmentations(first[0])
    assert [model.spec.run_key for model in compared(tiny.results, [], "final").answer.models] == [fold.run_key]


@pytest.mark.parametrize("is_linked", [False, True])
@pytest.mark.parametrize("is_first_imported", [False, True])
def test_it_predicts_with_nnunets_first_stage(tiny: Tiny, tmp_path: Path, is_linked: bool, is_first_imported: bool) -> None:
    """Imported or not, and where the second stage was linked into other results."""
    first, second = both_stages(tiny, tmp_path / "theirs")
    results = tmp_path / "ours" if is_linked else tmp_path / "theirs"
    if is_first_imported:
        assert [fold.lacking for fold in imported(tiny, first[0].model_folder)] == ["", ""]
    (fold,) = imported(tiny, second.root, results)
    assert fold.run_folder is not None
    assert first_stage_folds([RunFolder(fold.run_folder)]) == first
    first[1].checkpoint("final").unlink()
    with pytest.raises(ConfigError, match=rf"{first[1].checkpoint('final')} does not exist"):
        folds_of(MODEL, results)


def test_results_that_were_moved_have_their_first_stage_beside_them(tiny: Tiny, tmp_path: Path) -> None:
    first, second = both_stages(tiny)
    imported(tiny, second.root)
    moved = tiny.results.rename(tmp_path / "moved")
    (there,) = folds_of(MODEL, moved)[0]
    assert first_stage_folds([there]) == [RunFolder(moved / fold.root.relative_to(tiny.results)) for fold in first]
    assert first_stage_folder(there.spec(), FIRST) == first[0].model_folder


def test_without_its_segmentations_it_is_imported_and_predicts_all_the_same(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing but training needs them; which folds made them their validations show."""
    first, second = both_stages(tiny)
    for case in CASES[2:]:
        (segmentations(first[0]) / f"{case}.b2nd").unlink()
    (fold,) = imported(tiny, second.root)
    assert fold.lacking == ""
    assert f"{segmentations(first[0])} lacks the segmentation of case_2, case_3" in caplog.text
    assert first_stage_folds([second]) == first


def test_segmentations_that_are_younger_than_the_training_are_reported(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    first, second = both_stages(tiny)
    os.utime(segmentations(first[0]) / "case_3.b2nd")
    imported(tiny, second.root)
    assert "1 of 10 segmentations in" in caplog.text
    assert "are younger than the beginning of the training that saw them, case_3.b2nd for example" in caplog.text


def test_segmentations_that_changed_since_the_import_keep_it_from_predicting(tiny: Tiny) -> None:
    first, second = both_stages(tiny)
    imported(tiny, second.root)
    assert first_stage_of([second]) is not None
    write(segmentations(first[0]), "case_3", 2)
    with pytest.raises(ConfigError, match=r"the segmentation of case_3 is not the one that it was trained on"):
        first_stage_of([second])
