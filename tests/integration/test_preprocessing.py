"""The preprocessing job with nnU-Net itself: killed half-way, begun again, and what nnU-Net refuses."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.experiment.model import experiment_from
from orchestrator.preprocessing.due import WHOLE, due_of
from orchestrator.preprocessing.nnunet import WORKPLACE
from orchestrator.preprocessing.order import PREPROCESS_EVENTS, Order, PreprocessEvent, Progressed, Refused
from orchestrator.run.events import events_in
from tests.integration.many_nodes import REPOSITORY
from tests.raw import NAME, raw_dataset, raw_experiment

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
CASES = ("case_0", "case_1", "case_2", "case_3")


def begun(base: Path) -> "subprocess.Popen[str]":
    """The job of what is due of 2d and 3d_fullres, alone in a process group; its output goes to a file."""
    due = due_of(experiment_from(raw_experiment(base, configurations=["2d", "3d_fullres"])))
    assert due is not None
    command = [sys.executable, "-W", "ignore", "-m", "orchestrator.preprocessing.job", Order(due=due, processes=1).model_dump_json()]
    with (base / "log").open("w") as sink:
        return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ, stdout=sink, stderr=sink, text=True, start_new_session=True)


def events(base: Path) -> list[PreprocessEvent]:
    return list(events_in((base / "log").read_text(), PREPROCESS_EVENTS))


def ended(base: Path) -> int:
    with begun(base) as job:
        return job.wait(timeout=1200)


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def whole_cases(base: Path) -> dict[str, int]:
    """When each case was written that waits for the rest of 3d_fullres."""
    folder = base / "nnUNet_preprocessed" / WORKPLACE / f"{NAME}-stage" / "cases"
    marks = (folder / "nnUNetPlans_3d_fullres.whole").iterdir()
    return {mark.name: (folder / "nnUNetPlans_3d_fullres" / f"{mark.name}.pkl").stat().st_mtime_ns for mark in marks}


def test_a_job_that_is_killed_leaves_nothing_half_done_and_the_next_one_changes_nothing_that_is_there(tmp_path: Path) -> None:
    raw_dataset(tmp_path, cases=4, size=24)
    folder = tmp_path / "nnUNet_preprocessed" / NAME
    with begun(tmp_path) as job:
        while Progressed(what="3d_fullres", done=1, total=4) not in events(tmp_path):
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(job.pid, 9)
    there = times(folder)
    assert {name.split("/")[0] for name in there} == {
        *("dataset.json", "dataset_fingerprint.json", "nnUNetPlans.json"),
        *("gt_segmentations", "nnUNetPlans_2d"),
    }
    assert sorted(path.name for path in (folder / "nnUNetPlans_2d").iterdir()) == sorted(f"{c}{end}" for c in CASES for end in WHOLE)
    whole = whole_cases(tmp_path)  # out of sight
    assert whole
    os.utime(tmp_path / "nnUNet_raw" / NAME / "labelsTr" / f"{CASES[3]}.nii.gz")  # whether it was done or not, it is made of this file
    assert ended(tmp_path) == 0
    assert events(tmp_path)[0] == Progressed(what="integrity check")
    kept = sorted(whole.keys() - {CASES[3]})
    assert events(tmp_path)[1] == Progressed(what="3d_fullres", done=len(kept), total=4)
    assert {case: (folder / "nnUNetPlans_3d_fullres" / f"{case}.pkl").stat().st_mtime_ns for case in kept} == {
        case: whole[case] for case in kept
    }
    assert {name: at for name, at in times(folder).items() if name in there} == there
    assert due_of(experiment_from(raw_experiment(tmp_path, configurations=["2d", "3d_fullres"]))) is None
    assert not list((tmp_path / "nnUNet_preprocessed" / WORKPLACE).glob(f"{NAME}-*"))
    check_that_a_lacking_case_is_added(tmp_path, folder)


def check_that_a_lacking_case_is_added(base: Path, folder: Path) -> None:
    """And no other one is touched."""
    before = times(folder)
    (folder / "nnUNetPlans_3d_fullres" / f"{CASES[2]}.pkl").unlink()  # as nnU-Net leaves a case at which it was killed
    assert ended(base) == 0
    changed = {name for name, at in times(folder).items() if before.get(name) != at}
    assert changed == {f"nnUNetPlans_3d_fullres/{CASES[2]}{ending}" for ending in WHOLE}


def test_what_the_integrity_check_refuses_is_named(tmp_path: Path) -> None:
    raw = raw_dataset(tmp_path, cases=2, size=24)
    shutil.copy(raw / "imagesTr" / "case_1_0000.nii.gz", raw / "labelsTr" / "case_1.nii.gz")  # values that dataset.json does not name
    assert ended(tmp_path) == 3
    refused = events(tmp_path)[-1]
    assert isinstance(refused, Refused)
    assert refused.error == "DataError"
    for part in ("nnU-Net's integrity check refuses", "Unexpected labels found in file", "case_1.nii.gz", "Correct the raw dataset"):
        assert part in refused.message
    assert not (tmp_path / "nnUNet_preprocessed" / NAME).exists()
