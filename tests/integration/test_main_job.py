"""The main job through the public API, every part real: submit, train on two workers, lose the driver, validate, compare, export."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from orchestrator import api
from orchestrator.cluster.home import Home
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.local_services import Services
from orchestrator.experiment.model import Experiment
from orchestrator.publishing.checkpoint_store import published
from orchestrator.run.status import RunStatus
from orchestrator.tracking.client import Tracker
from tests.conftest import Toys
from tests.integration.digests import reached
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.integration.mlflow_server import client_of
from tests.toy import Toy
from trainers.contract.bottleneck import limit_of
from trainers.contract.commits import RECENT_EPOCHS, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState

EPOCHS = 6


@pytest.fixture(scope="module")
def local() -> Iterator[tuple[Home, Services]]:
    with services_of_its_own(num_cpus=2) as started:
        yield started


def experiment_on(toy: Toy, results: Path, seed: int = 0) -> Experiment:
    """Six short epochs on two CPU workers."""
    return toy_experiment(toy, results, epochs=EPOCHS, train_iterations=5, tracking={"upload_interval_s": 0}, images=True, seed=seed)


def kill_driver_after(folder: RunFolder, epochs: int) -> list[str]:
    """SIGKILL the training job's driver once so many epochs are committed; returns which of the run's processes had loaded torch."""
    driver = driver_after(folder, epochs)
    found = with_torch(driver)
    os.kill(driver, signal.SIGKILL)
    return found


def driver_after(folder: RunFolder, epochs: int) -> int:
    """Pid of the training job's driver once so many epochs are committed."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        committed = newest_committed(folder)
        if committed is not None and committed.epochs_done >= epochs:
            claims = [json.loads(path.read_text()) for path in sorted(folder.tokens.glob("*.json"))]
            return int(next(claim["pid"] for claim in reversed(claims) if claim["role"] == "driver"))
        time.sleep(0.05)
    raise AssertionError(f"{epochs} epochs were not committed within 600 s")


def with_torch(driver: int) -> list[str]:
    """Titles of the processes with torch in their memory, of a driver and of all actors of its cluster, without their methods."""
    found = set()
    for pid, title in beside(driver):
        with contextlib.suppress(OSError):
            if "libtorch" in Path(f"/proc/{pid}/maps").read_text():
                found.add(title)
    return sorted(found)


def beside(driver: int) -> Iterator[tuple[int, str]]:
    """Pids and titles of a driver and of all actors of its cluster, without their methods."""
    home = Path(f"/proc/{driver}/environ").read_bytes().split(b"NNFLEET_HOME=")[1].split(b"\0")[0]
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(OSError, psutil.Error):
            if b"NNFLEET_HOME=" + home in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                yield process.pid, " ".join(process.info["cmdline"]).partition(".")[0].strip()


@pytest.fixture(scope="module")
def main_job(local: tuple[Home, Services], toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, RunStatus]:
    """One run, its driver killed in the fourth epoch, followed to its end. Only what computes has loaded torch by then."""
    experiment = experiment_on(toys("labels"), tmp_path_factory.mktemp("results"))
    submission = api.submit(experiment)
    (row,) = submission.plan.rows
    assert kill_driver_after(RunFolder(row.spec.run_folder), 3) == ["ray::Loader", "ray::RayTrainWorker"]
    (status,) = api.wait(submission.campaign_id)
    return experiment, status


def test_a_run_whose_driver_is_killed_recovers_and_ends_validated(main_job: tuple[Experiment, RunStatus]) -> None:
    _, status = main_job
    assert status.state is RunState.SUCCEEDED, status.reason
    assert set(status.full_dice) == {"best", "final"}
    committed = reached(RunFolder(status.run_folder))
    assert [row.epoch for row in committed.history] == list(range(EPOCHS))
    assert len({row.fencing_token for row in committed.history}) == 2
    for row in committed.history:
        assert (row.loaders, row.longest_wait_s >= row.wait_data_s) == (1, True)
        assert row.prepare_cpu_s > 0
        assert 0 <= row.read_wait_s <= row.prepare_s
    limit = limit_of(committed.history[-RECENT_EPOCHS:])
    assert limit is not None
    assert (status.limited_by, status.limit_advice) == (limit.name, limit.advice)
    assert "; limited by: " in next(RunFolder(status.run_folder).root.glob("training_log_*.txt")).read_text()


