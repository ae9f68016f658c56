"""Two DDP workers of one thread beside one worker of one thread: training samples per second, on CPUs, without Ray.

    python -m benchmarks.workers [--pairs 20] [--steps 10] [--networks demo ...] [--json FILE]

One process trains with the whole batch, two with half of it each and gloo between them; all three are the trainers' own learner on ready
batches. They train so many steps in turn, one side while the other waits. The ratio stands twice: of wall seconds, and of CPU seconds (of
the worker that takes more), which other work on the machine disturbs less and in which waiting for the other worker costs nothing.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")})

import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.rows import Row, quartiles, store
from tests.nnunet_beside import configuration, labels_for, random_batch
from trainers.contract.run_spec import RunSpec, WorkerSpec
from trainers.contract.split_batch import rank_positions
from trainers.data.batches import Batch
from trainers.network.learner import Learner
from trainers.training.assemble import ModelConfig, assemble, warm_up
from trainers.training.world import current_world

CONFIGURATIONS = {
    "tiny": ((4, 8, 16), 24, 1, 2),
    "demo": ((8, 16, 32), 32, 2, 4),
    "demo, batch 2": ((8, 16, 32), 32, 2, 2),
    "wide": ((32, 64, 128), 48, 1, 2),
}
"""Features of each stage, size of the cubic patch, convolutions in a row, global batch."""
TARGET = 1.85


@dataclass(frozen=True)
class Spent:
    """Seconds of so many steps of one worker."""

    wall_s: float
    cpu_s: float


@dataclass
class Measured:
    """One network: what each round took, and the all-reduce of its gradients alone."""

    batch: int
    steps: int
    alone: list[Spent] = field(default_factory=list)
    together: list[Spent] = field(default_factory=list)
    """Of the two workers the longer time."""
    all_reduce: list[Spent] = field(default_factory=list)
    """Per step."""

    def ratios(self, kind: str) -> list[float]:
        """How many times as many samples per second two workers train, round by round; `kind`: wall_s or cpu_s."""
        return [getattr(one, kind) / getattr(two, kind) for one, two in zip(self.alone, self.together, strict=True)]


def spec_of(name: str) -> RunSpec:
    """What `assemble` asks of a run; nothing is read or written."""
    nowhere = Path("/nonexistent")
    return RunSpec(
        run_key=f"benchmark-{name}",
        dataset="Dataset999_Benchmark",
        preprocessed_folder=nowhere,
        model_folder=nowhere,
        plans="nnUNetPlans",
        configuration=name,
        trainer="nnUNetTrainer",
        fold=0,
        train_cases=("a",),
        val_cases=("b",),
        data_digest="0" * 64,
        workers=WorkerSpec(count=1, gpus=0, cpus=1),
    )


def model_of(name: str) -> ModelConfig:
    """The plan of one of CONFIGURATIONS."""
    features, patch, convolutions, batch = CONFIGURATIONS[name]
    stages = len(features)
    arch = {"n_conv_per_stage": [convolutions] * stages, "n_conv_per_stage_decoder": [convolutions] * (stages - 1)}
    plan = {**configuration(3, features, **arch), "patch_size": [patch] * 3, "batch_size": batch}
    return ModelConfig({}, {}, plan, labels_for("labels"), 1)


def batch_of(model: ModelConfig, positions: range) -> Batch:
    """A worker's part of a batch of noise."""
    images, targets = random_batch(model.configuration, model.labels, model.global_batch, seed=0)
    own = slice(positions.start, positions.stop)
    return Batch(images[own].numpy(), [target[own].numpy() for target in targets], ())


def worker(rank: int, names: list[str], store: Path, pipes: list[Connection]) -> None:
    """Ranks 0 and 1 train together, 'rank' 2 alone. For each network: makes its learner, then answers each order with what it spent."""
    torch.set_num_threads(1)
    if rank < 2:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world, pipe = current_world(0), pipes[rank]
    for name in names:
        model = model_of(name)
        learner, batch = (
            assemble(spec_of(name), model, world, 1),
            batch_of(model, rank_positions(model.global_batch, world.world_size, rank % 2)),
        )
        warm_up(learner, model, world)
        learner.network.train()
        pipe.send("ready")
        while (order := pipe.recv()) != "next":
            what, steps = order
            pipe.send(timed(learner, batch, what, steps))
    if rank < 2:
        dist.destroy_process_group()


