"""The second stage of a cascade: what it reads, what its network sees, and its disturbances, beside nnU-Net."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from tests.conftest import Toys
from tests.nnunet_reference import built_trainer, loader_of_nnunet
from tests.toy import Toy
from tests.toy_cascade import SECOND, cascade_spec, predict_first_stage, with_cascade
from tests.unit.trainers.data.test_recipes import (
    NAMES,
    PATCHES,
    REGIONS,
    assert_nearly,
    composed_by_nnunet,
    described,
    flattened,
    inputs,
    seed_all,
)
from tests.unit.trainers.data.test_samples import digest
from trainers.contract.cascade import previous_predictions
from trainers.contract.trainer_table import TRAINERS
from trainers.data import samples
from trainers.data.batches import SplitName
from trainers.data.dataset import open_dataset
from trainers.data.recipes import Inputs, pipeline
from trainers.data.recipes.stages import Box
from trainers.data.samples import SampleKey, make_batch
from trainers.errors import DataError
from trainers.training.assemble import model_config

SETTINGS: dict[str, dict[str, Any]] = {
    "labels": {"kind": "labels"},
    "regions": {"kind": "regions", "channels": 2},
    "ignore": {"kind": "ignore"},
    "thick_slices": {"kind": "labels", "anisotropic": True},
}
RECIPES = ["nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainerDA5_classic", "nnUNetTrainerNoDA"]
Cascades = Callable[[str], Toy]


@pytest.fixture(scope="module")
def cascades(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Cascades:
    made: dict[str, Toy] = {}

    def cascade(setting: str) -> Toy:
        if setting not in made:
            made[setting] = with_cascade(toys(**SETTINGS[setting]), tmp_path_factory.mktemp(setting))
            for trainer in RECIPES:
                predict_first_stage(cascade_spec(made[setting], trainer, fold="all"))
        return made[setting]

    return cascade


def loader(spec: Any, split: str, transforms: Any) -> Any:
    """nnU-Net's loader with its dataset's folder of the previous stage."""
    found = loader_of_nnunet(spec, split, transforms)
    found._data.folder_with_segs_from_previous_stage = str(previous_predictions(spec, "toy_lowres"))
    return found


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_folder_and_the_input_of_the_network_are_those_of_nnunet(cascades: Cascades, setting: str, tmp_path: Path) -> None:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    toy = cascades(setting)
    spec, theirs = cascade_spec(toy), built_trainer("nnUNetTrainer", toy, toy.results.parent, SECOND)
    assert theirs.is_cascaded
    assert str(previous_predictions(spec, "toy_lowres")) == theirs.folder_with_segs_from_previous_stage
    expected = determine_num_input_channels(theirs.plans_manager, theirs.configuration_manager, theirs.dataset_json)
    assert model_config(spec).channels == expected
    data = open_dataset(spec)
    assert list(data.labels.foreground_values) == theirs.label_manager.foreground_labels
    assert make_batch(data, spec, "train", 0, 0, [0]).images.shape[1] == expected


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_crops_are_cut_as_by_nnunet(cascades: Cascades, setting: str, split: Any) -> None:
    """For nnU-Net's corners: what its loader hands to its transforms, image, labels and the previous stage's segmentation."""
    spec = cascade_spec(cascades(setting), fold="all")
    reference, data = loader(spec, split, None), open_dataset(spec)
    size = tuple(map(int, reference.patch_size))
    boxes: list[list[int]] = []
    find = reference.get_bbox

    def noted(*arguments: Any) -> Any:
        boxes.append([int(low) for low in find(*arguments)[0]])
        return boxes[-1], [low + n for low, n in zip(boxes[-1], size, strict=True)]

    reference.get_bbox = noted
    seed_all(0)
    for _ in range(6):
        boxes.clear()
        batch = reference.generate_train_batch()
        for position, case_id in enumerate(batch["keys"]):
            ours = samples._read(data, case_id, boxes[position], size)
            assert torch.equal(ours["image"], batch["data"][position])
            assert torch.equal(ours["segmentation"], batch["target"][position])
            assert ours["segmentation"].shape[0] == 2


def cascade_inputs(trainer: str, patch: str, regions: Any, ignore_label: int | None) -> Inputs:
    plain = inputs(trainer, patch, regions, ignore_label, (True, False))
    return Inputs(**{**vars(plain), "previous_labels": (1, 2, 3)})


def composed(trainer: str, split: str, given: Inputs) -> Any:
    return composed_by_nnunet(trainer, split, given, is_cascaded=True, foreground_labels=list(given.previous_labels))


@pytest.mark.parametrize("trainer", NAMES)
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize(("regions", "ignore_label"), [(None, None), (REGIONS, 4)])
def test_transforms_are_those_of_nnunet(trainer: str, patch: str, regions: Any, ignore_label: int | None) -> None:
    given = cascade_inputs(trainer, patch, regions, ignore_label)
    splits: tuple[SplitName, ...] = ("train", "val")
    for split in splits:
        expected = [described(transform) for transform in composed(trainer, split, given).transforms]
        assert [described(t) for t in flattened(pipeline(TRAINERS[trainer].recipe, split, given))] == expected


def raw_sample(given: Inputs, seed: int) -> dict[str, torch.Tensor]:
    """Noise, and labels in clumps: the operators do something to them."""
    generator, crop = np.random.default_rng(seed), given.geometry.loader_patch
    coarse = generator.integers(-1, 4, (2, *(max(2, n // 6) for n in crop)))
    fine = coarse
    for axis, n in enumerate(crop, 1):
        fine = fine.take(np.minimum(np.arange(n) // 6, fine.shape[axis] - 1), axis=axis)
    image = generator.normal(size=(2, *crop)).astype(np.float32)
    return {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(fine.astype(np.int16))}


@pytest.mark.parametrize("trainer", NAMES)
@pytest.mark.parametrize("patch", ["3d", "dummy_2d"])
def test_samples_are_bit_equal_to_nnunets_for_the_same_draws(trainer: str, patch: str) -> None:
    """Each time with transforms that have drawn nothing before: nnU-Net's shuffle a list of theirs in place."""
    given = cascade_inputs(trainer, patch, REGIONS, 4)
    ours, disturbed = pipeline(TRAINERS[trainer].recipe, "train", given), 0
    for seed in range(25):
        seed_all(seed)
        expected = composed(trainer, "train", given)(**raw_sample(given, seed))
        seed_all(seed)
        assert ours.spatial is not None
        whole, parameters = Box((0,) * len(ours.crop), ours.crop), ours.spatial.draw(2, ours.crop)
        sample: dict[str, Any] = ours.spatial.apply(raw_sample(given, seed), parameters, ours.crop, whole)
        for stage in ours.stages:
            before = sample["image"][2:].clone()
            sample = stage(sample)
            disturbed += stage.name.startswith("previous_stage_") and not torch.equal(before, sample["image"][2:])
        assert sample["image"].shape[0] == 2 + 3
        assert_nearly(sample["image"][:2], expected["image"][:2])
        assert torch.equal(sample["image"][2:], expected["image"][2:])
        assert all(torch.equal(a, b) for a, b in zip(sample["segmentation"], expected["segmentation"], strict=True))
    assert disturbed > 5


