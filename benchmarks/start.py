"""A run from `nnfleet submit` to its first training step and from its last to SUCCEEDED, in parts, and what it holds of memory meanwhile.

    python -m benchmarks.start [--rounds 5] [--workers 1]

Services of their own in a temporary home, Ray up before the first round. A round submits a toy experiment (six small cases, a tiny network)
by the command itself and follows it to its end. Each part is the time since the moment before. Memory is PSS: a page that several processes
share is counted once in all, to equal parts.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recovery import PARTS, STEP, Marks
from benchmarks.rows import Row, store
from benchmarks.start_job import MARKS_VARIABLE

START = (
    "command begins",
    "job server has the campaign",
    "campaign begins",
    "campaign imports",
    "campaign owns its runs",
    "training submitted",
    "train begins",
    "driver imports",
    "driver joined Ray",
    "preflight",
    "trainer made",
    *PARTS[PARTS.index("first line") :],
)
END = (
    "Ray Train ended",
    "validation submitted",
    "validate begins",
    "validation imports",
    "validation joined Ray",
    "case worker begins",
    "network loaded",
    "first worker is ready",
    "cases done",
    "delivered",
    "outcome stored",
    "validation job ends",
    "SUCCEEDED is seen",
)
KINDS = {
    "orchestrator.training.driver": "driver",
    "benchmarks.start_job": "driver or campaign",
    "ray::TrainController": "Ray Train's controller",
    "ray::PlacementGroupCleaner": "watchers of Ray Train",
    "ray::PreemptionWatcher": "watchers of Ray Train",
    "ray::SynchronizationActor": "watchers of Ray Train",
    "ray::DatasetManager": "watchers of Ray Train",
    "ray::_AutoscalingCoordinator": "once per cluster",
    "ray::JobSupervisor": "job supervisors",
    "ray::RayTrainWorker": "worker",
    "ray::Loader": "loader actor",
    "ray::IDLE": "spare worker",
}
"""Beginnings and parts of command lines, and what such a process is."""


def processes_of(home: Path) -> Iterator[tuple[int, str]]:
    """Pid and command line of every process whose environment names this home."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"NNFLEET_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def pss_mb(pid: int) -> float:
    """Proportional set size of a process, in MB. Raises OSError when it has ended."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def kind_of(pid: int, command: str) -> str:
    """What a process of a run is; empty for those of the services."""
    if "benchmarks.start_job" in command:
        job = Path(f"/proc/{pid}/environ").read_bytes().split(b"NNFLEET_SUBMISSION_ID=")[-1].split(b"-")[0].decode()
        return {"campaign": "campaign", "train": "driver", "validate": "validation job"}.get(job, "")
    return next((kind for name, kind in KINDS.items() if name in command), "")


def memory_mb(home: Path) -> list[tuple[str, float]]:
    """Kind and PSS in MB of each process of the runs."""
    found = []
    for pid, command in processes_of(home):
        with contextlib.suppress(OSError):
            if kind := kind_of(pid, command):
                found.append((kind, pss_mb(pid)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from tests.integration.local_home import services_of_its_own
    from tests.toy import toy_dataset

    with tempfile.TemporaryDirectory(prefix="nnf-") as base:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # which some shells set, and a user's has not
        os.environ[MARKS_VARIABLE] = str(Path(base) / "marks")
        toy = toy_dataset(Path(base) / "toy")
        with services_of_its_own() as (home, services):
            time.sleep(5.0)  # Ray starts its spare workers
            rounds = [Round(Path(base) / str(n), toy, home.root, services, options) for n in range(options.rounds)]
    print_parts("`nnfleet submit` to the first training step", START, [each.start for each in rounds])
    print_parts("end of the training to SUCCEEDED", END, [each.end for each in rounds])
    print_memory([each.memory for each in rounds])
    store(options.json, table_rows(rounds), [{"start": each.start, "end": each.end, "memory": each.memory} for each in rounds])


def table_rows(rounds: Sequence["Round"]) -> list[Row]:
    """Its rows in the table of all benchmarks; nnU-Net submits nothing."""
    begins, ends = ([each.start["total"] for each in rounds], [each.end["total without forwards"] for each in rounds])
    of_run = ("driver", "Ray Train's controller", "watchers of Ray Train")
    head, loader = ([sum(mb for kind, mb in each.memory if kind in kinds) for each in rounds] for kinds in (of_run, ("loader actor",)))
    return [
        Row("`submit` to the first training step, s", statistics.median(begins)),
        Row("last step to SUCCEEDED, beside the forwards, s", statistics.median(ends)),
        Row("memory of a training's driver, controller and watchers, MB", statistics.median(head)),
        Row("memory of a loader actor, MB", statistics.median(loader)),
    ]


class Round:
    """One experiment from its submission to its end."""

    def __init__(self, base: Path, toy: Any, home: Path, services: Any, options: argparse.Namespace) -> None:
        from orchestrator import api
        from tests.integration.local_home import toy_experiment

        base.mkdir()
        seed = int(base.name)  # another run each time
        workers = {"count": options.workers, "gpus": 0, "cpus": 1}
        wanted = toy_experiment(toy, base / "results", epochs=options.epochs, train_iterations=40, workers=workers, seed=seed)
        file, self.marks = base / "experiment.yaml", Marks(Path(os.environ[MARKS_VARIABLE]))
        file.write_text(wanted.to_yaml())
        self.memory: list[tuple[str, float]] = []
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.start_job", "submit", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        self.marks.wait(STEP, began, 600.0)
        time.sleep(1.5)
        self.memory = memory_mb(home)
        campaign = max(api.status(), key=lambda row: row.since_unix).campaign
        self.marks.wait("training ended", began, 600.0)
        (status,) = api.wait(campaign)
        seen = time.time()
        assert status.state.value == "SUCCEEDED", status.reason
        marks = [*self.marks.read(began), {"name": "SUCCEEDED is seen", "unix": seen}]
        self.start = parts(marks, began, START)
        ended = next(float(mark["unix"]) for mark in marks if mark["name"] == "training ended")
        cases = [mark["name"].split()[1:] for mark in marks if mark["name"].startswith("case ") and mark["name"].split()[1][0].isdigit()]
        self.end = parts(marks, ended, END)
        self.end["of it cases"] = sum(float(total) for total, _ in cases)
        self.end["of it forwards"] = sum(float(forward) for _, forward in cases)
        self.end["total without forwards"] = self.end["total"] - self.end["of it forwards"]


def parts(marks: list[dict[str, Any]], since: float, names: tuple[str, ...]) -> dict[str, float]:
    """Seconds of each part after `since`, in the order in which they happened, and their total; likewise CPU seconds of its process."""
    first: dict[str, dict[str, Any]] = {}
    for mark in marks:
        if float(mark["unix"]) >= since:
            first.setdefault(mark["name"], mark)
    found, before, spent = {}, since, dict[Any, float]()
    for name in (name for name in names if name in first):
        mark = first[name]
        found[name], before = float(mark["unix"]) - before, float(mark["unix"])
        if "pid" in mark:
            found[f"CPU: {name}"] = float(mark["cpu_s"]) - spent.get(mark["pid"], 0.0)
            spent[mark["pid"]] = float(mark["cpu_s"])
    return {**found, "total": before - since}


def median_of(rows: list[dict[str, float]], part: str) -> str:
    """Median of a part, with the least and the greatest value."""
    values = [row[part] for row in rows if part in row]
    return f"{statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f}" if values else "- | -"


def print_parts(title: str, names: tuple[str, ...], rows: list[dict[str, float]]) -> None:
    """Medians of the parts over the rounds."""
    print(f"\n{title}, {len(rows)} rounds\n\n| until | median s | range | CPU s of the process |\n| --- | --- | --- | --- |")
    for name in (*names, *(name for name in rows[0] if name not in names and not name.startswith("CPU: "))):
        cpu = median_of(rows, f"CPU: {name}").partition(" |")[0]
        print(f"| {name} | {median_of(rows, name)} | {cpu} |")


def print_memory(rounds: list[list[tuple[str, float]]]) -> None:
    """Medians over the rounds: processes of each kind and what they hold together."""
    print("\nPSS while the run trains\n\n| processes | number | median MB |\n| --- | --- | --- |")
    for kind in dict.fromkeys(kind for each in rounds for kind, _ in each):
        sizes = [[size for name, size in each if name == kind] for each in rounds]
        print(f"| {kind} | {statistics.median(map(len, sizes)):.0f} | {statistics.median(map(sum, sizes)):.0f} |")


if __name__ == "__main__":
    main()
