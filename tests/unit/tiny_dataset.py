"""A preprocessed nnU-Net dataset of a few bytes per case, written by hand: enough for everything that only looks at files."""

import functools
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np

_COMMON = {"spacing": [1.0, 1.0, 1.0], "use_mask_for_norm": [False], "batch_dice": False}
CONFIGURATIONS: dict[str, Any] = {
    "2d": {**_COMMON, "data_identifier": "nnUNetPlans_2d", "batch_size": 12, "patch_size": [8, 8], "architecture": {"arch_kwargs": {}}},
    "3d_fullres": {
        **_COMMON,
        "data_identifier": "nnUNetPlans_3d_fullres",
        "batch_size": 3,
        "patch_size": [8, 8, 8],
        "architecture": {"arch_kwargs": {"n_stages": 2}},
    },
    "small": {"inherits_from": "3d_fullres", "batch_size": 2},
    "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
}
DATASET_JSON = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "file_ending": ".nii",
    "numTraining": 10,
}
CASES = tuple(f"case_{number}" for number in range(10))


@dataclass(frozen=True)
class Tiny:
    """Paths and verbs of the dataset."""

    base: Path
    name: str = "Dataset017_Tiny"

    @property
    def preprocessed(self) -> Path:
        return self.base / "nnUNet_preprocessed" / self.name

    @property
    def results(self) -> Path:
        return self.base / "nnUNet_results"

    @property
    def folders(self) -> dict[str, Any]:
        """Keys of an experiment file."""
        return {"nnUNet_preprocessed": str(self.preprocessed.parent), "nnUNet_results": str(self.results)}

    def data_folder(self, identifier: str = "nnUNetPlans_3d_fullres") -> Path:
        return self.preprocessed / identifier

    def label_file(self, case: str) -> Path:
        return self.preprocessed / "gt_segmentations" / f"{case}.nii"

    def write_json(self, name: str, value: Any) -> None:
        (self.preprocessed / name).write_text(json.dumps(value))

    def write_plans(self, name: str = "nnUNetPlans", **changes: Any) -> None:
        content = {"dataset_name": self.name, "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2]}
        self.write_json(f"{name}.json", {**content, "configurations": CONFIGURATIONS, **changes})

    def write_label(self, case: str, values: list[float], dtype: str = "uint8") -> None:
        voxels = np.resize(np.array(values, dtype=dtype), (4, 3, 2))
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), self.label_file(case))


@functools.cache
def _case_files() -> dict[str, bytes]:
    """Ending -> content of a case's files."""
    image, labels = np.zeros((1, 4, 3, 2), np.float32), np.zeros((1, 4, 3, 2), np.int8)
    return {".b2nd": blosc2.asarray(image).to_cframe(), "_seg.b2nd": blosc2.asarray(labels).to_cframe(), ".pkl": pickle.dumps({})}


def tiny_dataset(base: Path) -> Tiny:
    """Write the dataset below `base`: 10 cases, four configurations, no splits_final.json yet."""
    tiny = Tiny(base)
    (tiny.preprocessed / "gt_segmentations").mkdir(parents=True)
    tiny.results.mkdir()
    tiny.write_plans()
    tiny.write_json("dataset.json", DATASET_JSON)
    for case in CASES:
        tiny.write_label(case, [0, 1, 2])
        for identifier in ("nnUNetPlans_2d", "nnUNetPlans_3d_fullres"):
            tiny.data_folder(identifier).mkdir(exist_ok=True)
            for ending, content in _case_files().items():
                (tiny.data_folder(identifier) / f"{case}{ending}").write_bytes(content)
    return tiny
