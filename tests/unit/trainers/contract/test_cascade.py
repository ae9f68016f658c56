"""The record beside a first stage's segmentation: it vouches for the file that it was written for, and what cannot be read for nothing."""

import json
from pathlib import Path

import pytest

from tests.fake_run import FakeRun
from trainers.contract.cascade import (
    NextStageRecord,
    first_stage_folder,
    has_next_stages_due,
    next_stages,
    predictions_of,
    previous_stage,
    read_record,
    record_of,
)
from trainers.contract.run_spec import Continued, Imported
from trainers.storage.files import write_atomic, write_json_atomic

RECORD = NextStageRecord(run_key="k", checkpoint_sha256="a" * 64, file="c.b2nd", sha256="b" * 64, size_bytes=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_atomic(tmp_path / "c.b2nd", b"hello")
    write_json_atomic(record_of(tmp_path, "c"), RECORD.model_dump())
    return tmp_path


def test_a_record_vouches_for_its_file(folder: Path) -> None:
    assert read_record(folder, "c") == RECORD
    assert read_record(folder, "d") is None
    write_atomic(folder / "c.b2nd", b"hello, cut or written anew")
    assert read_record(folder, "c") is None
    (folder / "c.b2nd").unlink()
    assert read_record(folder, "c") is None


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b"\xff", b"[" * 5000, b'{"size_bytes": "many"}', b'{"size_bytes": NaN}', b'{"file": ""}']
)
def test_what_cannot_be_read_counts_as_missing(folder: Path, content: bytes) -> None:
    write_atomic(record_of(folder, "c"), content)
    assert read_record(folder, "c") is None


def test_a_record_names_no_file_elsewhere(folder: Path) -> None:
    write_atomic(folder.parent / "outside", b"hello")
    write_atomic(record_of(folder, "c"), json.dumps({**RECORD.model_dump(), "file": "../outside"}).encode())
    assert read_record(folder, "c") is None


def test_the_final_weights_alone_leave_segmentations_and_those_that_they_made_count(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    spec = run.spec.model_copy(update={"next_stages": ("second",)})
    place = predictions_of(spec.model_folder, "second")
    assert has_next_stages_due(run.spec, "final", "c", "a" * 64)
    assert has_next_stages_due(spec, "best", "c", "a" * 64)
    assert not has_next_stages_due(spec, "final", "c", "a" * 64)
    write_atomic(place / "c.b2nd", b"hello")
    write_json_atomic(record_of(place, "c"), RECORD.model_dump())
    assert has_next_stages_due(spec, "final", "c", "a" * 64)
    assert not has_next_stages_due(spec, "final", "c", "c" * 64)


def test_plans_name_one_next_stage_or_several() -> None:
    assert next_stages({"next_stage": "a"}) == ("a",)
    assert next_stages({"next_stage": ["a", "b"]}) == ("a", "b")
    assert next_stages({}) == next_stages({"next_stage": None}) == ()
    assert previous_stage({}) == previous_stage({"previous_stage": None}) == ""


@pytest.mark.parametrize("is_continued", [False, True])
def test_the_first_stage_of_what_nnunet_trained_or_began_moves_with_the_results_that_hold_both(tmp_path: Path, is_continued: bool) -> None:
    """In results of its own a run names that of nnU-Net's results, which nobody moved with it."""
    spec, name = FakeRun(tmp_path).spec, "nnUNetTrainer__nnUNetPlans__first"
    for theirs in (spec.model_folder.parent, tmp_path / "theirs" / spec.dataset):
        folder = theirs / "nnUNetTrainer__nnUNetPlans__second" / "fold_0"
        origin = {"continued": Continued(folder=folder, epochs=1, sha256="a")} if is_continued else {"imported": Imported(folder=folder)}
        run = spec.model_copy(update=origin)
        moved = tmp_path / "moved" / spec.dataset
        assert first_stage_folder(run, "first") == theirs / name
        is_beside = theirs == spec.model_folder.parent
        assert first_stage_folder(run, "first", moved / spec.model_folder.name) == (moved if is_beside else theirs) / name
