"""An elastic run on several Ray nodes of this machine: it goes on with fewer workers when a node is lost and grows when one comes back."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.outcome import Outcome
from orchestrator.training import driver
from orchestrator.training.worker import WorkerJob
from tests.conftest import Toys
from tests.integration.cluster import ray_of_several_nodes
from tests.toy import toy_spec
from trainers.contract.commits import EpochRow, newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Schedule, WorkerSpec
from trainers.storage.files import write_atomic

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
SCHEDULE = Schedule(epochs=6, train_iterations=40, val_iterations=4)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, toys: Toys) -> Iterator[Any]:
    """A head without CPUs and one node of one CPU; `add_node` must be called from the main thread."""
    toys("labels")  # nnU-Net's pools fork, which hangs in a process that Ray lives in
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(driver, "RESIZE_LOOK_S", 2.0)
    with ray_of_several_nodes() as made:
        yield made


class Training(threading.Thread):
    """A training that runs beside the test."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.outcome: Outcome | None = None

    def run(self) -> None:
        job = WorkerJob(str(self.folder.root), "driver", acquire_token(self.folder, "driver"))
        self.outcome = driver.run_workers(self.folder.spec(), self.folder, job)

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        committed = newest_committed(self.folder)
        return committed.history if committed else ()

    def until(self, what: str, condition: Callable[[], bool]) -> float:
        """Wait for a condition; seconds that it took."""
        start = time.monotonic()
        while not condition():
            assert self.is_alive(), f"training ended before {what}: {self.outcome}"
            time.sleep(0.05)
        return time.monotonic() - start

    def ended(self) -> Outcome:
        self.join()
        assert self.outcome is not None
        return self.outcome


@pytest.fixture
def start(toys: Toys, tmp_path: Path) -> Callable[[str, WorkerSpec], Training]:
    def started(name: str, workers: WorkerSpec) -> Training:
        spec = toy_spec(toys("labels"), workers=workers, schedule=SCHEDULE, model_folder=tmp_path / name / "model")
        folder = RunFolder(spec.run_folder)
        write_atomic(folder.spec_file, spec.model_dump_json().encode())
        training = Training(folder)
        training.start()
        return training

    return started


def test_a_run_shrinks_with_a_lost_node_and_grows_with_a_new_one_on_the_same_curve(
    cluster: Any, start: Callable[[str, WorkerSpec], Training], capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    lost = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    cluster.wait_for_nodes()
    elastic = start("elastic", WorkerSpec(min=1, max=2, gpus=0, cpus=1))
    elastic.until("two workers", lambda: any(row.world_size == 2 for row in elastic.rows))
    cluster.remove_node(lost, allow_graceful=False)
    shrink_s = elastic.until("one worker", lambda: elastic.rows[-1].world_size == 1)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    grow_s = elastic.until("two workers again", lambda: elastic.rows[-1].world_size == 2)
    assert elastic.ended().state == "TRAINED"
    with capsys.disabled():
        sizes = [row.world_size for row in elastic.rows]
        print(f"\nfrom the lost node to an epoch with one worker {shrink_s:.1f} s, from a new node to one with two {grow_s:.1f} s, {sizes}")

    fixed = start("fixed", WorkerSpec(count=2, gpus=0, cpus=1))
    assert fixed.ended().state == "TRAINED"
    assert [row.epoch for row in elastic.rows] == list(range(SCHEDULE.epochs))
    assert {row.world_size for row in elastic.rows} == {1, 2}
    for ours, unbroken in zip(elastic.rows, fixed.rows, strict=True):
        assert ours.train_loss == pytest.approx(unbroken.train_loss, abs=1e-5)
        assert ours.val_loss == pytest.approx(unbroken.val_loss, abs=1e-5)
        assert ours.pseudo_dice == pytest.approx(unbroken.pseudo_dice, abs=1e-4, nan_ok=True)