@pytest.mark.parametrize("trainer", RECIPES)
def test_a_sample_is_a_pure_function_of_its_key(cascades: Cascades, trainer: str) -> None:
    """Whoever has prepared whatever before: all of a batch at once, backwards by other loaders, and after samples of other iterations."""
    spec = cascade_spec(cascades("regions"), trainer)
    data = open_dataset(spec)
    iterations = range(8)
    whole = [make_batch(data, spec, "train", 1, iteration, [0, 1]) for iteration in iterations]
    pipeline.cache_clear()
    for iteration in reversed(iterations):
        for position in (1, 0):
            alone = make_batch(open_dataset(spec), spec, "train", 1, iteration, [position])
            assert np.array_equal(alone.images[0], whole[iteration].images[position])
            assert all(np.array_equal(a[0], b[position]) for a, b in zip(alone.targets, whole[iteration].targets, strict=True))


@pytest.mark.parametrize("trainer", RECIPES)
def test_the_image_and_the_targets_are_those_of_the_same_run_without_a_previous_stage(cascades: Cascades, trainer: str) -> None:
    """The streams of what was there before are untouched by the disturbances."""
    spec = cascade_spec(cascades("labels"), trainer)
    alone = spec.model_copy(update={"configuration": "toy_3d"})
    for split in ("train", "val"):
        for iteration in range(5):
            second = make_batch(open_dataset(spec), spec, split, 0, iteration, [0, 1])
            plain = make_batch(open_dataset(alone), alone, split, 0, iteration, [0, 1])
            assert np.array_equal(second.images[:, :1], plain.images)
            assert all(np.array_equal(a, b) for a, b in zip(second.targets, plain.targets, strict=True))
            assert set(np.unique(second.images[:, 1:])) <= {0, 1}


