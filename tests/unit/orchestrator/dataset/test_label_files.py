"""Label files as the reader of the plans gives them: what it takes is taken, and what the validation could not read is refused before."""

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

from orchestrator.dataset import label_files
from orchestrator.dataset.label_files import read_label_files, voxel_values
from orchestrator.dataset.preflight import check_run
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import single_training
from tests.unit.tiny_dataset import tiny_dataset
from trainers.data.segmentation_file import SegmentationFile, read_segmentation

VOXELS = np.arange(6 * 5 * 4).reshape(6, 5, 4).astype(np.uint8) % 4
READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")


def reader_of(name: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)()


def scaled(values: npt.NDArray[Any], stored: type[np.generic]) -> nibabel.Nifti1Image:
    """Floating point values with a header of whole numbers: nibabel then stores a scale, with which they come back not quite whole."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(stored)
    return nibabel.Nifti1Image(values.astype(np.float64), np.eye(4), header)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("stored", [np.uint8, np.int16])
def test_scaled_labels_are_what_the_reader_rounds_them_to(tmp_path: Path, reader: str, stored: type[np.generic]) -> None:
    image = scaled(VOXELS, stored)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert set(np.unique(nibabel.load(tmp_path / "a.nii.gz").dataobj)) != {0, 1, 2, 3}
    assert voxel_values(tmp_path / "a.nii.gz", reader) == (0, 1, 2, 3)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("image", "is_readers"), [(scaled(VOXELS, np.uint8), True), (nibabel.Nifti1Image(VOXELS, np.eye(4)), False)])
def test_only_values_that_need_no_arithmetic_are_read_without_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, image: nibabel.Nifti1Image, is_readers: bool
) -> None:
    nibabel.save(image, tmp_path / "a.nii.gz")
    asked: list[Path] = []

    def noted(path: Path, readers: Any) -> SegmentationFile:
        asked.append(path)
        return read_segmentation(path, readers)

    monkeypatch.setattr(label_files, "read_segmentation", noted)
    assert voxel_values(tmp_path / "a.nii.gz", reader) == (0, 1, 2, 3)
    assert bool(asked) == is_readers


def test_not_a_number_is_one_value_wherever_it_lies(tmp_path: Path) -> None:
    """Slabs give it again and again, and it equals nothing, nor is it larger or smaller."""
    values = np.zeros((2**10, 2**10, 3), np.float32)
    values[0, 0], values[1, 1] = math.nan, 2
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    found = voxel_values(tmp_path / "a.nii", "SimpleITKIO")
    assert found[:2] == (0, 2)
    assert len(found) == 3
    assert math.isnan(found[2])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("values", [VOXELS.astype(np.float64) * (1 + 1e-9), VOXELS.astype(np.float32), VOXELS.astype(np.int16) - 1])
def test_unscaled_labels_are_read_in_slabs_with_the_readers_values(tmp_path: Path, reader: str, values: npt.NDArray[Any]) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    expected = np.unique(read_segmentation(tmp_path / "a.nii.gz", reader_of(reader)).values_ZYX)
    assert voxel_values(tmp_path / "a.nii.gz", reader) == tuple(expected.tolist())


def test_a_value_next_to_a_label_is_refused_with_the_digits_that_tell_them_apart(tmp_path: Path) -> None:
    """nnU-Net's own check refuses this file too: 1 comes back as 1.0000153 with the scale of 0 to 4 on 16 bits."""
    tiny = tiny_dataset(tmp_path)
    nibabel.save(scaled(np.where(VOXELS == 3, 4, VOXELS), np.int16), tiny.label_file("case_3"))
    (spec,) = expand_unchecked(tmp_path, tiny.folders)
    (problem,) = check_run(spec)
    assert "case_3 has the value 1.0000152587890625, 2.000030517578125, 4, which dataset.json does not name (it names 0, 1, 2)." in problem
    assert "Labels must be whole numbers, stored without a scale. Correct the label file" in problem


def expand_unchecked(base: Path, folders: dict[str, Any]) -> list[Any]:
    """The run as it was planned before its labels were damaged."""
    healthy = tiny_dataset(base / "healthy")
    (spec,) = expand(single_training(17, "3d_fullres", 0, **healthy.folders))
    here = Path(folders["nnUNet_preprocessed"]) / spec.dataset
    return [spec.model_copy(update={"preprocessed_folder": here, "model_folder": Path(folders["nnUNet_results"]) / spec.dataset / "m"})]


