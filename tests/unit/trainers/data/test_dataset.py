"""The preprocessed folder: geometry and scales equal to nnU-Net's, cases checked on opening, properties cached within bounds."""

import errno
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from tests.conftest import Toys
from tests.nnunet_reference import PATCHES, geometry_of_nnunet, trainer_class
from tests.toy import PLANS, Toy, toy_spec
from trainers.contract.architecture import target_scales
from trainers.contract.trainer_table import TRAINERS
from trainers.data.case_files import open_case, read_properties
from trainers.data.dataset import geometry, open_dataset, recent
from trainers.data.samples import make_batch
from trainers.errors import DataError


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainerDA5"])
@pytest.mark.parametrize("patch", PATCHES)
def test_geometry_is_that_of_nnunet(patch: tuple[int, ...], trainer: str) -> None:
    ours = geometry(patch, TRAINERS[trainer])
    rotation, dummy_2d, loader_patch, mirror_axes = geometry_of_nnunet(patch, trainer)
    assert (ours.rotation_rad, ours.dummy_2d, ours.mirror_axes) == (rotation, dummy_2d, mirror_axes)
    assert ours.loader_patch == tuple(loader_patch)


def test_geometry_of_a_usual_patch() -> None:
    assert geometry((128, 128, 128), TRAINERS["nnUNetTrainer"]).loader_patch == (205, 205, 205)
    assert geometry((128, 128, 128), TRAINERS["nnUNetTrainerDA5"]).loader_patch == (249, 249, 249)
    assert geometry((20, 320, 256), TRAINERS["nnUNetTrainer"]).loader_patch == (20, 376, 376)


@pytest.mark.parametrize("strides", [[[1, 1, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]], [[1, 1], [2, 2], [2, 1]]])
def test_target_scales_are_those_of_nnunet(strides: list[list[int]]) -> None:
    fake = SimpleNamespace(enable_deep_supervision=True, configuration_manager=SimpleNamespace(pool_op_kernel_sizes=strides))
    reference = trainer_class("nnUNetTrainer")._get_deep_supervision_scales(fake)
    ours = target_scales({"patch_size": [8] * len(strides[0]), "architecture": {"arch_kwargs": {"strides": strides}}})
    assert [list(scale) for scale in ours] == [[float(v) for v in scale] for scale in reference]


def test_a_configuration_without_an_architecture_has_no_scales() -> None:
    with pytest.raises(DataError, match=r"lacks 'architecture'\. Run nnUNetv2_plan_experiment again"):
        target_scales({"patch_size": [8, 8, 8], "pool_op_kernel_sizes": []})


def test_opens_what_the_plans_say(toys: Toys) -> None:
    data = open_dataset(toy_spec(toys("regions", channels=2)))
    assert data.geometry.patch == (24, 24, 24)
    assert (data.batch_size, data.channels, data.use_mask_for_norm) == (2, 2, (True, True))
    assert data.scales == ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    assert data.labels.has_regions
    assert data.annotated_key is None
    assert open_dataset(toy_spec(toys("ignore"))).annotated_key == (-1, 0, 1, 2)


def test_loads_cases_as_nnunet_does(toys: Toys) -> None:
    data = open_dataset(toy_spec(toys()))
    case_id = data.cases["train"][0]
    image, labels, _, properties = nnUNetDatasetBlosc2(str(data.folder), [case_id]).load_case(case_id)
    own_image, own_labels = data.arrays(case_id)
    assert data.previous(case_id) is None
    assert np.array_equal(own_image[:], image[:])
    assert np.array_equal(own_labels[:], labels[:])
    assert own_image.shape[0] == data.channels
    for key, voxels in data.locations(case_id).items():
        assert np.array_equal(voxels, properties["class_locations"][key][:, 1:])


def test_a_class_that_is_absent_has_no_voxels(toys: Toys) -> None:
    data = open_dataset(toy_spec(toys()))
    assert data.locations("toy_005")[2].shape == (0, 3)


def copy_of(toy: Toy, base: Path) -> Toy:
    shutil.copytree(toy.preprocessed, base / "nnUNet_preprocessed" / toy.name)
    return Toy(base, toy.name, toy.raw, base / "nnUNet_preprocessed" / toy.name, base / "nnUNet_results" / toy.name)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_a_missing_file_is_named_with_the_command_that_mends_it(toys: Toys, tmp_path: Path, ending: str) -> None:
    toy = copy_of(toys(), tmp_path)
    spec = toy_spec(toy)
    missing = f"{spec.train_cases[1]}{ending}"
    (toy.preprocessed / f"{PLANS}_3d_fullres" / missing).unlink()
    with pytest.raises(DataError, match=f"lacks 1 files .*{missing}.*nnUNetv2_preprocess -d {toy.name}"):
        open_dataset(spec)