def test_disturbances_are_drawn_with_nnunets_probabilities(cascades: Cascades) -> None:
    """In a batch's clean validation input each voxel has at most one label; 0.4 and 0.2 of the samples are disturbed, each by label."""
    given = cascade_inputs("nnUNetTrainerDA5", "3d", None, None)
    stages = {stage.name: stage for stage in pipeline("da5", "train", given).stages}
    counts = dict.fromkeys(("previous_stage_operator", "previous_stage_removal"), 0)
    draws = 200
    for number in range(draws):
        for name in counts:
            image = torch.zeros((5, 12, 12, 12))
            image[2, 2:6, 2:6, 2:6] = image[3, 7:10, 7:10, 7:10] = 1
            samples._seed(SampleKey(0, "train", 0, number, 0).stream(name))
            sample = {"image": image.clone(), "segmentation": torch.zeros((1, 12, 12, 12), dtype=torch.int16)}
            counts[name] += not torch.equal(stages[name](sample)["image"], image)
    assert 0.3 * draws < counts["previous_stage_operator"] < 0.5 * draws
    assert 0.12 * draws < counts["previous_stage_removal"] < 0.28 * draws


@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_the_former_formats_give_the_same_samples(cascades: Cascades, ending: str, tmp_path: Path) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

    spec = cascade_spec(cascades("labels"))
    expected = digest(*(make_batch(open_dataset(spec), spec, "train", 0, i, [0, 1]) for i in range(3)))
    other = spec.model_copy(update={"model_folder": tmp_path / spec.model_folder.name})
    folder = predict_first_stage(other.model_copy(update={"fold": "all"}), nnUNetDatasetNumpy)
    if ending == ".npy":
        for file in folder.glob("*.npz"):
            np.save(file.with_suffix(".npy"), np.load(file)["seg"])
            file.unlink()
    assert {file.suffix for file in folder.iterdir()} == {ending}
    assert digest(*(make_batch(open_dataset(other), other, "train", 0, i, [0, 1]) for i in range(3))) == expected


def test_a_missing_segmentation_is_named(cascades: Cascades, tmp_path: Path) -> None:
    spec = cascade_spec(cascades("labels"))
    other = spec.model_copy(update={"model_folder": tmp_path / spec.model_folder.name})
    with pytest.raises(DataError, match=r"lacks the segmentations by 'toy_lowres' of 6 of the run's 6 cases, first of toy_00"):
        open_dataset(other)


@pytest.mark.parametrize("fault", ["shape", "values", "bytes", "floats", "pickle"])
def test_a_damaged_segmentation_is_named_and_nothing_in_it_is_executed(cascades: Cascades, fault: str, tmp_path: Path) -> None:
    spec = cascade_spec(cascades("labels"))
    folder = previous_predictions(spec.model_copy(update={"model_folder": tmp_path / spec.model_folder.name}), "toy_lowres")
    shutil.copytree(previous_predictions(spec, "toy_lowres"), folder)
    other = spec.model_copy(update={"model_folder": tmp_path / spec.model_folder.name})
    for file in folder.iterdir():
        good = blosc2.open(str(file))[:]
        file.unlink()
        if fault == "bytes":
            file.write_bytes(b"nothing of blosc2's")
        elif fault == "pickle":
            np.save(file.with_suffix(".npy"), np.array([print], dtype=object), allow_pickle=True)
        else:
            values = {"shape": good[:-1], "values": good + 7, "floats": good.astype(np.float32)}[fault]
            blosc2.asarray(np.ascontiguousarray(values), urlpath=str(file))
    with pytest.raises(DataError, match=r"previous stage: the segmentation of case toy_00\d in .* (holds|cannot be read)"):
        make_batch(open_dataset(other), other, "train", 0, 0, [0, 1])
