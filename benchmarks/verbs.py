"""Seconds of the verbs that a person waits for, as processes of their own: `python -m benchmarks.verbs --home HOME EXPERIMENT.yaml`.

The local services of HOME (`NNFLEET_HOME`, by default the usual one) have to run; RUN is a run that they or nnUNet_results know.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMES = 10
NAMES_NONE = "no/such/run"


@dataclass(frozen=True)
class Sample:
    """One call."""

    wall_s: float
    cpu_s: float
    """User and system, of the process and its children; what the services compute is not in it."""
    exit_code: int


def main() -> None:
    """Measure each verb and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--home", type=Path, help="of the local services")
    parser.add_argument("--run", default="", help="a run for logs; none: that verb is left out")
    parser.add_argument("--times", type=int, default=TIMES)
    parser.add_argument("--submits", action="store_true", help="also `submit`, which trains")
    options = parser.parse_args()
    environment = os.environ | ({"NNFLEET_HOME": str(options.home)} if options.home else {})
    print(f"{'verb':<16}{'wall s':>8}{'CPU s':>8}{'most':>8}  exit   (medians of {options.times})")
    for name, arguments in verbs(options.experiment, options.run, submits=options.submits).items():
        samples = [sample(arguments, environment) for _ in range(options.times)]
        print(row(name, samples), flush=True)


def verbs(experiment: Path, run: str, *, submits: bool) -> dict[str, list[str]]:
    """What is measured, by name."""
    named = {
        "help": ["--help"],
        "typo": ["stauts"],
        "wrong name": ["logs", NAMES_NONE],
        "status": ["status"],
        "plan": ["plan", str(experiment)],
        "stop (none)": ["stop", NAMES_NONE],
    }
    return named | ({"logs": ["logs", run]} if run else {}) | ({"submit": ["submit", str(experiment)]} if submits else {})


def sample(arguments: Sequence[str], environment: Mapping[str, str]) -> Sample:
    """One call of the command line."""
    before, began = cpu_of_children_s(), time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], env=dict(environment), capture_output=True, timeout=600, check=False
    )
    return Sample(time.monotonic() - began, cpu_of_children_s() - before, ended.returncode)


def cpu_of_children_s() -> float:
    """CPU seconds of every child that has ended and was waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def row(name: str, samples: Sequence[Sample]) -> str:
    """One line of the table: medians, the longest wait, and the exit codes that were seen. Pure."""
    codes = ",".join(map(str, sorted({each.exit_code for each in samples})))
    wall, cpu = (statistics.median(values) for values in ([s.wall_s for s in samples], [s.cpu_s for s in samples]))
    return f"{name:<16}{wall:>8.2f}{cpu:>8.2f}{max(each.wall_s for each in samples):>8.2f}  {codes}"


if __name__ == "__main__":
    main()
