"""Logits of a case to labels on its original grid: ours beside nnU-Net's export of the same logits, one thread, and the memory of both.

    python -m benchmarks.validation_export [--pairs 20] [--classes 3 118] [--memory 192]

CPU and wall seconds in alternating pairs in one process; the ratio is that of the CPU seconds, pair by pair. With --memory N: the peak
of a process of its own for each, 100 classes on N x N x N voxels, and what of it is above a process that has the logits alone.
"""

import argparse
import contextlib
import io
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from tests.export_case import CUBE, THIN, Shape, case, exporter, logits_of, nnunets
from trainers.validation.export import Exporter

MEMORY_CLASSES = 100


@dataclass(frozen=True)
class Grid:
    """A preprocessed case and its original grid."""

    name: str
    shape: Shape
    original: Shape
    spacing: tuple[float, ...] = CUBE


GRIDS = (
    Grid("isotropic, finer", (80, 112, 96), (120, 168, 144)),
    Grid("isotropic, coarser", (96, 144, 128), (64, 110, 100)),
    Grid("separate z", (24, 160, 160), (30, 240, 240), THIN),
    Grid("planes alone", (24, 160, 160), (24, 240, 240), THIN),
    Grid("not resampled", (64, 112, 112), (64, 112, 112)),
)


def of_classes(count: int, spacing: tuple[float, ...] = CUBE) -> Exporter:
    """An exporter of plans with so many labels, background included."""
    return exporter({"labels": {"background": 0, **{f"class {value}": value for value in range(1, count)}}}, spacing)


def seconds(action: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU and wall seconds, and what `action` returned; what nnU-Net prints is left out."""
    cpu, wall = time.process_time(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        result = action()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def compare(grid: Grid, classes: int, pairs: int) -> str:
    """A row of the table; who begins a pair alternates. The first pair warms up and says which labels are equal."""
    ours, logits, properties = of_classes(classes, grid.spacing), logits_of(classes, grid.shape), case(grid.original, grid.spacing)
    actions = (lambda: ours.segmentation(logits, properties)), (lambda: nnunets(ours, logits, properties))
    share = float((seconds(actions[0])[2] == seconds(actions[1])[2]).mean())
    spent = np.empty((pairs, 2, 2))
    for pair in range(pairs):
        for who in (0, 1) if pair % 2 else (1, 0):
            spent[pair, who] = seconds(actions[who])[:2]
    (cpu, wall), (their_cpu, their_wall) = np.median(spent, axis=0)
    low, middle, high = np.quantile(spent[:, 0, 0] / spent[:, 1, 0], (0.25, 0.5, 0.75))
    times = f"{cpu:.3f} | {their_cpu:.3f} | {wall:.3f} | {their_wall:.3f}"
    return f"| {grid.name} | {classes} | {times} | {middle:.3f} ({low:.3f}-{high:.3f}) | {share:.7f} |"


def cubes(size: int) -> tuple[Shape, Shape]:
    """Shape of the logits whose memory is measured, and of their labels."""
    small = size * 5 // 6
    return (small, small, small), (size, size, size)


def peak_mb(who: str, size: int) -> int:
    """Peak memory (MB) of a process that makes the logits and exports them by `who`: ours, nnunet or nobody."""
    command = [sys.executable, "-m", "benchmarks.validation_export", "--export-once", who, "--memory", str(size)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def export_once(who: str, size: int) -> None:
    """What a child of `peak_mb` does. Logits are filled class by class, so that making them needs no more than they do."""
    (shape, original), ours = cubes(size), of_classes(MEMORY_CLASSES)
    logits = torch.empty((MEMORY_CLASSES, *shape), dtype=torch.half)
    for number, values in enumerate(logits):
        values.copy_(logits_of(1, shape, seed=number)[0])
    actions = {"ours": ours.segmentation, "nnunet": lambda *case: nnunets(ours, *case), "nobody": lambda *_: None}
    seconds(lambda: actions[who](logits, case(original)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def show_memory(size: int) -> None:
    """Peaks with the logits and the libraries included, and above them."""
    peaks = {who: peak_mb(who, size) for who in ("nobody", "ours", "nnunet")}
    above = {who: peaks[who] - peaks["nobody"] for who in ("ours", "nnunet")}
    logits_mb = MEMORY_CLASSES * math.prod(cubes(size)[0]) * 2 / 2**20
    print(f"{MEMORY_CLASSES} classes, {cubes(size)[0]} to {cubes(size)[1]} voxels; logits {logits_mb:.0f} MB; peaks in MB: {peaks}")
    print(f"above logits and libraries: {above}; whole peak: {peaks['ours'] / peaks['nnunet']:.2f} of nnU-Net's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 118])
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--export-once", choices=["ours", "nnunet", "nobody"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.export_once:
        export_once(options.export_once, options.memory)
        return
    if options.memory:
        show_memory(options.memory)
        return
    print("| case | classes | CPU s | nnU-Net's | wall s | nnU-Net's | ratio of CPU (quartiles) | equal labels |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for classes in options.classes:
        for grid in GRIDS:
            print(compare(grid, classes, options.pairs), flush=True)


if __name__ == "__main__":
    main()
