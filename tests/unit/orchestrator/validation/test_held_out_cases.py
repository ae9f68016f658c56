"""Cases of a held-out test set: found by nnU-Net's names, and refused with what is wrong before a worker starts."""

import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from orchestrator.cluster.jobs import Jobs
from orchestrator.errors import ConfigError, DataError
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.run.events import events_in
from orchestrator.validation import held_out_job
from orchestrator.validation.held_out_cases import cases_by_name, check_labels, held_out_cases
from orchestrator.validation.held_out_events import HELD_OUT_EVENTS, HeldOutEvent, HeldOutWarned
from orchestrator.validation.held_out_job import claim
from tests.fake_campaign import FakeCluster
from tests.fake_run import FakeRun
from trainers.contract.held_out import HeldOut, HeldOutCase, is_scored, read_held_out
from trainers.contract.plans import labels_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WorkerSpec
from trainers.contract.summary import SCORING, CaseResult
from trainers.storage.files import link_atomic, write_json_atomic

DATASET = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def folder_of(place: Path, *names: str) -> Path:
    place.mkdir()
    for name in names:
        (place / name).write_bytes(b"")
    return place


def images_of(tmp_path: Path, *more: str) -> Path:
    return folder_of(tmp_path / "imagesTs", "a_0000.nii.gz", "a_0001.nii.gz", "b_1_0000.nii.gz", "b_1_0001.nii.gz", *more)


def test_each_case_has_a_file_per_channel_and_its_labels(tmp_path: Path) -> None:
    images, labels = images_of(tmp_path, ".hidden"), folder_of(tmp_path / "labelsTs", "a.nii.gz", "b_1.nii.gz")
    found = held_out_cases(images, labels, DATASET)
    assert list(found) == ["a", "b_1"]
    assert [image.name for image in found["b_1"].images] == ["b_1_0000.nii.gz", "b_1_0001.nii.gz"]
    assert found["a"].labels == labels / "a.nii.gz"
    assert held_out_cases(images, None, DATASET)["a"].labels is None


