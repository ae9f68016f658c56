"""Run keys and data digests: stable where nothing changed, different where the result would be; label files read once."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.dataset import label_files, remembered
from orchestrator.dataset.digest import data_digest, run_key
from orchestrator.dataset.label_files import read_label_files, voxel_values
from orchestrator.dataset.remembered import Reading
from orchestrator.errors import StorageError
from tests.unit.old_plans import old_configuration
from tests.unit.tiny_dataset import CONFIGURATIONS, DATASET_JSON, Tiny, tiny_dataset
from trainers.contract.plans import Plans, Split
from trainers.contract.run_spec import Schedule

SPLIT = Split(("a", "b"), ("c",))
LABELS = {"a": "1" * 64, "b": "2" * 64, "c": "3" * 64}


def plans(**changes: Any) -> Plans:
    return Plans("nnUNetPlans", Path("nnUNetPlans.json"), {"transpose_forward": [0, 1, 2], "configurations": CONFIGURATIONS, **changes})


def digest(**changes: Any) -> str:
    given: dict[str, Any] = {
        "plans": plans(),
        "configuration": "3d_fullres",
        "dataset_json": DATASET_JSON,
        "split": SPLIT,
        "label_sha256": LABELS,
    }
    return data_digest(**{**given, **changes})


def key(**changes: Any) -> str:
    given: dict[str, Any] = {
        "dataset": "Dataset017_BTCV",
        "configuration": "3d_fullres",
        "trainer": "nnUNetTrainerDA5",
        "plans": "nnUNetPlans",
        "fold": 0,
        "seed": 0,
        "schedule": Schedule(),
        "data_digest": digest(),
    }
    return run_key(**{**given, **changes})


def test_the_key_of_a_fixed_run_never_changes() -> None:
    """If this fails, every run that users have is orphaned: change the key's ingredients only together with RECIPE_VERSION."""
    layers = {"arch_kwargs": {"n_stages": 2}}
    patch = {"batch_size": 3, "patch_size": [8, 8, 8], "architecture": layers, "batch_dice": False}
    fixed = digest(plans=plans(configurations={"3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres", **patch}}))
    assert fixed == "1c4bab6ff7af1244ace6ec86371ac3f2a055716ef52b00b0741ecf73b3cc3d07"
    assert key(data_digest=fixed) == key(data_digest=fixed, replicate="") == "d017-3d_fullres-nnUNetTrainerDA5-nnUNetPlans-f0-s0-e609bfe4"


def test_a_replicate_has_a_key_of_its_own_that_names_it() -> None:
    keys = [key(), *(key(replicate=name) for name in ("second", "third", "a name: longer than it has room", "a name: longer than"))]
    assert len(set(keys)) == 5
    assert keys[1].startswith("d017-3d_fullres-nnUNetTrainerDA5-nnUNetPlans-f0-s0-second-")
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", each) for each in keys)


def test_a_variant_has_a_key_of_its_own_that_names_it_and_stays_short() -> None:
    keys = [key(), key(variant="lowlr"), key(variant="initial_lr-0.001"), key(variant="lowlr", replicate="second")]
    assert keys[0] == key(variant="")
    assert [each.rsplit("-s0", 1)[1][:-9] for each in keys] == ["", "-lowlr", "-initial_lr_0.001", "-lowlr-second"]
    assert len(set(keys)) == 4
    longest = key(
        variant="v" * 60, replicate="r" * 40, configuration="c" * 80, plans="p" * 80, dataset="Dataset123456789_X", seed=2**63 - 1
    )
    assert len(longest) == 120


def test_plans_from_before_nnunet_2_4_have_the_key_of_the_same_plans_of_today() -> None:
    old = plans(configurations={"3d_fullres": old_configuration()})
    today = plans(configurations={"3d_fullres": old.configuration("3d_fullres")})
    assert "architecture" in today.content["configurations"]["3d_fullres"]
    assert digest(plans=old) == digest(plans=today) == "256399fd0c48fe084c8b0eb01424b63209f873e98c2454ae097bd5b232d6c5d3"


