"""A real local Ray for one test module, started and ended by the module's fixture."""

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SHORT = os.environ.get("NNFLEET_RING_FOLDER", "/tmp")
"""Where Ray's temporary folders lie: unix sockets below them allow no long path. `tests.rings` reads the logs there of what dies."""


def free_port(low: int = 20000, high: int = 32000) -> int:
    """A TCP port on loopback that is free now, outside the range from which Ray takes its workers' ports."""
    for port in range(low + os.getpid() % 5000, high):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port between {low} and {high}")


@contextlib.contextmanager
def local_ray(num_cpus: int = 2) -> Iterator[None]:
    """Ray in this process with `num_cpus` CPUs and its dashboard; the packages of this checkout are importable in its workers."""
    import ray

    temporary = tempfile.mkdtemp(prefix="nnf", dir=SHORT)
    before = dict(os.environ)
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"})
    try:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_port=free_port(),
            _temp_dir=temporary,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}},
        )
        yield
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def ray_of_several_nodes() -> Iterator[Any]:
    """A head without CPUs that this process is connected to; nodes are added by its `add_node`, from the main thread. The packages of this
    checkout are importable in its workers."""
    import ray
    from ray.cluster_utils import Cluster

    made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    try:
        ray.init(
            address=made.address,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}},
        )
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
