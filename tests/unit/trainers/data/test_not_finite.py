"""NaN and infinite voxels: of a raw image, preprocessed by nnU-Net, and of a preprocessed file alone; each named with its cause."""

import contextlib
import io
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

from orchestrator.dataset.preflight import check_run
from tests.conftest import Toys
from tests.toy import Toy, toy_spec
from trainers.contract.run_spec import RunSpec
from trainers.data.case_files import check_case
from trainers.data.dataset import open_dataset
from trainers.data.not_finite import middle_is_finite, not_finite
from trainers.data.samples import make_batch
from trainers.errors import DataError
from trainers.storage.files import read_json, write_json_atomic

Change = Callable[[npt.NDArray[np.float32]], None]


@pytest.fixture
def toy(toys: Toys, tmp_path: Path) -> Toy:
    """A copy of a CT dataset, with its raw images."""
    made = toys("labels")
    copied = Toy(tmp_path, made.name, *(tmp_path / root / made.name for root in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")))
    shutil.copytree(made.raw, copied.raw)
    shutil.copytree(made.preprocessed, copied.preprocessed)
    return copied


@pytest.fixture
def spec(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> RunSpec:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    return toy_spec(toy)


def data_folder(spec: RunSpec) -> Path:
    return next(folder for folder in spec.preprocessed_folder.glob("*3d_fullres") if folder.is_dir())


def spoil_raw(toy: Toy, case_id: str, scheme: str, value: float) -> Path:
    """One voxel of a raw image becomes `value`, and nnU-Net preprocesses the case anew, normalised by `scheme`."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    file = toy.raw / "imagesTr" / f"{case_id}_0000.nii.gz"
    image = sitk.ReadImage(str(file))
    values = sitk.GetArrayFromImage(image)
    values[3, 4, 5] = value
    spoilt = sitk.GetImageFromArray(values)
    spoilt.CopyInformation(image)
    sitk.WriteImage(spoilt, str(file))
    plans = PlansManager(str(toy.preprocessed / "nnUNetPlans.json"))
    plans.plans["image_reader_writer"] = "NibabelIO"  # SimpleITK reads zeros in their place
    configuration = plans.get_configuration("3d_fullres")
    configuration.configuration["normalization_schemes"] = [scheme]
    dataset_json = read_json(toy.preprocessed / "dataset.json", "dataset.json")
    output = toy.preprocessed / configuration.data_identifier / case_id
    label = toy.raw / "labelsTr" / f"{case_id}.nii.gz"
    for ending in (".b2nd", "_seg.b2nd"):
        output.with_name(f"{case_id}{ending}").unlink()
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of resampling and of means
        DefaultPreprocessor(verbose=False).run_case_save(str(output), [str(file)], str(label), plans, configuration, dataset_json)
    return file


def spoil_preprocessed(spec: RunSpec, change: Change) -> None:
    path = data_folder(spec) / f"{spec.train_cases[0]}.b2nd"
    values: Any = blosc2.open(urlpath=str(path), mode="r")[:]
    change(values)
    path.unlink()
    blosc2.asarray(values, urlpath=str(path))


def draw(spec: RunSpec, case: int = 0) -> None:
    """Samples of one training case alone."""
    one = spec.model_copy(update={"train_cases": spec.train_cases[case : case + 1]})
    for iteration in range(40):
        make_batch(open_dataset(one), one, "train", 0, iteration, [0, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_of_a_raw_image_is_found_before_a_worker_starts(toy: Toy, spec: RunSpec, value: float) -> None:
    """Normalised by its own mean, the whole channel has become NaN; the file to be corrected is named."""
    case_id = spec.train_cases[0]
    file = spoil_raw(toy, case_id, "ZScoreNormalization", value)
    (problem,) = check_run(spec)
    size = int(np.prod(blosc2.open(urlpath=str(data_folder(spec) / f"{case_id}.b2nd"), mode="r").shape))
    assert f"case {case_id} in {data_folder(spec)} holds values that are not finite numbers" in problem
    assert f": {size} of {size} voxels of channel 0 (CT). They come from the raw image {file} (1 of them): correct it, then run" in problem
    with pytest.raises(DataError, match=r"channel 0 \(CT\)\. They come from the raw image"):
        draw(spec)


def test_a_single_voxel_that_preprocessing_left_alone_is_named_by_the_worker_that_meets_it(toy: Toy, spec: RunSpec) -> None:
    """CT is normalised by one mean for all images, and the second case is not resampled."""
    file = spoil_raw(toy, spec.train_cases[1], "CTNormalization", np.nan)
    assert check_run(spec) == []
    with pytest.raises(DataError, match=r": 1 of \d+ voxels of channel 0 \(CT\)") as caught:
        draw(spec, 1)
    assert f"They come from the raw image {file} (1 of them)" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_of_the_preprocessed_file_alone_are_a_damage(spec: RunSpec, value: float) -> None:
    spoil_preprocessed(spec, lambda values: np.put(values, range(0, values.size, 7), value))
    with pytest.raises(DataError, match=r"voxels of channel 0 \(CT\)\. Its raw image .*_0000\.nii\.gz has none, so .* was damaged since"):
        draw(spec)


def test_without_raw_images_the_likely_cause_is_named(toy: Toy, spec: RunSpec, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(toy.raw)
    spoil_preprocessed(spec, lambda values: values.fill(np.nan))
    (problem,) = check_run(spec)
    assert f"Mostly its raw image (imagesTr of {toy.name} in nnUNet_raw) holds them" in problem
    assert "were not checked: FileNotFoundError" in caplog.text


def test_raw_images_are_looked_for_where_nnunet_looks(toy: Toy, spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    away = toy.raw.parent.rename(toy.base / "elsewhere")
    monkeypatch.setenv("nnUNet_raw", str(away))
    spoil_preprocessed(spec, lambda values: values.fill(np.nan))
    assert f"Its raw image {away / toy.name / 'imagesTr'}" in check_run(spec)[0]


def test_raw_images_that_dataset_json_lists_are_looked_at(toy: Toy, spec: RunSpec) -> None:
    case_id = spec.train_cases[0]
    file = spoil_raw(toy, case_id, "ZScoreNormalization", np.nan)
    moved = file.rename(toy.raw / "scan.nii.gz")
    content = read_json(toy.raw / "dataset.json", "dataset.json")
    write_json_atomic(toy.raw / "dataset.json", {**content, "dataset": {case_id: {"images": ["scan.nii.gz"], "label": "x"}}})
    assert f"They come from the raw image {moved} (1 of them)" in check_run(spec)[0]


def test_every_channel_is_counted(tmp_path: Path) -> None:
    image = np.zeros((3, 4, 5, 6), np.float32)
    image[0, 0, 0, :2], image[2, 1] = np.inf, np.nan
    message = str(not_finite(tmp_path / "Dataset001_X" / "data", "a", image))
    assert "(NaN or infinite): 2 of 120 voxels of channel 0, 30 of 120 voxels of channel 2." in message


def test_the_middle_of_every_channel_is_looked_at() -> None:
    image = np.zeros((3, 4, 5, 6), np.float32)
    assert middle_is_finite(image)
    image[2, 2, 2, 0] = np.nan
    assert not middle_is_finite(image)


def test_a_sound_case_passes(spec: RunSpec) -> None:
    check_case(data_folder(spec), spec.train_cases[0], 1)
    draw(spec)
