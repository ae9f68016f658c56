"""Whole-case prediction with a trained checkpoint: nnU-Net's sliding window, as in its own full validation, and its export.

Preprocessed case -> tiles at half a patch's distance, Gaussian weights, mirroring -> logits -> original grid -> label file. The arithmetic
is nnU-Net's up to the logits (its accumulators are 16 bit floats; on a CPU the convolutions are oneDNN's, equal up to rounding); what
follows, `export.py` does. Only this module and `sliding_window.py`, which it imports, load nnunetv2's predictor (0.9 GB, seconds).

C Z Y X: channels and voxels of the preprocessed case. Source: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py, perform_actual_validation.
"""

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from trainers.contract.cascade import PART_PREFIX, network_channels, previous_predictions, previous_stage
from trainers.contract.plans import Labels, labels_of, load_dataset_json, load_plans, num_input_channels
from trainers.contract.run_spec import RunSpec
from trainers.data.case_files import damaged, damaged_previous, open_case, open_previous, read_properties
from trainers.data.not_finite import not_finite
from trainers.data.segmentation_file import SegmentationFile, read_segmentation
from trainers.data.whole_file import check_whole
from trainers.errors import CheckpointError, ConfigError, DataError, StorageError
from trainers.network.checkpoint import read_checkpoint
from trainers.network.one_dnn import use_one_dnn
from trainers.network.own import network_of
from trainers.storage.faults import find_outage, reading
from trainers.storage.files import fsync_folder, sha256_of
from trainers.validation.export import Exporter
from trainers.validation.next_stage import NextStageWriter
from trainers.validation.sliding_window import ClassByClassPredictor
from trainers.validation.spacing import Spacing, noted_spacing

log = logging.getLogger(__name__)


