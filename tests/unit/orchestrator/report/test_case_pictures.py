"""Pictures of cases in the report: which, by which names, on whose permission, and that the page needs nothing else."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.compare.answer import Answer, answer
from orchestrator.compare.choice import compared
from orchestrator.compare.tables import cases_table
from orchestrator.report import slice_viewer
from orchestrator.report.case_files import CaseVolumes
from orchestrator.report.case_pictures import WITHOUT_IMAGES, case_pictures, renamed, shown_names
from orchestrator.report.page import html
from tests.validated_model import validated_model
from trainers.storage.files import read_json, write_json_atomic

CASES = {"case_a": 0.5, "case_b": 0.6, "case_c": 0.7, "case_d": 0.8}
SHAPE = (6, 8, 10)


def models(base: Path, **settings: Any) -> Answer:
    """Two trainers, of which DA5 is better in all cases but the first, with label files: a cube, predicted shifted."""
    better = {case: dice + (0.1 if dice > 0.5 else -0.2) for case, dice in CASES.items()}
    da5 = base / "results" / "Dataset901_Toy" / "DA5"
    validated_model(base, CASES, [list(CASES)], **settings)
    validated_model(base, better, [list(CASES)], trainer="nnUNetTrainerDA5", model_folder=da5, **settings)
    found = compared(base / "results", (), "final").answer
    truth = np.zeros(SHAPE[::-1], dtype=np.uint8)
    truth[3:8, 3:6, 2:4] = 1
    for model in found.models:
        plans = model.folder / "plans.json"
        write_json_atomic(plans, {**read_json(plans, "plans"), "image_reader_writer": "SimpleITKIO"})
        for result in model.results:
            for path, values in ((result.reference_file, truth), (result.prediction_file, np.roll(truth, 1, axis=0))):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, 3, 1])), path)
    return found


def volume(shape: tuple[int, int, int], image: bool = True) -> CaseVolumes:
    """Noise, a block of labels 3 and 200 in its middle, and a prediction of the block alone."""
    truth = np.zeros(shape, dtype=np.int16)
    middle = tuple(slice(size // 3, 2 * size // 3) for size in shape)
    truth[middle] = 200
    prediction = truth.copy()
    truth[tuple(size // 2 for size in shape)] = 3
    noise = np.random.default_rng(1).integers(0, 4000, shape) if image else None
    return CaseVolumes(truth, {"A": prediction}, noise, (2.0, 1.0, 1.0), {"A": 0.9})


def decoded(strip: str, shape: tuple[int, ...]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(strip)))).reshape(shape)


def test_the_report_shows_where_the_worst_median_and_best_case_are_wrong(tmp_path: Path) -> None:
    models(tmp_path, images=True)
    target = tmp_path / "report.html"
    shown = CliRunner().invoke(app, ["compare", "--results", str(tmp_path / "results"), "--report", str(target)])
    assert shown.exit_code == 0, shown.output
    page = target.read_text()
    for title in (
        "worst case of nnUNetTrainerDA5: case_a",
        "median case of nnUNetTrainerDA5: case_b",
        "best case of nnUNetTrainerDA5: case_d",
    ):
        assert title in page
    assert page.count('<figure class="viewer"') == 2
    assert page.index('class="verdict"') < page.index("<h2>")


def test_a_report_with_viewers_needs_no_network_no_storage_and_no_other_frame(tmp_path: Path) -> None:
    found = models(tmp_path, images=True)
    page = html(found, case_pictures(found.models, None))
    assert "http" not in page
    assert not re.search(
        r"localStorage|sessionStorage|document\.cookie|window\.(top|parent|open)|fetch\(|XMLHttp|<link|<iframe|@import", page
    )
    assert set(re.findall(r'src="([^"]{10})', page)) == {"data:image"}
    assert page.count("<script>") == 1


def test_no_case_of_runs_without_images_is_drawn_unless_it_is_asked_for(tmp_path: Path) -> None:
    found = models(tmp_path, images=False)
    pictures = case_pictures(found.models, None)
    assert (pictures.maps, pictures.viewers, pictures.left_out) == ({}, (), WITHOUT_IMAGES)
    assert "case_a</figcaption>" not in html(found, pictures)
    assert "--images" in html(found, pictures)
    assert len(case_pictures(found.models, None, on_request=True).maps) == 3


def test_files_that_are_gone_leave_their_case_out(tmp_path: Path) -> None:
    found = models(tmp_path, images=True)
    for result in found.models[1].results:
        if result.case_id == "case_a":
            Path(result.prediction_file).unlink()
    pictures = case_pictures(found.models, None)
    assert [title.split()[0] for title in pictures.maps] == ["median", "best"]
    assert len(pictures.viewers) == 1


def raw_images(base: Path, damaged: str) -> Path:
    """A raw image of every case, that of one cut short."""
    folder = base / "raw" / "Dataset901_Toy" / "imagesTr"
    folder.mkdir(parents=True)
    for case in CASES:
        nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE[::-1], dtype=np.uint8), np.diag([1, 1, 3, 1])), folder / f"{case}_0000.nii.gz")
    path = folder / f"{damaged}_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:40])
    return base / "raw"


def test_a_damaged_file_is_named_in_the_report_and_the_rest_is_drawn(tmp_path: Path) -> None:
    """An image in the worst case, which is drawn without it, and a prediction in the best."""
    found = models(tmp_path, images=True)
    raw = raw_images(tmp_path, "case_a")
    best = next(Path(result.prediction_file) for result in found.models[1].results if result.case_id == "case_d")
    best.write_bytes(b"no image")
    pictures = case_pictures(found.models, raw)
    assert [title.split()[0] for title in pictures.maps] == ["worst", "median"]
    assert len(pictures.viewers) == 2
    page = html(found, pictures)
    image = raw / "Dataset901_Toy" / "imagesTr" / "case_a_0000.nii.gz"
    assert f"case_a: the raw image {image} cannot be read: " in page
    assert f"case_d: the prediction of nnUNetTrainer {best} cannot be read: " in page


def test_a_prediction_of_another_shape_is_named(tmp_path: Path) -> None:
    found = models(tmp_path, images=True)
    other = next(Path(result.prediction_file) for result in found.models[0].results if result.case_id == "case_b")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), other)
    [sentence] = case_pictures(found.models, None).unreadable
    assert "its shape is (2, 2, 2), that of the labels (6, 8, 10)" in sentence


def test_with_pseudonyms_a_damaged_file_names_no_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = models(tmp_path, images=True, pseudonyms=True)
    pictures = case_pictures(found.models, raw_images(tmp_path, "case_a"))
    assert pictures.unreadable == (f"{shown_names(found.models)['case_a']}: the raw image cannot be read; the log names it.",)
    assert not [case for case in CASES if case in html(found, pictures)]
    assert "case_a_0000.nii.gz" in caplog.text


def test_with_pseudonyms_the_report_names_no_case(tmp_path: Path) -> None:
    """Not in its pictures, its tables, nor in the reasons of a comparison that was forced."""
    found = models(tmp_path, images=True, pseudonyms=True)
    names = shown_names(found.models)
    forced = answer(found.models, "final", is_forced=True)
    object.__setattr__(forced, "forced", ("other reference labels: case_a, case_b",))
    page = html(forced, case_pictures(found.models, None))
    assert not [case for case in CASES if case in page]
    assert all(names[case] in page for case in CASES)


def test_a_case_is_renamed_as_a_whole_word() -> None:
    assert renamed("a_1, a_10 and xa_1: a_1.", {"a_1": "case-1f", "a_10": "case-2f"}) == "case-1f, case-2f and xa_1: case-1f."
    assert renamed("a_1 stays", {"a_1": "a_1"}) == "a_1 stays"


def test_the_cases_that_differ_most_come_first(tmp_path: Path) -> None:
    found = models(tmp_path)
    table = cases_table(found, shown_names(found.models))
    assert table is not None
    assert (table.head[1:], table.rows[0]) == (("nnUNetTrainerDA5", "nnUNetTrainer", "difference"), ("case_a", "30.0", "50.0", "-20.0"))
    assert [row[3] for row in table.rows[1:]] == ["10.0", "10.0", "10.0"]


@pytest.mark.parametrize("image", [True, False])
def test_a_small_volume_is_whole_in_the_viewer_and_its_labels_stay_apart(image: bool) -> None:
    case = volume((9, 30, 30), image)
    found = slice_viewer.slice_viewer(case, "worst")
    box = slice_viewer.labelled_box(case)
    assert found.shape == case.truth_ZYX[box].shape
    assert found.spacing_mm == (2.0, 1.0, 1.0)
    places = {0: 0, 3: 1, 200: 2}
    assert np.array_equal(decoded(found.strips["truth"], found.shape), np.vectorize(places.get)(case.truth_ZYX[box]))
    assert found.models == ["A"]
    assert decoded(found.strips["image"], found.shape).any() == image
    assert np.unravel_index(0, found.shape) != found.start  # it opens where the error is
    assert decoded(found.strips["truth"], found.shape)[found.start] == 1


def test_a_large_volume_is_thinned_out_until_it_is_small_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_viewer, "MAX_BYTES", 20_000)
    found = slice_viewer.slice_viewer(volume((30, 60, 60)), "worst")
    assert found.size <= 20_000
    assert set(np.unique(decoded(found.strips["truth"], found.shape))) <= {0, 1, 2}
    assert found.spacing_mm[0] >= 2.0
    assert max(found.spacing_mm) / min(found.spacing_mm) <= 2  # alike in all directions