def test_a_missing_folder_is_a_data_error(toys: Toys, tmp_path: Path) -> None:
    toy = copy_of(toys(), tmp_path)
    shutil.rmtree(toy.preprocessed / f"{PLANS}_3d_fullres")
    with pytest.raises(DataError, match="nnUNetv2_preprocess"):
        open_dataset(toy_spec(toy))


@pytest.mark.parametrize("ending", [".b2nd", ".pkl"])
def test_a_broken_file_is_a_data_error(toys: Toys, tmp_path: Path, ending: str) -> None:
    toy = copy_of(toys(), tmp_path)
    spec = toy_spec(toy)
    data = open_dataset(spec)
    (data.folder / f"{spec.train_cases[0]}{ending}").write_bytes(b"broken")
    with pytest.raises(DataError, match="nnUNetv2_preprocess again"):
        data.locations(spec.train_cases[0]) if ending == ".pkl" else data.arrays(spec.train_cases[0])


@pytest.mark.parametrize("unpacked", [False, True])
def test_the_older_npz_format_gives_the_same_samples(toys: Toys, tmp_path: Path, unpacked: bool) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

    toy = copy_of(toys(), tmp_path)
    spec = toy_spec(toy)
    expected = make_batch(open_dataset(spec), spec, "train", 0, 0, range(2))
    data = open_dataset(spec)
    for case_id in (*spec.train_cases, *spec.val_cases):
        (image, labels), properties = data.arrays(case_id), read_properties(data.folder, case_id)
        nnUNetDatasetNumpy.save_case(image[:], labels[:], properties, str(data.folder / case_id))
        if unpacked:
            np.save(data.folder / f"{case_id}.npy", image[:])
            np.save(data.folder / f"{case_id}_seg.npy", labels[:])
    for path in data.folder.glob("*.b2nd"):
        path.unlink()
    older = make_batch(open_dataset(spec), spec, "train", 0, 0, range(2))
    again = make_batch(open_dataset(spec), spec, "train", 0, 0, range(2))
    for batch in (older, again):
        assert np.array_equal(batch.images, expected.images)
        assert all(np.array_equal(a, b) for a, b in zip(batch.targets, expected.targets, strict=True))


def test_recent_values_stay_within_their_limit() -> None:
    made: list[str] = []

    def make(key: str) -> int:
        made.append(key)
        return int(key)

    held = recent(make, lambda value: value, limit=10)
    assert [held(key) for key in ("4", "5", "4")] == [4, 5, 4]
    assert made == ["4", "5"]
    held("6")  # 4 + 5 + 6 > 10: the one used longest ago, 5, has to go
    assert [held(key) for key in ("4", "6")] == [4, 6]
    assert made == ["4", "5", "6"]
    held("50")  # larger than the limit alone: kept, so that it is not read again at once
    assert [held("50"), held("4"), held("50")] == [50, 4, 50]  # beside it there is no room
    assert made == ["4", "5", "6", "50", "4", "50"]


def test_values_that_were_let_go_are_not_held_elsewhere() -> None:
    class Large:
        pass

    held = recent(lambda key: Large(), lambda value: 6, limit=10)
    first = weakref.ref(held("a"))
    assert first() is not None
    held("b")
    assert first() is None


def test_needs_no_torch() -> None:
    code = "import sys, trainers.data.dataset as d; d.geometry((8, 8, 8), d.TrainerSettings()); sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("is_npy", [False, True])
def test_cases_are_read_where_their_file_system_maps_no_files(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_npy: bool
) -> None:
    toy = toys("labels")
    data = open_dataset(toy_spec(toy))
    case = data.cases["train"][0]
    expected = [np.array(array[:]) for array in data.arrays(case)]
    if is_npy:
        for end, array in zip(("", "_seg"), expected, strict=True):
            np.save(tmp_path / f"{case}{end}.npy", array)
    real_open, real_load = blosc2.open, np.load

    def refuse(opened: Any, error: Exception) -> Any:
        def opening(*arguments: Any, mmap_mode: str | None = None, **options: Any) -> Any:
            if mmap_mode:
                raise error
            return opened(*arguments, **options)

        return opening

    monkeypatch.setattr(blosc2, "open", refuse(real_open, RuntimeError("returned NULL")))
    monkeypatch.setattr(np, "load", refuse(real_load, OSError(errno.ENODEV, "No such device")))
    found = open_case(tmp_path if is_npy else data.folder, case, data.channels)
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array[:], wanted)
