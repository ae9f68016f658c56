"""One table of what is measured beside nnU-Net: ours, nnU-Net's, their ratio with quartiles, and the command that measures it again.

    python -m benchmarks.table [--large] [--only epoch augmentation ...] [--keep FOLDER]

Runs the benchmarks one after the other, each in a process of its own, with few rounds; with --large with as many as docs/performance.md
has, which takes hours. What each prints, and its JSON, is kept in --keep, by default a new temporary folder. The exit code is 1 if one
of them failed; the others are in the table all the same.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.rows import Row, stored

SMALL = {
    "augmentation": "--samples 40",
    "epoch": "--epochs 6 --iterations 20",
    "consumer": "--rounds 4 --batches 3",
    "workers": "--pairs 6 --networks demo",
    "validation": "--pairs 4",
    "validation_export": "--pairs 4 --classes 3",
    "validation_memory": "--classes 60 --size 128",
    "start": "--rounds 1",
}
"""Benchmark -> its arguments."""
LARGE = {
    "augmentation": "--samples 400",
    "epoch": "--epochs 30",
    "consumer": "--rounds 20",
    "workers": "--pairs 20",
    "validation": "--pairs 20",
    "validation_export": "--pairs 20",
    "validation_memory": "--classes 100 --size 192",
    "start": "--rounds 5",
}
HEADER = ["what", "nnfleet", "nnU-Net", "ratio (quartiles)", "command"]


def command_of(name: str, arguments: str) -> str:
    """What a person enters to measure it again."""
    return f"python -m benchmarks.{name} {arguments}"


def measured(name: str, arguments: str, folder: Path) -> list[Row] | None:
    """The rows of one benchmark, run now; None if it failed. What it prints is kept in the folder."""
    json_file, log = folder / f"{name}.json", folder / f"{name}.txt"
    with log.open("w") as output:
        code = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *arguments.split(), "--json", str(json_file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        ).returncode
    return stored(json_file) if code == 0 else None


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def lines_of(name: str, arguments: str, rows: Sequence[Row] | None, folder: Path) -> list[str]:
    """The lines of one benchmark; the command stands in the first one."""
    command = f"`{command_of(name, arguments)}`"
    if rows is None:
        return [line([f"{name}: failed, see {folder / f'{name}.txt'}", "-", "-", "-", command])]
    return [line([*row.cells, command if place == 0 else ""]) for place, row in enumerate(rows)]


def machine() -> str:
    """What it was measured on, in a line."""
    models = [text.partition(":")[2].strip() for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "nnunetv2", "batchgeneratorsv2", "ray", "numba"))
    load = f"load of other work at the start {os.getloadavg()[0]:.1f}"
    return f"{len(os.sched_getaffinity(0))} cores ({models[0] if models else platform.machine()}), {load}; {versions}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="with as many rounds as docs/performance.md has")
    parser.add_argument("--only", nargs="+", choices=list(SMALL), default=list(SMALL))
    parser.add_argument("--keep", type=Path, help="folder for what each prints, and its JSON")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="nnfleet-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    chosen, on, lines, failed = LARGE if options.large else SMALL, machine(), [line(HEADER), line(["---"] * len(HEADER))], False
    for name in options.only:
        began = time.monotonic()
        print(f"{command_of(name, chosen[name])} ...", end=" ", file=sys.stderr, flush=True)
        rows = measured(name, chosen[name], folder)
        print(f"{'failed after ' if rows is None else ''}{time.monotonic() - began:.0f} s", file=sys.stderr)
        failed = failed or rows is None
        lines += lines_of(name, chosen[name], rows, folder)
    print("\n".join(lines))
    print(f"\n{on}. What each prints lies in {folder}.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
