"""Two gangs of most of the cluster each: submitted without a queue neither ever trains, through ours both do.

The naive form is one actor for each rank, created one after the other. Ray Train itself places all its workers at once or none
(a placement group), so two of its jobs follow each other without a queue too, in an order that nobody chose.
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.list_nodes import nodes_of
from orchestrator.cluster.local_services import Services
from tests.conftest import Toys
from tests.integration.local_home import services_of_its_own, toy_experiment
from trainers.contract.states import RunState

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]
CPUS, RANKS = 4, 3
STUCK_S = 30.0
"""How long two gangs are watched that have taken the whole cluster; one that has it for itself takes less."""
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def local() -> Iterator[tuple[Home, Services]]:
    with services_of_its_own(num_cpus=CPUS) as started:
        yield started


class Naive:
    """A job of Ray's job server, as `ray job submit` makes it."""

    def __init__(self, services: Services, folder: Path, *names: str) -> None:
        from ray.job_submission import JobSubmissionClient

        self._client = JobSubmissionClient(services.ray_address, headers={"Authorization": f"Bearer {services.token}"})
        script = shlex.join([sys.executable, "-m", "tests.integration.naive_job", names[0], str(RANKS), *names[1:]])
        self._job = self._client.submit_job(entrypoint=f"cd {shlex.quote(str(folder))} && exec {script}")

    @property
    def status(self) -> str:
        """SUCCEEDED where it has trained."""
        return str(self._client.get_job_status(self._job).value)

    def ended(self) -> str:
        """Its status at its end."""
        until(lambda: self.status not in ("PENDING", "RUNNING"), lambda: self._client.get_job_logs(self._job))
        return self.status

    def stop(self) -> None:
        """As `ray job stop`."""
        self._client.stop_job(self._job)


def until(what: Callable[[], bool], shown: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, shown()
        time.sleep(0.3)


def free_cpus(local: tuple[Home, Services]) -> float:
    home, services = local
    return sum(node.free.get("CPU", 0.0) for node in nodes_of(local_services.control_store(home), services.token_file))


def test_what_hangs_when_it_is_submitted_naively_is_trained(local: tuple[Home, Services], toys: Toys, tmp_path: Path) -> None:
    toys("labels")
    _, services = local
    alone = Naive(services, tmp_path, "alone")
    assert alone.ended() == "SUCCEEDED", "the script is a training that ends, where it finds room"
    one, two = Naive(services, tmp_path, "one", "two"), Naive(services, tmp_path, "two", "one")
    until(lambda: all((tmp_path / f"{name}.{RANKS - 2}").exists() for name in ("one", "two")))  # the third ranks would be the fifth of four
    time.sleep(STUCK_S)
    assert (one.status, two.status, free_cpus(local)) == ("RUNNING", "RUNNING", 0)
    two.stop()
    assert one.ended() == "SUCCEEDED", "it waited for nothing but what the other held"

    workers = {"count": RANKS, "gpus": 0, "cpus": 1}
    small = {"epochs": 1, "train_iterations": 2, "workers": workers, "batch_size": RANKS}
    submissions = [api.submit(toy_experiment(toys("labels"), tmp_path / "results", **small, seeds=[seed])) for seed in (1, 2)]
    assert [submission.plan.rows[0].fits for submission in submissions] == ["now", "later"]
    statuses = [status for each in submissions for status in api.wait(each.campaign_id)]
    assert [status.state for status in statuses] == [RunState.SUCCEEDED] * 2, [status.reason for status in statuses]
