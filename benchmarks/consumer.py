"""How short a step may be that one loader core feeds, beside nnU-Net's augmenter, and with the loader on another Ray node.

    python -m benchmarks.consumer [--rounds 20] [--batches 6] [--recipe default] [--json FILE]

Three sources of batches of two samples of 128^3 from the same files, one loader process of one thread each: our loader on the worker's
node, ours on a second Ray node of this machine, and nnU-Net's NonDetMultiThreadedAugmenter with its loader and transforms. They take turns
in one process tree: while one is measured, the loaders of the others are suspended; which one begins alternates. In each turn the batches
that lie ready are thrown away, then `--batches` are taken at once: seconds per batch are the shortest step that is sustained. CPU per batch
is that of the loader, of the consumer, and of Ray's node daemons, which carry batches from node to node. At the end each source feeds a
consumer that sleeps 1.1 times its median, and the wait per batch in the first and the second half shows whether it grows.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "nnUNet_compile": "f", "RAY_USAGE_STATS_ENABLED": "0"})

import psutil
import torch

from benchmarks.augmentation import TRAINERS, add_configurations, nnunet_loader
from benchmarks.rows import Row, pairwise, quartiles, store
from benchmarks.side_processes import resume, suspend
from tests.integration.cluster import REPOSITORY
from tests.toy import Toy, nnunet_environment, toy_dataset, toy_spec
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderPlacement, LoaderSpec, Schedule
from trainers.storage.files import write_json_atomic

STORE_BYTES = 500_000_000
PREFETCH = 6
"""Batches that are prepared ahead, as nnU-Net's augmenter does."""
SIDES = ("nnfleet", "nnfleet, other node", "nnU-Net")


@dataclass
class Side:
    """One source of batches with its processes, and what each turn measured per batch."""

    take: Callable[[], Any]
    loaders: list[int]
    daemons: list[int] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Of loader, consumer and daemons together."""
    loader_cpu_s: list[float] = field(default_factory=list)

    def turn(self, batches: int) -> None:
        """Measure so many batches, once those that lie ready are gone."""
        resume(self.loaders)
        for _ in range(PREFETCH + 2):
            self.take()
        own, began, others = time.process_time(), time.perf_counter(), (cpu_s(self.loaders), cpu_s(self.daemons))
        for _ in range(batches):
            self.take()
        loader_s = cpu_s(self.loaders) - others[0]
        self.wall_s.append((time.perf_counter() - began) / batches)
        self.cpu_s.append((time.process_time() - own + loader_s + cpu_s(self.daemons) - others[1]) / batches)
        self.loader_cpu_s.append(loader_s / batches)
        suspend(self.loaders)

    def waits_s(self, step_s: float, batches: int) -> tuple[float, float]:
        """Mean wait per batch in the first and in the second half of so many steps that sleep."""
        resume(self.loaders)
        waits = []
        for _ in range(PREFETCH + batches):
            began = time.perf_counter()
            self.take()
            waits.append(time.perf_counter() - began)
            time.sleep(step_s)
        suspend(self.loaders)
        steady = waits[PREFETCH:]
        return statistics.mean(steady[: batches // 2]), statistics.mean(steady[batches // 2 :])


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(each.user + each.system for each in times))


@contextlib.contextmanager
def of_nnunet(toy: Toy, recipe: str) -> Iterator[Side]:
    """nnU-Net's augmenter as its trainer has it, with one process. To be started before Ray: it forks."""
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

    before = {p.pid for p in psutil.Process().children(recursive=True)}
    loader = nnunet_loader(toy_spec(toy, "large", TRAINERS[recipe], fold="all"), TRAINERS[recipe])
    augmenter = NonDetMultiThreadedAugmenter(loader, None, 1, PREFETCH, seeds=None, pin_memory=False, wait_time=0.002)
    next(augmenter)
    loaders = sorted({p.pid for p in psutil.Process().children(recursive=True)} - before)
    try:
        yield Side(lambda: next(augmenter), loaders)
    finally:
        resume(loaders)
        augmenter._finish()


