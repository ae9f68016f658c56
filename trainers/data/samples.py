"""make_batch: samples as a pure function of (seed, split, epoch, iteration, position in the global batch).

B batch, C channels, R targets' channels (1 for labels, one per region else), Z Y X voxels.
Every stage of every sample has a random stream of its own, so that who prepares which samples where and in which order changes no bit.
Bits are promised on one kind of CPU, since libraries choose kernels by its instruction set.
Source of the sampling rules: nnunetv2/training/dataloading/data_loader.py (get_bbox, generate_train_batch).
"""

import contextlib
import functools
import logging
import math
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainers.contract.run_spec import RunSpec
from trainers.contract.trainer_table import TrainerSettings
from trainers.data.batches import Batch, SplitName
from trainers.data.case_files import damaged, damaged_previous
from trainers.data.dataset import ClassLocations, TrainingData
from trainers.data.not_finite import not_finite
from trainers.data.recipes import Pipeline, Sample, inputs_of, pipeline
from trainers.errors import DataError

log = logging.getLogger(__name__)

_SPLIT_NUMBER: dict[SplitName, int] = {"train": 0, "val": 1}
_OUTSIDE_IMAGE, _OUTSIDE_LABELS = 0, -1


@dataclass(frozen=True)
class SampleKey:
    """What determines one sample of a dataset and recipe."""

    seed: int
    split: SplitName
    epoch: int
    iteration: int
    position: int

    def stream(self, stage: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Eight seed words for one stage. All parts have a fixed width, so no two keys make the same entropy."""
        entropy = (
            self.seed & 0xFFFFFFFF,
            self.seed >> 32,
            _SPLIT_NUMBER[self.split],
            self.epoch,
            self.iteration,
            self.position,
            zlib.crc32(stage.encode()),
        )
        # as an array: SeedSequence takes a tuple apart number by number, which costs several times more
        words: npt.NDArray[np.uint32] = np.random.SeedSequence(np.array(entropy, np.uint32)).generate_state(8, np.uint32)  # type: ignore[assignment]
        return words


def make_batch(data: TrainingData, spec: RunSpec, split: SplitName, epoch: int, iteration: int, positions: Sequence[int]) -> Batch:
    """Prepare the samples at `positions` of a global batch.

    Leaves the global generators of numpy, torch and Python as they were; not to be called from two threads of one process at once.
    Raises DataError when a case is damaged, StorageError when the disk is away; then open the dataset anew, its open files may be stale.
    """
    steps = pipeline(spec.recipe, split, inputs_of(data), spec.own.recipe)
    images, targets, case_ids = None, [], []
    with _isolated(), torch.no_grad():
        for index, position in enumerate(positions):
            key = SampleKey(spec.seed, split, epoch, iteration, position)
            case_id, sample = _sample(data, steps, key, _is_forced(key, data.batch_size, spec))
            if images is None:
                images = np.empty((len(positions), *sample["image"].shape), np.float32)
                targets = [np.empty((len(positions), *t.shape), t.numpy().dtype) for t in sample["segmentation"]]
            images[index] = sample["image"].numpy()
            for target, part in zip(targets, sample["segmentation"], strict=True):
                target[index] = part.numpy()
            case_ids.append(case_id)
    if images is None:
        raise ValueError("make_batch: positions is empty")
    return Batch(images, targets, tuple(case_ids))


def is_forced(position: int, batch_size: int, oversampling: float) -> bool:
    """True if the sample at `position` of the global batch is centred on foreground: the last ones, rounded as Python does."""
    return position >= round(batch_size * (1 - oversampling))


def forced_probability(batch_size: int, oversampling: float, settings: TrainerSettings) -> float:
    """How probable it is that a sample is centred on foreground, for a trainer that draws it."""
    if settings.oversampling == "drawn":
        return oversampling
    return sum(is_forced(position, batch_size, oversampling) for position in range(batch_size)) / batch_size


def _is_forced(key: SampleKey, batch_size: int, spec: RunSpec) -> bool:
    share, settings = spec.schedule.foreground_oversampling, spec.settings
    if settings.oversampling == "last":
        return is_forced(key.position, batch_size, share)
    draw = np.random.RandomState(key.stream("forced")).uniform()
    return bool(draw < forced_probability(batch_size, share, settings))


def lower_corner(
    draw: np.random.RandomState,
    shape: Sequence[int],
    crop: Sequence[int],
    patch: Sequence[int],
    voxels: npt.NDArray[Any] | None,
) -> list[int]:
    """First voxel of a crop, possibly outside the case: centred on one of `voxels` (N, 3), else anywhere that keeps a patch in reach.

    As in nnU-Net, a crop around a voxel is moved inwards at the lower border only; a case smaller than the crop is padded on both sides.
    """
    margin = [max(c - p, c - s) for s, c, p in zip(shape, crop, patch, strict=True)]
    lowest = [-m // 2 for m in margin]
    if voxels is not None:
        voxel = voxels[draw.choice(len(voxels))]
        return [max(low, int(v) - c // 2) for low, v, c in zip(lowest, voxel, crop, strict=True)]
    highest = [s + m // 2 + m % 2 - c for s, m, c in zip(shape, margin, crop, strict=True)]
    return [int(draw.randint(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]


def chosen_voxels(
    draw: np.random.RandomState, locations: ClassLocations, forced: bool, annotated_key: tuple[int, ...] | None
) -> npt.NDArray[Any] | None:
    """The voxels that a crop is centred on one of, or None for anywhere.

    Forced samples: of a class or region drawn uniformly from those present; other samples of a dataset with an ignore label: all annotated.
    """
    if not forced:
        return None if annotated_key is None or len(locations[annotated_key]) == 0 else locations[annotated_key]
    present = [key for key, voxels in locations.items() if len(voxels) > 0]
    if len(present) > 1 and annotated_key in present:
        present.remove(annotated_key)
    return locations[present[draw.choice(len(present))]] if present else None


def read_crop(array: Any, corner: Sequence[int], size: Sequence[int], fill: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Cut ([C,] *size) out of an array ([C,] Z, Y, X), reading only that; voxels outside are `fill`."""
    leading = array.shape[: len(array.shape) - len(size)]
    whole = (slice(None),) * len(leading)
    stops = [c + n for c, n in zip(corner, size, strict=True)]
    inside = [slice(max(c, 0), max(min(stop, n), 0)) for c, stop, n in zip(corner, stops, array.shape[len(leading) :], strict=True)]
    sizes = [part.stop - part.start for part in inside]
    if sizes == list(size):  # what blosc2 unpacks is memory of its own, so that it need not be copied
        return np.require(array[(*whole, *inside)], dtype, ("C", "W", "O"))
    crop = np.full((*leading, *size), fill, dtype)
    if min(sizes) > 0:
        place = tuple(slice(part.start - c, part.stop - c) for part, c in zip(inside, corner, strict=True))
        crop[(*whole, *place)] = array[(*whole, *inside)]
    return crop


def _sample(data: TrainingData, steps: Pipeline, key: SampleKey, forced: bool) -> tuple[str, Sample]:
    """One transformed sample and the id of its case."""
    ids = data.cases[key.split]
    case_id = ids[np.random.RandomState(key.stream("case")).randint(len(ids))]
    corner = location_of(data, steps.crop, key, case_id, forced)
    if steps.spatial is None:
        sample = _read(data, case_id, corner, _in_3d(steps.crop))
    else:
        _seed(key.stream("spatial"))
        parameters = steps.spatial.draw(data.channels, steps.crop)
        box = steps.spatial.touched(parameters, steps.crop)
        first = (0,) * (3 - len(box.origin)) + box.origin
        sample = _read(data, case_id, [low + start for low, start in zip(corner, first, strict=True)], _in_3d(box.size))
        sample = steps.spatial.apply(sample, parameters, steps.crop, box)
    for stage in steps.stages:
        if stage.draws:
            _seed(key.stream(stage.name))
        sample = stage(sample)
    return case_id, sample


def location_of(data: TrainingData, crop: tuple[int, ...], key: SampleKey, case_id: str, forced: bool) -> list[int]:
    draw = np.random.RandomState(key.stream("location"))
    voxels = None
    if forced or data.annotated_key is not None:
        locations = data.locations(case_id)
        if data.annotated_key is not None:
            _check_annotated(data, case_id)
        voxels = chosen_voxels(draw, locations, forced, data.annotated_key)
    shape = data.arrays(case_id)[0].shape[1:]
    return lower_corner(draw, shape, _in_3d(crop), _in_3d(data.geometry.patch), voxels)


def _check_annotated(data: TrainingData, case_id: str) -> None:
    voxels = data.locations(case_id).get(data.annotated_key or ())
    if voxels is None:
        raise DataError(
            f"preprocessed data: case {case_id} in {data.folder} was preprocessed without the ignore label of dataset.json. "
            "Run nnUNetv2_preprocess again."
        )
    if len(voxels) == 0:
        warn_unannotated(case_id)


@functools.cache
def warn_unannotated(case_id: str) -> None:
    log.warning("case %s has no annotated voxel at all; its samples are cut anywhere.", case_id)


def _in_3d(size: tuple[int, ...]) -> tuple[int, ...]:
    return size if len(size) == 3 else (1, *size)


def _read(data: TrainingData, case_id: str, corner: Sequence[int], size: tuple[int, ...]) -> Sample:
    image, labels = data.arrays(case_id)
    try:
        with data.disk:
            image_CZYX = torch.from_numpy(read_crop(image, corner, size, _OUTSIDE_IMAGE, np.float32))
            labels_1ZYX = torch.from_numpy(read_crop(labels, corner, size, _OUTSIDE_LABELS, np.int16))
        _check_values(data, case_id, image, image_CZYX, labels_1ZYX)
    except (OSError, RuntimeError, ValueError) as err:  # blosc2 finds a damaged chunk only when it unpacks it
        raise damaged(data.folder, case_id, err) from err
    segmentation = labels_1ZYX if data.previous_folder is None else torch.cat((labels_1ZYX, _read_previous(data, case_id, corner, size)))
    if data.is_2d:
        return {"image": image_CZYX[:, 0], "segmentation": segmentation[:, 0]}
    return {"image": image_CZYX, "segmentation": segmentation}


def _read_previous(data: TrainingData, case_id: str, corner: Sequence[int], size: tuple[int, ...]) -> torch.Tensor:
    """The previous stage's segmentation (1, Z, Y, X) of a crop. Raises as `_read`."""
    folder = data.previous_folder
    assert folder is not None
    try:
        found_1ZYX = torch.from_numpy(read_crop(data.previous(case_id), corner, size, _OUTSIDE_LABELS, np.int16))[None]
    except (OSError, RuntimeError, ValueError) as err:  # as above
        raise damaged_previous(folder, case_id, err) from err
    highest = int(found_1ZYX.max())
    if highest > data.labels.foreground_values[-1]:
        raise damaged_previous(folder, case_id, ValueError(f"it holds the label {highest}, which dataset.json does not name"))
    return found_1ZYX


def _check_values(data: TrainingData, case_id: str, image: Any, image_CZYX: torch.Tensor, labels_1ZYX: torch.Tensor) -> None:
    """Raise DataError for values that cannot be trained on: not finite, or labels of no class. `image`: the case's, not cut.

    blosc2 keeps no checksum: changed bytes mostly unpack to other values.
    """
    if not all(math.isfinite(float(v)) for v in image_CZYX.aminmax()):  # NaN is passed on; a tenth of the time of isfinite().all()
        raise not_finite(data.folder, case_id, image)
    lowest, highest = (int(v) for v in labels_1ZYX.aminmax())
    if lowest < _OUTSIDE_LABELS or highest > max(data.labels.values):
        found = f"labels from {lowest} to {highest}"
        raise DataError(f"preprocessed data: case {case_id} in {data.folder} is damaged: it holds {found}. Run nnUNetv2_preprocess again.")


def _seed(words: npt.NDArray[np.unsignedinteger[Any]]) -> None:
    """Seed the three global generators that transforms draw from. Not torch.manual_seed: it also queues a call for every GPU."""
    np.random.seed(words[:4])
    torch.default_generator.manual_seed(int(words[4]) << 32 | int(words[5]))
    random.seed(int(words[6]) << 32 | int(words[7]))


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """One torch thread inside, since sums depend on the number of threads; afterwards threads and generators are as before."""
    threads = torch.get_num_threads()
    state_numpy, state_torch, state_python = np.random.get_state(), torch.default_generator.get_state(), random.getstate()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        np.random.set_state(state_numpy)
        torch.default_generator.set_state(state_torch)
        random.setstate(state_python)
