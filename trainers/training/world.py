"""Who this worker is among the workers of a run, and which device it uses."""

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """One worker's place. `global_rank` counts over all nodes, `local_rank` within this node."""

    global_rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one worker that decides and writes."""
        return self.global_rank == 0

    def from_main(self, value: T) -> T:
        """`value` as rank 0 has it, on every rank: a collective, to be called by all."""
        if self.world_size == 1:
            return value
        box = [value if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def main_decides(self, decision: bool) -> bool:
        """Rank 0's decision, on every rank: a collective between CPUs, which waits for no GPU."""
        if self.world_size == 1:
            return decision
        box = torch.tensor(float(decision))
        dist.broadcast(box, src=0)
        return bool(box.item())

    def from_all(self, value: float) -> tuple[float, ...]:
        """Everyone's value in the order of ranks, on every rank: a collective between CPUs."""
        if self.world_size == 1:
            return (value,)
        boxes = [torch.zeros((), dtype=torch.float64) for _ in range(self.world_size)]
        dist.all_gather(boxes, torch.tensor(value, dtype=torch.float64))
        return tuple(box.item() for box in boxes)


def device_for(local_rank: int, gpus_per_worker: int, gpus_visible: int) -> torch.device:
    """The device of a worker: the GPU with the number of its *local* rank, or the CPU when workers have no GPU.

    The global rank never names a GPU: on a second node it would point beyond the last one.
    """
    if gpus_per_worker == 0:
        return torch.device("cpu")
    if local_rank >= gpus_visible:
        raise RuntimeError(f"local rank {local_rank} needs GPU {local_rank}, but {gpus_visible} GPUs are visible on this node.")
    return torch.device("cuda", local_rank)


def current_world(gpus_per_worker: int) -> World:
    """This process's place, from the process group if there is one and from LOCAL_RANK as torchrun and Ray Train set it."""
    initialised = dist.is_available() and dist.is_initialized()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    visible = torch.cuda.device_count() if gpus_per_worker else 0
    return World(
        global_rank=dist.get_rank() if initialised else 0,
        local_rank=local_rank,
        world_size=dist.get_world_size() if initialised else 1,
        device=device_for(local_rank, gpus_per_worker, visible),
    )
