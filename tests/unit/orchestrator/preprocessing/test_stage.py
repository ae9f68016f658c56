"""The folder in which nnU-Net works for one job, and what it removes of earlier ones."""

from pathlib import Path

import pytest

from orchestrator.preprocessing.due import Due
from orchestrator.preprocessing.nnunet import _stage


@pytest.mark.parametrize("dataset", ["Dataset004_A", "Dataset004_[A]"])
def test_only_what_killed_jobs_of_the_same_dataset_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # put back at the end
    left, others = f"{dataset}-0123abcd", [f"{dataset}-B-0123abcd", f"{dataset}-B.lock", "Dataset004_-0123abcd", f"{dataset}.lock"]
    for name in (left, *others):
        (tmp_path / name).mkdir()
    due = Due(dataset=dataset, raw=tmp_path / "raw", preprocessed=tmp_path, parts=())
    with _stage(tmp_path, due) as stage:
        assert {path.name for path in tmp_path.iterdir()} == {stage.name, *others}
    assert {path.name for path in tmp_path.iterdir()} == set(others)