def test_mlflow_holds_every_epoch_once_the_committed_checkpoints_and_the_full_validation(
    main_job: tuple[Experiment, RunStatus], local: tuple[Home, Services]
) -> None:
    _, status = main_job
    folder, tracker = RunFolder(status.run_folder), Tracker(local[1].mlflow_uri)
    points = client_of(tracker).get_metric_history(status.mlflow_run_id, "train/loss")
    assert sorted((p.step, p.value) for p in points) == [(row.epoch, row.train_loss) for row in reached(folder).history]
    run = client_of(tracker).get_run(status.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["nnfleet.state"] == "SUCCEEDED"
    assert run.data.tags["nnfleet.limited_by"] == status.limited_by
    assert run.data.metrics["loader/actors"] == 1
    for name, committed in (("best", reached(folder).best), ("final", reached(folder).final)):
        there = published(tracker, status.mlflow_run_id, name)  # type: ignore[arg-type]
        assert there is not None
        assert committed is not None
        assert there.manifest.sha256 == committed.sha256
        dice, ema = run.data.metrics[f"full/{name}/dice_mean"], committed.ema_pseudo_dice
        assert dice == pytest.approx(status.full_dice[name])
        assert ema is not None
        assert run.data.metrics[f"full/{name}/minus_ema_pseudo_dice"] == pytest.approx(dice - ema)
    assert any("overlay" in path for path in all_files(tracker, status.mlflow_run_id))


def all_files(tracker: Tracker, run_id: str, below: str = "") -> list[str]:
    """Paths of all artifacts of a run."""
    found: list[str] = []
    for item in client_of(tracker).list_artifacts(run_id, below or None):
        found += all_files(tracker, run_id, item.path) if item.is_dir else [item.path]
    return found


def test_its_report_shows_the_full_dice_and_where_the_model_is_wrong(main_job: tuple[Experiment, RunStatus], tmp_path: Path) -> None:
    experiment, status = main_job
    found = api.compare(results=experiment.nnUNet_results, checkpoint="best")
    assert not found.left
    assert found.answer.models[0].summary["dice_mean"] == pytest.approx(status.full_dice["best"])
    api.write_report(found.answer, tmp_path / "report.html")
    assert "worst case of" in (tmp_path / "report.html").read_text()


def test_training_and_validation_are_jobs_of_their_own(main_job: tuple[Experiment, RunStatus], local: tuple[Home, Services]) -> None:
    _, status = main_job
    jobs = Jobs(local[1].ray_address, local[1].token).records()
    kinds = [job.kind for job in jobs if job.run_key == status.run_key]
    assert kinds.count("train") == 2
    assert kinds.count("validate") == 1


def test_submitted_again_it_is_finished_and_nothing_is_started(
    main_job: tuple[Experiment, RunStatus], local: tuple[Home, Services]
) -> None:
    experiment, status = main_job
    jobs = Jobs(local[1].ray_address, local[1].token)
    before = len([job for job in jobs.records() if job.kind in ("train", "validate")])
    submission = api.submit(experiment)
    assert submission.plan.rows[0].progress.stage == "finished"
    (again,) = api.wait(submission.campaign_id)
    assert again.state is RunState.SUCCEEDED
    assert again.mlflow_run_id == status.mlflow_run_id
    assert len([job for job in jobs.records() if job.kind in ("train", "validate")]) == before


def test_the_results_folder_is_nnunets_and_the_export_is_its_copy(
    main_job: tuple[Experiment, RunStatus], local: tuple[Home, Services], tmp_path: Path
) -> None:
    _, status = main_job
    folder = RunFolder(status.run_folder)
    names = {path.name for path in folder.root.iterdir()}
    assert {"checkpoint_best.pth", "checkpoint_final.pth", "progress.png", "validation", "validation_best", "nnfleet"} <= names
    assert {"plans.json", "dataset.json", "dataset_fingerprint.json"} <= {path.name for path in folder.model_folder.iterdir()}
    summary: dict[str, Any] = json.loads((folder.validation("final") / "summary.json").read_text())
    assert {"foreground_mean", "mean", "metric_per_case"} <= set(summary)
    exported = api.export(status.mlflow_run_id, tmp_path / "model", local[1].mlflow_uri).folder
    theirs = torch.load(exported / "fold_0" / "checkpoint_final.pth", weights_only=True)["network_weights"]
    ours = torch.load(folder.checkpoint("final"), weights_only=True)["network_weights"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
@pytest.mark.usefixtures("local")
def test_a_run_whose_controller_is_killed_gets_its_workers_again(toys: Toys, tmp_path: Path) -> None:
    """They need both CPUs, so nothing may be left of what the first gang had reserved."""
    submission = api.submit(experiment_on(toys("labels"), tmp_path, seed=1))
    (row,) = submission.plan.rows
    driver = driver_after(RunFolder(row.spec.run_folder), 2)
    (controller,) = (pid for pid, title in beside(driver) if title == "ray::TrainController")
    os.kill(controller, signal.SIGKILL)
    (status,) = api.wait(submission.campaign_id)
    assert status.state is RunState.SUCCEEDED, status.reason
    assert status.num_drivers == 2
