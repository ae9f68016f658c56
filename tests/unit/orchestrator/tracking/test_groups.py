"""By what MLflow groups runs: folds of one model share it, and nothing else does."""

from pathlib import Path

import pytest

from orchestrator.tracking.groups import GROUP_TAG, data_of_folds, grouping_tags, schedule_text
from tests.fake_run import FakeRun
from trainers.contract.run_spec import RunSpec, Schedule
from trainers.storage.files import read_json, write_json_atomic

SPLITS = [{"train": ["case_1", "case_2"], "val": ["case_0"]}, {"train": ["case_0", "case_2"], "val": ["case_1"]}]


def fold(base: Path, number: int, **changes: object) -> RunSpec:
    """One fold of the toy's two."""
    split = SPLITS[number]
    spec = FakeRun(base, f"901-{number}", number, train_cases=tuple(split["train"]), val_cases=tuple(split["val"])).spec
    write_json_atomic(spec.preprocessed_folder / "splits_final.json", SPLITS)
    return spec.model_copy(update=changes)


def group(spec: RunSpec) -> str:
    return grouping_tags(spec)[GROUP_TAG]


def test_the_folds_of_a_model_are_one_group_with_a_short_name(tmp_path: Path) -> None:
    first, second = fold(tmp_path, 0), fold(tmp_path, 1)
    assert group(first) == group(second) == f"default 3d_fullres, 1000 epochs, data {data_of_folds(first)}"
    assert grouping_tags(first)["nnfleet.model"] == "901/3d_fullres/nnUNetTrainer"


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"variant": "lowlr"},
        {"trainer": "nnUNetTrainerDA5"},
        {"replicate": "second"},
        {"schedule": Schedule(epochs=7)},
        {"schedule": Schedule(initial_lr=0.1)},
        {"case_digests": {"case_0": ("a", "b", "c")}},
    ],
)
def test_what_is_unlike_is_another_group(tmp_path: Path, changes: dict[str, object]) -> None:
    assert group(fold(tmp_path, 0)) != group(fold(tmp_path, 1, **changes))


def test_folds_of_another_split_are_another_group(tmp_path: Path) -> None:
    before, other = group(fold(tmp_path, 0)), fold(tmp_path, 1)
    write_json_atomic(other.preprocessed_folder / "splits_final.json", [SPLITS[1], {"train": ["case_0"], "val": ["case_1", "case_2"]}])
    assert group(other) != before


def test_other_plans_of_the_same_name_are_another_group(tmp_path: Path) -> None:
    spec = fold(tmp_path, 0)
    before, file = group(spec), spec.preprocessed_folder / "nnUNetPlans.json"
    plans = read_json(file, "plans")
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 16, 16]
    write_json_atomic(file, plans)
    assert group(spec) != before


def test_with_pseudonyms_the_digest_tells_nothing_of_the_cases(tmp_path: Path) -> None:
    assert data_of_folds(fold(tmp_path, 0)) != data_of_folds(fold(tmp_path, 0, pseudonyms=True))


def test_a_schedule_is_named_by_its_epochs_and_by_what_is_not_usual() -> None:
    assert schedule_text(Schedule()) == "1000 epochs"
    assert schedule_text(Schedule(epochs=50, initial_lr=0.001, train_iterations=25)) == "50 epochs, train_iterations 25, initial_lr 0.001"
