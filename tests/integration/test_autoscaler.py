"""Campaigns on a cluster that has no worker nodes until somebody asks for them, by Ray's own autoscaler."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.cluster.jobs import Jobs
from orchestrator.run.status import RunStatus
from tests.conftest import Toys
from tests.integration.local_home import toy_experiment
from tests.integration.many_nodes import ManyNodes
from trainers.contract.states import RunState

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]
GONE_S = 120.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ManyNodes]:
    with ManyNodes(tmp_path / "cluster", (), most_on_demand=3) as nodes:
        yield nodes


def test_two_gangs_of_most_of_the_cluster_each_are_trained_on_nodes_that_come_and_go(
    cluster: ManyNodes, toys: Toys, tmp_path: Path
) -> None:
    """Each needs two of the three CPUs that there can be: neither takes a part of what the other needs, and the second one waits."""
    workers = {"count": 2, "gpus": 0, "cpus": 1}
    small = {"epochs": 2, "train_iterations": 2, "workers": workers}
    submissions = []
    for seed in (1, 2):
        experiment = toy_experiment(toys("labels"), tmp_path / "results", **small, seeds=[seed])
        submissions.append(api.submit(experiment, cluster.address))
        row = submissions[-1].plan.rows[0]
        if seed == 1:
            assert (row.fits, row.because) == (
                "later",
                "needs 2 workers x (1 CPU); the cluster has 0 CPUs in all now: the autoscaler is asked for nodes.",
            )
    statuses: list[RunStatus] = [status for each in submissions for status in api.wait(each.campaign_id, cluster.address)]
    assert [status.state for status in statuses] == [RunState.SUCCEEDED] * 2, ([s.reason for s in statuses], cluster.log_tails())
    deadline = time.monotonic() + GONE_S
    while (left := _worker_daemons(cluster)) and time.monotonic() < deadline:
        time.sleep(1)
    assert left == 0
    assert all(not job.is_live for job in Jobs(cluster.address).records())


def _worker_daemons(cluster: ManyNodes) -> int:
    """Raylets beside the head's own."""
    assert cluster.head is not None
    names: list[str] = [process.name() for process in cluster.head.processes()]
    return names.count("raylet") - 1
