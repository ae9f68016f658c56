"""What the loaders' errors are when they arrive in the worker: a real local Ray."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from orchestrator.training.failures import can_be_sent, kind_of
from orchestrator.training.loader_pool import LoaderPool
from tests.conftest import Toys
from tests.integration.cluster import local_ray
from tests.toy import toy_spec
from trainers.contract.run_folder import RunFolder
from trainers.errors import DataError, StorageError
from trainers.storage.files import write_json_atomic

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(scope="module", autouse=True)
def cluster(toys: Toys) -> Iterator[None]:
    toys("labels")  # nnU-Net's pools fork, which hangs in a process that Ray lives in
    with local_ray(num_cpus=1):
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
