"""Local services in a home folder of their own, for one test module."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator import services
from orchestrator.paths import Home
from orchestrator.services import Services

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def local_services(num_cpus: int = 2) -> Iterator[tuple[Home, Services]]:
    """Services that `api` and `Jobs` find as the local ones; gone at the end. Jobs may import this repository's tests."""
    before = dict(os.environ)
    folder = Path(tempfile.mkdtemp(prefix="nnf-", dir="/tmp"))  # short: Ray's unix sockets
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    os.environ |= {"NNFLEET_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    home = Home.default()
    try:
        yield home, services.up(num_cpus=num_cpus)
    finally:
        services.down(home)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
