"""The full-validation job on a real local Ray: complete, resumable, and alone in its failures."""

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from orchestrator.run.outcome import read_outcome
from orchestrator.tracking.client import Tracker
from orchestrator.validation import case_queue
from orchestrator.validation.job import run_validation
from tests.away import OnlyHere
from tests.conftest import Toys
from tests.integration.cluster import SHORT
from tests.integration.disks import Disk, small_disk
from tests.integration.mlflow_server import free_port
from tests.random_model import EMA, random_run
from trainers.contract.pseudonyms import pseudonym, pseudonym_salt
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec, ValidationSpec, WorkerSpec
from trainers.storage.files import write_json_atomic

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A Ray cluster of two CPUs inside this process's session, with a temporary folder of its own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    temp = Path(SHORT) / f"nnv{os.getpid()}"
    for tries_left in (2, 1, 0):
        try:
            ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(temp), object_store_memory=100_000_000)
            break
        except Exception:  # Ray gives a node 30 s to start, which a busy machine may exceed
            ray.shutdown()
            if not tries_left:
                raise
    yield
    ray.shutdown()
    shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """32 MiB."""
    yield from small_disk(tmp_path / "disk", 32)


def marks(folder: RunFolder, name: CheckpointName, spec: RunSpec) -> dict[str, int]:
    """When each result file was written, in nanoseconds."""
    return {case: (folder.cases(name) / f"{case}.json").stat().st_mtime_ns for case in spec.val_cases}


def predictions(folder: RunFolder, name: CheckpointName) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.validation(name).glob("*.nii.gz"))}


def summary(folder: RunFolder, name: CheckpointName) -> dict[str, Any]:
    return dict(json.loads((folder.validation(name) / "summary.json").read_text()))


@pytest.fixture(scope="module")
def finished(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, RunFolder]:
    """A run with pictures whose validation was done once, by two workers."""
    workers = WorkerSpec(count=2, gpus=0, cpus=1)
    spec, folder = random_run(toys("labels"), tmp_path_factory.mktemp("finished"), images=True, workers=workers)
    outcome = run_validation(folder, fencing_token=3, delivery_waits_s=())
    assert outcome.state == "SUCCEEDED", outcome
    return spec, folder


def test_every_case_of_both_checkpoints_is_validated(finished: tuple[RunSpec, RunFolder]) -> None:
    spec, folder = finished
    for name in spec.validation.checkpoints:
        assert [Path(case["prediction_file"]).name for case in summary(folder, name)["metric_per_case"]] == [
            f"{case}.nii.gz" for case in spec.val_cases
        ]
        assert sorted(predictions(folder, name)) == sorted(f"{case}.nii.gz" for case in spec.val_cases)
        assert all((folder.own / "overlays" / name / f"{case}.png").read_bytes().startswith(b"\x89PNG") for case in spec.val_cases)
        extended = json.loads((folder.own / f"validation_{name}.json").read_text())
        ema = EMA if name == "best" else EMA + 0.1
        assert extended["minus_ema_pseudo_dice"] == pytest.approx(extended["dice_mean"] - ema)
        assert extended["dice_mean"] == pytest.approx(summary(folder, name)["foreground_mean"]["Dice"])
        assert [row["case"] for row in extended["cases"]] == list(spec.val_cases)
    assert predictions(folder, "best") != predictions(folder, "final")
    stored = read_outcome(folder)
    assert stored is not None
    assert (stored.job, stored.state, stored.fencing_token) == ("validation", "SUCCEEDED", 3)
    assert stored.evidence == ""  # a run that is not tracked lacks no delivery


def test_a_second_start_does_nothing_again(finished: tuple[RunSpec, RunFolder]) -> None:
    spec, folder = finished
    before = {name: (marks(folder, name, spec), summary(folder, name)) for name in spec.validation.checkpoints}
    assert run_validation(folder, delivery_waits_s=()).state == "SUCCEEDED"
    assert {name: (marks(folder, name, spec), summary(folder, name)) for name in spec.validation.checkpoints} == before


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[RunSpec, RunFolder]) -> Iterator[Tracker]:
    """MLflow on sqlite, with its artifacts below this test's folder; the run folder knows nothing of it afterwards."""
    monkeypatch.chdir(tmp_path)
    yield Tracker(f"sqlite:///{tmp_path}/mlflow.db")
    finished[1].mlflow_file.unlink()


