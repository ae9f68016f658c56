"""Campaigns on a cluster that has no worker nodes until somebody asks for them, by Ray's own autoscaler."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.list_nodes import nodes_of
from orchestrator.queue.space import accelerator_types
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


ASK = """
from orchestrator.cluster.nodes import ask_for_nodes
from orchestrator.queue.space import resources_of
from trainers.contract.run_spec import WorkerSpec
ask_for_nodes([resources_of(WorkerSpec(count=1, gpus=1, cpus=1, accelerator_type="A100"))])
"""


def test_a_kind_of_gpu_is_started_from_no_node(cluster: ManyNodes) -> None:
    control_store = f"127.0.0.1:{cluster.gcs_port}"
    subprocess.run([sys.executable, "-c", ASK], env={**os.environ, "RAY_ADDRESS": control_store}, check=True)
    deadline = time.monotonic() + GONE_S
    while not (gpus := [node for node in nodes_of(control_store, cluster.token_file) if node.total.get("GPU")]):
        assert time.monotonic() < deadline, cluster.log_tails()
        time.sleep(1)
    assert [accelerator_types(node.total) for node in gpus] == [("A100",)]


def _worker_daemons(cluster: ManyNodes) -> int:
    """Raylets beside the head's own."""
    assert cluster.head is not None
    names: list[str] = [process.name() for process in cluster.head.processes()]
    return names.count("raylet") - 1
