"""The folder in which nnU-Net works for one job, and what it removes of earlier ones."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from orchestrator.errors import ClusterError, DataError
from orchestrator.preprocessing import nnunet, whole_cases
from orchestrator.preprocessing.due import WHOLE, Due
from orchestrator.preprocessing.nnunet import WORKPLACE, _stage, preprocess
from orchestrator.preprocessing.order import Order
from orchestrator.preprocessing.whole_cases import WholeCases, put_whole
from orchestrator.queue.file_lock import locked


@pytest.mark.parametrize("dataset", ["Dataset004_A", "Dataset004_[A]"])
def test_only_what_killed_jobs_of_the_same_dataset_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # put back at the end
    left, others = f"{dataset}-0123abcd", [f"{dataset}-B-0123abcd", f"{dataset}-B.lock", "Dataset004_-0123abcd", f"{dataset}.lock"]
    for name in (left, *others):
        (tmp_path / name).mkdir()
    due = Due(dataset=dataset, raw=tmp_path / "raw", preprocessed=tmp_path, parts=())
    with _stage(tmp_path, due) as made:
        assert {path.name for path in tmp_path.iterdir()} == {made.parent.name, *others}
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_job_that_fails_leaves_its_whole_cases_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # put back at the end
    due = Due(dataset="Dataset004_A", raw=tmp_path / "raw", preprocessed=tmp_path, parts=())

    def failing(has_cases: bool) -> None:
        with _stage(tmp_path, due) as made:
            (made / "Dataset004_A" / "rest").touch()
            if has_cases:
                (made.parent / "cases" / "nnUNetPlans_2d").mkdir(parents=True)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        failing(has_cases=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="broken"):
        failing(has_cases=True)
    (tmp_path / "Dataset004_A-stage" / "made-01234567").mkdir()  # of one that was killed
    with _stage(tmp_path, due) as made:
        assert sorted(made.parent.iterdir()) == [made.parent / "cases", made]
        assert list(made.rglob("*")) == [made / "Dataset004_A"]
    assert list(tmp_path.iterdir()) == []


def test_a_case_is_whole_as_long_as_all_that_it_was_made_from_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, image, label = tmp_path / "plans.json", tmp_path / "a_0000.nii.gz", tmp_path / "a.nii.gz"
    for path in (settings, image, label):
        path.write_text("first")
    files = {"a": {"images": [str(image)], "label": str(label)}}

    def cases(configuration: str = "2d") -> WholeCases:
        return WholeCases(tmp_path / "cases" / "nnUNetPlans_2d", configuration, [settings])

    def make(case: str, content: str) -> None:
        for ending in WHOLE:
            (tmp_path / f"{case}{ending}").write_text(content)

    assert cases().are_whole(files) == []
    make("a", "first")
    put_whole(tmp_path / "a", cases().folder, *cases().mark_of("a", files["a"]))
    assert cases().are_whole(files) == ["a"]
    assert cases("3d_fullres").are_whole(files) == []
    for path in (settings, image, label):
        before, times = path.read_text(), path.stat()
        path.write_text("second")
        assert cases().are_whole(files) == []
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert cases().are_whole(files) == ["a"]
    make("a", "second")
    monkeypatch.setattr(os, "replace", killed_at_the_second(os.replace))
    with pytest.raises(KeyboardInterrupt):
        put_whole(tmp_path / "a", cases().folder, *cases().mark_of("a", files["a"]))
    monkeypatch.undo()
    assert cases().are_whole(files) == [], "its files are of two makings"
    make("a", "third")
    put_whole(tmp_path / "a", cases().folder, *cases().mark_of("a", files["a"]))
    (cases().folder / "a.pkl").rename(tmp_path / "kept")
    assert cases().are_whole(files) == [], "a file is gone"
    (tmp_path / "kept").rename(cases().folder / "a.pkl")
    monkeypatch.setattr(whole_cases, "code_digest", lambda: "of other code")
    assert cases().are_whole(files) == []


def killed_at_the_second(replace: Callable[..., None]) -> Callable[..., None]:
    """`os.replace` of a process that ends after its first call."""
    calls: list[object] = []

    def replaced(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*arguments)

    return replaced


def test_cases_that_left_the_raw_dataset_do_not_come_into_the_preprocessed_one(tmp_path: Path) -> None:
    (tmp_path / "plans.json").touch()
    cases = WholeCases(tmp_path / "cases" / "nnUNetPlans_2d", "2d", [tmp_path / "plans.json"])
    for name in ("a", "gone"):
        for ending in WHOLE:
            (cases.folder / f"{name}{ending}").touch()
    released = cases.release(["a"])
    assert list(released.parent.iterdir()) == [released]
    assert {path.name for path in released.iterdir()} == {f"a{ending}" for ending in WHOLE}


def test_a_second_job_of_a_dataset_ends_before_it_touches_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever brought it about: jobs of another cluster, another name of the same folder."""
    monkeypatch.setattr(nnunet, "LOCK_S", 0.1)
    due = Due(dataset="Dataset004_A", raw=tmp_path / "raw", preprocessed=tmp_path / "preprocessed", parts=())
    workplace = due.preprocessed / WORKPLACE
    at_work = workplace / "Dataset004_A-stage" / "made-01234567" / "case.b2nd"
    at_work.parent.mkdir(parents=True)
    at_work.write_text("half")
    (tmp_path / "link").symlink_to(due.preprocessed)
    linked = due.model_copy(update={"preprocessed": tmp_path / "link"})
    with locked(workplace / "Dataset004_A.lock", "preprocessing", 0):
        before = sorted(due.preprocessed.rglob("*"))
        for other in (due, linked):
            held = r"preprocessing of Dataset004_A: .*Dataset004_A\.lock has been locked for 0 s, by process \d+ on .*\. Check what that"
            with pytest.raises(ClusterError, match=held):
                preprocess(Order(due=other, processes=1), lambda progress: None)
        assert sorted(due.preprocessed.rglob("*")) == before
    assert at_work.read_text() == "half"


def test_the_lock_of_a_node_that_died_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share releases it when the lease of that node ends; the next job is there within seconds."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # put back at the end
    due = Due(dataset="Dataset004_A", raw=tmp_path / "raw", preprocessed=tmp_path / "preprocessed", parts=())
    workplace = due.preprocessed / WORKPLACE
    workplace.mkdir(parents=True)
    is_held, ends = Event(), Event()

    def dead_node() -> None:
        with locked(workplace / "Dataset004_A.lock", "preprocessing", 0):
            is_held.set()
            ends.wait(60)

    with ThreadPoolExecutor(1) as pool:
        lease = pool.submit(dead_node)
        assert is_held.wait(60)
        Timer(0.3, ends.set).start()
        with pytest.raises(DataError, match="raw"):  # it has come to its work, and there is no raw dataset
            preprocess(Order(due=due, processes=1), lambda progress: None)
        lease.result()