class ModelPredictor:
    """nnU-Net's predictor with the weights of one or several folds of a model, and how their segmentations are written and read.

    Each of `checkpoint_files` lies in a fold folder of one model folder with plans.json and dataset.json. Up to `threads` CPU threads are
    used. Raises CheckpointError for a checkpoint that is broken or of another network, DataError for missing plans.
    """

    def __init__(self, spec: RunSpec, checkpoint_files: Sequence[Path], device: torch.device | str, threads: int = 1) -> None:
        self.spec = spec
        self.threads = threads
        self.digests = tuple(_digest(file) for file in checkpoint_files)
        """SHA-256 of each checkpoint file."""
        torch.set_num_threads(threads)
        model_folder = checkpoint_files[0].parent.parent
        self.dataset_json = load_dataset_json(model_folder)
        self.labels: Labels = labels_of(self.dataset_json, str(model_folder / "dataset.json"))
        plans = load_plans(model_folder, "plans")
        settings = plans.configuration(spec.configuration)  # checked before nnU-Net imports the classes that it names
        self.plans = PlansManager({**plans.content, "configurations": {spec.configuration: settings}})
        self.configuration = self.plans.get_configuration(spec.configuration)
        self.reader = self.plans.image_reader_writer_class()
        self._predictor = self._loaded(checkpoint_files, torch.device(device))

    @property
    def _exporter(self) -> Exporter:
        return Exporter(self.plans, self.configuration, self.dataset_json, self.threads)

    @property
    def file_ending(self) -> str:
        """Ending of the dataset's label files, '.nii.gz' for example."""
        return str(self.dataset_json["file_ending"])

    def _export(
        self, logits: torch.Tensor, properties: dict[str, Any], case_id: str, output_folder: Path, *, keeps_probabilities: bool = False
    ) -> Path:
        """Write a segmentation on the original grid into `output_folder` as <case_id><file ending>, whole or not at all."""
        output_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART_PREFIX, dir=output_folder) as part:
            self._exporter.write(logits, properties, str(Path(part) / case_id), keeps_probabilities=keeps_probabilities)
            _publish(Path(part), output_folder, f"{case_id}{self.file_ending}")
        return output_folder / f"{case_id}{self.file_ending}"

    def read_segmentation(self, path: Path) -> SegmentationFile:
        """Read a label file with the plans' reader. Raises DataError when it is missing, cut or broken, StorageError."""
        try:
            return read_segmentation(path, self.reader)
        except Exception as err:  # each reader raises its library's own kinds
            find_outage(err, [path], self.spec.preprocessed_folder)
            raise DataError(f"label file: {path} cannot be read: {err}. Restore it from the raw dataset's labelsTr.") from err

    def _with_labels(self, data_CZYX: npt.NDArray[np.float32], labels_ZYX: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The image's channels, and behind them one per foreground label of the previous stage's segmentation."""
        one_hot = [(labels_ZYX == label)[None] for label in self.labels.foreground_values]
        return np.vstack((data_CZYX, *one_hot), dtype=np.float32)

    def _loaded(self, checkpoint_files: Sequence[Path], device: torch.device) -> ClassByClassPredictor:
        """nnU-Net's predictor, with the mirroring axes of the first checkpoint, as nnU-Net takes them."""
        checkpoints = [read_checkpoint(file) for file in checkpoint_files]
        heads = self.plans.get_label_manager(self.dataset_json).num_segmentation_heads
        channels = network_channels(self.configuration.configuration, self.dataset_json, self.labels)
        network = self._network(channels, heads)
        weights = [checkpoint["network_weights"] for checkpoint in checkpoints]
        for file, parameters in zip(reversed(checkpoint_files), reversed(weights), strict=True):  # it ends with the first one's
            self._load(network, parameters, file)
        if device.type == "cpu":
            use_one_dnn(network)
        predictor: ClassByClassPredictor = _quietly(
            ClassByClassPredictor, tile_step_size=0.5, use_gaussian=True, use_mirroring=True, device=device, allow_tqdm=False
        )
        axes = checkpoints[0].get("inference_allowed_mirroring_axes")
        trainer = str(checkpoints[0].get("trainer_name", self.spec.trainer))
        predictor.manual_initialization(network, self.plans, self.configuration, weights, self.dataset_json, trainer, axes)
        torch.backends.cudnn.benchmark = not self.spec.deterministic  # the predictor's constructor turns it on
        return predictor

    def _network(self, channels: int, heads: int) -> torch.nn.Module:
        if self.spec.own.trainer is None:
            return network_of(self.spec, self.configuration.configuration, channels, heads, deep_supervision=False)
        from trainers.network.own_trainer import network_by_trainer  # seconds of imports

        return network_by_trainer(self.spec.own.trainer, self.plans, self.configuration, channels, heads)

    def _load(self, network: torch.nn.Module, parameters: Any, checkpoint_file: Path) -> None:
        try:
            network.load_state_dict(parameters)
        except RuntimeError as err:
            raise CheckpointError(
                f"checkpoint: {checkpoint_file} does not fit {self.spec.configuration!r} in plans.json of its model folder: {err}"
            ) from err


def read_back(predictor: ModelPredictor, file: Path) -> SegmentationFile:
    """What a prediction that was written a moment ago holds. Raises StorageError where it was not stored whole."""
    try:
        return predictor.read_segmentation(file)
    except DataError as err:
        raise StorageError(f"storage: {file} was not stored whole: {err}") from err


class CasePredictor(ModelPredictor):
    """Predicts preprocessed cases of a run's dataset with one checkpoint; loads the network once. Raises as `ModelPredictor`."""

    def __init__(self, spec: RunSpec, checkpoint_file: Path, device: torch.device | str, threads: int = 1) -> None:
        super().__init__(spec, [checkpoint_file], device, threads)
        self.checkpoint_sha256 = self.digests[0]

    def predict(self, case_id: str, output_folder: Path, next_stages: Sequence[str] = ()) -> Path:
        """Write the segmentation of a preprocessed case into `output_folder` as <case_id><file ending>, whole or not at all; before it what
        the run leaves for `next_stages` and, where it keeps probabilities, nnU-Net's <case_id>.npz and <case_id>.pkl.

        Raises DataError when the case, or the previous stage's segmentation of it, cannot be read, StorageError when its disk is away.
        """
        data_CZYX, _, properties = self._read(case_id)
        data_CZYX = self._with_previous_stage(case_id, data_CZYX)
        logits = _quietly(self._predictor.predict_sliding_window_return_logits, torch.from_numpy(data_CZYX)).cpu()
        for stage in next_stages:
            NextStageWriter(self.spec, stage, self.checkpoint_sha256, self._exporter).write(logits, properties, case_id)
        return self._export(logits, properties, case_id, output_folder, keeps_probabilities=self.spec.validation.npz)

    def _with_previous_stage(self, case_id: str, data_CZYX: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The input of the network: of a second stage the previous one's foreground labels as channels behind the image's."""
        stage = previous_stage(self.configuration.configuration)
        if not stage:
            return data_CZYX
        folder = previous_predictions(self.spec, stage)
        found = open_previous(folder, case_id, data_CZYX.shape[1:])
        try:
            labels_ZYX = np.asarray(found[:])
        except Exception as err:  # blosc2 finds a damaged chunk only when it unpacks it
            raise damaged_previous(folder, case_id, err) from err
        return self._with_labels(data_CZYX, labels_ZYX)

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


class EnsemblePredictor(ModelPredictor):
    """Predicts raw images, as `nnUNetv2_predict` does, with the mean of the logits of all checkpoints.

    A second stage of a cascade sees what `first_stage` predicts of a case, as nnU-Net's does by `-prev_stage_predictions`. Raises as
    `ModelPredictor`, and ConfigError for a second stage without a first.
    """

    def __init__(
        self,
        spec: RunSpec,
        checkpoint_files: Sequence[Path],
        device: torch.device | str,
        threads: int = 1,
        first_stage: "EnsemblePredictor | None" = None,
    ) -> None:
        super().__init__(spec, checkpoint_files, device, threads)
        self._first_stage = first_stage
        if (stage := previous_stage(self.configuration.configuration)) and first_stage is None:
            raise ConfigError(
                f"configurations: {spec.configuration} is the second stage of a cascade, and its run names no run of the first, {stage!r}. "
                "Train or import it again."
            )

    def predict(self, case_id: str, images: Sequence[Path], output_folder: Path) -> tuple[Path, Spacing]:
        """Preprocess a case by the plans and write its segmentation, whole or not at all; returns its file and the images' spacing.

        `images`: one file per channel. Raises DataError when they cannot be read, StorageError when their disk is away.
        """
        labels_CZYX = self._by_first_stage(case_id, images, output_folder)
        data_CZYX, properties = self._preprocessed(case_id, images, labels_CZYX)
        spacing = noted_spacing(properties, type(self.reader).__name__)
        logits = _quietly(self._predictor.predict_logits_from_preprocessed_data, torch.from_numpy(data_CZYX)).cpu()
        return self._export(logits, properties, case_id, output_folder), spacing

    def _by_first_stage(self, case_id: str, images: Sequence[Path], output_folder: Path) -> npt.NDArray[Any] | None:
        """The segmentation of a case by the first stage, 1 Z Y X on the original grid, as nnU-Net reads it from its file; None without."""
        if self._first_stage is None:
            return None
        output_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=PART_PREFIX, dir=output_folder) as part:
            file, _ = self._first_stage.predict(case_id, images, Path(part))
            labels_CZYX: npt.NDArray[Any] = self.reader.read_seg(str(file))[0]
        return labels_CZYX

    def spacing_of(self, case_id: str, images: Sequence[Path]) -> Spacing:
        """Spacing of a case's images, in the order of `read_segmentation`. Raises as `predict`."""
        return noted_spacing(self._read_images(case_id, images)[1], type(self.reader).__name__)

    def _preprocessed(
        self, case_id: str, images: Sequence[Path], labels_CZYX: npt.NDArray[Any] | None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """The input of the network and what preprocessing noted. `labels_CZYX`: the segmentation by the previous stage, which takes part
        in nnU-Net's preprocessing as a case's own labels do."""
        values_CZYX, properties = self._read_images(case_id, images)
        preprocessor = self.configuration.preprocessor_class(verbose=False)
        arguments = (values_CZYX, labels_CZYX, properties, self.plans, self.configuration, self.dataset_json)
        data, labels, noted = preprocessor.run_case_npy(*arguments)
        if not np.isfinite(data).all():
            raise DataError(
                f"images: case {case_id} ({images[0].parent}) has values that are no finite numbers. Correct its images, then try again."
            )
        data_CZYX = np.ascontiguousarray(data, dtype=np.float32)
        return (data_CZYX if labels_CZYX is None else self._with_labels(data_CZYX, labels[0])), noted

    def _read_images(self, case_id: str, images: Sequence[Path]) -> tuple[npt.NDArray[Any], dict[str, Any]]:
        try:
            for image in images:
                check_whole(image)
            values_CZYX, properties = _quietly(self.reader.read_images, [str(image) for image in images])
        except Exception as err:  # each reader raises its library's own kinds
            find_outage(err, list(images))
            raise DataError(f"images: case {case_id} ({images[0].parent}) cannot be read: {err}. Copy its images there anew.") from err
        return values_CZYX, properties


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