@contextlib.contextmanager
def ours(toy: Toy, recipe: str, placement: LoaderPlacement) -> Iterator[Side]:
    """One loader actor of ours."""
    from orchestrator.training.loader_pool import LoaderPool

    loader = LoaderSpec(actors=1, prefetch=PREFETCH, placement=placement)
    schedule, folder = Schedule(train_iterations=10**6), toy.base / placement / "model"
    spec = toy_spec(toy, "large", TRAINERS[recipe], fold="all", loader=loader, schedule=schedule, model_folder=folder)
    write_json_atomic(RunFolder(spec.run_folder).spec_file, spec.model_dump(mode="json"))
    before = set(named("ray::Loader"))
    with LoaderPool(spec, RunFolder(spec.run_folder), [0, 1], 0) as pool:
        batches = pool.batches("train", 0)
        next(batches)
        side = Side(lambda: next(batches), sorted(set(named("ray::Loader")) - before), named("raylet"))
        try:
            yield side
        finally:
            resume(side.loaders)


def named(name: str) -> list[int]:
    """Processes of this tree by the beginning of their names."""
    return [p.pid for p in psutil.Process().children(recursive=True) if p.name().startswith(name)]


@contextlib.contextmanager
def two_nodes() -> Iterator[None]:
    """A Ray cluster on this machine: the consumer's node gives out no CPU, the other one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}}
        ray.init(address=cluster.address, logging_level=logging.ERROR, runtime_env=environment)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def measured(toy: Toy, recipe: str, rounds: int, batches: int) -> dict[str, Any]:
    """All sides in turn; returns what each turn measured, and the waits of a consumer that sleeps."""
    with of_nnunet(toy, recipe) as theirs:
        suspend(theirs.loaders)
        with two_nodes(), ours(toy, recipe, "local") as local, ours(toy, recipe, "cluster") as remote:
            sides = dict(zip(SIDES, (local, remote, theirs), strict=True))
            for side in (local, remote):
                suspend(side.loaders)
            for number in range(rounds):
                for side in (*sides.values(),) if number % 2 else (*reversed(sides.values()),):
                    side.turn(batches)
            steps = {name: 1.1 * statistics.median(side.wall_s) for name, side in sides.items()}
            waits = {name: side.waits_s(steps[name], 4 * batches) for name, side in sides.items()}
    return {
        name: {
            "wall_s": side.wall_s,
            "cpu_s": side.cpu_s,
            "loader_cpu_s": side.loader_cpu_s,
            "step_s": steps[name],
            "waits_s": waits[name],
        }
        for name, side in sides.items()
    }


def report(found: dict[str, Any]) -> None:
    """The table, and the ratios turn by turn with quartiles."""
    print("| loader | seconds per batch | quartiles | CPU s per batch | of it the loader | step that sleeps, s | wait in its halves, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, side in found.items():
        low, middle, high = quartiles(side["wall_s"])
        cpu, loader = statistics.median(side["cpu_s"]), statistics.median(side["loader_cpu_s"])
        first, second = side["waits_s"]
        waits = f"{side['step_s']:.3f} | {first:.3f}, {second:.3f}"
        print(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {cpu:.3f} | {loader:.3f} | {waits} |")
    local, remote, theirs = (found[name] for name in SIDES)
    for what, one, other, kind, target in (
        ("nnfleet / nnU-Net, seconds per batch", local, theirs, "wall_s", 0.25),
        ("nnfleet / nnU-Net, CPU in all", local, theirs, "cpu_s", 0.25),
        ("other node / same node, seconds per batch", remote, local, "wall_s", 1.0),
        ("other node / same node, CPU in all", remote, local, "cpu_s", 1.1),
    ):
        ratios = [a / b for a, b in zip(one[kind], other[kind], strict=True)]
        low, middle, high = quartiles(ratios)
        print(f"{what}: median {middle:.2f}, quartiles {low:.2f} to {high:.2f} (target: at most {target:g})")


def table_rows(found: dict[str, Any]) -> list[Row]:
    """Its rows in the table of all benchmarks."""
    local, remote, theirs = (found[name] for name in SIDES)
    elsewhere = pairwise("", remote["cpu_s"], local["cpu_s"])
    return [
        pairwise("shortest step that one loader core feeds, 2 x 128^3, s", local["wall_s"], theirs["wall_s"]),
        pairwise("CPU of such a batch in all, s", local["cpu_s"], theirs["cpu_s"]),
        Row("the same with the loader on another node, s; ratio: to the same node", elsewhere.ours, None, elsewhere.ratio),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batches", type=int, default=6, help="per turn")
    parser.add_argument("--recipe", choices=[*TRAINERS], default="default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        toy = toy_dataset(Path(base), cases=2)
        with nnunet_environment(toy.base), contextlib.redirect_stdout(io.StringIO()):
            add_configurations(toy)
        found = measured(toy, options.recipe, options.rounds, options.batches)
    report(found)
    store(options.json, table_rows(found), found)


if __name__ == "__main__":
    main()