def timed(learner: Learner, batch: Batch, what: str, steps: int) -> Spent:
    """So many steps, or all-reduces of as many numbers as there are gradients."""
    gradients = torch.zeros(sum(p.numel() for p in learner.plain.parameters() if p.requires_grad))
    if learner.world_size > 1:
        dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        if what == "steps":
            learner.step(batch)
        else:
            dist.all_reduce(gradients)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def ask(pipes: list[Connection], what: str, steps: int) -> Spent:
    """Let the workers behind `pipes` do it at once; the longest times of any."""
    for pipe in pipes:
        pipe.send((what, steps))
    spent = [pipe.recv() for pipe in pipes]
    return Spent(max(s.wall_s for s in spent), max(s.cpu_s for s in spent))


def measure(pipes: list[Connection], name: str, pairs: int, steps: int) -> Measured:
    """Rounds of both sides in turn; the first one is thrown away."""
    for pipe in pipes:
        assert pipe.recv() == "ready"
    found = Measured(CONFIGURATIONS[name][3], steps)
    together, alone = pipes[:2], pipes[2:]
    for pair in range(pairs + 1):
        sides = [(found.together, together), (found.alone, alone)]
        for spent, side in sides if pair % 2 else sides[::-1]:
            spent.append(ask(side, "steps", steps))
        found.all_reduce.append(ask(together, "all-reduce", steps))
    for pipe in pipes:
        pipe.send("next")
    found.alone, found.together = found.alone[1:], found.together[1:]
    found.all_reduce = [Spent(s.wall_s / steps, s.cpu_s / steps) for s in found.all_reduce[1:]]
    return found


def run(names: list[str], pairs: int, steps: int, folder: Path) -> dict[str, Measured]:
    """Measure each network in the same three processes."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = zip(*(context.Pipe() for _ in range(3)), strict=True)
    workers = [context.Process(target=worker, args=(rank, names, folder / "store", list(theirs))) for rank in range(3)]
    for process in workers:
        process.start()
    for pipe in theirs:
        pipe.close()  # so that a worker's death is seen here
    found = {name: measure(list(ours), name, pairs, steps) for name in names}
    for process in workers:
        process.join()
    return found


def median(spent: list[Spent], kind: str) -> float:
    """Of seconds, wall or CPU."""
    return float(statistics.median(getattr(s, kind) for s in spent))


def row(name: str, found: Measured) -> str:
    """A row of the table."""
    features, patch, _, batch = CONFIGURATIONS[name]
    per_second = [found.steps * batch / median(spent, "wall_s") for spent in (found.alone, found.together)]
    cells = [f"{'-'.join(map(str, features))}, {patch}³, batch {batch}", *(f"{value:.1f}" for value in per_second)]
    for kind in ("wall_s", "cpu_s"):
        low, middle, high = statistics.quantiles(found.ratios(kind), n=4)
        cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
    reduce = [1000 * median(found.all_reduce, kind) for kind in ("wall_s", "cpu_s")]
    step = 1000 * median(found.together, "cpu_s") / found.steps
    return f"| {' | '.join([*cells, f'{step:.1f}', f'{reduce[0]:.1f} ({reduce[1]:.1f})'])} |"


def summary(found: dict[str, Measured]) -> dict[str, Any]:
    """Quartiles of the ratios and medians of the parts, as JSON."""
    return {
        name: {
            "rounds": len(measured.alone),
            **{kind: statistics.quantiles(measured.ratios(kind), n=4) for kind in ("wall_s", "cpu_s")},
            "all_reduce_wall_s": median(measured.all_reduce, "wall_s"),
            "all_reduce_cpu_s": median(measured.all_reduce, "cpu_s"),
        }
        for name, measured in found.items()
    }


def table_row(name: str, found: Measured) -> Row:
    """Its row in the table of all benchmarks."""
    per_second = found.steps * found.batch / median(found.together, "wall_s")
    return Row(f"samples per s of two workers, {name}; ratio: to one worker", per_second, None, quartiles(found.ratios("wall_s")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--networks", nargs="+", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(options.networks, options.pairs, options.steps, Path(folder))
    print("| network | samples/s, one | two workers | ratio, wall | ratio, CPU | step of two, CPU ms | all-reduce alone, ms (CPU ms) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, measured in found.items():
        print(row(name, measured))
    print(f"\n{options.pairs} rounds of {options.steps} steps, ratios with quartiles, target {TARGET}. again: python -m benchmarks.workers")
    store(options.json, [table_row(name, measured) for name, measured in found.items()], summary(found))


if __name__ == "__main__":
    main()