def packed(values: npt.NDArray[Any] = VOXELS) -> bytes:
    return gzip.compress(bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes()), mtime=0)


def plain() -> bytes:
    return bytes(nibabel.Nifti1Image(VOXELS, np.eye(4)).to_bytes())


TAKEN: list[tuple[str, Callable[[], bytes], tuple[str, ...]]] = [
    ("a.nii.gz", packed, READERS),
    ("A.NII.GZ", packed, READERS),
    ("a.nii.gz", plain, READERS[:2]),
    ("a.nii.gz", lambda: packed() + b"left over", READERS[:2]),
    ("a.nii.gz", lambda: packed() + bytes(512), READERS),
    ("a.nii.gz", lambda: packed() + gzip.compress(b"more"), READERS),
    ("a.nii", lambda: plain() + b"left over", READERS),
    ("a.nii.gz", lambda: packed(VOXELS[..., None]), READERS[:2]),
]


@pytest.mark.parametrize(("name", "content", "readers"), TAKEN)
def test_what_a_reader_takes_is_taken_and_the_rest_refused(
    tmp_path: Path, name: str, content: Callable[[], bytes], readers: tuple[str, ...]
) -> None:
    """`.nii.gz` that is no gzip file, bytes behind the image, an axis of one: SimpleITK reads them all, nibabel not."""
    (tmp_path / name).write_bytes(content())
    for reader in READERS:
        reading = read_label_files({"a": tmp_path / name}, reader)["a"]
        if reader in readers:
            assert (reading.fault, reading.values) == ("", (0, 1, 2, 3))
            assert set(np.unique(read_segmentation(tmp_path / name, reader_of(reader)).values_ZYX)) == {0, 1, 2, 3}
        else:
            assert reading.fault.startswith("cannot be read (")
            with pytest.raises(Exception, match=r"gzip|file type|3d"):
                read_segmentation(tmp_path / name, reader_of(reader))


def flipped(content: bytes) -> bytes:
    """One bit of gzip's check sum."""
    return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]


CUT: list[tuple[str, Callable[[], bytes]]] = [
    ("a.nii", lambda: plain()[:-1]),
    ("a.nii.gz", lambda: packed()[:-20]),
    ("a.nii.gz", lambda: packed()[:-3]),
    ("a.nii.gz", lambda: plain()[:-1]),
    ("a.nii.gz", lambda: gzip.compress(plain()[:-1])),
    ("a.nii.gz", lambda: flipped(packed())),
    ("a.nii.gz", lambda: b""),
    ("a.nii", packed),
]


@pytest.mark.parametrize("reader", READERS[::2])
@pytest.mark.parametrize(("name", "content"), CUT)
def test_what_is_cut_or_damaged_is_refused_whoever_reads_it(tmp_path: Path, name: str, content: Callable[[], bytes], reader: str) -> None:
    (tmp_path / name).write_bytes(content())
    assert read_label_files({"a": tmp_path / name}, reader)["a"].fault.startswith("cannot be read (")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.gipl", "a.tif"])
def test_other_formats_take_bytes_behind_the_image_and_are_refused_when_cut(tmp_path: Path, name: str) -> None:
    """SimpleITK reads a GIPL file that was cut with whatever lay in memory; the other readers notice."""
    path, reader = tmp_path / name, "Tiff3DIO" if name == "a.tif" else "SimpleITKIO"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOXELS), str(path))
    content = path.read_bytes()
    path.write_bytes(content + b"left over")
    assert read_label_files({"a": path}, reader)["a"].values == (0, 1, 2, 3)
    path.write_bytes(content[:300])
    assert read_label_files({"a": path}, reader)["a"].fault.startswith("cannot be read (")


def test_axes_that_are_not_at_right_angles_are_refused_where_the_reader_refuses_them(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(VOXELS, sheared), tmp_path / "a.nii.gz")
    found = {reader: read_label_files({"a": tmp_path / "a.nii.gz"}, reader)["a"] for reader in READERS[::2]}
    assert "ITK only supports orthonormal direction cosines" in found["SimpleITKIO"].fault
    assert found["NibabelIO"].values == (0, 1, 2, 3)


def test_what_one_reader_found_is_not_remembered_of_another(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.nii.gz", tmp_path / "cache.json"
    path.write_bytes(plain())
    os.utime(path, (1e9, 1e9))
    found = [read_label_files({"a": path}, reader, cache)["a"].fault for reader in ("SimpleITKIO", "NibabelIO", "SimpleITKIO")]
    assert [bool(fault) for fault in found] == [False, True, False]
