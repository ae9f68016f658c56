"""What a first stage of nnU-Net's cascade leaves for the second: its segmentation of each validation case on the second stage's grid.

The files are those that nnU-Net writes and reads, in `predicted_next_stage/<configuration>/` of the model folder. A record beside each
says which weights made it.

C class, Z Y X voxels. Source: nnunetv2/inference/export_prediction.py (`resample_and_save`).
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from trainers.contract.cascade import NextStageRecord, part_prefix, predictions_of, record_of
from trainers.contract.plans import load_plans, num_input_channels
from trainers.contract.run_spec import RunSpec
from trainers.data.case_files import file_of, shape_of_case
from trainers.storage.files import fsync_folder, sha256_of, write_json_atomic
from trainers.validation.export import Exporter


@dataclass(frozen=True)
class NextStageWriter:
    """Writes the segmentations of one checkpoint of a first stage for one second stage, `configuration`."""

    spec: RunSpec
    configuration: str
    checkpoint_sha256: str
    exporter: Exporter

    def write(self, logits_CZYX: torch.Tensor, properties: dict[str, Any], case_id: str) -> None:
        """Write a case's segmentation, whole or not at all, and its record last.

        Raises DataError where the second stage has no such case, StorageError where its disk is away.
        """
        data = self._data_folder()
        shape_ZYX = shape_of_case(data, case_id, num_input_channels(self.exporter.dataset_json))
        found_ZYX = self.exporter.on_grid(logits_CZYX, properties, shape_ZYX)
        folder = predictions_of(self.spec.model_folder, self.configuration)
        folder.mkdir(parents=True, exist_ok=True)
        record_of(folder, case_id).unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=part_prefix(self.spec), dir=folder) as part:
            file = self._saved(found_ZYX, Path(part) / case_id, is_blosc2=file_of(data, case_id, "image").suffix == ".b2nd")
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            digest = sha256_of(file)
            target = folder / file.name
            for former in (folder / f"{case_id}{ending}" for ending in (".b2nd", ".npy", ".npz")):
                if former != target:
                    former.unlink(missing_ok=True)  # a reader might take it before the new one
            os.replace(file, target)
        fsync_folder(folder)
        record = NextStageRecord(
            run_key=self.spec.run_key,
            checkpoint_sha256=self.checkpoint_sha256,
            file=target.name,
            sha256=digest,
            size_bytes=target.stat().st_size,
        )
        write_json_atomic(record_of(folder, case_id), record.model_dump())

    def _data_folder(self) -> Path:
        plans = load_plans(self.spec.preprocessed_folder, self.spec.plans)
        return self.spec.preprocessed_folder / str(plans.configuration(self.configuration)["data_identifier"])

    def _saved(self, found_ZYX: npt.NDArray[Any], truncated: Path, *, is_blosc2: bool) -> Path:
        """By nnU-Net's own classes, in the format of the second stage's cases."""
        if not is_blosc2:
            nnUNetDatasetNumpy.save_seg(found_ZYX, str(truncated))
            return truncated.with_name(f"{truncated.name}.npz")
        patch = tuple(self.exporter.configuration.patch_size)
        blocks, chunks = comp_blosc2_params((1, *found_ZYX.shape), patch, bytes_per_pixel=found_ZYX.dtype.itemsize)
        nnUNetDatasetBlosc2.save_seg(found_ZYX, str(truncated), chunks_seg=list(chunks[1:]), blocks_seg=list(blocks[1:]))
        return truncated.with_name(f"{truncated.name}.b2nd")
