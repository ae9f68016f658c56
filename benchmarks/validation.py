"""Full validation of the same cases with the same weights, ours beside nnU-Net's `--val`, in turn in one process tree on one core.

    python -m benchmarks.validation [--pairs 20] [--network small] [--cases 1] [--json FILE]

Counted on each side, as CPU and wall seconds: building the network, loading the checkpoint, the forward passes of all tiles and their
mirrored copies, export to the original grid, writing, scoring. Ours scores surfaces as well. nnU-Net's is its trainer's
`perform_actual_validation`; its two pools start a process each. A second time it has threads of this process in their place, which leaves
out what these processes cost to start. What either side imports once at its start is not counted, nor Ray's actor.

The first pair of each is thrown away. Labels and Dice of both sides are compared.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

os.environ.update({"OMP_NUM_THREADS": "1", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"})

from benchmarks.rows import Row, pairwise, store

PARTS = ("forwards", "export", "rest", "total")
SIDES = ("ours", "nnunet", "nnunet with threads")


def quartiles(values: list[float]) -> str:
    """Median, with the quartiles behind it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def table(spent: dict[str, list[dict[str, dict[str, float]]]]) -> str:
    """Medians of the seconds of each part, and the ratio of ours to the others', pair by pair. Pure."""
    lines = ["| part | ours | nnU-Net | ratio | nnU-Net with threads | ratio |", "| --- | --- | --- | --- | --- | --- |"]
    for kind in ("cpu", "wall"):
        for part in PARTS:
            columns = {side: [once[kind][part] for once in spent[side]] for side in SIDES}
            cells = [f"{statistics.median(columns['ours']):.2f}"]
            for other in SIDES[1:]:
                ratios = [ours / max(theirs, 1e-9) for ours, theirs in zip(columns["ours"], columns[other], strict=True)]
                is_split = other != "nnunet" or part in ("forwards", "total")  # its export is in other processes
                cells += [f"{statistics.median(columns[other]):.2f}", quartiles(ratios)] if is_split else ["", ""]
            lines.append(f"| {part}, {kind} s | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_rows(spent: dict[str, list[dict[str, dict[str, float]]]], network: str) -> list[Row]:
    """Its rows in the table of all benchmarks."""
    found = []
    for kind in ("cpu", "wall"):
        ours, theirs = ([once[kind]["total"] for once in spent[side]] for side in SIDES[:2])
        found.append(pairwise(f"full validation of a fold, {network} network, {kind} s", ours, theirs))
    return found


def main() -> None:
    from benchmarks.validation_sides import NETWORKS, Sides  # not where nnU-Net's spawned processes import this module again

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    parser.add_argument("--cases", type=int, default=1, help="validation cases of the fold")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as base:
        sides = Sides.made(Path(base), NETWORKS[options.network], options.cases)
        spent: dict[str, list[dict[str, dict[str, float]]]] = {side: [] for side in SIDES}
        for pair in range(options.pairs + 1):
            for side in SIDES if pair % 2 else SIDES[::-1]:
                once = sides.measured(side)
                if pair:
                    spent[side].append(once)
            print(
                f"pair {pair}: " + ", ".join(f"{side} {spent[side][-1]['cpu']['total']:.2f}" for side in SIDES if spent[side]), flush=True
            )
        equal, dice = sides.agreement()
    print(f"{options.network}, {options.cases} cases, {options.pairs} pairs")
    print(table(spent))
    print(f"equal labels {equal:.7f}, largest difference of Dice {dice:.2e}")
    store(options.json, table_rows(spent, options.network), spent)


if __name__ == "__main__":
    main()
