"""Whole trainings on a GPU: their epochs and validation beside the CPU's, and a resume that ends with the same bits."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Toys
from tests.gpu.on_device import SCHEDULE, spec_for, train_on
from tests.own_batches import Killed
from trainers.contract.run_folder import RunFolder
from trainers.network.checkpoint import read_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # of kernels that have no deterministic form
CPU = torch.device("cpu")


def test_epochs_are_nearly_those_of_the_cpu(toys: Toys, tmp_path: Path, gpu: torch.device) -> None:
    rows = {}
    for device in (gpu, CPU):
        spec = spec_for(toys("labels"), tmp_path / device.type, device)
        rows[device.type] = train_on(spec, device).history
    ours, theirs = rows[gpu.type], rows["cpu"]
    assert [row.train_loss for row in ours] == pytest.approx([row.train_loss for row in theirs], abs=0.05)
    assert [row.val_loss for row in ours] == pytest.approx([row.val_loss for row in theirs], abs=0.1)
    assert ours[-1].pseudo_dice_mean == pytest.approx(theirs[-1].pseudo_dice_mean, abs=0.1)
    assert gpu.type == "cpu" or ours[-1].gpu_memory_gib > 0


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(
    toys: Toys, tmp_path: Path, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    toy = toys("labels")
    unbroken, broken = (spec_for(toy, tmp_path / name, gpu) for name in ("unbroken", "broken"))
    expected = train_on(unbroken, gpu)
    with pytest.raises(Killed):
        train_on(broken, gpu, killed_at=(1, 4))
    resumed = train_on(broken, gpu)
    assert [row.train_loss for row in resumed.history] == [row.train_loss for row in expected.history]
    assert len(resumed.history) == SCHEDULE.epochs
    states = [read_checkpoint(RunFolder(spec.run_folder).checkpoint("final")) for spec in (unbroken, broken)]
    for ours, theirs in zip(*(state["network_weights"].values() for state in states), strict=True):
        assert torch.equal(ours, theirs)
    assert states[0]["grad_scaler_state"] == states[1]["grad_scaler_state"]


def test_a_validated_case_has_the_labels_that_the_cpu_gives_it(toys: Toys, tmp_path: Path, gpu: torch.device) -> None:
    from trainers.validation.inference import CasePredictor

    toy = toys("labels")
    spec = spec_for(toy, tmp_path, gpu)
    train_on(spec, gpu)
    shutil.copy(toy.preprocessed / "nnUNetPlans.json", spec.model_folder / "plans.json")
    shutil.copy(toy.preprocessed / "dataset.json", spec.model_folder)
    checkpoint = RunFolder(spec.run_folder).checkpoint("final")
    labels: list[Any] = []
    for device in (gpu, CPU):
        predictor = CasePredictor(spec, checkpoint, device)
        file = predictor.predict(spec.val_cases[0], tmp_path / f"predicted-{device.type}-{len(labels)}")
        labels.append(predictor.read_segmentation(file).values_ZYX)
    assert labels[0].max() > 0
    assert np.mean(labels[0] == labels[1]) > 0.999
