"""How long saving holds the training thread: a full state of 250 MB and a new best every epoch, MLflow over HTTP.

    python -m benchmarks.checkpoint [--epochs 12] [--epoch-s 4] [--state-mb 250]

One process trains (matrix products stand for the steps) and commits every epoch; a second one, as the driver does, publishes to a real
MLflow server. At the end the publisher is killed while a best waits for its upload, a new one takes over, and the published artifact
is compared with the committed best. A plain torch.save of the same state in the training thread is measured beside it.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from orchestrator.publishing.checkpoint_store import download_checkpoint, published
from orchestrator.publishing.publisher import deliver_run
from orchestrator.tracking.client import Tracker
from tests.fake_run import FakeRun, epoch_row
from tests.integration.mlflow_server import MlflowServer
from trainers.contract.commits import BestRecord, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.training.state import StateWriter, TrainingProgress

PUBLISH = (
    "import sys, time; from pathlib import Path; from orchestrator.publishing.publisher import Publisher; "
    "from trainers.contract.run_folder import RunFolder; "
    "Publisher(RunFolder(Path(sys.argv[1])), 1, interval_s=0.5).start(); print('ready', flush=True); time.sleep(3600)"
)


def state_of(megabytes: int) -> dict[str, Any]:
    """Weights and momentum, half of `megabytes` each, in 100 tensors."""
    count = megabytes * 1_000_000 // 2 // 4 // 100
    weights = {f"layer{i}.weight": torch.randn(count) for i in range(100)}
    momentum = {i: {"momentum_buffer": torch.randn(count)} for i in range(100)}
    return {
        "network_weights": weights,
        "optimizer_state": {"state": momentum, "param_groups": [{"lr": 0.01, "params": list(range(100))}]},
        "grad_scaler_state": None,
    }


def steps(seconds: float) -> int:
    """Stand-in for training steps; returns how many were done, so that their slowing down by background saving shows."""
    a, done, until = torch.randn(256, 256), 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        a = torch.tanh(a @ a)
        done += 1
    return done


def published_equals_committed(tracker: Tracker, run_id: str, folder: RunFolder, target: Path) -> bool:
    """True if the best in MLflow, downloaded and verified, is the one that the newest commit names."""
    committed, manifest = newest_committed(folder), published(tracker, run_id, "best")
    assert committed is not None
    assert committed.best is not None
    if manifest is None or manifest.manifest.sha256 != committed.best.sha256:
        return False
    download_checkpoint(tracker, run_id, "best", target)
    return True


def percentile_95(values: list[float]) -> float:
    """95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def spread(values: list[float]) -> str:
    """Median, 95th percentile and maximum, in words."""
    return f"median {statistics.median(values):.3f} s, p95 {percentile_95(values):.3f} s, maximum {max(values):.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--epoch-s", type=float, default=4.0)
    parser.add_argument("--state-mb", type=int, default=250)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        server = MlflowServer(Path(base) / "mlflow").start()
        try:
            measure(Path(base), server, options.epochs, options.epoch_s, options.state_mb)
        finally:
            server.kill()


def measure(base: Path, server: MlflowServer, epochs: int, epoch_s: float, megabytes: int) -> None:
    """Train, commit, publish, kill, catch up; print what was measured."""
    run, tracker = FakeRun(base), Tracker(server.uri)
    run_id = tracker.get_or_create_run(tracker.ensure_experiment("Dataset901_Toy"), run.spec)
    run.track(server.uri, run_id)
    state = state_of(megabytes)
    writer = StateWriter(run.folder, run.spec.run_key, run.fencing_token, {"trainer_name": "nnUNetTrainer"}, 10**6)
    publisher = start_publisher(run.folder)
    reached = TrainingProgress()
    held: list[float] = []
    waited: list[float] = []
    done: list[int] = []
    quiet = steps(epoch_s)
    for epoch in range(epochs):
        done.append(steps(epoch_s))
        state["network_weights"]["layer0.weight"].fill_(float(epoch))
        best = BestRecord(ema=0.5 + epoch / 1000, score=0.5 + epoch / 1000, best_epoch=epoch)
        reached = TrainingProgress(history=(*reached.history, epoch_row(epoch, best.ema)), best_policy=best)
        started = time.perf_counter()
        writer.drain()
        waited.append(time.perf_counter() - started)
        writer.commit(reached, True, lambda: state)
        held.append(waited[-1] + writer.held_s)
    os.kill(publisher.pid, signal.SIGKILL)  # the newest best has just been handed to the writer: it waits for its upload
    publisher.wait()
    writer.drain()
    behind = not published_equals_committed(tracker, run_id, run.folder, base / "a.pth")
    deliver_run(run.folder, run.fencing_token, 120.0)
    caught_up = published_equals_committed(tracker, run_id, run.folder, base / "b.pth")
    started = time.perf_counter()
    torch.save(state, base / "plain.pth")
    plain_s = time.perf_counter() - started
    print(f"state {megabytes} MB and a new best in each of {epochs} epochs of {epoch_s:.0f} s, MLflow over HTTP on the same machine")
    print(f"training thread held per epoch (state and best together): {spread(held)}")
    print(f"of that, waiting for the commit before to be on disk: {spread(waited)}")
    print(f"a plain torch.save of the state in the training thread: {plain_s:.3f} s, without fsync, digest and upload")
    print(f"training steps per epoch while saving and uploading: median {statistics.median(done):.0f}, before: {quiet}")
    print(f"publisher killed while a best waited: published was behind: {behind}; after the next publisher equal to committed: {caught_up}")
    print(json.dumps({"held_s": [round(h, 4) for h in held], "caught_up": caught_up}))


def start_publisher(folder: RunFolder) -> "subprocess.Popen[str]":
    """The publisher in a process of its own, as in the driver."""
    process = subprocess.Popen([sys.executable, "-c", PUBLISH, str(folder.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


if __name__ == "__main__":
    main()
