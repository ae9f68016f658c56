"""Distances in millimetres with each of nnU-Net's readers: real files, preprocessed and copied as nnU-Net does it."""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from tests.fake_run import FakeRun
from trainers.contract.plans import labels_of
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.summary import SCORING, CaseResult, extended_summary
from trainers.storage.files import write_json_atomic
from trainers.validation.inference import CasePredictor
from trainers.validation.one_case import validate_case
from trainers.validation.spacing import noted_spacing

CASE = "case_2"
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
FUNCTIONS = {f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")}


class ShiftedByTwo(CasePredictor):
    """Predicts the reference, two voxels further along the last axis; everything else is the real predictor's."""

    def __init__(self, run: FakeRun, raw: Path, reader: str, ending: str, transpose: list[int]) -> None:
        self.spec, self.checkpoint_sha256, self.predictions = run.spec, "0" * 64, 0
        self.dataset_json = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}, "file_ending": ending}
        self.labels = labels_of(self.dataset_json)
        self.plans = PlansManager(plans(reader, transpose))
        self.configuration = self.plans.get_configuration("3d_fullres")
        self.reader = self.plans.image_reader_writer_class()
        preprocess(self, raw)

    def predict(self, case_id: str, output_folder: Path, next_stages: Sequence[str] = ()) -> Path:
        labels, properties = self.reader.read_seg(str(self.reference_file(case_id)))
        output_folder.mkdir(parents=True, exist_ok=True)
        self.predictions += 1
        output = output_folder / f"{case_id}{self.file_ending}"
        self.reader.write_seg(np.roll(labels[0], 2, axis=-1).astype(np.uint8), str(output), properties)
        return output


def plans(reader: str, transpose: list[int]) -> dict[str, Any]:
    configuration = {
        "architecture": {}, "data_identifier": "data", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [4, 16, 16], "spacing": [1.0, 1.0, 1.0], "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], **FUNCTIONS,
        **{f"{name}_kwargs": RESAMPLING | {"is_seg": name == "resampling_fn_seg"} for name in FUNCTIONS},
    }  # fmt: skip
    return {
        "plans_name": "nnUNetPlans", "image_reader_writer": reader, "transpose_forward": transpose,
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "foreground_intensity_properties_per_channel": {"0": {}}, "configurations": {"3d_fullres": configuration},
    }  # fmt: skip


def preprocess(predictor: CasePredictor, raw: Path) -> None:
    """As nnUNetv2_preprocess does it: the case, and a copy of its label file alone."""
    reference = predictor.reference_file(CASE)
    reference.parent.mkdir(parents=True)
    label = raw / "labelsTr" / reference.name
    shutil.copy(label, reference)
    folder = predictor.spec.preprocessed_folder / "data"
    folder.mkdir()
    image = raw / "imagesTr" / reference.name.replace(CASE, f"{CASE}_0000")
    with contextlib.redirect_stdout(io.StringIO()):
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / CASE), [str(image)], str(label), predictor.plans, predictor.configuration, predictor.dataset_json
        )


def write_raw(raw: Path, ending: str, spacing: tuple[float, ...] | None, label_spacing: tuple[float, ...] | None = None) -> None:
    """An image and its labels, a box of 2 x 8 x 8 voxels; a TIFF's spacing goes into the .json that nnU-Net's reader looks for."""
    labels = np.zeros((6, 20, 20), np.uint8)
    labels[2:4, 6:14, 6:14] = 1
    image = (labels * 100 + np.arange(20)).astype(np.float32)
    for folder, name, array, mm in (("imagesTr", f"{CASE}_0000", image, spacing), ("labelsTr", CASE, labels, label_spacing or spacing)):
        (raw / folder).mkdir(parents=True)
        file = raw / folder / f"{name}{ending}"
        if ending == ".nii.gz":
            write_nifti(file, array, mm or (1, 1, 1))
        elif ending == ".png":
            from skimage.io import imsave

            imsave(file, array[2].astype(np.uint8), check_contrast=False)
        else:
            import tifffile

            tifffile.imwrite(file, array)
            if mm is not None:
                (raw / folder / f"{CASE}.json").write_text(json.dumps({"spacing": mm}))


def write_nifti(file: Path, array: Any, spacing: tuple[float, ...]) -> None:
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(mm) for mm in spacing[::-1]])
    sitk.WriteImage(image, str(file))


def validated(base: Path, reader: str, ending: str, transpose: list[int] | None = None) -> tuple[CaseResult, ShiftedByTwo]:
    run = FakeRun(base)
    predictor = ShiftedByTwo(run, base / "raw", reader, ending, transpose or [0, 1, 2])
    return validated_by(predictor), predictor


def validated_by(predictor: ShiftedByTwo) -> CaseResult:
    with contextlib.redirect_stdout(io.StringIO()):
        return validate_case(predictor, RunFolder(predictor.spec.run_folder), "final", CASE)


