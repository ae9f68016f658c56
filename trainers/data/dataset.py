"""An nnU-Net preprocessed folder: its cases, and what its plans say of patches, labels and targets. Imports no torch.

Z Y X voxels, C image channels. Two-dimensional configurations have patches of two axes, their cases still have three.
Sources: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (configure_rotation_dummyDA_mirroring_and_inital_patch_size,
_get_deep_supervision_scales), .../variants/data_augmentation/nnUNetTrainerDA5.py.
"""

import functools
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, cached

from trainers.contract.architecture import target_scales
from trainers.contract.cascade import previous_predictions, previous_stage
from trainers.contract.plans import Labels, labels_of, load_dataset_json, num_input_channels, plans_of
from trainers.contract.run_spec import RunSpec
from trainers.contract.trainer_table import Nearest, Recipe, TrainerSettings
from trainers.data.batches import SplitName
from trainers.data.case_files import open_case, open_previous, previous_file, read_properties
from trainers.errors import ConfigError, DataError
from trainers.storage.faults import check_dataset_is_there, reading

log = logging.getLogger(__name__)

ClassLocations = Mapping[int | tuple[int, ...], npt.NDArray[Any]]
"""Label or region -> voxels of it, (N, 3) integers Z Y X; possibly none. Keys in the order that nnU-Net stored them."""

ANISOTROPY_THRESHOLD = 3
"""Above this ratio of the longest to the first axis of a patch, slices are augmented one by one (nnunetv2/configuration.py)."""
PREPROCESS_COMMAND = "nnUNetv2_preprocess"
_SCALE_RANGE: dict[Recipe, tuple[float, float] | None] = {
    "default": (0.85, 1.25),
    "da5": (0.7, 1.43),
    "da5_classic": (0.7, 1.43),
    "no_augmentation": None,
}
"""The scales that the loader's margin allows for; for `default` nnU-Net really draws 0.7 to 1.4 and lets corners lie outside.
None: there is no margin."""
_CACHED_LOCATIONS_BYTES = 128 * 2**20
_CACHED_ARRAYS_BYTES = 512 * 2**20
_HANDLE_BYTES = 4 * 2**20
"""What an open file counts for: 64 cases of two files at most."""


@dataclass(frozen=True)
class Geometry:
    """What augmentation follows from the shape of the network's patch and the trainer."""

    patch: tuple[int, ...]
    """The network's patch, voxels."""
    loader_patch: tuple[int, ...]
    """What is cut from a case for training: the patch with a margin for rotation and scaling, voxels."""
    rotation_rad: tuple[float, float]
    """Range of the rotation angles about each axis."""
    dummy_2d: bool
    """Rotate and scale within slices only, because they are much thicker than their pixels."""
    mirror_axes: tuple[int, ...]
    """Spatial axes that are flipped, in augmentation as in prediction; none where the trainer mirrors nothing."""
    nearest: Nearest
    """What takes the nearest voxel instead of interpolating."""


def geometry(patch: tuple[int, ...], trainer: TrainerSettings) -> Geometry:
    """nnU-Net's rules for rotation range, dummy 2D, mirroring and the loader's patch. `patch` has two or three axes."""
    if len(patch) not in (2, 3):
        raise DataError(f"plans: a patch has two or three axes, got {list(patch)}.")
    dummy_2d = trainer.dummy_2d and len(patch) == 3 and max(patch) / patch[0] > ANISOTROPY_THRESHOLD
    limit = _rotation_degrees(patch, dummy_2d) / 360 * 2.0 * math.pi
    rotation = (-limit, limit)
    scale = _SCALE_RANGE[trainer.recipe]
    loader = patch if scale is None else _with_margin(patch, rotation, scale, dummy_2d)
    return Geometry(patch, loader, rotation, dummy_2d, trainer.mirror_axes(len(patch)), trainer.nearest)


def _with_margin(patch: tuple[int, ...], rotation: tuple[float, float], scale: tuple[float, float], dummy_2d: bool) -> tuple[int, ...]:
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size

    loader = [int(n) for n in get_patch_size(list(patch), rotation, rotation, rotation, scale)]
    return (patch[0], *loader[1:]) if dummy_2d else tuple(loader)


