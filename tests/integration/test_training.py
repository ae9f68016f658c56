"""Training on a real local Ray with real DDP over gloo: resume, stop, death of workers and loaders, number of workers."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from orchestrator.run.outcome import Outcome
from orchestrator.training.driver import run_workers
from orchestrator.training.failures import read_failures
from orchestrator.training.worker import WorkerJob
from tests.conftest import Toys
from tests.integration.cluster import local_ray
from tests.integration.digests import curves, epochs_done, reached, weights_digest
from tests.toy import Toy, toy_spec
from tests.unit.old_folder import old_run_folder
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.requests import request_finish
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointSpec, RunSpec, Schedule, WorkerSpec
from trainers.storage.files import write_atomic

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
EPOCHS = 6


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=4):  # two for the workers, two for loaders that run anywhere
        yield


@pytest.fixture
def start(toys: Toys, tmp_path: Path) -> Callable[..., RunFolder]:
    """`start(name, **overrides)` makes the run folder of a run on two workers."""
    return lambda name="run", **overrides: folder_of(toys("labels"), tmp_path / name, **overrides)


@pytest.fixture(scope="module")
def unbroken(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on two workers that nothing happened to, trained to its end."""
    folder = folder_of(toys("labels"), tmp_path_factory.mktemp("unbroken"))
    assert train(folder).state == "TRAINED"
    return folder


def folder_of(toy: Toy, base: Path, **overrides: Any) -> RunFolder:
    settings: dict[str, Any] = {
        "workers": WorkerSpec(count=2, gpus=0, cpus=1),
        "schedule": Schedule(epochs=EPOCHS, train_iterations=5, val_iterations=2),
        "model_folder": base / "model",
    }
    spec: RunSpec = toy_spec(toy, **{**settings, **overrides})
    folder = RunFolder(spec.run_folder)
    write_atomic(folder.spec_file, spec.model_dump_json().encode())
    return folder


def train(folder: RunFolder, driver: str = "first") -> Outcome:
    return run_workers(folder.spec(), folder, WorkerJob(str(folder.root), driver, acquire_token(folder, driver)))


def when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    """Do `action` from a thread as soon as `condition` holds."""

    def watch() -> None:
        while not condition():
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def newest_worker_pid(folder: RunFolder) -> int:
    claims = [json.loads(p.read_text()) for p in sorted(folder.tokens.glob("*.json"))]
    return int([claim["pid"] for claim in claims if claim.get("role") == "workers"][-1])


def test_stopped_or_killed_runs_end_with_the_bits_of_an_unbroken_run(start: Callable[..., RunFolder], unbroken: RunFolder) -> None:
    """The stopped one goes on with its loaders placed elsewhere."""
    free: list[float] = []
    assert [c[0] for c in curves(unbroken)] == list(range(EPOCHS))

    stopped = start("stopped")
    when(lambda: epochs_done(stopped) >= 2, lambda: stopped.stop_file.write_text('{"now": false}'))
    outcome = train(stopped)
    assert outcome.state == "STOPPED"
    assert 2 < epochs_done(stopped) < EPOCHS
    loadable = torch.load(stopped.root / "checkpoint_latest.pth", weights_only=True)
    assert loadable["current_epoch"] == epochs_done(stopped)
    stopped.stop_file.unlink()
    reached_first = epochs_done(stopped)
    anywhere = stopped.spec().loader.model_copy(update={"placement": "cluster"})
    write_atomic(stopped.spec_file, stopped.spec().model_copy(update={"loader": anywhere}).model_dump_json().encode())
    watch = when(lambda: epochs_done(stopped) >= reached_first + 1, lambda: free.append(ray.available_resources().get("CPU", 0)))  # type: ignore[no-untyped-call]
    assert train(stopped, "second").state == "TRAINED"
    watch.join()
    assert free == [0]  # the loaders took the two

    killed = start("killed")
    when(lambda: epochs_done(killed) >= 4, lambda: os.kill(newest_worker_pid(killed), signal.SIGKILL))
    assert train(killed).state == "TRAINED"
    assert {row.fencing_token for row in reached(killed).history} == {2, 3}

    assert curves(stopped) == curves(unbroken)
    assert curves(killed) == curves(unbroken)
    assert weights_digest(stopped) == weights_digest(unbroken)
    assert weights_digest(killed) == weights_digest(unbroken)
    assert reached(killed).best is not None
    assert reached(unbroken).best is not None
    assert reached(killed).best.epoch == reached(unbroken).best.epoch  # type: ignore[union-attr]


