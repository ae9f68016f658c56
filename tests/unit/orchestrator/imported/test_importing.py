"""Folders of nnU-Net's as runs of ours."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from orchestrator import api
from orchestrator.campaign.validating import check_not_imported
from orchestrator.compare.choice import compared
from orchestrator.dataset.model_folder import problems_of_folders
from orchestrator.errors import ConfigError
from orchestrator.imported.importing import ImportedFold, import_folder
from orchestrator.resume.removal import removable, remove
from orchestrator.resume.stored import stored_below
from orchestrator.tracking.records import fixed_params, tags_of
from tests.fake_run import FakeRun
from tests.nnunet_folder import DEBUG, checkpoint_of, nnunet_fold, tiny_with_split, with_patch
from tests.unit.tiny_dataset import Tiny, tiny_dataset
from trainers.contract.commits import newest_committed
from trainers.contract.plans import load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # SimpleITK's own


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_with_split(tiny_dataset(tmp_path))


def imported(tiny: Tiny, folder: Path, results: Path | None = None) -> list[ImportedFold]:
    return list(import_folder(folder, tiny.preprocessed.parent, results))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refusal(tiny: Tiny, folder: Path) -> str:
    """Why a fold is not imported; nothing of ours lies in it then."""
    (fold,) = imported(tiny, folder)
    assert fold.run_key == ""
    assert not (folder / "nnfleet").exists()
    return fold.lacking


def test_nothing_that_nnunet_wrote_is_changed(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    before = contents(root)
    (fold,) = imported(tiny, root)
    assert (fold.lacking, fold.note, fold.address) == ("", "", "17/3d_fullres/nnUNetTrainer+imported/0")
    assert {name: content for name, content in contents(root).items() if not name.startswith("nnfleet/")} == before


def test_it_is_compared_and_shown_as_finished(tiny: Tiny) -> None:
    (fold,) = imported(tiny, nnunet_fold(tiny))
    found = compared(tiny.results, [fold.address], "final")
    assert [model.summary["dice_mean"] for model in found.answer.models] == [fold.dice]
    assert fold.dice == pytest.approx((2 * 8 / (8 + 16) + 0) / 2)  # of 24 voxels 8 are organ, 8 lesion: all of these called organ
    (status,), _ = stored_below(tiny.results, ())
    assert (status.state, status.epochs_done, status.epochs) == (RunState.SUCCEEDED, 2, 2)


def test_curves_schedule_and_versions_are_those_of_nnunet(tiny: Tiny) -> None:
    folder = RunFolder(nnunet_fold(tiny))
    imported(tiny, folder.root)
    committed, spec = newest_committed(folder), folder.spec()
    assert committed is not None
    assert committed.best is not None
    assert [row.train_loss for row in committed.history] == [0.25, -0.75]
    assert [row.ema_pseudo_dice for row in committed.history] == pytest.approx([0.5, 0.51])
    assert committed.best.ema_pseudo_dice == pytest.approx(0.51)
    assert (spec.schedule.epochs, spec.schedule.train_iterations, spec.schedule.weight_decay) == (2, 250, 3e-5)
    tags = tags_of(spec)
    assert tags["nnfleet.imported"] == "nnU-Net"
    versions = {name.rpartition(".")[2]: value for name, value in tags.items() if name.startswith("nnfleet.version.")}
    assert versions == {"torch": "2.9.0+cu128", "gpu": "NVIDIA A100"}
    assert "nnfleet.workers.count" not in tags


def test_one_that_was_trained_on_several_gpus_has_the_share_of_foreground_of_all_of_them(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    write_json_atomic(root / "debug.json", DEBUG | {"is_ddp": "True", "oversample_foreground_percent": "0.0"})
    imported(tiny, root)
    assert RunFolder(root).spec().schedule.foreground_oversampling == 0.33


def test_all_folds_of_a_model_at_once(tiny: Tiny) -> None:
    roots = [nnunet_fold(tiny, fold) for fold in (0, 1)]
    found = imported(tiny, roots[0].parent)
    assert [(fold.folder, fold.lacking) for fold in found] == [(root, "") for root in roots]
    (model,) = compared(tiny.results, [], "final").answer.models
    assert len(model.results) == 10


def test_a_second_import_is_said_and_changes_nothing(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    (first,) = imported(tiny, root)
    before = contents(root)
    (second,) = imported(tiny, root)
    assert (second.note, second.run_key, second.dice) == ("already imported", first.run_key, first.dice)
    assert contents(root) == before


def test_an_import_that_was_cut_off_is_done_again(tiny: Tiny) -> None:
    folder = RunFolder(nnunet_fold(tiny))
    imported(tiny, folder.root)
    folder.outcome_file.unlink()
    (fold,) = imported(tiny, folder.root)
    assert (fold.note, fold.lacking) == ("", "")
    assert folder.outcome_file.is_file()


def test_a_trainer_that_only_nnunet_knows_is_imported(tiny: Tiny) -> None:
    (fold,) = imported(tiny, nnunet_fold(tiny, trainer="MyTrainer"))
    assert fold.lacking == ""
    assert fixed_params(RunFolder(fold.folder).spec())["recipe"] == "nnU-Net"
    assert compared(tiny.results, [], "final").answer.models[0].spec.trainer == "MyTrainer"


def test_into_another_results_folder_it_is_linked(tiny: Tiny, tmp_path: Path) -> None:
    root, ours = nnunet_fold(tiny, results=tmp_path / "theirs"), tmp_path / "ours"
    before = contents(root)
    (fold,) = imported(tiny, root, ours)
    assert fold.run_folder == ours / tiny.name / "nnUNetTrainer__nnUNetPlans__3d_fullres__imported" / "fold_0"
    assert contents(root) == before
    assert os.path.samefile(root / "checkpoint_final.pth", fold.run_folder / "checkpoint_final.pth")
    assert len(compared(ours, [], "final").answer.models) == 1
    assert imported(tiny, root, ours)[0].note == "already imported"


def test_removing_the_run_leaves_what_nnunet_made(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    before = contents(root)
    (fold,) = imported(tiny, root)
    remove(removable([fold.run_key], tiny.results)[0], mlflow=False)
    assert contents(root) == before


def test_no_training_of_ours_takes_the_place_of_one_of_nnunets(tiny: Tiny) -> None:
    (fold,) = imported(tiny, nnunet_fold(tiny))
    wanted = RunFolder(fold.folder).spec().model_copy(update={"run_key": "k", "imported": None, "variant": ""})
    plans = {wanted.plans: load_plans(tiny.preprocessed, wanted.plans)}
    for replaces in (False, True):
        (problem,) = problems_of_folders([wanted], plans, replaces=replaces)
        assert "was not made by nnfleet (it holds checkpoint_best.pth, checkpoint_final.pth) and is never overwritten" in str(problem)


def test_another_way_to_the_same_folder_names_the_same_run(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    (fold,) = imported(tiny, root.parent / ".." / root.parent.name / root.name)
    assert fold.run_folder == root
    assert RunFolder(root).spec().is_imported_in_place


def test_a_validation_of_ours_never_replaces_that_of_nnunet(tiny: Tiny) -> None:
    (fold,) = imported(tiny, nnunet_fold(tiny))
    with pytest.raises(ConfigError, match="was validated by nnU-Net in .*, whose files stay as they are. Run nnUNetv2_train with --val"):
        check_not_imported(RunFolder(fold.folder).spec())


def test_what_lost_its_run_file_is_kept_when_a_fold_is_imported(tiny: Tiny) -> None:
    """It may be a run of ours, whose states nobody else has."""
    folder = RunFolder(nnunet_fold(tiny))
    folder.state.mkdir(parents=True)
    (folder.state / "state.json").write_text("{}")
    (fold,) = imported(tiny, folder.root)
    assert fold.lacking == ""
    assert [path.read_text() for path in folder.root.glob("without-run-nnfleet-*/*/state.json")] == ["{}"]


def test_where_runs_of_the_dataset_have_pseudonyms_an_import_has_them_too(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    (root.parents[1] / ".nnfleet_salt").write_text("ab" * 32)
    (fold,) = imported(tiny, root)
    assert RunFolder(fold.folder).spec().pseudonyms


def test_one_fold_that_cannot_be_imported_stops_no_other(tiny: Tiny) -> None:
    roots = [nnunet_fold(tiny, fold) for fold in (0, 1)]
    (roots[0] / "validation/summary.json").unlink()
    first, second = imported(tiny, roots[0].parent)
    assert "nnU-Net has not validated this fold" in first.lacking
    assert "--val" in first.lacking
    assert second.lacking == ""


def test_a_training_that_has_not_ended_is_refused(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    (root / "checkpoint_final.pth").rename(root / "checkpoint_latest.pth")
    text = refusal(tiny, root)
    assert "checkpoint_best.pth, checkpoint_latest.pth" in text
    assert "its training has not ended" in text
    assert "--c" in text


def test_other_labels_are_refused_by_the_dice_of_the_case(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    tiny.write_label("case_3", [0, 1, 1, 2])
    text = refusal(tiny, root)
    assert "case_3 (organ:" in text
    assert "case_2" not in text
    assert "Labels or predictions have changed" in text


def test_another_split_is_refused_with_the_cases(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    splits = json.loads((tiny.preprocessed / "splits_final.json").read_text())
    splits[0]["val"][0], splits[0]["train"][0] = splits[0]["train"][0], splits[0]["val"][0]
    tiny.write_json("splits_final.json", splits)
    text = refusal(tiny, root)
    assert "it validated also case_0" in text
    assert "it lacks case_5" in text


def test_other_plans_are_refused_with_what_differs(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    with_patch(tiny, [16, 16, 16])
    assert "in patch_size of '3d_fullres': it was trained on other data" in refusal(tiny, root)


def test_a_missing_prediction_is_refused(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    (root / "validation/case_1.nii").unlink()
    text = refusal(tiny, root)
    assert "case case_1" in text
    assert "it is missing" in text


def test_a_folder_whose_name_is_not_of_its_checkpoint_is_refused(tiny: Tiny) -> None:
    root = nnunet_fold(tiny)
    torch.save(checkpoint_of("nnUNetTrainerDA5", "3d_fullres", 0), root / "checkpoint_final.pth")
    assert "'nnUNetTrainerDA5', '3d_fullres', '0'" in refusal(tiny, root)


def test_a_run_of_ours_is_not_imported(tiny: Tiny) -> None:
    run = FakeRun(tiny.base, "901-a", 0)
    (fold,) = imported(tiny, run.folder.root)
    assert "was trained by nnfleet" in fold.lacking


def test_curves_are_read_from_the_log_where_the_checkpoint_has_none(tiny: Tiny) -> None:
    folder = RunFolder(nnunet_fold(tiny))
    torch.save(checkpoint_of("nnUNetTrainer", "3d_fullres", 0, logging=None), folder.checkpoint("final"))
    (folder.root / "training_log_2026_1_1_10_00_00.txt").write_text(
        "2026-01-01 10:00:00.5: Epoch 0 \n2026-01-01 10:00:08: train_loss 0.25 \n2026-01-01 10:00:08: Epoch time: 7.5 s \n"
    )
    imported(tiny, folder.root)
    committed = newest_committed(folder)
    assert committed is not None
    assert [row.train_loss for row in committed.history] == [0.25]


def test_a_training_without_curves_is_imported_and_that_is_said(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(nnunet_fold(tiny))
    torch.save(checkpoint_of("nnUNetTrainer", "3d_fullres", 0, logging=None), folder.checkpoint("final"))
    (folder.root / "debug.json").unlink()
    with caplog.at_level(logging.WARNING):
        (fold,) = imported(tiny, folder.root)
    assert fold.lacking == ""
    assert "has no training curves" in caplog.text
    assert "nnU-Net's usual schedule is noted" in caplog.text
    assert len(compared(tiny.results, [], "final").answer.models) == 1


@pytest.mark.parametrize("name", ["nowhere", "nnUNet_results"])
def test_a_folder_without_folds_is_refused(tiny: Tiny, name: str) -> None:
    with pytest.raises(ConfigError, match=r"is no fold and holds none.*Trainer__Plans__configuration"):
        imported(tiny, tiny.base / name)


def test_a_folder_that_nnunet_does_not_make_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    root = tmp_path / "model" / "fold_0"
    shutil.copytree(nnunet_fold(tiny), root)
    with pytest.raises(ConfigError, match="is not called as nnU-Net calls its folders"):
        imported(tiny, root)


def test_the_verb_needs_the_preprocessed_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    with pytest.raises(ConfigError, match="nnUNet_preprocessed is not set"):
        api.import_folder(tmp_path)
