"""Folders as nnU-Net leaves them after a training with its validation, written by hand: no network, labels of a few voxels."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from tests.unit.tiny_dataset import CONFIGURATIONS, DATASET_JSON, Tiny
from trainers.contract.plans import load_splits

EPOCHS = 2
START_UNIX = 1_700_000_000.0
DEBUG = {
    "num_epochs": str(EPOCHS),
    "num_iterations_per_epoch": "250",
    "num_val_iterations_per_epoch": "50",
    "initial_lr": "0.01",
    "weight_decay": "3e-05",
    "oversample_foreground_percent": "0.33",
    "is_ddp": "False",
    "torch_version": "2.9.0+cu128",
    "gpu_name": "NVIDIA A100",
    "cudnn_version": "None",
}


def logging_of(epochs: int = EPOCHS) -> dict[str, Any]:
    """nnU-Net's lists, with the numpy scalars that it leaves in them; the lesion is absent from the first epoch."""
    dice = [[np.float64(0.5), np.float64(math.nan if epoch == 0 else 0.7)] for epoch in range(epochs)]
    means = [np.nanmean(values) for values in dice]
    emas = [means[0]]
    for mean in means[1:]:
        emas.append(emas[-1] * 0.9 + 0.1 * mean)
    return {
        "mean_fg_dice": means,
        "ema_fg_dice": emas,
        "dice_per_class_or_region": dice,
        "train_losses": [np.float32(0.25 - epoch) for epoch in range(epochs)],
        "val_losses": [np.float32(0.5 - epoch) for epoch in range(epochs)],
        "lrs": [0.01] * epochs,
        "epoch_start_timestamps": [START_UNIX + 10 * epoch for epoch in range(epochs)],
        "epoch_end_timestamps": [START_UNIX + 10 * epoch + 8 for epoch in range(epochs)],
    }


def checkpoint_of(trainer: str, configuration: str, fold: int, **changes: Any) -> dict[str, Any]:
    """What nnU-Net saves, with two tensors for a network and their optimizer."""
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": logging_of(),
        "_best_ema": np.float64(0.51),
        "current_epoch": EPOCHS,
        "init_args": {"plans": {"plans_name": "nnUNetPlans"}, "configuration": configuration, "fold": fold, "dataset_json": DATASET_JSON},
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    } | changes


def nnunet_fold(
    tiny: Tiny, fold: int = 0, trainer: str = "nnUNetTrainer", configuration: str = "3d_fullres", results: Path | None = None
) -> Path:
    """A fold that was trained and validated; its predictions are the labels with each lesion lost. Returns its folder."""
    model = (results or tiny.results) / tiny.name / f"{trainer}__nnUNetPlans__{configuration}"
    root = model / f"fold_{fold}"
    (root / "validation").mkdir(parents=True)
    shutil.copy(tiny.preprocessed / "nnUNetPlans.json", model / "plans.json")
    shutil.copy(tiny.preprocessed / "dataset.json", model / "dataset.json")
    for name in ("final", "best"):
        torch.save(checkpoint_of(trainer, configuration, fold), root / f"checkpoint_{name}.pth")
    (root / "debug.json").write_text(json.dumps(DEBUG))
    (root / "progress.png").write_bytes(b"theirs")
    cases = [_predicted(tiny, case, root / "validation") for case in load_splits(tiny.preprocessed)[fold].val]
    (root / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    return root


def _predicted(tiny: Tiny, case: str, target: Path) -> dict[str, Any]:
    truth = np.asanyarray(nibabel.load(tiny.label_file(case)).dataobj)
    prediction = np.where(truth == 2, 1, truth).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(prediction, np.eye(4)), target / f"{case}.nii")
    metrics = {str(value): _metrics(truth == value, prediction == value) for value in (1, 2)}
    return {"prediction_file": f"/elsewhere/{case}.nii", "reference_file": f"/elsewhere/labels/{case}.nii", "metrics": metrics}


def _metrics(truth: np.ndarray, prediction: np.ndarray) -> Mapping[str, float]:
    return {"Dice": float(2 * (truth & prediction).sum() / (truth.sum() + prediction.sum()))}


def tiny_with_split(tiny: Tiny) -> Tiny:
    """The same dataset with a split of two folds."""
    cases = sorted(path.stem for path in (tiny.preprocessed / "gt_segmentations").iterdir())
    tiny.write_json("splits_final.json", [{"train": cases[5:], "val": cases[:5]}, {"train": cases[:5], "val": cases[5:]}])
    return tiny


def with_patch(tiny: Tiny, patch: list[int]) -> None:
    """Plan the dataset anew with another patch."""
    tiny.write_plans(configurations={**CONFIGURATIONS, "3d_fullres": {**CONFIGURATIONS["3d_fullres"], "patch_size": patch}})