def test_two_workers_that_are_asked_to_end_early_and_killed_in_between_agree_on_the_end(
    start: Callable[..., RunFolder], unbroken: RunFolder
) -> None:
    finished = start("finished")
    when(lambda: epochs_done(finished) >= 1, lambda: request_finish(finished, finished.spec().run_key, anneal_epochs=1))
    when(
        lambda: (committed := newest_committed(finished)) is not None and committed.early_end is not None,
        lambda: os.kill(newest_worker_pid(finished), signal.SIGKILL),
    )
    outcome = train(finished)
    committed = reached(finished)
    early = committed.early_end
    assert early is not None
    assert outcome.message == f"trained after {early.epochs} epochs, ended early as asked"
    assert committed.epochs_done == early.epochs == early.anneal_from + 1 < EPOCHS
    assert committed.final is not None
    assert {row.fencing_token for row in committed.history} == {2, 3}
    assert curves(finished)[: early.anneal_from] == curves(unbroken)[: early.anneal_from]
    assert committed.history[-1].learning_rate == pytest.approx(reached(unbroken).history[early.anneal_from].learning_rate * 0.5**0.9)


LATER_KEYS = ("rounding_version", "threads")
"""Of committed states and of claimed tokens; what they mean stands in `trainers/contract/commits.py` and `records.py`."""


def keys_of(file: Path) -> list[str]:
    return list(json.loads(file.read_text()))


