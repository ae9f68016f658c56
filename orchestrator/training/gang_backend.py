"""The process group of a gang of workers, as Ray Train's `TorchConfig` makes it, without torch where it is not used.

`ray.train.torch` imports torch in the driver and in Ray Train's controller, which never compute: 3 s of CPU and 300 MB in each. Its own
functions are called here too, but by name and in the workers alone.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.util import TrainingFramework

from orchestrator.training.loader_pool import prepare
from trainers.contract.run_folder import RunFolder

log = logging.getLogger(__name__)


class OwnDevice:
    """The context in which a worker trains: its GPU is CUDA's current one."""

    def __enter__(self) -> None:
        import torch
        from ray.train.torch import get_device

        if torch.cuda.is_available() and (device := get_device()).type == "cuda":
            torch.cuda.set_device(device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to undo."""


class GangBackend(Backend):
    """Has the workers join one process group when they start, and leave it before they end. Runs in Ray Train's controller."""

    share_cuda_visible_devices = True  # local ranks name GPUs of the node

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Rank 0 names the address, then all join there."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        size, joining = len(worker_group), []
        for rank in range(size):
            joining.append(worker_group.execute_single_async(rank, join_group, backend_config, address, port, rank, size))
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """As Ray's own: a group that hangs is not waited for longer than its variable allows."""
        leaving = worker_group.execute_async(leave_group)
        limit_s = int(os.environ.get(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S))
        try:
            ray.get(leaving, timeout=limit_s)
        except GetTimeoutError:
            log.warning("the workers did not leave their process group within %d s", limit_s)


@dataclass
class GangConfig(BackendConfig):
    """Whose workers they are, their backend of torch.distributed (`gloo`, `cpu:gloo,cuda:nccl`), and a limit for collectives, seconds."""

    run_folder: str
    backend: str
    timeout_s: int

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train's controller calls."""
        return GangBackend

    @property
    def train_func_context(self) -> type[OwnDevice]:
        """What surrounds the training function in a worker."""
        return OwnDevice

    @property
    def framework(self) -> TrainingFramework:
        """What Ray's dashboard shows."""
        return TrainingFramework.TORCH

    def to_dict(self) -> dict[str, Any]:
        """What Ray's dashboard shows."""
        return {"backend": self.backend, "timeout_s": self.timeout_s}


def join_group(group: GangConfig, address: str, port: int, global_rank: int, world_size: int) -> None:
    """In a worker: set what `env://` reads, as torchrun does, and join the process group; returns once all have joined."""
    prepare(RunFolder(Path(group.run_folder)), global_rank, world_size)  # before torch: they import it at the same time
    from ray.train.torch import config  # with types of its own only in part

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    config._set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    config._setup_torch_process_group(group.backend, global_rank, world_size, "env://", group.timeout_s)


def leave_group() -> None:
    """In a worker: leave the process group of several, and free what CUDA has cached."""
    import torch.distributed as dist
    from ray.train.torch import config

    several = dist.is_initialized() and dist.get_world_size() > 1
    config._shutdown_torch(destroy_process_group=several)  # type: ignore[no-untyped-call]
