"""Local services in a home folder of their own, for one test module."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.local_services import Services
from orchestrator.experiment.model import Experiment, single_training
from tests.integration.cluster import SHORT
from tests.toy import Toy

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def services_of_its_own(num_cpus: int = 2) -> Iterator[tuple[Home, Services]]:
    """Services that `api` and `Jobs` find as the local ones; gone at the end. Jobs may import this repository's tests."""
    before = dict(os.environ)
    folder = Path(tempfile.mkdtemp(prefix="nnf-", dir=SHORT))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    os.environ |= {"NNFLEET_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    home = Home.default()
    try:
        yield home, local_services.up(num_cpus=num_cpus)
    finally:
        local_services.down(home)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def toy_experiment(toy: Toy, results: Path, **settings: Any) -> Experiment:
    """A training of a toy dataset's small configuration on CPU workers of one core and one loader actor, as `settings` say."""
    folders = {"nnUNet_raw": toy.raw.parent, "nnUNet_preprocessed": toy.preprocessed.parent, "nnUNet_results": results}
    small = {"val_iterations": 2, "workers": {"count": 2, "gpus": 0, "cpus": 1}, "loader": {"actors": 1, "prefetch": 3}}
    return single_training(toy.name, "toy_3d", 0, **{**small, **{name: str(path) for name, path in folders.items()}, **settings})