@pytest.mark.parametrize(
    ("reader", "ending"), [("Tiff3DIO", ".tif"), ("SimpleITKIO", ".nii.gz"), ("NibabelIO", ".nii.gz"), ("NibabelIOWithReorient", ".nii.gz")]
)
@pytest.mark.parametrize("transpose", [[0, 1, 2], [2, 0, 1]])
def test_distances_are_in_the_millimetres_of_the_image(tmp_path: Path, reader: str, ending: str, transpose: list[int]) -> None:
    """Two voxels of 0.5 mm are 1 mm, whatever the plans transpose, though gt_segmentations know no spacing of a TIFF."""
    write_raw(tmp_path / "raw", ending, (5.0, 0.5, 0.5))
    result, predictor = validated(tmp_path, reader, ending, transpose)
    organ = result.metrics["organ"]
    assert [organ.hd95_mm, organ.nsd] == pytest.approx([1.0, 1.0])
    assert predictor.original_spacing(CASE).mm_ZYX == pytest.approx((5.0, 0.5, 0.5))


def test_labels_whose_header_differs_are_measured_in_the_images_millimetres(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", ".nii.gz", (5.0, 0.5, 0.5), label_spacing=(1.0, 1.0, 1.0))
    result, _ = validated(tmp_path, "SimpleITKIO", ".nii.gz")
    assert result.metrics["organ"].hd95_mm == pytest.approx(1.0)


@pytest.mark.parametrize(("reader", "ending", "why"), [("Tiff3DIO", ".tif", "found no .json"), ("NaturalImage2DIO", ".png", "PNG")])
def test_no_distance_is_given_where_nobody_knows_the_spacing(tmp_path: Path, reader: str, ending: str, why: str) -> None:
    write_raw(tmp_path / "raw", ending, None)
    result, predictor = validated(tmp_path, reader, ending)
    organ = result.metrics["organ"]
    assert organ.dice == pytest.approx(0.75)
    assert math.isnan(organ.hd95_mm)
    assert math.isnan(organ.nsd)
    assert why in result.no_distances
    assert extended_summary([result], predictor.labels)["no_distances"].startswith("1 of 1 cases: ")


def test_a_tiff_of_one_millimetre_is_known_by_its_file(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", ".tif", (1, 1, 1))
    result, _ = validated(tmp_path, "Tiff3DIO", ".tif")
    assert result.metrics["organ"].hd95_mm == pytest.approx(2.0)


def test_a_case_that_an_older_rule_scored_is_scored_anew_without_predicting_it_again(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", ".nii.gz", (5.0, 0.5, 0.5))
    result, predictor = validated(tmp_path, "SimpleITKIO", ".nii.gz")
    folder = RunFolder(predictor.spec.run_folder)
    older = result.model_copy(update={"metrics": {}, "scoring": 0, "seconds": 77.0})
    write_json_atomic(folder.cases("final") / f"{CASE}.json", older.model_dump(exclude={"scoring"}))
    again = validated_by(predictor)
    assert again == result.model_copy(update={"seconds": 77.0})
    assert read_result(folder, "final", CASE) == again
    assert (again.scoring, predictor.predictions) == (SCORING, 1)


def test_lesions_that_are_asked_for_later_are_counted_in_the_stored_prediction(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", ".nii.gz", (5.0, 0.5, 0.5))
    result, predictor = validated(tmp_path, "SimpleITKIO", ".nii.gz")
    assert not result.has_lesions
    asked = predictor.spec.validation.model_copy(update={"lesions": True})
    predictor.spec = predictor.spec.model_copy(update={"validation": asked})
    again = validated_by(predictor)
    lesions = again.metrics["organ"].lesions
    assert lesions is not None
    assert (lesions.num_true, lesions.num_detected, lesions.num_false) == (1, 1, 0)
    assert lesions.dice == pytest.approx(again.metrics["organ"].dice), "of one lesion it is the Dice of the class"
    assert predictor.predictions == 1


@pytest.mark.parametrize("fault", ["other weights", "damaged", "gone"])
def test_a_stored_prediction_that_cannot_serve_is_made_again(tmp_path: Path, fault: str) -> None:
    write_raw(tmp_path / "raw", ".nii.gz", (5.0, 0.5, 0.5))
    result, predictor = validated(tmp_path, "SimpleITKIO", ".nii.gz")
    if fault == "other weights":
        predictor.checkpoint_sha256 = "1" * 64
    elif fault == "damaged":
        Path(result.prediction_file).write_bytes(b"cut")
    else:
        Path(result.prediction_file).unlink()
    again = validated_by(predictor)
    assert (again.metrics, again.checkpoint_sha256, predictor.predictions) == (result.metrics, predictor.checkpoint_sha256, 2)


@pytest.mark.parametrize("noted", [None, [1.0, 1.0], [1.0, 0.0, 1.0], [1.0, math.nan, 1.0], [1.0, -1.0, 1.0], "abc", 3])
def test_a_spacing_that_is_none_is_not_known(noted: Any) -> None:
    spacing = noted_spacing({"spacing": noted}, "SimpleITKIO")
    assert spacing.mm_ZYX is None
    assert repr(noted) in spacing.why_unknown