def _rotation_degrees(patch: tuple[int, ...], dummy_2d: bool) -> float:
    if len(patch) == 2:
        return 15.0 if max(patch) / min(patch) > 1.5 else 180.0
    return 180.0 if dummy_2d else 30.0


class IdleClock:
    """Adds up the seconds within `with` in which this thread did not compute: it waited for what it reads. Not to be nested."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter() - time.thread_time()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds += max(0.0, time.perf_counter() - time.thread_time() - self._began)


V = TypeVar("V")


def recent(make: Callable[[str], V], size: Callable[[V], int], limit: int) -> Callable[[str], V]:
    """`make`, remembering the values used last: as many as fit into `limit` (in the unit of `size`), and always the last one."""
    held: LRUCache[str, V] = LRUCache(limit, lambda value: min(size(value), limit))  # a larger one is not to be read again at once
    return cached(held, key=str)(make)


@dataclass(frozen=True)
class TrainingData:
    """The cases of one run and how samples are cut from them. Reads on demand; holds recent handles and locations, per process."""

    folder: Path
    """<nnUNet_preprocessed>/<dataset>/<data_identifier>."""
    geometry: Geometry
    batch_size: int
    """Global batch size of the plan."""
    labels: Labels
    channels: int
    scales: tuple[tuple[float, ...], ...]
    """See `target_scales`."""
    use_mask_for_norm: tuple[bool, ...]
    """Per channel: was it normalised inside the nonzero mask only, and is therefore kept 0 outside?"""
    cases: Mapping[SplitName, tuple[str, ...]]
    """Case ids of each split, in the order that sampling draws from."""
    _arrays: Callable[[str], tuple[Any, ...]]
    _locations: Callable[[str], ClassLocations]
    previous_folder: Path | None = None
    """Of a second stage of a cascade: where the previous stage's segmentations lie."""
    disk: IdleClock = field(default_factory=IdleClock, compare=False)
    """The seconds in which reading cases has waited for their disk."""

    @property
    def is_2d(self) -> bool:
        """True when patches are slices."""
        return len(self.geometry.patch) == 2

    @property
    def annotated_key(self) -> tuple[int, ...] | None:
        """The key under which nnU-Net stores all annotated voxels of a dataset with an ignore label; None without one."""
        if self.labels.ignore_label is None:
            return None
        return (-1, *sorted(self.labels.values - {self.labels.ignore_label}))

    def arrays(self, case_id: str) -> tuple[Any, Any]:
        """Image (C, Z, Y, X) and labels (1, Z, Y, X) of a case; slicing them reads only what is asked for."""
        with self.disk:
            image, labels, *_ = self._arrays(case_id)
        return image, labels

    def previous(self, case_id: str) -> Any:
        """The previous stage's segmentation (Z, Y, X) of a case, likewise; None where there is no previous stage."""
        if self.previous_folder is None:
            return None
        with self.disk:
            return self._arrays(case_id)[2]

    def locations(self, case_id: str) -> ClassLocations:
        """Stored voxels of each class or region of a case."""
        with self.disk:
            return self._locations(case_id)


def open_dataset(spec: RunSpec) -> TrainingData:
    """Open the preprocessed cases of a run and check that all are there.

    Raises ConfigError for an unknown configuration, DataError for missing or unreadable files, StorageError where all of the dataset is
    missing: it was there when the run was planned.
    """
    try:
        return _opened(spec)
    except (ConfigError, DataError):
        check_dataset_is_there(spec.preprocessed_folder)
        raise


def _opened(spec: RunSpec) -> TrainingData:
    configuration = plans_of(spec).configuration(spec.configuration)
    stage = previous_stage(configuration)
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    folder = spec.preprocessed_folder / configuration["data_identifier"]
    ids = tuple(dict.fromkeys((*spec.train_cases, *spec.val_cases)))
    _check_files(folder, ids, spec)
    channels = num_input_channels(dataset_json)
    previous = previous_predictions(spec, stage) if stage else None
    if previous is not None:
        check_previous_files(previous, ids, stage)
    return TrainingData(
        folder=folder,
        geometry=geometry(tuple(configuration["patch_size"]), spec.settings),
        batch_size=int(configuration["batch_size"]),
        labels=labels_of(dataset_json),
        channels=channels,
        scales=target_scales(configuration, spec.settings.deep_supervision),
        use_mask_for_norm=tuple(bool(b) for b in configuration["use_mask_for_norm"]),
        cases={"train": spec.train_cases, "val": spec.val_cases},
        _arrays=recent(functools.partial(_open, folder, previous, channels), _bytes_held, _CACHED_ARRAYS_BYTES),
        _locations=recent(functools.partial(read_locations, folder), _bytes_of_locations, _CACHED_LOCATIONS_BYTES),
        previous_folder=previous,
    )