def test_the_spacing_beside_a_tiff_is_no_image() -> None:
    assert cases_by_name(["a_0000.tif", "a.json", "a_0000.png"], ".tif") == ({"a": [0]}, ["a_0000.png"])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["c_0000.nii.gz"], r"imagesTs c lacks the channel file <case>_0001.nii.gz; the model has 2 channels. Copy it there."),
        (["a_0002.nii.gz"], r"imagesTs a has the channel file <case>_0002.nii.gz; the model has 2 channels. Move it away."),
        (["c_0000.nii"], r"imagesTs holds c_0000.nii; the model reads <case>_0000.nii.gz"),
        (["c.nii.gz"], r"imagesTs holds c.nii.gz; the model reads <case>_0000.nii.gz"),
    ],
)
def test_a_missing_or_strange_image_is_named_with_its_cure(tmp_path: Path, more: list[str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        held_out_cases(images_of(tmp_path, *more), None, DATASET)


def test_labels_and_images_without_each_other_are_all_named_at_once(tmp_path: Path) -> None:
    labels = folder_of(tmp_path / "labelsTs", "a.nii.gz", "z.nii.gz", "b_1.mha")
    with pytest.raises(DataError) as refused:
        held_out_cases(images_of(tmp_path), labels, DATASET)
    assert "3 problems" in str(refused.value)
    assert f"{labels} holds b_1.mha; the model reads <case>.nii.gz" in str(refused.value)
    assert f"{labels} holds labels of z, of which {tmp_path / 'imagesTs'} has no image" in str(refused.value)
    assert f"{labels} has no file of b_1" in str(refused.value)


def test_an_empty_or_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file: expected <case>_0000\.nii\.gz"):
        held_out_cases(folder_of(tmp_path / "imagesTs"), None, DATASET)
    with pytest.raises(ConfigError, match="is no folder where nnfleet looks for it"):
        held_out_cases(tmp_path / "nowhere", None, DATASET)
    with pytest.raises(ConfigError, match=f"{Path.cwd()}/nowhere is no folder"):
        held_out_cases(Path("nowhere"), None, DATASET)


def test_an_unknown_label_value_and_a_damaged_file_are_named_before_a_worker_starts(tmp_path: Path) -> None:
    images, labels = images_of(tmp_path), folder_of(tmp_path / "labelsTs", "b_1.nii.gz")
    values = np.zeros((2, 3, 4), np.uint8)
    values[0, 0, 0] = 7
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(labels / "a.nii.gz")
    cases = held_out_cases(images, labels, DATASET)
    with pytest.raises(DataError) as refused:
        check_labels(labels, cases, labels_of(dict(DATASET)), "SimpleITKIO")
    assert f"in {labels} a has the value 7, which dataset.json does not name (it names 0, 1). Correct the label file." in str(refused.value)
    assert f"in {labels} the file of b_1 cannot be read" in str(refused.value)


def held_out(tmp_path: Path, images: Path, weights: str = "ab", labels: Path | None = None) -> HeldOut:
    """One case of one channel."""
    spec = FakeRun(tmp_path / "run").spec
    case = HeldOutCase(images=(images / "a_0000.nii.gz",), labels=labels)
    return HeldOut(spec=spec, checkpoint="final", checkpoint_files=(tmp_path / "f.pth",), weights_sha256=(weights,), cases={"a": case})


def test_an_output_folder_takes_one_test_set_of_one_model(tmp_path: Path) -> None:
    """Two sites call their folder imagesTs and their first case a."""
    output = RunFolder(tmp_path / "output")
    claim(output, held_out(tmp_path, tmp_path / "site_a"))
    claim(output, held_out(tmp_path, tmp_path / "site_a"))
    with pytest.raises(ConfigError, match=f"holds the predictions of the images in {tmp_path / 'site_a'}, and nothing is replaced"):
        claim(output, held_out(tmp_path, tmp_path / "site_b"))
    with pytest.raises(ConfigError, match="holds the predictions of other weights"):
        claim(output, held_out(tmp_path, tmp_path / "site_a", weights="cd"))


def test_what_a_killed_prediction_left_half_written_goes_at_the_next_start(tmp_path: Path) -> None:
    output = RunFolder(tmp_path / "output")
    claim(output, held_out(tmp_path, tmp_path / "site_a"))
    (output.root / ".part-abc").mkdir()
    (output.root / ".part-abc" / "a.nii.gz").write_bytes(b"half")
    (output.root / "b.nii.gz").write_bytes(b"whole")
    claim(output, held_out(tmp_path, tmp_path / "site_a"))
    assert sorted(path.name for path in output.root.iterdir()) == ["b.nii.gz", "nnfleet"]


def test_scores_by_the_labels_of_another_folder_are_not_replaced(tmp_path: Path) -> None:
    """Neither at once nor after a command without labels; corrected labels in the same folder are taken."""
    output, images = RunFolder(tmp_path / "output"), tmp_path / "images"
    first, second = (held_out(tmp_path, images, labels=tmp_path / reader / "a.nii.gz") for reader in ("first", "second"))
    claim(output, held_out(tmp_path, images))
    claim(output, first)
    write_json_atomic(output.cases("final") / "a.json", scored(first, tmp_path / "first" / "a.nii.gz").model_dump(mode="json"))
    refused = f"output holds scores by the labels in {tmp_path / 'first'}, and nothing is replaced. Name another folder: --output FOLDER"
    for before in (first, held_out(tmp_path, images)):
        claim(output, before)
        with pytest.raises(ConfigError, match=refused):
            claim(output, second)
        assert read_held_out(output) == before


def scored(held: HeldOut, labels: Path, **changes: Any) -> CaseResult:
    """The result of the case a by these labels."""
    values: dict[str, Any] = {
        "case_id": "a",
        "checkpoint_sha256": "of the weights",
        "reference_file": str(labels),
        "image_sha256": ("of the image",),
        "reference_sha256": "of the labels",
        "prediction_file": "a.nii.gz",
        "surface_tolerance_mm": held.spec.validation.surface_tolerance_mm,
        "scoring": SCORING,
        "metrics": {},
        "seconds": 1.0,
    }
    return CaseResult(**{**values, **changes})


def test_labels_that_were_corrected_are_scored_anew_however_old_their_file_is(tmp_path: Path) -> None:
    (tmp_path / "a_0000.nii.gz").write_bytes(b"image")
    labels, prediction = tmp_path / "labels.nii.gz", tmp_path / "a.nii.gz"
    labels.write_bytes(b"labels")
    prediction.write_bytes(b"prediction")
    held = held_out(tmp_path, tmp_path, labels=labels)
    stored = scored(held, labels, checkpoint_sha256=held.key_of("a"), reference_stat=held.labels_stat("a"), prediction_file=str(prediction))
    assert is_scored(held, "a", stored)
    labels.write_bytes(b"Labels")
    os.utime(labels, ns=(1, 1))
    assert not is_scored(held, "a", stored)


@pytest.mark.parametrize(
    ("cases", "labelled", "doubted"), [("case_0 case_2 new", True, "2 of 3"), ("new", True, ""), ("case_0", False, "")]
)
def test_scores_on_cases_of_the_training_are_doubted_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cases: str, labelled: bool, doubted: str
) -> None:
    """The run was trained on case_0 and case_1, and holds case_2 back."""
    run = FakeRun(tmp_path, workers=WorkerSpec(gpus=0))
    run.epoch()
    committed = run.finish()
    assert committed.final is not None
    link_atomic(run.folder.root / committed.final.file, run.folder.checkpoint("final"))
    write_json_atomic(run.folder.model_folder / "dataset.json", {**DATASET, "channel_names": {"0": "CT"}})
    write_json_atomic(run.folder.model_folder / "plans.json", {"image_reader_writer": "NibabelIO", "configurations": {}})
    images = folder_of(tmp_path / "images", *(f"{case}_0000.nii.gz" for case in cases.split()))
    labels = folder_of(tmp_path / "labels", *(f"{case}.nii.gz" for case in cases.split()))
    monkeypatch.setattr(held_out_job, "check_labels", lambda *_: None)
    monkeypatch.setattr(held_out_job, "cluster_nodes", lambda: [NodeResources("n", {"CPU": 8.0}, {"CPU": 8.0})])
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr(Jobs, "inside_job", classmethod(lambda cls: FakeCluster()))
    monkeypatch.setattr(held_out_job, "obey_interrupts", lambda: None)

    def admitted(*_: object) -> None:
        raise ConfigError("the workers are waited for")

    monkeypatch.setattr(held_out_job, "admitted", admitted)
    monkeypatch.setenv("NNFLEET_HOME", str(tmp_path / "home"))
    folders = [f"--images={images}", f"--results={tmp_path / 'results'}", *([f"--labels={labels}"] if labelled else [])]
    held_out_job.main(["901", *folders])
    *warned, ended = events_in(capsys.readouterr().out, HELD_OUT_EVENTS)
    sentence = f"{doubted} cases of the test set images are called as cases of the training: is it held out?"
    assert warned == ([HeldOutWarned(message=sentence)] if doubted else [])
    assert isinstance(ended, HeldOutEvent)
    assert ended.message == "the workers are waited for"
