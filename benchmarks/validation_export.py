"""Logits of a case to labels on its original grid: ours beside nnU-Net's export of the same logits, one thread.

    python -m benchmarks.validation_export [--pairs 20] [--classes 3 118]

CPU and wall seconds in alternating pairs in one process; the ratio is that of the CPU seconds, pair by pair.
"""

import argparse
import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks.rows import Row, pairwise, store
from tests.export_case import CUBE, THIN, Shape, case, exporter, logits_of, nnunets
from trainers.validation.export import Exporter


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


def compare(grid: Grid, classes: int, pairs: int) -> tuple[str, Row]:
    """A row of the table, and of that of all benchmarks; who begins a pair alternates. The first pair warms up and says which labels are
    equal."""
    ours, logits, properties = of_classes(classes, grid.spacing), logits_of(classes, grid.shape), case(grid.original, grid.spacing)
    actions = (lambda: ours.segmentation(logits, properties)), (lambda: nnunets(ours, logits, properties))
    share = float((seconds(actions[0])[2] == seconds(actions[1])[2]).mean())
    spent = np.empty((pairs, 2, 2))
    for pair in range(pairs):
        for who in (0, 1) if pair % 2 else (1, 0):
            spent[pair, who] = seconds(actions[who])[:2]
    (cpu, wall), (their_cpu, their_wall) = np.median(spent, axis=0)
    low, middle, high = np.quantile(spent[:, 0, 0] / spent[:, 1, 0], (0.25, 0.5, 0.75))
    row = pairwise(f"export of a case, {grid.name}, {classes} classes, CPU s", list(spent[:, 0, 0]), list(spent[:, 1, 0]))
    times = f"{cpu:.3f} | {their_cpu:.3f} | {wall:.3f} | {their_wall:.3f}"
    return f"| {grid.name} | {classes} | {times} | {middle:.3f} ({low:.3f}-{high:.3f}) | {share:.7f} |", row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 118])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| case | classes | CPU s | nnU-Net's | wall s | nnU-Net's | ratio of CPU (quartiles) | equal labels |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for classes in options.classes:
        for grid in GRIDS:
            text, row = compare(grid, classes, options.pairs)
            print(text, flush=True)
            rows.append(row)
    store(options.json, rows, None)


if __name__ == "__main__":
    main()
