"""Loaders on other nodes than their worker's: several Ray nodes on this machine, of which some die."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.training import loader_pool
from orchestrator.training.loader_pool import LoaderPool, node_of
from tests.conftest import Toys
from tests.integration.cluster import ray_of_several_nodes
from tests.toy import toy_spec
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, RunSpec, Schedule
from trainers.data.batches import Batch
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.storage.files import write_json_atomic

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]  # Ray's own
BATCHES = 40


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, toys: Toys) -> Iterator[Any]:
    """The worker's node, which gives out no CPU, and two of two CPUs each: `cluster.gpu` with a GPU, `cluster.cpu` without."""
    toys("labels")  # nnU-Net's pools fork, which hangs in a process that Ray lives in
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with ray_of_several_nodes() as made:
        made.gpu = made.add_node(num_cpus=2, num_gpus=1, object_store_memory=100_000_000)
        made.cpu = made.add_node(num_cpus=2, object_store_memory=100_000_000)
        yield made


@pytest.fixture
def spec(toys: Toys, tmp_path: Path) -> RunSpec:
    loader = LoaderSpec(actors=2, prefetch=3, placement="cluster")
    schedule = Schedule(epochs=1, train_iterations=BATCHES, val_iterations=1)
    spec = toy_spec(toys("labels"), schedule=schedule, loader=loader, model_folder=tmp_path / "Dataset901_Toy" / "model")
    write_json_atomic(RunFolder(spec.run_folder).spec_file, spec.model_dump(mode="json"))
    return spec


def nodes_of_loaders(pool: LoaderPool) -> set[str]:
    """Ray's ids of the nodes on which the loaders run."""
    return set(map(node_of, pool._actors))


def same(one: Batch, other: Batch) -> bool:
    return all(map(np.array_equal, (one.images, *one.targets), (other.images, *other.targets))) and one.case_ids == other.case_ids


def test_loaders_run_where_cpus_are_free_and_those_of_a_dead_node_go_on_elsewhere_with_the_same_bits(
    cluster: Any, spec: RunSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """First without a GPU, then beside one, and at last, as no CPU is left, on the worker's own node."""
    monkeypatch.setattr(loader_pool, "PLACED_S", 5.0)
    data = open_dataset(spec)
    where = []
    with LoaderPool(spec, RunFolder(spec.run_folder), [0, 1], 0) as pool:
        for number, batch in enumerate(pool.batches("train", 0)):
            assert same(batch, make_batch(data, spec, "train", 0, number, [0, 1])), number
            if number in (10, 20):
                where.append(nodes_of_loaders(pool))
                cluster.remove_node(cluster.gpu if number == 20 else cluster.cpu, allow_graceful=False)
        where.append(nodes_of_loaders(pool))
    assert where == [{cluster.cpu.node_id}, {cluster.gpu.node_id}, {cluster.head_node.node_id}]
    assert "no node has a free CPU" in caplog.text
