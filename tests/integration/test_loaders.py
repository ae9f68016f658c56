"""What the loaders' errors are when they arrive in the worker: a real local Ray."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from orchestrator.training import loader_pool
from orchestrator.training.failures import can_be_sent, kind_of
from orchestrator.training.loader_pool import Loader, LoaderPool
from tests.conftest import Toys
from tests.integration.cluster import local_ray
from tests.toy import toy_spec
from trainers.contract import bottleneck
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderPlacement, LoaderSpec, Schedule
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.errors import ConfigError, DataError, StorageError
from trainers.storage.files import write_json_atomic

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module", autouse=True)
def cluster(toys: Toys) -> Iterator[None]:
    toys("labels")  # nnU-Net's pools fork, which hangs in a process that Ray lives in
    with local_ray(num_cpus=2):
        yield


@pytest.fixture
def pool(toys: Toys, tmp_path: Path) -> Iterator[LoaderPool]:
    """Loaders of a dataset in which every case is damaged."""
    toy = toys("labels")
    copy = tmp_path / toy.name
    shutil.copytree(toy.preprocessed, copy)
    for path in copy.glob("*3d*/*.b2nd"):
        path.write_bytes(b"hello" * 99)
    spec = toy_spec(toy, preprocessed_folder=copy, model_folder=tmp_path / "results" / "Dataset901_Toy" / "model")
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    with LoaderPool(spec, folder, [0, 1], 0) as made:
        yield made


@pytest.mark.parametrize("placement", ["local", "cluster"])
def test_a_worker_that_waits_for_augmentation_gets_more_loaders_and_the_same_samples(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: LoaderPlacement
) -> None:
    """Its steps take no time, so an epoch of one loader is all waiting. On any nodes each takes one of the two CPUs."""
    monkeypatch.setattr(bottleneck, "CROWDED", math.inf)  # whatever else this machine computes
    schedule = Schedule(epochs=3, train_iterations=4, val_iterations=1)
    loader = LoaderSpec(actors=1, most=2, placement=placement)
    spec = toy_spec(toys("labels"), schedule=schedule, loader=loader, model_folder=tmp_path / "Dataset901_Toy" / "model")
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    loader_pool.prepare(RunFolder(tmp_path / "not mounted yet"), 1, 2)
    loader_pool.prepare(folder, 1, 2)
    ((prepared,),) = loader_pool._prepared.values()
    with LoaderPool(spec, folder, [1], 0) as grows:
        assert grows._actors == [prepared]
        made = [batch.images for epoch in range(3) for split in ("train", "val") for batch in grows.batches(split, epoch)]
        assert grows.loaders == 2
        assert grows.wait_s > 0
        assert ray.available_resources().get("CPU", 0) == (2 if placement == "local" else 0)  # type: ignore[no-untyped-call]
    data = open_dataset(spec)
    alone = [
        make_batch(data, spec, split, epoch, number, [1]).images  # type: ignore[arg-type]
        for epoch in range(3)
        for split, count in (("train", 4), ("val", 1))
        for number in range(count)
    ]
    assert all(map(np.array_equal, made, alone))


@ray.remote
def finds_no_disk() -> None:
    raise StorageError("storage: /share cannot be read")


def test_an_error_of_a_loader_arrives_as_what_it_is(pool: LoaderPool) -> None:
    with pytest.raises(DataError, match="cannot be read") as raised:
        next(pool.batches("train", 0))
    assert (type(raised.value), can_be_sent(raised.value)) == (DataError, True)
    with pytest.raises(StorageError) as lost:
        pool.arrived(("train", 0, 0), finds_no_disk.remote())
    assert (type(lost.value), can_be_sent(lost.value), kind_of(lost.value)) == (StorageError, True, ("cluster", "FAILED_CLUSTER"))


def test_a_loader_on_a_node_without_the_data_names_node_path_and_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that takes its batches is on a node that has them: what is missing there is no outage that would be waited for."""
    monkeypatch.setattr(loader_pool, "SEEN_S", 0.1)
    elsewhere = Loader(str(tmp_path / "not" / "mounted"), [0, 1], "the worker's node")
    with pytest.raises(ConfigError, match="not there on this node") as raised:
        elsewhere.make("train", 0, 0)
    text, node = str(raised.value), ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    assert text.startswith(f"loader.placement: node {node} cannot prepare batches: storage: {tmp_path}")
    assert text.endswith("by the same paths, or set loader.placement: local.")
    assert (can_be_sent(raised.value), kind_of(raised.value)) == (True, ("user", "FAILED_CONFIG"))
