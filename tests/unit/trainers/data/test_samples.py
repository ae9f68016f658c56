"""Samples: located where nnU-Net locates them, cut as nnU-Net cuts them, and a pure function of their key."""

import hashlib
import logging
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import Toys
from tests.nnunet_reference import loader_of_nnunet
from tests.toy import toy_spec
from trainers.contract.run_spec import RunSpec
from trainers.data import samples
from trainers.data.batches import Batch, SplitName
from trainers.data.case_files import read_properties
from trainers.data.dataset import TrainingData, open_dataset
from trainers.data.recipes import Box, Spatial
from trainers.data.samples import SampleKey, chosen_voxels, is_forced, lower_corner, make_batch, read_crop
from trainers.errors import DataError

TRAINERS = ["nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerDA5_classic"]
EXPECTED_STREAM = [93883252, 3544729784, 1580478759, 2390906175, 4161119769, 4269239031, 2629472841, 4118620352]
SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"kind": "labels"}, "toy_3d"),
    "regions": ({"kind": "regions", "channels": 2}, "toy_3d"),
    "ignore": ({"kind": "ignore"}, "toy_3d"),
    "thick_slices": ({"kind": "labels", "anisotropic": True}, "toy_aniso"),
    "slices": ({"kind": "labels"}, "toy_2d"),
    "slices_with_ignore": ({"kind": "ignore"}, "toy_2d"),
}


def spec_of(toys: Toys, setting: str, trainer: str = "nnUNetTrainer", **overrides: Any) -> RunSpec:
    options, configuration = SETTINGS[setting]
    return toy_spec(toys(**options), configuration, trainer, **overrides)


def digest(*batches: Batch) -> str:
    """SHA-256 over all bits of batches."""
    total = hashlib.sha256()
    for batch in batches:
        for array in (batch.images, *batch.targets):
            total.update(np.ascontiguousarray(array).tobytes())
        total.update(repr(batch.case_ids).encode())
    return total.hexdigest()


@pytest.mark.parametrize("trainer", TRAINERS[:2])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_locations_are_those_of_nnunet(toys: Toys, setting: str, trainer: str, split: Any) -> None:
    spec = spec_of(toys, setting, trainer, fold="all")
    data, reference = open_dataset(spec), loader_of_nnunet(spec, split)
    crop, patch = tuple(map(int, reference.patch_size)), tuple(map(int, reference.final_patch_size))
    for draw in range(300):
        case_id, forced = spec.train_cases[draw % len(spec.train_cases)], draw % 2 == 0
        (image, _), properties = data.arrays(case_id), read_properties(data.folder, case_id)
        np.random.seed(draw)
        lower, upper = reference.get_bbox(image.shape[1:], forced, properties["class_locations"])
        state = np.random.RandomState(draw)
        voxels = chosen_voxels(state, data.locations(case_id), forced, data.annotated_key)
        ours = lower_corner(state, image.shape[1:], crop, patch, voxels)
        assert ours == [int(v) for v in lower]
        assert [low + size for low, size in zip(ours, crop, strict=True)] == [int(v) for v in upper]


def test_locations_fall_back_where_a_case_has_nothing_to_centre_on() -> None:
    nothing, some = np.empty((0, 3), np.uint16), np.ones((4, 3), np.uint16)
    state = np.random.RandomState(0)
    assert chosen_voxels(state, {1: nothing, 2: nothing}, True, None) is None
    assert chosen_voxels(state, {1: some}, False, None) is None
    key = (-1, 0, 1)
    assert chosen_voxels(state, {1: nothing, key: nothing}, False, key) is None
    assert chosen_voxels(state, {1: nothing, key: some}, True, key) is some  # only the annotated background is there


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 8, 9, 12, 16])
def test_the_last_positions_are_forced_as_in_nnunet(batch_size: int) -> None:
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    fake = SimpleNamespace(batch_size=batch_size, oversample_foreground_percent=0.33)
    expected = [nnUNetDataLoader._oversample_last_XX_percent(fake, position) for position in range(batch_size)]
    assert [is_forced(position, batch_size, 0.33) for position in range(batch_size)] == expected
    assert sum(expected) == {1: 0, 2: 1, 3: 1, 4: 1, 5: 2, 8: 3, 9: 3, 12: 4, 16: 5}[batch_size]


def test_forced_samples_hold_foreground(toys: Toys) -> None:
    spec = spec_of(toys, "labels")
    data = open_dataset(spec)
    for iteration in range(30):
        batch = make_batch(data, spec, "val", 0, iteration, range(2))
        assert (batch.targets[0][1] > 0).any()  # position 1 of 2 is forced


