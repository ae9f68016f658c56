"""What a training log says before its first epoch."""

from pathlib import Path

import pytest

from tests.fake_run import FakeRun
from trainers.contract.trainer_table import ROUNDING_VERSION
from trainers.training.start_of_log import log_rounding, start_of_log


def test_a_training_log_begins_with_run_schedule_configuration_plans_and_sizes_of_the_split(tmp_path: Path) -> None:
    spec = FakeRun(tmp_path).spec
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}, "image_reader_writer": "SimpleITKIO"}
    lines = start_of_log(spec, plans, {"batch_size": 2, "patch_size": [8, 8, 8]}, 2)
    assert lines[0] == "Run 901-toy-0: Dataset901_Toy, 3d_fullres, nnUNetTrainer, nnUNetPlans, fold 0, seed 0."
    assert lines[1].endswith("the batch of 2 is split over 2 workers.")
    assert lines[2].endswith('3d_fullres {"batch_size": 2, "patch_size": [8, 8, 8]}')
    assert lines[3].endswith('nnUNetPlans: {"plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO"}')
    assert lines[4] == "This split has 2 training and 1 validation cases."
    assert not any(case in "".join(lines) for case in (*spec.train_cases, *spec.val_cases))


def test_a_run_that_goes_on_with_samples_rounded_otherwise_logs_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = FakeRun(tmp_path)
    older = run.epoch()
    assert older.rounding_version == 1  # as in what older versions wrote
    log_rounding(None)
    log_rounding(older.model_copy(update={"rounding_version": ROUNDING_VERSION}))
    assert caplog.text == ""
    log_rounding(older)
    assert f"another version (1, now {ROUNDING_VERSION})" in caplog.text
