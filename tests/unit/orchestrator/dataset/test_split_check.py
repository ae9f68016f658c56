"""Folds of splits_final.json that name files in place of cases, or a case twice."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.dataset.split_check import check_folds, meant
from orchestrator.errors import DataError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import single_training
from tests.unit.tiny_dataset import tiny_dataset
from trainers.contract.plans import Split

CASES = ("case_1", "case_2", "a.1", "b_0001", "c_seg")


@pytest.mark.parametrize(
    ("written", "case"),
    [
        ("case_1.nii.gz", "case_1"),
        ("case_1_0000", "case_1"),
        ("case_1_0001.nii.gz", "case_1"),
        ("case_1.b2nd", "case_1"),
        ("case_1_seg.npz", "case_1"),
        ("a.1.nii", "a.1"),
        ("a.1_0000.mha", "a.1"),
        ("b_0001_0000.nii.gz", "b_0001"),
        ("b_0001.tif", "b_0001"),
        ("c_seg.b2nd", "c_seg"),
        ("case_3.nii.gz", ""),
        ("case_10000", ""),
        ("case", ""),
    ],
)
def test_the_name_of_a_file_leads_to_its_case(written: str, case: str) -> None:
    assert meant(written, CASES) == case


@pytest.mark.parametrize("tail", [".nii.gz", "_0000", "_0000.nii.gz", ".npz"])
def test_ids_that_name_files_are_told_with_what_they_should_read_and_once(tmp_path: Path, tail: str) -> None:
    tiny = tiny_dataset(tmp_path)
    tiny.write_json("splits_final.json", [{"train": [f"case_1{tail}", f"case_2{tail}"], "val": [f"case_3{tail}"]}] * 2)
    experiment = single_training(17, "3d_fullres", 0, **tiny.folders).model_copy(
        update={"folds": (0, 1), "configurations": ("2d", "small")}
    )
    with pytest.raises(DataError) as caught:
        expand(experiment)
    assert str(caught.value) == (
        f"splits_final.json: 3 of 3 ids in {tiny.preprocessed / 'splits_final.json'} name files instead of cases: "
        f"'case_1{tail}' should read 'case_1', 'case_2{tail}' should read 'case_2', 'case_3{tail}' should read 'case_3'. "
        "Write the ids without file ending and channel number (_0000); nothing has to be preprocessed again."
    )


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_case_twice_in_one_list_is_refused(part: str) -> None:
    lists: dict[str, Any] = {"train": ("case_1",), "val": ("case_2",), part: ("case_1", "a.1", "case_1")}
    with pytest.raises(DataError, match=f"'{part}' of fold 3 in the file lists case_1 more than once. List each once."):
        check_folds({0: Split(("case_1",), ("case_2",)), 3: Split(**lists)}, CASES, "the file")


def test_another_fold_than_those_of_the_experiment_may_be_wrong(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    tiny.write_json("splits_final.json", [{"train": ["case_1.nii"] * 2, "val": ["case_3"]}, {"train": ["case_1"], "val": ["case_2"]}])
    (spec,) = expand(single_training(17, "3d_fullres", 1, **tiny.folders))
    assert (spec.train_cases, spec.val_cases) == (("case_1",), ("case_2",))
