"""A training as people write it without a queue: an actor for each rank, created one after the other, then a collective of all.

    python -m tests.integration.naive_job NAME RANKS [OTHER]

Each rank is waited for before the next one, as who needs rank 0's address does it. `OTHER`: a second such job that is submitted in the same
moment; with files in the working directory each waits for the other's rank before it asks for its own next one, so that the order in which
two scripts ask does not depend on the machine's load.
"""

import logging
import sys
import time
from pathlib import Path

import ray

MEETING_S = 30.0


@ray.remote(num_cpus=1)
class Rank:
    """One worker; its data stay in it, so it lives until the job ends."""

    def is_there(self) -> bool:
        """Answers once the worker is placed and has started."""
        return True

    def train(self, folder: str, rank: int, world_size: int) -> float:
        """The sum of all ranks, which every rank waits for."""
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=f"file://{folder}", rank=rank, world_size=world_size)
        total = torch.ones(1)
        dist.all_reduce(total)
        return float(total.item())


def main(name: str, num_ranks: int, other: str = "") -> None:
    """Create the gang, train, and leave a file that shows that it is done."""
    ray.init(logging_level=logging.ERROR)
    gang = []
    for rank in range(num_ranks):
        gang.append(Rank.remote())  # type: ignore[attr-defined] # Ray's decorator adds it
        ray.get(gang[-1].is_there.remote())
        Path(f"{name}.{rank}").touch()
        deadline = time.monotonic() + MEETING_S
        while other and not Path(f"{other}.{rank}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    sums = ray.get([each.train.remote(str(Path(f"{name}.store").absolute()), rank, num_ranks) for rank, each in enumerate(gang)])
    assert sums == [num_ranks] * num_ranks
    Path(f"{name}.done").touch()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
