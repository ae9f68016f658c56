"""Whatever is killed, nothing of ours is left: not the loaders of a worker, not the workers of a driver, not the daemons of a head."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import api
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.processes import family
from orchestrator.experiment.model import Experiment
from tests.conftest import Toys
from tests.integration.digests import epochs_done
from tests.integration.local_home import services_of_its_own, toy_experiment
from trainers.contract.run_folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
OURS = ("ray::", "orchestrator.training.driver", "orchestrator.campaign.job")
"""How the titles of processes begin, or what is in them, that belong to a run or a campaign and not to Ray itself."""


@pytest.fixture(scope="module")
def local() -> Iterator[tuple[Home, Services]]:
    with services_of_its_own(num_cpus=2) as started:
        yield started


def long_experiment(toys: Toys, results: Path) -> Experiment:
    """A training on one worker that does not end by itself."""
    return toy_experiment(toys("labels"), results, epochs=5000, train_iterations=5, workers={"count": 1, "gpus": 0, "cpus": 1})


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def alive(processes: list[psutil.Process]) -> list[str]:
    """Titles of those that still live."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(title(process))
        except psutil.NoSuchProcess:
            continue
    return found


def titled(head: Services, text: str) -> list[psutil.Process]:
    """The head's processes with `text` in their title."""
    return [process for process in family(head.ray) if text in title(process)]


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)
    return found


def claim_of(folder: RunFolder, role: str) -> dict[str, Any]:
    """The newest claim of a role."""
    claims = [json.loads(path.read_text()) for path in sorted(folder.tokens.glob("*.json"))]
    newest: dict[str, Any] = [claim for claim in claims if claim.get("role") == role][-1]
    return newest


def gone(processes: list[psutil.Process], within_s: float = 40.0) -> None:
    """Wait until none of them lives; fails with the titles of what is left."""
    assert processes
    deadline = time.monotonic() + within_s
    while left := alive(processes):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_nothing_of_ours_outlives_what_is_killed(local: tuple[Home, Services], toys: Toys, tmp_path: Path) -> None:
    home, head = local
    submission = api.submit(long_experiment(toys, tmp_path))
    folder = RunFolder(submission.plan.rows[0].spec.run_folder)
    wait_for(lambda: epochs_done(folder) >= 1, "the first epoch")

    worker, loaders = claim_of(folder, "workers")["pid"], titled(head, "ray::Loader")
    kill(worker)
    gone(loaders)
    done = epochs_done(folder)
    wait_for(lambda: claim_of(folder, "workers")["pid"] != worker and epochs_done(folder) > done, "the training to go on")

    campaign = [p for p in titled(head, "orchestrator.campaign.job") if "python" in p.name() or "python" in title(p).split()[0]]
    assert campaign
    for process in campaign:
        kill(process.pid)
    gone(campaign)
    jobs = Jobs(head.ray_address, head.token)
    wait_for(lambda: not any(job.is_live for job in jobs.records() if job.kind == "campaign"), "Ray to notice the campaign's end")
    done = epochs_done(folder)
    wait_for(lambda: epochs_done(folder) > done, "the training to go on without a campaign")

    driver = claim_of(folder, "driver")["pid"]
    of_the_run = [psutil.Process(driver), *(p for text in ("ray::Loader", "TrainWorker", "TrainController") for p in titled(head, text))]
    assert len(of_the_run) >= 4, [title(p) for p in family(head.ray)]
    kill(driver)
    gone(of_the_run)

    everything, itself = family(head.ray), psutil.Process(head.ray.pid)
    ports = listening(everything)
    kill(itself.pid)
    gone(everything)
    mended = local_services.up(home, num_cpus=2)
    assert mended.ray.pid != head.ray.pid
    assert Jobs(mended.ray_address, mended.token).records() == []
    assert held_by_others(ports, family(mended.ray)) == []
    local_services.down(home)
    assert [family(record) for record in (mended.ray, mended.mlflow)] == [[], []]


def listening(processes: list[psutil.Process]) -> set[int]:
    """TCP ports on which processes listen."""
    found = set()
    for process in processes:
        try:
            found |= {c.laddr.port for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def held_by_others(ports: set[int], processes: list[psutil.Process]) -> list[int]:
    """Those of `ports` on which somebody listens who is not one of `processes`."""
    now = listening(processes)
    held = []
    for port in sorted(ports - now):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                held.append(port)
    return held