def _open(folder: Path, previous: Path | None, channels: int, case_id: str) -> tuple[Any, ...]:
    """Image and labels of a case, and where there is a previous stage its segmentation."""
    image, labels = open_case(folder, case_id, channels)
    return (image, labels) if previous is None else (image, labels, open_previous(previous, case_id, tuple(image.shape[1:])))


def check_previous_files(folder: Path, ids: Collection[str], stage: str) -> None:
    """Raise DataError unless every case has its segmentation by the previous stage, StorageError where their disk is away."""
    with reading(folder):
        missing = [case_id for case_id in ids if not previous_file(folder, case_id).is_file()]
    if missing:
        raise DataError(
            f"previous stage: {folder} lacks the segmentations by {stage!r} of {len(missing)} of the run's {len(ids)} cases, first of "
            f"{missing[0]}. Train and validate all folds of {stage!r} first, with the same trainer, plans, variant and seed."
        )


def _check_files(folder: Path, ids: tuple[str, ...], spec: RunSpec) -> None:
    """Raise DataError unless every case has its files, of the blosc2 format or the older npz."""
    command = f"{PREPROCESS_COMMAND} -d {spec.dataset} -plans_name {spec.plans} -c {spec.configuration}"
    try:
        with reading(folder):
            present = set(os.listdir(folder))
    except OSError as err:
        raise DataError(f"preprocessed data: {folder} cannot be listed ({err.strerror}). Run {command}.") from err
    is_blosc2 = any(name.endswith(".b2nd") for name in present)
    endings = (".b2nd", "_seg.b2nd", ".pkl") if is_blosc2 else (".npz", ".pkl")
    missing = [name for case_id in ids for name in (case_id + ending for ending in endings) if name not in present]
    if missing:
        raise DataError(
            f"preprocessed data: {folder} lacks {len(missing)} files of the split's {len(ids)} cases, first {missing[0]}. Run {command}."
        )
    if not is_blosc2 and f"{ids[0]}.npy" not in present:
        log.warning("%s holds packed npz files: every sample unpacks a whole case. %s writes the fast format.", folder, command)


def read_locations(folder: Path, case_id: str) -> ClassLocations:
    """The class locations of a case without their channel column, in the smallest integers that hold them."""
    found = read_properties(folder, case_id).get("class_locations")
    try:
        if not isinstance(found, dict):
            raise ValueError("it has no class_locations")
        return {key: _compact(np.asarray(voxels)) for key, voxels in found.items()}
    except ValueError as err:
        raise DataError(
            f"preprocessed data: {folder / f'{case_id}.pkl'} holds no voxels to draw from: {err}. Run {PREPROCESS_COMMAND} again."
        ) from err


def _compact(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if voxels.size == 0:
        return np.empty((0, 3), np.uint16)
    if voxels.ndim != 2 or voxels.shape[1] != 4 or voxels.dtype.kind not in "iu" or voxels.min() < 0 or voxels.max() >= 2**31:
        raise ValueError(f"class_locations of shape {voxels.shape} and type {voxels.dtype} are no list of voxels (N, 4)")
    return voxels[:, 1:].astype(np.uint16 if voxels.max() < 2**16 else np.int32)


def _bytes_held(arrays: tuple[Any, ...]) -> int:
    """Memory of a case's arrays: all of it when they were unpacked, next to nothing for files that are read on demand."""
    return sum(array.nbytes if type(array) is np.ndarray else _HANDLE_BYTES for array in arrays)


def _bytes_of_locations(locations: ClassLocations) -> int:
    return sum(voxels.nbytes for voxels in locations.values())
