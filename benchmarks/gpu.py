"""Seconds per epoch on one GPU, and on two where there are two, beside nnU-Net's trainer; `trainers/` alone, without Ray and MLflow.

    python -m benchmarks.gpu [--epochs 10] [--iterations 50] [--loaders N] [--workers 1 2] [--json FILE]
    python -m benchmarks.gpu --device cpu --tiny

Both sides train epochs of the same plan on the same files in turn: patches of 128^3, batch 2, nnU-Net's plain U-Net with features 32 to
320, compiled, in mixed precision; nnU-Net's without its plot. Once with data loading: N loader processes a worker on either side, nnU-Net
with N/2 more for validation, those of the side that waits suspended; once without: the same ready batch again and again. The busy part is
what the GPU's driver reports (NVML), sampled ten times a second, without the first second of an epoch. The first two epochs of each are
thrown away. Without a GPU it measures nothing and ends with exit code 0; --tiny runs the same code on toy data, and its numbers mean
nothing.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.augmentation import add_configurations
from benchmarks.gpu_sides import Epochs, measured
from benchmarks.rows import Row, pairwise, store
from tests.toy import PLANS, Toy, nnunet_environment, toy_dataset, toy_spec
from trainers.contract.run_spec import RunSpec, Schedule, WorkerSpec
from trainers.training.world import current_world

WARM_UP_EPOCHS = 2
FEATURES = [32, 64, 128, 256, 320, 320]
"""Of nnU-Net's plain U-Net for a patch of 128^3."""
DATA = {"prepared": "with data loading", "ready": "without data loading"}
NO_GPU = "No GPU is here, so nothing was measured. `--device cpu --tiny` runs the same code on toy data."


def dataset(base: Path, *, is_tiny: bool) -> tuple[Toy, str]:
    """The data, and the name of the configuration."""
    if is_tiny:
        return toy_dataset(base), "toy_3d"
    toy = toy_dataset(base, cases=2)
    with nnunet_environment(toy.base), contextlib.redirect_stdout(io.StringIO()):
        add_configurations(toy, ["large"])
    path = toy.preprocessed / f"{PLANS}.json"
    plans = json.loads(path.read_text())
    stages = len(FEATURES)
    convolutions = {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    plans["configurations"]["large"]["architecture"]["arch_kwargs"] |= {"features_per_stage": FEATURES, **convolutions}
    path.write_text(json.dumps(plans, indent=1))
    return toy, "large"


def spec_of(toy: Toy, configuration: str, schedule: Schedule, workers: int, device: str) -> RunSpec:
    """The run that both sides train, each with a folder of its own."""
    gang = WorkerSpec(count=workers, gpus=int(device == "cuda"), cpus=1)
    folder = toy.base / f"ours-{workers}" / "model"
    return toy_spec(toy, configuration, schedule=schedule, workers=gang, model_folder=folder, compile=device == "cuda")


def worker(rank: int, toy: Toy, spec: RunSpec, device: str, loaders: int, found: Path) -> None:
    """One worker of either side; rank 0 writes what it measured."""
    count = spec.workers.count
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    if count > 1:
        store_file = f"file://{found.with_suffix('.store')}"
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, init_method=store_file, rank=rank, world_size=count)
    world = current_world(spec.workers.gpus)
    has_peer = device == "cuda" or count == 1  # nnU-Net's DDP needs GPUs
    sides = measured(toy, spec, world, loaders, has_peer=has_peer)
    if world.is_main:
        found.write_text(json.dumps({what: [vars(side) for side in both] for what, both in sides.items()}))
    if count > 1:
        torch.distributed.destroy_process_group()


def run(toy: Toy, spec: RunSpec, device: str, loaders: int, folder: Path) -> dict[str, list[Epochs]]:
    """What rank 0 measured of so many workers, without the first epochs."""
    found = folder / f"found-{spec.workers.count}.json"
    if spec.workers.count == 1:
        worker(0, toy, spec, device, loaders, found)
    else:
        arguments = (toy, spec, device, loaders, found)
        torch.multiprocessing.spawn(worker, arguments, nprocs=spec.workers.count)  # type: ignore[attr-defined,no-untyped-call]
    content = json.loads(found.read_text())
    return {
        what: [Epochs(side["seconds"][WARM_UP_EPOCHS:], side["busy"][WARM_UP_EPOCHS:]) for side in both] for what, both in content.items()
    }


def table_rows(found: dict[int, dict[str, list[Epochs]]]) -> list[Row]:
    """Seconds per epoch of both sides with the ratio pair by pair, and the busy part of the GPU."""
    rows = []
    for workers, phases in found.items():
        gpus = "1 worker" if workers == 1 else f"{workers} workers"
        for what, (ours, theirs) in phases.items():
            name = f"{gpus}, {DATA[what]}"
            if theirs.seconds:
                rows.append(pairwise(f"epoch, {name}, s", ours.seconds, theirs.seconds))
            else:
                rows.append(Row(f"epoch, {name}, s", statistics.median(ours.seconds)))
            rows.append(Row(f"busy part of the GPU, {name}", median_of(ours.busy), median_of(theirs.busy)))
    return rows


def median_of(shares: Sequence[float | None]) -> float | None:
    """Of those that are known."""
    known = [share for share in shares if share is not None]
    return statistics.median(known) if known else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy data and network")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--val-iterations", type=int, default=10)
    parser.add_argument(
        "--loaders", type=int, help="processes a worker; 0: in the training thread; default: its share of the cores, at most 12"
    )
    parser.add_argument("--workers", type=int, nargs="+", help="default: 1, and 2 where there are two GPUs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    counts = options.workers or ([1, 2] if options.device == "cuda" and torch.cuda.device_count() > 1 else [1])
    schedule = Schedule(epochs=options.epochs + WARM_UP_EPOCHS, train_iterations=options.iterations, val_iterations=options.val_iterations)
    found = {}
    with tempfile.TemporaryDirectory() as base:
        toy, configuration = dataset(Path(base), is_tiny=options.tiny)
        for count in counts:
            share = max(1, min(12, len(os.sched_getaffinity(0)) // count - 2))
            loaders = share if options.loaders is None else options.loaders
            found[count] = run(toy, spec_of(toy, configuration, schedule, count, options.device), options.device, loaders, Path(base))
    rows = table_rows(found)
    for row in rows:
        print(f"| {' | '.join(row.cells)} |")
    measured_all: dict[str, Any] = {
        str(count): {what: [vars(side) for side in both] for what, both in phases.items()} for count, phases in found.items()
    }
    store(options.json, rows, measured_all)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