def test_a_run_folder_with_the_keys_of_the_version_before_trains_on_to_the_same_bits(
    start: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """Its JSON files have the keys of a folder that the version before wrote, and those that came since; the tensors never changed."""
    schedule = Schedule(epochs=3, train_iterations=3, val_iterations=2)
    settings = {"workers": WorkerSpec(count=1, gpus=0, cpus=1), "schedule": schedule}
    unbroken, stopped = start("unbroken", **settings), start("stopped", **settings)
    assert train(unbroken).state == "TRAINED"
    stopped.stop_file.write_text('{"now": false}')
    assert train(stopped).state == "STOPPED"
    assert epochs_done(stopped) == 1

    old = old_run_folder(tmp_path / "old")
    for name in ("run.json", "progress.json", "attempts/0002.json", "state/e00001_a0002.json"):
        assert [key for key in keys_of(stopped.own / name) if key not in LATER_KEYS] == keys_of(old.own / name), name
    assert set(reached(old).history[0].model_dump()) <= set(reached(stopped).history[0].model_dump())

    stopped.stop_file.unlink()
    assert train(stopped, "second").state == "TRAINED"
    assert [row.fencing_token for row in reached(stopped).history] == [2, 4, 4]
    assert curves(stopped) == curves(unbroken)
    assert weights_digest(stopped) == weights_digest(unbroken)


def test_a_run_killed_within_an_epoch_goes_on_from_the_iteration_with_the_same_bits(start: Callable[..., RunFolder]) -> None:
    """States are saved after every iteration; rank 0 dies in the middle of an epoch, and the loop begins again in that epoch."""
    schedule = Schedule(epochs=3, train_iterations=8, val_iterations=2)
    unbroken = start("unbroken", schedule=schedule)
    assert train(unbroken).state == "TRAINED"
    killed = start("killed", schedule=schedule, checkpoint=CheckpointSpec(every_minutes=1e-4))
    seen: list[tuple[int, int]] = []

    def is_within_second_epoch() -> bool:
        committed = newest_committed(killed)
        return committed is not None and committed.position > (1, 2)

    def kill() -> None:
        os.kill(newest_worker_pid(killed), signal.SIGKILL)
        seen.append(reached(killed).position)

    when(is_within_second_epoch, kill)
    assert train(killed).state == "TRAINED"
    assert len(seen) == 1
    assert curves(killed) == curves(unbroken)
    assert weights_digest(killed) == weights_digest(unbroken)
    assert [f.kind for f in read_failures(killed)] == ["cluster"]


def test_whoever_asks_gets_a_state_within_the_epoch(start: Callable[..., RunFolder]) -> None:
    folder = start("asked", schedule=Schedule(epochs=2, train_iterations=10, val_iterations=2))
    within: list[tuple[int, int]] = []
    when(lambda: epochs_done(folder) >= 1, lambda: folder.save_file.write_text("{}"))

    def note() -> None:
        within.append(reached(folder).position)

    when(lambda: (c := newest_committed(folder)) is not None and c.in_flight is not None, note)
    assert train(folder).state == "TRAINED"
    assert within
    assert within[0][0] == 1
    assert within[0][1] > 0
    assert not folder.save_file.exists()


def test_weights_that_are_no_numbers_end_the_run_at_once_and_the_last_sound_epoch_is_kept(start: Callable[..., RunFolder]) -> None:
    folder = start("diverges", schedule=Schedule(epochs=4, train_iterations=8, val_iterations=2, initial_lr=1e30))
    outcome = train(folder)
    assert outcome.state == "FAILED_CODE"
    assert "DivergedError: training: diverged in epoch 0" in outcome.message
    assert "initial_lr" in outcome.message
    assert "check_finite" in outcome.evidence
    assert newest_committed(folder) is None
    workers_started = [p for p in folder.tokens.glob("*.json") if json.loads(p.read_text()).get("role") == "workers"]
    assert len(workers_started) == 1


def test_a_lost_loader_changes_no_bit(start: Callable[..., RunFolder], unbroken: RunFolder) -> None:
    struck = start("struck")
    killed: list[int] = []

    def kill_a_loader() -> None:
        os.kill(loader_pids()[0], signal.SIGKILL)
        killed.append(epochs_done(struck))

    when(lambda: epochs_done(struck) >= 1, kill_a_loader)
    assert train(struck).state == "TRAINED"
    assert len(killed) == 1
    assert killed[0] < EPOCHS
    assert len({row.fencing_token for row in reached(struck).history}) == 1
    assert curves(struck) == curves(unbroken)
    assert weights_digest(struck) == weights_digest(unbroken)


@pytest.mark.long
def test_one_worker_sees_the_same_patches_as_two(start: Callable[..., RunFolder], unbroken: RunFolder) -> None:
    one = start("one", workers=WorkerSpec(count=1, gpus=0, cpus=1))
    assert train(one).state == "TRAINED"
    for a, b in zip(reached(unbroken).history, reached(one).history, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-5)
        assert a.val_loss == pytest.approx(b.val_loss, abs=1e-5)
        assert a.pseudo_dice == pytest.approx(b.pseudo_dice, abs=1e-4)


def loader_pids() -> list[int]:
    import psutil

    own = psutil.Process()
    return [p.pid for p in own.children(recursive=True) if p.name().startswith("ray::Loader")]


def test_an_error_in_the_data_is_not_retried_and_names_the_case(start: Callable[..., RunFolder], toys: Toys, tmp_path: Path) -> None:
    import shutil

    toy = toys("labels")
    copy = tmp_path / "preprocessed" / toy.name
    shutil.copytree(toy.preprocessed, copy)
    folder = start("broken", preprocessed_folder=copy)
    for path in copy.glob("*/toy_00*.b2nd"):  # the frame opens; only its data are found to be damaged, by a worker
        content = bytearray(path.read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        path.write_bytes(content)
    outcome = train(folder)
    assert outcome.state == "FAILED_CONFIG"
    assert "toy_00" in outcome.message
    workers_started = [p for p in folder.tokens.glob("*.json") if json.loads(p.read_text()).get("role") == "workers"]
    assert len(workers_started) == 1
