"""Where Ray places a gang that asks for a kind of GPUs: nodes of this machine that pretend to have GPUs, so its workers find none."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.nodes import cluster_nodes
from orchestrator.queue.gang_fit import fit
from orchestrator.run.outcome import Outcome
from orchestrator.training.driver import run_workers
from orchestrator.training.worker import WorkerJob
from tests.conftest import Toys
from tests.integration.cluster import ray_of_several_nodes
from tests.toy import toy_spec
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WorkerSpec
from trainers.storage.files import write_atomic

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]
PLACED_S = 120.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, toys: Toys) -> Iterator[Any]:
    """A head without CPUs and two nodes of two CPUs and two GPUs each: `cluster.t4` and `cluster.a100`."""
    toys("labels")  # nnU-Net's pools fork, which hangs in a process that Ray lives in
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}.items():
        monkeypatch.setenv(name, value)
    with ray_of_several_nodes() as made:
        for name, kind in (("t4", "T4"), ("a100", "A100")):
            resources = {f"accelerator_type:{kind}": 1}
            setattr(made, name, made.add_node(num_cpus=2, num_gpus=2, resources=resources, object_store_memory=100_000_000))
        yield made


@pytest.fixture
def placed(toys: Toys, tmp_path: Path) -> Callable[[str, WorkerSpec], list[str]]:
    """`placed(name, workers)` trains a run and gives the nodes of its workers; the training fails, since its workers see no GPU."""

    def nodes_of_gang(name: str, workers: WorkerSpec) -> list[str]:
        from ray._raylet import PlacementGroupID
        from ray.util import placement_group_table, remove_placement_group
        from ray.util.placement_group import PlacementGroup

        spec = toy_spec(toys("labels"), workers=workers, model_folder=tmp_path / name / "model")
        folder = RunFolder(spec.run_folder)
        write_atomic(folder.spec_file, spec.model_dump_json().encode())
        job = WorkerJob(str(folder.root), "driver", acquire_token(folder, "driver"))
        outcomes: list[Outcome] = []
        before = set(placement_group_table())
        training = threading.Thread(target=lambda: outcomes.append(run_workers(spec, folder, job)), daemon=True)
        training.start()
        deadline = time.monotonic() + PLACED_S
        gangs: dict[str, Any] = {}
        while not gangs and time.monotonic() < deadline:
            gangs = {key: group for key, group in placement_group_table().items() if key not in before and group["state"] == "CREATED"}
            time.sleep(0.02)
        training.join(PLACED_S)
        assert outcomes[0].state.startswith("FAILED")
        for key in gangs:  # what a half-started gang holds is free when its job ends; here the test is the job
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))
        return [node for group in gangs.values() for node in group["bundles_to_node_id"].values()]

    return nodes_of_gang


def test_a_gang_lies_on_nodes_of_its_kind_alone(cluster: Any, placed: Callable[[str, WorkerSpec], list[str]]) -> None:
    a100: dict[str, Any] = {"gpus": 1, "cpus": 1, "accelerator_type": "A100"}
    nodes = cluster_nodes()
    assert fit(WorkerSpec(count=2, **a100), nodes).because == "2 A100 GPUs and 2 CPUs free."
    wrong = fit(WorkerSpec(count=1, **{**a100, "accelerator_type": "a-100"}), nodes)
    assert "the cluster has no a-100 GPU, but A100, T4." in wrong.because
    assert wrong.because.endswith("Did you mean 'A100'?")
    assert placed("fixed", WorkerSpec(count=2, **a100)) == [cluster.a100.node_id] * 2
    assert placed("elastic", WorkerSpec(min=1, max=4, **a100)) == [cluster.a100.node_id] * 2, "no more than there are of the kind"
