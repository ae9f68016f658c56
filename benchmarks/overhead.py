"""What safety costs an unbroken run: CPU seconds and blocked seconds per epoch of each part, as a share of an epoch of 60 s.

    python -m benchmarks.overhead [--state-mb 250] [--epochs-before 500]

Each part is run by itself, as often as it happens in an epoch of nnU-Net's 250 + 50 iterations. Blocked: seconds for which the training
thread of rank 0 is held. CPU: seconds of all threads of the process that does it, which for publisher and campaign is one on the head.
Not counted as safety: the plain save that any trainer makes, and the delivery to MLflow. What Ray's controller does for us costs nothing
while nothing fails: it is one comparison per change of its state.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.checkpoint import state_of
from orchestrator.publishing.publisher import Publisher
from orchestrator.tracking.client import Tracker
from tests.fake_campaign import Stage, look
from tests.fake_run import FakeRun, epoch_row
from tests.integration.mlflow_server import MlflowServer
from trainers.contract.commits import BestRecord
from trainers.contract.fencing import acquire_token, check_fence
from trainers.contract.records import HEARTBEAT_S
from trainers.contract.run_folder import RunFolder
from trainers.training.loop import Heartbeats
from trainers.training.mid_epoch import MidEpochSaver
from trainers.training.state import StateWriter, TrainingProgress
from trainers.training.world import World

EPOCH_S = 60.0
TRAIN_ITERATIONS, VAL_ITERATIONS = 250, 50
REPEATS = 7
ALONE = World(global_rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@dataclass(frozen=True)
class Cost:
    """Seconds per epoch of one part."""

    part: str
    cpu_s: float
    blocked_s: float
    counts: bool = True
    """False for what is contained in another part, or is not for safety's sake."""


def timed(action: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, float]:
    """Median CPU and wall-clock seconds of `action`, once for warming up not counted."""
    cpu, wall = [], []
    for _ in range(repeats + 1):
        before_cpu, before = time.process_time(), time.perf_counter()
        action()
        cpu.append(time.process_time() - before_cpu)
        wall.append(time.perf_counter() - before)
    return statistics.median(cpu[1:]), statistics.median(wall[1:])


def saving(base: Path, megabytes: int, epochs_before: int, *, is_best: bool) -> list[Cost]:
    """A state (and a best) per epoch: copy, serialisation, SHA-256, fsync, rename, links, pruning, with the history so far."""
    run = FakeRun(base / f"saving-{is_best}")
    writer = StateWriter(run.folder, run.spec.run_key, run.fencing_token, {"trainer_name": "nnUNetTrainer"}, 10**6)
    state, history, held = state_of(megabytes), [epoch_row(e, 0.5) for e in range(epochs_before)], []

    def commit() -> None:
        history.append(epoch_row(len(history), 0.5))
        writer.commit(TrainingProgress(history=tuple(history), best_policy=BestRecord(ema=0.5)), is_best, lambda: state)
        held.append(writer.held_s)
        writer.drain()  # an epoch of 60 s is far longer than this

    def plain() -> None:
        torch.save(state, base / "plain.pth")
        if is_best:
            torch.save(state["network_weights"], base / "plain.pth")

    cpu_s, _ = timed(commit)
    plain_cpu_s, plain_s = timed(plain)
    what = f"a state of {megabytes} MB" + (" and a new best" if is_best else "")
    return [
        Cost(f"saving {what}, all of it", cpu_s, statistics.median(held[1:]), counts=False),
        Cost(f"a plain torch.save of the same, in the training thread: {what}", plain_cpu_s, plain_s, counts=False),
        Cost(f"what saving {what} costs beyond that", cpu_s - plain_cpu_s, statistics.median(held[1:]), counts=is_best),
    ]


def fences(base: Path) -> Cost:
    """The fence is asked twice for a commit, here of a run with 30 attempts."""
    run = FakeRun(base / "fences")
    for _ in range(30):
        fencing_token = acquire_token(run.folder, "driver-1")

    def look_often() -> None:
        for _ in range(200):
            check_fence(run.folder, fencing_token)

    cpu_s, _ = timed(look_often)
    return Cost("of which two looks at the fence", cpu_s / 100, 0.0, counts=False)


def heartbeat(base: Path) -> Cost:
    """A beat is offered after each iteration and written every two seconds."""
    run = FakeRun(base / "heart")
    idle = Heartbeats(run.folder, ALONE, 1)
    idle.send("train", 0, 0)

    def write() -> None:
        for iteration in range(int(EPOCH_S / HEARTBEAT_S)):
            Heartbeats(run.folder, ALONE, 1).send("train", 0, iteration)

    def offer() -> None:
        for iteration in range(TRAIN_ITERATIONS + VAL_ITERATIONS):
            idle.send("train", 0, iteration)

    offers = timed(offer)
    writes = timed(write)
    return Cost("sign of life every 2 s", offers[0] + writes[0], offers[1] + writes[1])


