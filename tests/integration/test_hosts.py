"""Training over hosts with addresses of their own: the writer's host is cut off, and nothing is lost.

The longer form, in which another host dies and a gang goes on writing while it is cut off, is `python -m benchmarks.hosts`.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toys
from tests.integration.digests import curves, epochs_done, weights_digest
from tests.integration.hosts import Host, Hosts, RayHosts, reason_against
from tests.toy import Toy, toy_spec
from trainers.contract.commits import committed_states
from trainers.contract.fencing import newest_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, Schedule, WorkerSpec
from trainers.storage.files import write_atomic

NOT_HERE = reason_against()
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(NOT_HERE), reason=NOT_HERE),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

QUICK_TO_NOTICE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""For the head: a node that does not answer for about nine seconds is given up."""


@dataclass(frozen=True)
class Event:
    """What happened to a host, and what the run made of it."""

    what: str
    epoch: int
    recovery_s: float
    """From the event to the first training step after it."""
    epochs_redone: int
    """One for the epoch that was in flight, and those that were committed and are trained again."""


def run_of(toy: Toy, base: Path, name: str, epochs: int, iterations: int = 5, **overrides: Any) -> RunFolder:
    """The folder of a run on two workers with one CPU each."""
    settings: dict[str, Any] = {
        "workers": WorkerSpec(count=2, gpus=0, cpus=1),
        "loader": LoaderSpec(actors=1, prefetch=3),
        "schedule": Schedule(epochs=epochs, train_iterations=iterations, val_iterations=2),
        "model_folder": base / name / "model",
    }
    spec = toy_spec(toy, **{**settings, **overrides})
    folder = RunFolder(spec.run_folder)
    write_atomic(folder.spec_file, spec.model_dump_json().encode())
    return folder


def wait_until(condition: Callable[[], bool], driver: "subprocess.Popen[bytes]", what: str, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert driver.poll() is None, f"the driver ended before {what}"
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.02)


def heartbeat(folder: RunFolder) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(folder.progress_file.read_text())
    except (OSError, ValueError):
        return {"attempt": 0, "epoch": 0, "unix": 0.0}
    return content


def claims(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.tokens.glob("*.json"))]


def host_of_writer(hosts: Hosts, folder: RunFolder) -> Host:
    """Where rank 0 of the newest start of the workers is."""
    pid = [claim["pid"] for claim in claims(folder) if claim["role"] == "workers"][-1]
    return hosts.holder_of(pid, "ray::RayTrainWorker")


def host_of_others(hosts: Hosts, cpu_hosts: list[str], writer: Host) -> Host:
    """A host with a worker that is not rank 0."""
    return next(hosts[name] for name in cpu_hosts if hosts[name] is not writer and hosts[name].processes("ray::RayTrainWorker"))


def suffer(what: str, action: Callable[[], None], folder: RunFolder, driver: "subprocess.Popen[bytes]") -> Event:
    """Do it, and wait for the first training step of the next start of the workers."""
    fencing_token, done, started = newest_token(folder), epochs_done(folder), time.time()
    action()
    wait_until(lambda: int(heartbeat(folder)["attempt"]) > fencing_token, driver, f"the step after: {what}")
    first = heartbeat(folder)
    committed = sum(row.fencing_token <= fencing_token for row in committed_states(folder)[0].history)
    return Event(what, done, float(first["unix"]) - started, committed + 1 - int(first["epoch"]))


def table(events: list[Event]) -> str:
    lines = ["| event | epoch | seconds to the next step | epochs redone |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {e.what} | {e.epoch} | {e.recovery_s:.1f} | {e.epochs_redone} |" for e in events)])


@pytest.fixture
def ray_hosts(tmp_path: Path) -> Iterator[RayHosts]:
    with Hosts(("head", "left", "middle", "right")) as hosts:
        cluster = RayHosts(hosts, {"left": 1, "middle": 1, "right": 1}, tmp_path, QUICK_TO_NOTICE)
        for host in hosts:
            cluster.start(host)
        cluster.wait_for_cpus(3)
        yield cluster


def test_a_host_is_cut_off_and_no_bit_is_lost(ray_hosts: RayHosts, toys: Toys, tmp_path: Path) -> None:
    hosts, toy = ray_hosts.hosts, toys("labels")
    unbroken = run_of(toy, tmp_path, "unbroken", epochs=8)
    assert ray_hosts.train(unbroken.root).wait(timeout=180) == 0

    broken = run_of(toy, tmp_path, "broken", epochs=8)
    driver = ray_hosts.train(broken.root)
    wait_until(lambda: epochs_done(broken) >= 3, driver, "the third epoch")
    lost = host_of_writer(hosts, broken)
    event = suffer(f"cable of {lost.name} pulled, which held rank 0", lost.cut, broken, driver)
    print("\n" + table([event]))
    lost.mend()  # its workers live, and may try what they like
    assert driver.wait(timeout=180) == 0

    assert event.epochs_redone <= 1
    assert len({row.fencing_token for row in committed_states(broken)[0].history}) == 2
    assert curves(broken) == curves(unbroken)
    assert weights_digest(broken) == weights_digest(unbroken)
