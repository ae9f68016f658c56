"""Whole-case prediction with a trained checkpoint: nnU-Net's sliding window and export, as in its own full validation.

Preprocessed case -> tiles at half a patch's distance, Gaussian weights, mirroring -> logits -> original grid -> label file. The arithmetic
is nnU-Net's throughout (its accumulators are 16 bit floats). This is the only module that imports nnunetv2's predictor (0.9 GB, seconds).

C Z Y X: channels and voxels of the preprocessed case. Source: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, perform_actual_validation.
"""

import contextlib
import io
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from trainers.contract.plans import Labels, labels_of, load_dataset_json, load_plans, num_input_channels
from trainers.contract.run_spec import RunSpec
from trainers.data.case_files import damaged, open_case, read_properties
from trainers.data.not_finite import not_finite
from trainers.data.segmentation_file import SegmentationFile, read_segmentation
from trainers.errors import CheckpointError, ConfigError, DataError
from trainers.network.checkpoint import read_checkpoint
from trainers.network.model import build_network
from trainers.storage.faults import find_outage, reading
from trainers.storage.files import fsync_folder, sha256_of
from trainers.validation.spacing import Spacing, noted_spacing

log = logging.getLogger(__name__)
PART_PREFIX = ".part-"
"""Start of the names of temporary folders inside an output folder: leftovers of a killed process may be deleted."""