def agreeing(base: Path) -> Cost:
    """Two ranks agree within the epoch whether to save; nobody wishes it. The epoch's own collective is needed for the Dice anyway."""
    run = FakeRun(base / "agreeing")
    (base / "agreed").touch()
    spawn(agreeing_rank, (run.folder.root, base / "agreed", base / "meeting"), nprocs=2)  # type: ignore[no-untyped-call] # torch leaves it untyped
    cpu_s, wall_s = map(float, (base / "agreed").read_text().split())
    return Cost("agreement within the epoch, two ranks", cpu_s, wall_s)


def agreeing_rank(rank: int, root: Path, result: Path, meeting: Path) -> None:
    """One of the two ranks."""
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{meeting}")
    folder, world = RunFolder(root), World(rank, rank, 2, torch.device("cpu"))
    mid_epoch = MidEpochSaver(folder.spec(), folder, world, learner=None, writer=None)  # type: ignore[arg-type] # nothing is saved
    loss = torch.zeros((), dtype=torch.float64)

    def epoch() -> None:
        for iteration in range(TRAIN_ITERATIONS):
            mid_epoch.save_if_due(iteration + 1, loss)

    cpu_s, wall_s = timed(epoch)
    if rank == 0:
        result.write_text(f"{cpu_s} {wall_s}")
    dist.destroy_process_group()


def publishing(base: Path, epochs_before: int, seconds: float) -> list[Cost]:
    """The publisher's looks at a run folder with nothing new, and one epoch with a new best of 125 MB delivered over HTTP."""
    server = MlflowServer(base / "mlflow").start()
    try:
        run, tracker = FakeRun(base / "publishing"), Tracker(server.uri)
        run.track(server.uri, tracker.get_or_create_run(tracker.ensure_experiment("Dataset901_Toy"), run.spec))
        run.rows = [epoch_row(e, 0.5) for e in range(epochs_before)]
        run.epoch()
        publisher = Publisher(run.folder, run.fencing_token)
        publisher.start()
        assert publisher.flush(120.0)
        time.sleep(3.0)  # a picture may still be drawn
        before = time.process_time()
        time.sleep(seconds)
        idle = (time.process_time() - before) / seconds
        run.epoch(size_bytes=125_000_000)
        before, started = time.process_time(), time.perf_counter()
        assert publisher.flush(120.0)
        spent = time.process_time() - before - idle * (time.perf_counter() - started)
        publisher.stop()
    finally:
        server.kill()
    return [
        Cost("publisher's looks at the run folder", idle * EPOCH_S, 0.0),
        Cost("delivering an epoch, a best of 125 MB and the picture", spent, 0.0, counts=False),
    ]


def campaign(base: Path) -> Cost:
    """The campaign looks once a second; what listing jobs costs Ray's own server is not in it."""
    stage = Stage(base / "campaign")
    spec = stage.run(0)
    watching = stage.campaign(spec)
    look(watching)
    stage.cluster.workers_begin(spec)

    def watch() -> None:
        for _ in range(60):
            look(watching)

    cpu_s, _ = timed(watch)
    return Cost("campaign's looks at one run", cpu_s, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-mb", type=int, default=250)
    parser.add_argument("--epochs-before", type=int, default=500)
    parser.add_argument("--watch-s", type=float, default=20.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        costs = [
            *saving(base, options.state_mb, options.epochs_before, is_best=True),
            *saving(base, options.state_mb, options.epochs_before, is_best=False),
            fences(base),
            heartbeat(base),
            agreeing(base),
            *publishing(base, options.epochs_before, options.watch_s),
            campaign(base),
        ]
    print("| part | CPU s per epoch | blocked s per epoch |\n| --- | --- | --- |")
    for cost in costs:
        print(f"| {cost.part if cost.counts else f'({cost.part})'} | {cost.cpu_s:.4f} | {cost.blocked_s:.4f} |")
    cpu_s, blocked_s = (sum(getattr(cost, kind) for cost in costs if cost.counts) for kind in ("cpu_s", "blocked_s"))
    print(f"| sum, without what is in brackets | {cpu_s:.4f} | {blocked_s:.4f} |")
    print(f"\nshare of an epoch of {EPOCH_S:.0f} s: blocked {blocked_s / EPOCH_S:.2%}, CPU of one core {cpu_s / EPOCH_S:.2%}")


if __name__ == "__main__":
    main()