def test_results_reach_mlflow_once_the_server_is_back(finished: tuple[RunSpec, RunFolder], store: Tracker) -> None:
    spec, folder = finished
    tracker = store
    write_json_atomic(folder.spec_file, spec.model_copy(update={"tracking_uri": tracker.uri}).model_dump(mode="json"))
    outcome = run_validation(folder, delivery_waits_s=())
    assert outcome.state == "SUCCEEDED"
    assert "no MLflow run was made" in outcome.evidence
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))

    run_id = tracker.get_or_create_run(tracker.ensure_experiment("toy"), spec)
    away = f"http://127.0.0.1:{free_port()}"
    write_json_atomic(folder.mlflow_file, {"run_id": run_id, "experiment_id": "1", "tracking_uri": away})
    outcome = run_validation(folder, delivery_waits_s=(0.1,))
    assert outcome.state == "SUCCEEDED"
    assert away in outcome.evidence

    write_json_atomic(folder.mlflow_file, {"run_id": run_id, "experiment_id": "1", "tracking_uri": tracker.uri})
    assert run_validation(folder, delivery_waits_s=()).evidence == ""
    metrics = tracker.metrics(run_id)
    for name in spec.validation.checkpoints:
        extended = json.loads((folder.own / f"validation_{name}.json").read_text())
        assert metrics[f"full/{name}/dice_mean"] == pytest.approx(extended["dice_mean"])
        assert metrics[f"full/{name}/minus_ema_pseudo_dice"] == pytest.approx(extended["minus_ema_pseudo_dice"])
        files = tracker.list_files(run_id, f"fullval/{name}")
        assert {f"fullval/{name}/{file}" for file in ("summary.json", "per_case.json", "overlays")} <= set(files)
        assert len(tracker.list_files(run_id, f"fullval/{name}/overlays")) == len(spec.val_cases)


def test_pseudonyms_leave_no_case_id_in_what_is_sent(finished: tuple[RunSpec, RunFolder], store: Tracker, tmp_path: Path) -> None:
    spec, folder = finished
    tracker = store
    secret = spec.model_copy(update={"pseudonyms": True})
    run_id = tracker.get_or_create_run(tracker.ensure_experiment("toy"), secret)
    write_json_atomic(folder.spec_file, secret.model_dump(mode="json"))
    write_json_atomic(folder.mlflow_file, {"run_id": run_id, "experiment_id": "1", "tracking_uri": tracker.uri})
    assert run_validation(folder, delivery_waits_s=()).evidence == ""
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    names = {pseudonym(case, pseudonym_salt(folder.model_folder.parent)) for case in spec.val_cases}
    assert {Path(file).stem.split("_", 1)[1] for file in tracker.list_files(run_id, "fullval/best/overlays")} == names
    for file in ("summary.json", "per_case.json"):
        sent = tracker.download(run_id, f"fullval/best/{file}", tmp_path).read_text()
        assert not any(case in sent for case in spec.val_cases)
        assert all(name in sent for name in names)


def test_only_what_is_missing_or_of_other_weights_is_done_again(finished: tuple[RunSpec, RunFolder]) -> None:
    spec, folder = finished
    before = {name: marks(folder, name, spec) for name in spec.validation.checkpoints}
    content = predictions(folder, "best")
    lost, kept = spec.val_cases
    (folder.validation("best") / f"{lost}.nii.gz").unlink()
    result = json.loads((folder.cases("final") / f"{lost}.json").read_text())
    write_json_atomic(folder.cases("final") / f"{lost}.json", result | {"checkpoint_sha256": "of other weights"})
    assert run_validation(folder, delivery_waits_s=()).state == "SUCCEEDED"
    for name in spec.validation.checkpoints:
        after = marks(folder, name, spec)
        assert after[lost] > before[name][lost]
        assert after[kept] == before[name][kept]
    assert predictions(folder, "best") == content