@pytest.mark.parametrize(
    "changes",
    [
        {"label_sha256": {**LABELS, "c": "4" * 64}},
        {"split": Split(("a", "c"), ("b",))},
        {"split": Split(("a",), ("b", "c"))},
        {"configuration": "small"},
        {"plans": plans(transpose_forward=[2, 1, 0])},
        {"plans": plans(configurations={**CONFIGURATIONS, "3d_fullres": {**CONFIGURATIONS["3d_fullres"], "batch_dice": True}})},
        {"dataset_json": {**DATASET_JSON, "labels": {"background": 0, "lesion": 1, "organ": 2}}},
        {"dataset_json": {**DATASET_JSON, "labels": {**DATASET_JSON["labels"], "ignore": 3}}},  # type: ignore[dict-item]
        {"dataset_json": {**DATASET_JSON, "channel_names": {"0": "CT"}}},
    ],
)
def test_data_that_change_the_result_change_the_digest(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"plans": plans(configurations={**CONFIGURATIONS, "2d": {"batch_size": 99}, "new": {"inherits_from": "2d"}})},
        {"plans": plans(experiment_planner_used="another", dataset_name="Dataset018_Copy")},
        {"split": Split(("b", "a"), ("c",))},
        {"dataset_json": {**DATASET_JSON, "numTraining": 11, "description": "text"}},
        {"dataset_json": {**DATASET_JSON, "labels": {"lesion": 2, "organ": 1, "background": 0}}},
        {"label_sha256": {**LABELS, "of_another_fold": "5" * 64}},
    ],
)
def test_data_that_leave_the_result_alone_leave_the_digest_alone(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()


def test_the_order_of_regions_counts() -> None:
    """A region's place among the network's outputs follows from its place in dataset.json."""
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    swapped = {"background": 0, "core": [2], "whole": [1, 2]}
    both = [digest(dataset_json={**DATASET_JSON, "labels": labels, "regions_class_order": [1, 2]}) for labels in (regions, swapped)]
    assert both[0] != both[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"fold": "all"},
        {"trainer": "nnUNetTrainer"},
        {"schedule": Schedule(epochs=5)},
        {"schedule": Schedule(initial_lr=0.02)},
        {"data_digest": "0" * 64},
        {"configuration": "small"},
    ],
)
def test_whatever_determines_the_result_changes_the_digits_of_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes)[-8:] != key()[-8:]


def test_a_key_is_short_and_safe_whatever_the_names_are() -> None:
    long = key(configuration="3d/full res ü" * 20, plans="nnUNetPlans_" * 20, dataset="Dataset017_" + "x" * 300, seed=2**63 - 1, fold="all")
    assert len(long) <= 120
    longest = key(dataset="Dataset123456789_X", configuration="3" * 80, plans="p" * 80, fold="all", seed=2**63 - 1, replicate="r" * 80)
    assert 120 < len(longest) <= 140
    assert "140 characters" in str(run_key.__doc__)
    assert re.fullmatch(r"[A-Za-z0-9_.\-]+", long)
    assert key(plans="P" * 40 + "a") != key(plans="P" * 40 + "b")


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_dataset(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every label file whose bytes were really read."""
    seen: list[Path] = []
    real = label_files.voxel_values

    def noted(path: Path, reader: str) -> tuple[float, ...]:
        seen.append(path)
        return real(path, reader)

    monkeypatch.setattr(label_files, "voxel_values", noted)
    return seen


def settle(path: Path, seconds: float = 10.0) -> None:
    """Let a file's last change lie in the past."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def read(tiny: Tiny, *cases: str) -> dict[str, Reading]:
    return read_label_files({case: tiny.label_file(case) for case in cases}, "SimpleITKIO", tiny.results / "cache.json")


def test_a_label_file_is_read_once_and_again_after_a_change(tiny: Tiny, reads: list[Path]) -> None:
    settle(tiny.label_file("case_1"))
    settle(tiny.label_file("case_2"))
    first = read(tiny, "case_1", "case_2")
    assert first["case_1"].values == (0.0, 1.0, 2.0)
    assert read(tiny, "case_1", "case_2") == first
    assert len(reads) == 2
    tiny.write_label("case_1", [0, 1])
    settle(tiny.label_file("case_1"), 5)
    second = read(tiny, "case_1", "case_2")
    assert reads[2:] == [tiny.label_file("case_1")]
    assert second["case_1"].values == (0.0, 1.0)
    assert second["case_1"].sha256 != first["case_1"].sha256


def test_a_file_changed_this_moment_is_not_remembered(tiny: Tiny, reads: list[Path]) -> None:
    read(tiny, "case_1")
    read(tiny, "case_1")
    assert len(reads) == 2


def test_a_reading_that_is_interrupted_keeps_what_was_read_and_says_how_far_it_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(remembered, "PROGRESS_S", 0.0)
    files = {case: tiny.label_file(case) for case in ("case_1", "case_2")}
    settle(files["case_1"])

    def read_one(case: str) -> Reading:
        if case == "case_2":
            raise StorageError("storage: away")
        return Reading("1" * 64)

    with pytest.raises(StorageError), caplog.at_level("INFO"):
        remembered.read_files(files, read_one, "labels", tiny.results / "cache.json")
    assert "reading labels: 1 of 2 files" in caplog.text
    assert str(files["case_1"]) in (tiny.results / "cache.json").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2, "files": {"x": 3}}', '{"version": 0}'])
