"""A held-out test set on a real local Ray: killed in its middle and continued, beside nnU-Net's own prediction and evaluation."""

import json
import multiprocessing.dummy
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import SimpleITK as sitk  # noqa: N813 - its own name in its documentation
import torch

from orchestrator.errors import ConfigError
from orchestrator.validation.held_out_folds import folds_of
from orchestrator.validation.held_out_job import prepared, run_held_out
from tests.conftest import Toys
from tests.integration.cluster import SHORT
from tests.random_model import random_folds
from tests.toy import Toy, nnunet_environment
from trainers.contract.held_out import scores_below
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import sha256_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's, nnU-Net's and its readers' own
CASES = ("toy_000", "toy_001", "toy_002", "toy_003")
ALONE = """
import sys
from pathlib import Path
import ray
from orchestrator.validation.held_out_folds import folds_of
from orchestrator.validation.held_out_job import prepared, run_held_out
name, images, labels, output, results = sys.argv[1:]
ray.init()
folds, _ = folds_of(name, Path(results))
run_held_out(*prepared(folds, Path(images), Path(labels), Path(output), "final"), folds)
"""
"""What the job does, without a job server: the queue is a unit test's."""


@pytest.fixture(scope="module")
def toy(toys: Toys) -> Toy:
    return toys("labels")


@pytest.fixture(scope="module")
def cluster(toy: Toy) -> Iterator[str]:
    """The address of a Ray cluster of two CPUs, started after the toy dataset is made."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    temp = Path(SHORT) / f"nnh{os.getpid()}"
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(temp), object_store_memory=100_000_000)
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()
    shutil.rmtree(temp, ignore_errors=True)


def held_out(toy: Toy, base: Path) -> tuple[Path, Path]:
    images, labels = base / "imagesTs", base / "labelsTs"
    images.mkdir()
    labels.mkdir()
    for case in CASES:
        shutil.copy(toy.raw / "imagesTr" / f"{case}_0000.nii.gz", images)
        shutil.copy(toy.raw / "labelsTr" / f"{case}.nii.gz", labels)
    return images, labels


def killed_after_its_first_case(address: str, arguments: list[str], cases: Path) -> None:
    """Start the job in a process of its own and kill it by SIGKILL as soon as a case is finished, before all are."""
    command = [sys.executable, "-c", ALONE, *arguments]
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": address}, stdout=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 300
        while not any(cases.glob("*.json")) and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
        printed = job.communicate()[0]
    assert job.returncode == -signal.SIGKILL, printed


def nnunets(toy: Toy, model: Path, images: Path, labels: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """nnU-Net's predictor with both folds and its evaluation of a folder, with threads in place of its spawned processes."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir()
    monkeypatch.setattr(evaluate_predictions.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    with nnunet_environment(toy.base):
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), (0, 1), "checkpoint_final.pth")
        predictor.predict_from_files_sequential(
            [[str(images / f"{case}_0000.nii.gz")] for case in CASES], [str(output / case) for case in CASES]
        )
        evaluate_predictions.compute_metrics_on_folder2(
            str(labels), str(output), str(model / "dataset.json"), str(model / "plans.json"), str(output / "summary.json"), 1
        )
    return dict(json.loads((output / "summary.json").read_text()))


def test_a_test_set_killed_in_its_middle_and_continued_equals_nnunets(
    toy: Toy, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    folds = random_folds(toy, results)
    model, (images, labels) = folds[0].model_folder, held_out(toy, tmp_path)
    output = RunFolder(tmp_path / "output")
    name = folds[0].spec().model
    assert folds_of(name, results) == (folds, [])
    killed_after_its_first_case(cluster, [name, *map(str, (images, labels, output.root, results))], output.cases("final"))
    kept = {file.stem: file.stat().st_mtime_ns for file in output.cases("final").glob("*.json")}
    assert 0 < len(kept) < len(CASES)

    ended = run_held_out(*prepared(folds, images, labels, output.root, "final"), folds)
    assert (ended.exit_code, ended.num_cases) == (0, len(CASES)), ended
    marks = {file.stem: file.stat().st_mtime_ns for file in output.cases("final").glob("*.json")}
    assert set(marks) == set(CASES)
    assert {case: marks[case] for case in kept} == kept, "a finished case was done again"

    theirs = nnunets(toy, model, images, labels, tmp_path / "nnunet", monkeypatch)
    values: set[int] = set()
    for case in CASES:
        one, other = (sitk.ReadImage(str(place / f"{case}.nii.gz")) for place in (output.root, tmp_path / "nnunet"))
        assert (one.GetSpacing(), one.GetOrigin(), one.GetDirection()) == (other.GetSpacing(), other.GetOrigin(), other.GetDirection())
        a, b = sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other)
        assert (a == b).mean() >= 0.9999
        values |= set(np.unique(a).tolist())
    assert len(values) > 1, "the random networks predict one class alone: this test says nothing"
    ours = json.loads((output.root / "summary.json").read_text())
    for name in ("dataset.json", "plans.json"):  # as beside nnU-Net's predictions
        assert (output.root / name).read_bytes() == (model / name).read_bytes()
    assert ours["foreground_mean"]["Dice"] == pytest.approx(theirs["foreground_mean"]["Dice"], abs=1e-4)
    for key, mean in theirs["mean"].items():
        assert ours["mean"][key]["Dice"] == pytest.approx(mean["Dice"], abs=1e-4, nan_ok=True)

    assert not list(output.root.glob(".part-*"))
    [scores] = scores_below(model)[0]
    assert (scores.folds, scores.label) == (("0", "1"), ended.test_set)
    assert scores.weights_sha256 == tuple(sha256_of(fold.checkpoint("final")) for fold in folds)
    assert {result.image_sha256 for result in scores.results} == {(sha256_of(images / f"{case}_0000.nii.gz"),) for case in CASES}

    assert run_held_out(*prepared(folds, images, labels, output.root, "final"), folds).scores == ended.scores
    assert {file.stem: file.stat().st_mtime_ns for file in output.cases("final").glob("*.json")} == marks
    with pytest.raises(ConfigError, match="holds the predictions of other weights, and nothing is replaced"):
        prepared(folds[:1], images, labels, output.root, "final")