def test_crops_are_those_of_nnunet() -> None:
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd  # type: ignore[import-untyped]

    generator = np.random.default_rng(0)
    array = generator.normal(size=(2, 9, 10, 11)).astype(np.float32)
    for _ in range(300):
        size = generator.integers(1, 20, 3)
        corner = [int(generator.integers(1 - s, n)) for s, n in zip(size, array.shape[1:], strict=True)]  # touches the case
        box = [[c, c + int(s)] for c, s in zip(corner, size, strict=True)]
        assert np.array_equal(read_crop(array, corner, [int(s) for s in size], -1, np.float32), crop_and_pad_nd(array, box, -1))


def test_a_crop_beside_the_case_is_all_outside() -> None:
    crop = read_crop(np.ones((1, 4, 4, 4), np.int16), [4, 0, -9], (2, 2, 2), -1, np.int16)
    assert crop.tolist() == np.full((1, 2, 2, 2), -1).tolist()


@pytest.mark.parametrize("trainer", TRAINERS[:2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_reading_only_what_is_touched_changes_no_bit(toys: Toys, setting: str, trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as from nnU-Net's whole crop, both where the patch is turned or scaled and where it is cut from the crop's middle."""
    spec = spec_of(toys, setting, trainer)
    data = open_dataset(spec)
    quick = [make_batch(data, spec, "train", 0, iteration, range(data.batch_size)) for iteration in range(15)]
    sizes: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    touched = Spatial.touched

    def everything(self: Spatial, parameters: dict[str, Any], crop: tuple[int, ...]) -> Box:
        sizes[parameters["affine"] is None].add(touched(self, parameters, crop).size)
        return Box((0,) * len(crop), crop)

    monkeypatch.setattr(Spatial, "touched", everything)
    whole = [make_batch(data, spec, "train", 0, iteration, range(data.batch_size)) for iteration in range(15)]
    assert sizes[True] == {data.geometry.patch}
    assert sizes[False]
    assert digest(*quick) == digest(*whole)


def test_samples_are_nnunets_for_the_same_location(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation samples without any transform of ours: cut, cleaned and downsampled as nnU-Net's loader does."""
    from tests.nnunet_reference import trainer_class

    spec = spec_of(toys, "regions", fold="all")
    data = open_dataset(spec)
    transforms = trainer_class("nnUNetTrainer").get_validation_transforms([[1, 1, 1], [0.5, 0.5, 0.5]], regions=[(1, 2, 3), (2, 3), 3])
    reference = loader_of_nnunet(spec, "val", transforms)
    batch = make_batch(data, spec, "val", 3, 5, range(2))
    corners = [samples.location_of(data, data.geometry.patch, SampleKey(0, "val", 3, 5, j), batch.case_ids[j], j == 1) for j in range(2)]
    boxes = iter([(corner, [c + 24 for c in corner]) for corner in corners])
    monkeypatch.setattr(reference, "get_indices", lambda: list(batch.case_ids))
    monkeypatch.setattr(reference, "get_bbox", lambda *_, **__: next(boxes))
    expected = reference.generate_train_batch()
    assert np.array_equal(batch.images, expected["data"].numpy())
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(batch.targets, expected["target"], strict=True))


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_shapes_and_types(toys: Toys, setting: str, trainer: str) -> None:
    spec = spec_of(toys, setting, trainer)
    data = open_dataset(spec)
    patch = data.geometry.patch
    coarse = tuple(round(n * s) for n, s in zip(patch, data.scales[1], strict=True))
    splits: tuple[SplitName, ...] = ("train", "val")
    for split in splits:
        batch = make_batch(data, spec, split, 0, 0, range(data.batch_size))
        heads = 3 if setting == "regions" else 1
        assert batch.images.shape == (data.batch_size, data.channels, *patch)
        assert batch.images.dtype == np.float32
        assert batch.images.flags.c_contiguous
        assert np.isfinite(batch.images).all()
        assert [t.shape for t in batch.targets] == [(data.batch_size, heads, *patch), (data.batch_size, heads, *coarse)]
        assert {t.dtype for t in batch.targets} == {np.dtype(bool if setting == "regions" else np.int16)}
        assert min(t.min() for t in batch.targets) >= 0  # nothing of -1 is left
        assert set(batch.case_ids) <= set(data.cases[split])
        assert batch.nbytes == batch.images.nbytes + sum(t.nbytes for t in batch.targets)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("setting", ["labels", "regions", "thick_slices", "slices_with_ignore"])
def test_a_sample_depends_on_its_key_alone(toys: Toys, setting: str, trainer: str) -> None:
    """Not on the other positions, on what was made before, nor on the state of the global generators."""
    spec = spec_of(toys, setting, trainer)
    data = open_dataset(spec)
    together = [make_batch(data, spec, "train", 1, iteration, range(4)) for iteration in range(4)]
    np.random.seed(99), torch.manual_seed(99), random.seed(99)
    again = open_dataset(spec)
    for iteration in (3, 1, 0, 2):
        for positions in ([3, 1], [0], [2]):
            part = make_batch(again, spec, "train", 1, iteration, positions)
            for row, position in enumerate(positions):
                assert np.array_equal(part.images[row], together[iteration].images[position])
                assert all(np.array_equal(a[row], b[position]) for a, b in zip(part.targets, together[iteration].targets, strict=True))
                assert part.case_ids[row] == together[iteration].case_ids[position]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_another_process_makes_the_same_bits(toys: Toys, trainer: str) -> None:
    spec = spec_of(toys, "regions", trainer)
    data = open_dataset(spec)
    here = digest(*(make_batch(data, spec, "train", 0, iteration, range(2)) for iteration in range(10)))
    code = (
        "import sys; from trainers.contract.run_spec import RunSpec; from trainers.data.dataset import open_dataset\n"
        "from trainers.data.samples import make_batch; from tests.unit.trainers.data.test_samples import digest\n"
        "spec = RunSpec.model_validate_json(sys.stdin.read()); data = open_dataset(spec)\n"
        "batches = {i: make_batch(data, spec, 'train', 0, i, range(2)) for i in reversed(range(10))}\n"
        "print(digest(*(batches[i] for i in range(10))))"
    )
    root = Path(__file__).parents[4]
    done = subprocess.run([sys.executable, "-c", code], input=spec.model_dump_json(), cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == here


def test_every_part_of_the_key_matters(toys: Toys) -> None:
    spec = spec_of(toys, "labels", fold="all")
    data = open_dataset(spec)
    runs = [(spec, "train", 0, 0), (spec, "val", 0, 0), (spec, "train", 1, 0), (spec, "train", 0, 1)]
    runs += [(spec.model_copy(update={"seed": seed}), "train", 0, 0) for seed in (1, 2**32, 2**32 + 1)]
    made = [digest(make_batch(data, s, split, epoch, iteration, [0])) for s, split, epoch, iteration in runs]  # type: ignore[arg-type]
    assert len(set(made)) == len(made)
    batch = make_batch(data, spec, "train", 0, 0, range(2))
    assert not np.array_equal(batch.images[0], batch.images[1])


def test_streams_of_stages_differ() -> None:
    key = SampleKey(0, "train", 0, 0, 0)
    words = {tuple(key.stream(stage).tolist()) for stage in ("case", "location", "spatial", "gamma", "gamma_inverted")}
    assert len(words) == 5


def test_streams_never_change() -> None:
    """These numbers are what a seed means: if they change, RECIPE_VERSION has to rise."""
    assert SampleKey(2**40 + 7, "val", 3, 5, 11).stream("spatial").tolist() == EXPECTED_STREAM


def test_the_callers_generators_and_threads_are_left_alone(toys: Toys) -> None:
    spec = spec_of(toys, "labels", "nnUNetTrainerDA5")
    data = open_dataset(spec)
    np.random.seed(1), torch.manual_seed(1), random.seed(1)
    threads = torch.get_num_threads()
    expected = np.random.RandomState(1).rand(3), torch.rand(3, generator=torch.Generator().manual_seed(1)), random.Random(1).random()
    make_batch(data, spec, "train", 0, 0, range(2))
    with pytest.raises(DataError):
        make_batch(broken(data), spec, "train", 0, 0, range(2))
    assert torch.get_num_threads() == threads
    assert np.array_equal(np.random.rand(3), expected[0])
    assert torch.equal(torch.rand(3), expected[1])
    assert random.random() == expected[2]


def broken(data: TrainingData) -> Any:
    """The same data, but every case fails to read."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(data, name)

        def arrays(self, case_id: str) -> Any:
            raise DataError(f"case {case_id} cannot be read")

    return Broken()


def test_an_unannotated_case_is_cut_anywhere_and_said_once(toys: Toys, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    spec = spec_of(toys, "ignore")
    data = open_dataset(spec)
    nothing = np.empty((0, 3), np.uint16)
    monkeypatch.setattr(TrainingData, "locations", lambda *_: {1: nothing, 2: nothing, (-1, 0, 1, 2): nothing})
    samples.warn_unannotated.cache_clear()
    with caplog.at_level(logging.WARNING):
        for iteration in range(20):
            make_batch(data, spec, "train", 0, iteration, range(2))
    messages = [record.message for record in caplog.records]
    assert len(messages) == len(set(messages)) == len(spec.train_cases)
    monkeypatch.setattr(TrainingData, "locations", lambda *_: {1: nothing})
    with pytest.raises(DataError, match="without the ignore label"):
        make_batch(data, spec, "train", 0, 0, [0])


def test_no_positions_are_refused(toys: Toys) -> None:
    spec = spec_of(toys, "labels")
    with pytest.raises(ValueError, match="empty"):
        make_batch(open_dataset(spec), spec, "train", 0, 0, [])
