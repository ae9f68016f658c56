"""Half-done trainings of nnU-Net's as runs of ours that go on."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.imported.continuing import continue_folder
from orchestrator.imported.half_done import read_half_done, total_epochs, unlike_trainer
from orchestrator.imported.importing import ImportedFold
from orchestrator.imported.trained_fold import schedule_of
from orchestrator.resume.stored import stored_below
from orchestrator.resume.unfinished import find_runs, verdict_on
from orchestrator.tracking.records import fixed_params, note_of, tags_of
from tests.conftest import Toys
from tests.nnunet_begun import begun_checkpoint, begun_fold
from tests.toy import Toy
from trainers.contract.fencing import TAKEOVER, acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Schedule
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic
from trainers.training.adopt import adopt
from trainers.training.start_of_log import start_of_log
from trainers.training.state import newest_valid

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own
TEXT = "Epochs 0 to 1 were trained by nnU-Net itself; the run is exact from epoch 2 on."


@pytest.fixture
def toy(toys: Toys) -> Toy:
    return toys("labels")


def continued(toy: Toy, folder: Path) -> ImportedFold:
    (fold,) = continue_folder(folder, toy.preprocessed.parent, workers={"gpus": 0, "cpus": 2})
    return fold


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_becomes_a_run_beside_it_that_resume_goes_on_with(toy: Toy, tmp_path: Path) -> None:
    root = begun_fold(toy, tmp_path, [0.4, 0.3], num_iterations_per_epoch="5")
    before = contents(root.parent)
    fold = continued(toy, root)
    assert fold.lacking == ""
    assert fold.address == "901/toy_3d/nnUNetTrainer+continued/0"
    assert fold.line.endswith(f"{TEXT} Go on: nnfleet resume {fold.run_key}")
    assert contents(root.parent) == before
    (run,), damaged = find_runs(tmp_path)
    assert damaged == []
    assert run.spec.run_folder == tmp_path / toy.name / "nnUNetTrainer__nnUNetPlans__toy_3d__continued" / "fold_0"
    assert (verdict_on(run).is_taken, verdict_on(run).why) == (True, "continues from epoch 2")
    assert (run.spec.schedule.epochs, run.spec.schedule.train_iterations) == (3, 5)
    assert (run.spec.workers.gpus, run.spec.loader.actors) == (0, 1)
    committed = newest_valid(RunFolder(run.spec.run_folder))
    assert committed is not None
    assert [row.ema_pseudo_dice for row in committed.history] == [0.4, 0.3]


def test_status_tags_log_and_run_file_say_which_epochs_are_nnunets(toy: Toy, tmp_path: Path) -> None:
    fold = continued(toy, begun_fold(toy, tmp_path, [0.4, 0.3]))
    (status,), _ = stored_below(tmp_path, ())
    assert (status.state, status.epochs_done, status.epochs, status.num_drivers) == (RunState.PAUSED, 2, 3, 0)
    assert status.reason.startswith(TEXT)
    assert fold.run_folder is not None
    spec = RunFolder(fold.run_folder).spec()
    assert spec.continued is not None
    assert (spec.continued.epochs, spec.continued.versions["torch"]) == (2, "2.9.0+cu128")
    assert tags_of(spec)["nnfleet.continued"] == TEXT
    assert "nnfleet.version.nnunetv2" in tags_of(spec)  # of what trains it from here on
    assert "continued" not in fixed_params(spec)  # its folds began with other files and are folds of one model
    assert TEXT in note_of(spec, "id")
    assert TEXT in start_of_log(spec, {}, {}, 1)


def test_a_second_time_is_said_and_changes_nothing(toy: Toy, tmp_path: Path) -> None:
    root = begun_fold(toy, tmp_path, [0.4, 0.3])
    first = continued(toy, root)
    assert first.run_folder is not None
    before = contents(first.run_folder)
    second = continued(toy, root)
    assert (second.run_key, second.note.partition(".")[0]) == (first.run_key, "already imported")
    assert contents(first.run_folder) == before


def test_one_of_an_earlier_version_leaves_its_segmentations_from_the_next_import_on(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not while a job of it is at work; the rest of its run.json stays."""
    root = begun_fold(toy, tmp_path, [0.4, 0.3])
    first = continued(toy, root)
    assert first.run_folder is not None
    folder = RunFolder(first.run_folder)
    before = folder.spec().model_copy(update={"priority": 7})
    write_json_atomic(folder.spec_file, before.model_dump(mode="json"))
    monkeypatch.setattr("orchestrator.imported.fold_data.stages_after", lambda *_: ("second",))
    acquire_token(folder, "train-1")
    assert continued(toy, root).note.startswith("already imported")
    assert folder.spec() == before
    assert "is at work, and names no next stage (second) yet" in caplog.text
    acquire_token(folder, "takeover", {"role": TAKEOVER})
    assert continued(toy, root).note.startswith("already imported")
    assert folder.spec() == before.model_copy(update={"next_stages": ("second",)})