class CasePredictor:
    """Predicts preprocessed cases of a run's dataset with one checkpoint; loads the network once.

    `checkpoint_file` lies in a fold folder of a model folder with plans.json and dataset.json. Up to `threads` CPU threads are used.
    Raises CheckpointError for a checkpoint that is broken or of another network, DataError for missing plans, ConfigError for a cascade.
    """

    def __init__(self, spec: RunSpec, checkpoint_file: Path, device: torch.device | str, threads: int = 1) -> None:
        self.spec = spec
        self.threads = threads
        self.checkpoint_sha256 = _digest(checkpoint_file)
        torch.set_num_threads(threads)
        model_folder = checkpoint_file.parent.parent
        self.dataset_json = load_dataset_json(model_folder)
        self.labels: Labels = labels_of(self.dataset_json, str(model_folder / "dataset.json"))
        plans = load_plans(model_folder, "plans")
        settings = plans.configuration(spec.configuration)  # checked before nnU-Net imports the classes that it names
        self.plans = PlansManager({**plans.content, "configurations": {spec.configuration: settings}})
        self.configuration = self.plans.get_configuration(spec.configuration)
        if self.configuration.previous_stage_name is not None:
            raise ConfigError(f"configurations: {spec.configuration} is the second stage of a cascade, which nnfleet does not predict.")
        self.reader = self.plans.image_reader_writer_class()
        self._predictor = self._loaded(checkpoint_file, torch.device(device))

    @property
    def file_ending(self) -> str:
        """Ending of the dataset's label files, '.nii.gz' for example."""
        return str(self.dataset_json["file_ending"])

    def predict(self, case_id: str, output_folder: Path) -> Path:
        """Write the segmentation of a preprocessed case into `output_folder` as <case_id><file ending>, whole or not at all; where the run
        keeps probabilities, nnU-Net's <case_id>.npz and <case_id>.pkl before it.

        Raises DataError when the case cannot be read, StorageError when its disk is away.
        """
        data_CZYX, _, properties = self._read(case_id)
        logits = _quietly(self._predictor.predict_sliding_window_return_logits, torch.from_numpy(data_CZYX)).cpu()
        output_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART_PREFIX, dir=output_folder) as part:
            target, keeps = str(Path(part) / case_id), self.spec.validation.npz
            export_prediction_from_logits(
                logits, properties, self.configuration, self.plans, self.dataset_json, target, keeps, self.threads
            )
            _publish(Path(part), output_folder, f"{case_id}{self.file_ending}")
        return output_folder / f"{case_id}{self.file_ending}"

    def read_segmentation(self, path: Path) -> SegmentationFile:
        """Read a label file with the plans' reader. Raises DataError when it is missing, cut or broken, StorageError."""
        try:
            return read_segmentation(path, self.reader)
        except Exception as err:  # each reader raises its library's own kinds
            find_outage(err, [path], self.spec.preprocessed_folder)
            raise DataError(f"label file: {path} cannot be read: {err}. Restore it from the raw dataset's labelsTr.") from err

    def reference_file(self, case_id: str) -> Path:
        """The original labels of a case, copied by nnU-Net's preprocessing."""
        return self.spec.preprocessed_folder / "gt_segmentations" / f"{case_id}{self.file_ending}"

    def original_spacing(self, case_id: str) -> Spacing:
        """Spacing of the case's original grid in the order of `read_segmentation`."""
        folder = self.spec.preprocessed_folder / str(self.configuration.data_identifier)
        return noted_spacing(read_properties(folder, case_id), type(self.reader).__name__)

    def image_and_properties(self, case_id: str) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """First channel (Z, Y, X) of the preprocessed case for pictures, and what preprocessing noted of its geometry.

        Voxels outside nnU-Net's nonzero mask (segmentation -1) get the lowest value: normalised inside the mask only, they would be 0.
        """
        data_CZYX, seg_ZYX, properties = self._read(case_id)
        image_ZYX = data_CZYX[0]
        image_ZYX[seg_ZYX < 0] = image_ZYX.min()
        return image_ZYX, properties

    def _loaded(self, checkpoint_file: Path, device: torch.device) -> nnUNetPredictor:
        checkpoint = read_checkpoint(checkpoint_file)
        heads = self.plans.get_label_manager(self.dataset_json).num_segmentation_heads
        channels = num_input_channels(self.dataset_json)
        network = build_network(self.configuration.configuration, channels, heads, deep_supervision=False)
        try:
            network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError as err:
            raise CheckpointError(
                f"checkpoint: {checkpoint_file} does not fit {self.spec.configuration!r} in plans.json of its model folder: {err}"
            ) from err
        predictor = _quietly(nnUNetPredictor, tile_step_size=0.5, use_gaussian=True, use_mirroring=True, device=device, allow_tqdm=False)
        axes = checkpoint.get("inference_allowed_mirroring_axes")
        predictor.manual_initialization(
            network, self.plans, self.configuration, None, self.dataset_json, str(checkpoint.get("trainer_name", self.spec.trainer)), axes
        )
        torch.backends.cudnn.benchmark = not self.spec.deterministic  # the predictor's constructor turns it on
        return predictor

    def _read(self, case_id: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], dict[str, Any]]:
        """Image channels of a preprocessed case, its segmentation (Z, Y, X), and what preprocessing noted of it."""
        folder = self.spec.preprocessed_folder / str(self.configuration.data_identifier)
        image, seg = open_case(folder, case_id, num_input_channels(self.dataset_json))
        properties = read_properties(folder, case_id)
        try:
            data_CZYX, seg_ZYX = np.array(image[:], dtype=np.float32), np.asarray(seg[:])[0]
        except Exception as err:  # blosc2 finds a damaged chunk only when it unpacks it
            raise damaged(folder, case_id, err) from err
        if not np.isfinite(data_CZYX).all():
            raise not_finite(folder, case_id, data_CZYX)
        return data_CZYX, seg_ZYX, properties


def _digest(checkpoint_file: Path) -> str:
    try:
        with reading(checkpoint_file):
            return sha256_of(checkpoint_file)
    except OSError as err:
        raise CheckpointError(f"checkpoint: {checkpoint_file} cannot be read: {err}. Train the run first.") from err


def _publish(part: Path, output_folder: Path, label_file: str) -> None:
    """Move all files of `part` into `output_folder`, durably: what belongs to the label file (TIFF: its spacing), and last that."""
    for file in sorted(part.iterdir(), key=lambda p: p.name == label_file):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(file, output_folder / file.name)
    fsync_folder(output_folder)


def _quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function of nnU-Net's and send what it prints to the log."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = function(*args, **kwargs)
    for line in printed.getvalue().splitlines():
        log.debug("nnU-Net: %s", line)
    return result