def kill_worker_when(condition: Callable[[], bool], kind: signal.Signals = signal.SIGKILL) -> threading.Thread:
    """In a thread: kill (or stop), once, the worker of this process's cluster that validates a case while `condition` holds."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for process in psutil.Process().children(recursive=True):
                try:
                    is_validating = process.name().startswith("ray::") and "CaseWorker.validate" in " ".join(process.cmdline())
                    if is_validating and condition():
                        process.send_signal(kind)
                        return
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_is_replaced_and_its_case_done_again(toys: Toys, tmp_path: Path, finished: tuple[RunSpec, RunFolder]) -> None:
    _, folder = random_run(toys("labels"), tmp_path, validation=ValidationSpec(checkpoints=("best",)))
    killer = kill_worker_when(lambda: len(list(folder.cases("best").glob("*.json"))) == 1)
    outcome = run_validation(folder, delivery_waits_s=())
    killer.join(timeout=1)
    assert not killer.is_alive(), "no worker was caught at work"
    assert outcome.state == "SUCCEEDED", outcome
    assert predictions(folder, "best") == predictions(finished[1], "best")
    assert summary(folder, "best")["mean"] == summary(finished[1], "best")["mean"]


def test_a_case_that_kills_its_worker_fails_alone(toys: Toys, tmp_path: Path) -> None:
    validation = ValidationSpec(checkpoints=("best",), attempts_per_case=1)
    spec, folder = random_run(toys("labels"), tmp_path, validation=validation)
    killer = kill_worker_when(lambda: True)
    outcome = run_validation(folder, delivery_waits_s=())
    killer.join(timeout=1)
    assert outcome.state == "FAILED_CLUSTER"
    done = {path.stem for path in folder.cases("best").glob("*.json")}
    (failed,) = set(spec.val_cases) - done
    assert f"1 of 2 cases failed: {failed} (tried once): its worker died" in outcome.message
    assert not (folder.validation("best") / "summary.json").exists()


def test_a_case_that_hangs_is_given_to_another_worker(toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_queue, "LEAST_LIMIT_S", 10.0)
    _, folder = random_run(toys("labels"), tmp_path, validation=ValidationSpec(checkpoints=("best",)))
    stopper = kill_worker_when(lambda: True, signal.SIGSTOP)
    outcome = run_validation(folder, delivery_waits_s=())
    stopper.join(timeout=1)
    assert not stopper.is_alive(), "no worker was caught at work"
    assert outcome.state == "SUCCEEDED", outcome
    assert not [p for p in psutil.Process().children(recursive=True) if p.status() == psutil.STATUS_STOPPED]


def test_a_full_disk_is_waited_for_and_costs_no_case_its_tries(toys: Toys, tmp_path: Path, disk: Disk) -> None:
    validation = ValidationSpec(checkpoints=("best",), attempts_per_case=1)
    spec, folder = random_run(toys("labels"), disk.folder, validation=validation)

    def full_for_a_while() -> None:
        deadline = time.monotonic() + 120
        while not any(folder.cases("best").glob("*.json")) and time.monotonic() < deadline:
            time.sleep(0.005)
        disk.fill()
        time.sleep(5)
        disk.make_room()

    filler = threading.Thread(target=full_for_a_while)
    filler.start()
    outcome = run_validation(folder, delivery_waits_s=())
    filler.join()
    assert outcome.state == "SUCCEEDED", outcome
    assert len(marks(folder, "best", spec)) == len(spec.val_cases)


def test_a_corrupt_case_fails_alone_and_is_named(toys: Toys, tmp_path: Path) -> None:
    toy = toys("regions")
    preprocessed = tmp_path / toy.name
    shutil.copytree(toy.preprocessed, preprocessed)
    spec, folder = random_run(
        toy, tmp_path / "results", preprocessed_folder=preprocessed, validation=ValidationSpec(checkpoints=("final",))
    )
    corrupt, sound = spec.val_cases
    broken = next(preprocessed.glob(f"*3d*/{corrupt}.b2nd"))
    broken.write_bytes(b"\x00" * 1000)
    outcome = run_validation(folder, delivery_waits_s=())
    assert outcome.state == "FAILED_CONFIG"
    assert f"1 of 2 cases failed: {corrupt} (tried once): DataError: preprocessed" in outcome.message
    assert str(broken.parent) in outcome.message
    assert "blosc2" in outcome.evidence
    assert "\x1b" not in outcome.evidence
    assert [path.stem for path in folder.cases("final").glob("*.json")] == [sound]

    shutil.copy(next(toy.preprocessed.glob(f"*3d*/{corrupt}.b2nd")), broken)
    before = (folder.cases("final") / f"{sound}.json").stat().st_mtime_ns
    assert run_validation(folder, delivery_waits_s=()).state == "SUCCEEDED"
    assert (folder.cases("final") / f"{sound}.json").stat().st_mtime_ns == before
    assert set(summary(folder, "final")["mean"]) == {"(1, 2, 3)", "(2, 3)", "3"}


def test_a_wish_to_stop_now_is_met(toys: Toys, tmp_path: Path) -> None:
    _, folder = random_run(toys("labels"), tmp_path)
    write_json_atomic(folder.stop_file, {"now": True})
    assert run_validation(folder, delivery_waits_s=()).state == "STOPPED"
    assert not (folder.validation("best") / "summary.json").exists()


def test_a_missing_or_broken_checkpoint_is_named_before_a_case_is_blamed(toys: Toys, tmp_path: Path) -> None:
    _, folder = random_run(toys("labels"), tmp_path)
    folder.checkpoint("best").write_bytes(b"half a file")
    outcome = run_validation(folder, delivery_waits_s=())
    assert outcome.state == "FAILED_CODE"
    assert "checkpoint_best.pth is not what the newest state names (best of epoch" in outcome.message
    folder.checkpoint("final").unlink()
    outcome = run_validation(folder, delivery_waits_s=())
    assert outcome.state == "FAILED_CONFIG"
    assert "checkpoint_final.pth does not exist; 2 of 2 epochs are done" in outcome.message


class WhenTold(logging.Handler):
    """Does something as soon as the log says `text`."""

    def __init__(self, text: str, act: Callable[[], object]) -> None:
        super().__init__()
        self.text, self.act = text, act

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage():
            self.act()


def test_a_worker_that_does_not_see_what_the_head_sees_is_replaced(toys: Toys, tmp_path: Path, finished: tuple[RunSpec, RunFolder]) -> None:
    _, folder = random_run(toys("labels"), tmp_path, validation=ValidationSpec(checkpoints=("best",), attempts_per_case=1))
    share = WhenTold("was lost while it loaded", OnlyHere(folder.checkpoint("best")).share)
    logging.getLogger("orchestrator.validation.worker_pool").addHandler(share)
    outcome = run_validation(folder, delivery_waits_s=())
    logging.getLogger("orchestrator.validation.worker_pool").removeHandler(share)
    assert outcome.state == "SUCCEEDED", outcome
    assert predictions(folder, "best") == predictions(finished[1], "best")


def test_that_no_node_sees_what_the_head_sees_is_the_clusters_affair(toys: Toys, tmp_path: Path) -> None:
    _, folder = random_run(toys("labels"), tmp_path, validation=ValidationSpec(checkpoints=("best",), attempts_per_case=1))
    OnlyHere(folder.checkpoint("best"))
    outcome = run_validation(folder, delivery_waits_s=())
    assert outcome.state == "FAILED_CLUSTER"
    assert "workers were lost 2 times while loading the network, at last: checkpoint: " in outcome.message
    assert "Mount the shared folder on all nodes" in outcome.message