def test_a_broken_cache_costs_time_only(tiny: Tiny, content: str) -> None:
    (tiny.results / "cache.json").write_text(content)
    assert read(tiny, "case_1")["case_1"].values == (0.0, 1.0, 2.0)


def test_a_cache_that_cannot_be_written_is_a_warning(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    settle(tiny.label_file("case_1"))
    (tiny.results / "file").touch()
    found = read_label_files({"case_1": tiny.label_file("case_1")}, "SimpleITKIO", tiny.results / "file" / "cache.json")
    assert found["case_1"].values == (0.0, 1.0, 2.0)
    assert "digests cannot be kept" in caplog.text


@pytest.mark.usefixtures("read_only_disk")
def test_a_cache_on_a_read_only_share_is_a_warning(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    settle(tiny.label_file("case_1"))
    found = read_label_files({"case_1": tiny.label_file("case_1")}, "SimpleITKIO", tiny.results / "cache.json")
    assert found["case_1"].values == (0.0, 1.0, 2.0)
    assert "digests cannot be kept" in caplog.text
    assert "the file system is read-only" in caplog.text


def test_missing_and_broken_label_files_are_faults_and_never_remembered(tiny: Tiny) -> None:
    tiny.label_file("case_1").write_bytes(b"no image")
    settle(tiny.label_file("case_1"))
    tiny.label_file("case_2").unlink()
    found = read(tiny, "case_1", "case_2")
    assert found["case_1"].fault.startswith("cannot be read (")
    assert found["case_2"].fault == "is missing"
    assert not (tiny.results / "cache.json").exists()


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 5, 255], "uint8", (0.0, 5.0, 255.0)),
        ([-1, 0, 3], "int16", (-1.0, 0.0, 3.0)),
        ([0.0, 1.0, 1.5], "float32", (0.0, 1.0, 1.5)),
        ([0.0, 2.0], "float64", (0.0, 2.0)),
        ([0, 10**6], "int32", (0.0, 1e6)),
    ],
)
def test_voxel_values_of_every_type_are_found(tiny: Tiny, values: list[float], dtype: str, expected: tuple[float, ...]) -> None:
    tiny.write_label("case_1", values, dtype)
    assert voxel_values(tiny.label_file("case_1"), "SimpleITKIO") == expected


def test_values_in_the_last_slab_of_a_compressed_volume_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel

    monkeypatch.setattr(label_files, "SLAB_VOXELS", 50)
    voxels = np.zeros((5, 4, 9), dtype=np.uint8)
    voxels[4, 3, 8] = 7
    voxels[0, 0, 0] = 3
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    assert voxel_values(tmp_path / "a.nii.gz", "NibabelIO") == (0.0, 3.0, 7.0)


@pytest.mark.parametrize(("name", "reader"), [("a.nrrd", "SimpleITKIO"), ("a.png", "NaturalImage2DIO"), ("a.tif", "Tiff3DIO")])
def test_other_formats_are_read_by_nnunets_reader(tmp_path: Path, name: str, reader: str) -> None:
    import SimpleITK

    voxels = np.array([[0, 4], [2, 0]], dtype=np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels if name == "a.png" else np.stack([voxels, voxels])), str(tmp_path / name))
    assert voxel_values(tmp_path / name, reader) == (0.0, 2.0, 4.0)
