"""Small raw datasets in nnU-Net's format, of which nothing is planned or preprocessed."""

import json
from pathlib import Path
from typing import Any

import numpy as np

NAME = "Dataset905_Raw"


def raw_dataset(base: Path, *, cases: int = 6, size: int = 48, folds: int = 0) -> Path:
    """Write `cases` cubes of `size` voxels with two nested spheres below `base`/nnUNet_raw; its folder there.

    `folds`: write a split of so many into `base`/nnUNet_preprocessed, as people do who have one of their own.
    """
    raw = base / "nnUNet_raw" / NAME
    for folder in (raw / "imagesTr", raw / "labelsTr"):
        folder.mkdir(parents=True)
    ids = [f"case_{number}" for number in range(cases)]
    for number, case in enumerate(ids):
        _write_case(raw, case, size + number % 2, np.random.default_rng(number))
    labels = {"background": 0, "organ": 1, "lesion": 2}
    content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    if folds:
        splits = [{"train": [c for i, c in enumerate(ids) if i % folds != fold], "val": ids[fold::folds]} for fold in range(folds)]
        (base / "nnUNet_preprocessed" / NAME).mkdir(parents=True)
        (base / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(splits))
    return raw


def _write_case(raw: Path, case: str, size: int, rng: np.random.Generator) -> None:
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    grid = np.meshgrid(*(np.linspace(-1, 1, size),) * 3, indexing="ij")

    def ball(centre: float, radius: float) -> Any:
        return sum(((axis - centre) / radius) ** 2 for axis in grid) < 1

    labels_ZYX = ball(0.0, 0.6).astype(np.uint8)
    labels_ZYX[ball(0.1, 0.3)] = 2
    values_ZYX = (60.0 * labels_ZYX + rng.normal(0, 12, labels_ZYX.shape)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values_ZYX), str(raw / "imagesTr" / f"{case}_0000.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(labels_ZYX), str(raw / "labelsTr" / f"{case}.nii.gz"))


def raw_experiment(base: Path, **more: Any) -> dict[str, Any]:
    """Keys of an experiment on it that preprocesses, on CPU workers of one core."""
    folders = {name: str(base / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    workers = {"count": 1, "gpus": 0, "cpus": 1}
    return {"dataset": 905, "configurations": ["3d_fullres"], "preprocess": True, "workers": workers, **folders, **more}