def test_a_run_that_began_with_an_earlier_checkpoint_keeps_its_folder(toy: Toy, tmp_path: Path) -> None:
    root = begun_fold(toy, tmp_path, [0.4])
    first = continued(toy, root)
    torch.save(begun_checkpoint(toy, [0.4, 0.3]), root / "checkpoint_latest.pth")
    second = continued(toy, root)
    assert second.run_key == ""
    assert f"belongs to the run {first.run_key}, which began with another checkpoint" in second.lacking
    assert f"nnfleet rm {first.run_key}" in second.lacking


def test_one_that_was_killed_before_it_was_a_run_is_kept_and_done_again(toy: Toy, tmp_path: Path) -> None:
    root = begun_fold(toy, tmp_path, [0.4])
    first = continued(toy, root)
    assert first.run_folder is not None
    RunFolder(first.run_folder).spec_file.unlink()
    second = continued(toy, root)
    assert (second.run_key, second.lacking, second.note.partition(".")[0]) == (first.run_key, "", "imported")
    assert len(list(first.run_folder.parent.glob("without-run-fold_0-*/nnfleet/state/*.pth"))) == 1


def test_of_two_imports_at_once_the_second_is_refused(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes while the first one writes; after it there is one run, and nothing of it was moved away."""
    root, seconds = begun_fold(toy, tmp_path, [0.4, 0.3]), list[ImportedFold]()

    def interrupted(*arguments: Any) -> None:
        seconds.append(continued(toy, root))
        adopt(*arguments)

    monkeypatch.setattr("trainers.training.adopt.adopt", interrupted)
    first = continued(toy, root)
    assert first.lacking == ""
    assert first.run_folder is not None
    [second] = seconds
    assert second.lacking.startswith(f"import: another import is at work on {first.run_folder}: process ")
    assert second.lacking.endswith(". Wait until that one has ended, then try again.")
    assert [path.name for path in first.run_folder.parent.iterdir()] == ["fold_0"]
    assert continued(toy, root).note.startswith("already imported")


def _ended(root: Path) -> None:
    shutil.copy(root / "checkpoint_latest.pth", root / "checkpoint_final.pth")


def _without_latest(root: Path) -> None:
    (root / "checkpoint_latest.pth").unlink()


def _damaged(root: Path) -> None:
    """One byte of a tensor."""
    file = root / "checkpoint_latest.pth"
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda item: item.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    file.write_bytes(content)


def _cut(root: Path) -> None:
    file = root / "checkpoint_latest.pth"
    file.write_bytes(file.read_bytes()[:5000])


def _other_plans(root: Path) -> None:
    plans = json.loads((root.parent / "plans.json").read_text())
    plans["configurations"]["toy_3d"]["patch_size"] = [32, 32, 32]
    (root.parent / "plans.json").write_text(json.dumps(plans))


def _short_curves(root: Path) -> None:
    content = torch.load(root / "checkpoint_latest.pth", weights_only=False)
    content["logging"]["lrs"] = []
    torch.save(content, root / "checkpoint_latest.pth")


def _all_done(root: Path) -> None:
    debug = json.loads((root / "debug.json").read_text())
    (root / "debug.json").write_text(json.dumps(debug | {"num_epochs": "2"}))


def _wild_epochs(root: Path) -> None:
    (root / "debug.json").write_text(json.dumps({"num_epochs": "many"}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_ended, "has checkpoint_final.pth: its training has ended. Import it without --continue."),
        (_without_latest, "copy checkpoint_best.pth to checkpoint_latest.pth"),
        (_damaged, "Restore the file."),
        (_cut, "checkpoint_latest.pth is not read: "),
        (_other_plans, "differ from those in .* in patch_size of 'toy_3d': it was trained on other data"),
        (_short_curves, "has 2 epochs behind it and curves of 0. Restore the file."),
        (_all_done, "has all 2 epochs behind it. Let nnUNetv2_train ... --c end it"),
        (_wild_epochs, "gives num_epochs as 'many'. Restore the file, or remove it."),
    ],
)
def test_what_cannot_go_on_is_refused_with_the_cure(toy: Toy, tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    root = begun_fold(toy, tmp_path, [0.4, 0.3])
    change(root)
    before = contents(root)
    lacking = continued(toy, root).lacking
    assert re.search(words, lacking), lacking
    assert contents(root) == before
    assert find_runs(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("trainer", "words"), [("nnUNetTrainerAdan", "Name another trainer"), ("MyTrainer", "is not a trainer of nnfleet")]
)
def test_a_trainer_that_nnfleet_has_not_is_refused(toy: Toy, tmp_path: Path, trainer: str, words: str) -> None:
    assert words in continued(toy, begun_fold(toy, tmp_path, [0.4], trainer)).lacking


def test_the_number_of_epochs_is_that_of_its_notes_else_of_the_trainers_name(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert total_epochs({"num_epochs": "300"}, "nnUNetTrainer", folder) == 300
    assert total_epochs({}, "nnUNetTrainer_250epochs", folder) == 250
    assert total_epochs({}, "nnUNetTrainer", folder) == 1000


def test_a_schedule_that_its_trainers_name_contradicts_is_another_trainer() -> None:
    assert unlike_trainer(Schedule(epochs=250), "nnUNetTrainer_250epochs") == ""
    assert unlike_trainer(Schedule(epochs=9), "nnUNetTrainer_250epochs") == "epochs 9, where nnUNetTrainer_250epochs sets 250"


def test_a_training_on_several_gpus_goes_on_with_the_share_of_foreground_of_all_of_them(
    toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two GPUs with a sample each nnU-Net's rank 0 draws none on foreground, and notes that."""
    root = begun_fold(toy, tmp_path, [0.4, 0.3], is_ddp="True", oversample_foreground_percent="0.0")
    assert read_half_done(RunFolder(root)).schedule.foreground_oversampling == 0.33
    assert "was trained on several GPUs and notes only rank 0's share of foreground: 0.33 is taken" in caplog.text


@pytest.mark.parametrize(
    ("trainer", "is_ddp", "noted", "share"),
    [
        ("nnUNetTrainer", "True", "1.0", 0.33),
        ("nnUNetTrainer", "False", "0.5", 0.5),
        ("nnUNetTrainerDA5", "True", "0.0", 0.33),
        ("nnUNetTrainer_probabilisticOversampling", "True", "0.5", 0.5),
        ("nnUNetTrainer_probabilisticOversampling_010", "True", "0.1", 0.1),
    ],
)
def test_only_a_share_that_nnunet_divided_among_gpus_is_replaced(
    tmp_path: Path, trainer: str, is_ddp: str, noted: str, share: float
) -> None:
    notes = {"is_ddp": is_ddp, "oversample_foreground_percent": noted}
    schedule = schedule_of(notes, 9, trainer, RunFolder(tmp_path))
    assert schedule == Schedule(epochs=9, foreground_oversampling=share)
    assert unlike_trainer(schedule, trainer) == ""


def test_its_loaders_are_those_of_an_experiment_and_may_grow_into_the_cpus(toy: Toy, tmp_path: Path) -> None:
    begun = begun_fold(toy, tmp_path, [0.4, 0.3])
    (fold,) = continue_folder(begun, toy.preprocessed.parent, workers={"gpus": 0, "cpus": 9})
    assert fold.run_folder is not None
    loader = RunFolder(fold.run_folder).spec().loader
    assert (loader.actors, loader.most) == (6, 8)
