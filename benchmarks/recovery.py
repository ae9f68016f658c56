"""Death of a worker to the next training step, in parts, beside an empty training function under the same settings of Ray Train.

    python -m benchmarks.recovery [--rounds 2] [--kills 3] [--busy 3]

Two workers on this machine. In turn, a round trains a toy dataset and an empty function that only waits; rank 0 is killed several times
in each. `--busy`: so many kills more while a loader actor of the killed rank is preparing a batch that takes long.
"""

import argparse
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.contract.states import TrainingEnd

os.environ["OMP_NUM_THREADS"] = "1"
STEP = "first training step"
PARTS = (
    "noticed",
    "old workers torn down",
    "new workers started",
    "first line",
    "imports",
    "fencing token acquired",
    "newest state found and checked",
    "loader actors asked for",
    "network built",
    "state restored",
    "warmed up",
    "first batch",
    STEP,
)
"""Moments in their order; each part is the time since the moment before."""


class Marks:
    """A file of moments, appended to by every process; this module imports nothing heavy, so that an empty worker stays empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, name: str) -> None:
        """Note that `name` was reached now."""
        with self.path.open("a") as stream:
            stream.write(json.dumps({"name": name, "unix": time.time(), "cpu_s": time.process_time(), "pid": os.getpid()}) + "\n")

    def read(self, since_unix: float = 0.0) -> list[dict[str, Any]]:
        """All moments after `since_unix`, oldest first."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return sorted((m for m in map(json.loads, lines) if m["unix"] > since_unix), key=lambda m: float(m["unix"]))

    def wait(self, name: str, since_unix: float, timeout_s: float = 120.0) -> dict[str, Any]:
        """The first `name` after `since_unix`, waited for."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for mark in self.read(since_unix):
                if mark["name"] == name:
                    return mark
            time.sleep(0.05)
        raise TimeoutError(f"{name} was not reached within {timeout_s:.0f} s")


def controller_marks(marks: Marks) -> Any:
    """A callback of Ray Train's controller that notes what it sees and does."""
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Marker(WorkerGroupCallback):
        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            if worker_group_status.errors:
                marks.put("noticed")

        def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
            marks.put("old workers torn down")

        def after_worker_group_start(self, worker_group: Any) -> None:
            marks.put("new workers started")

    return Marker()


def is_rank_zero() -> bool:
    """In a worker of Ray Train."""
    import ray.train

    return bool(ray.train.get_context().get_world_rank() == 0)


def empty_worker(config: dict[str, Any]) -> None:
    """Waits until it is told to end."""
    if is_rank_zero():
        Marks(Path(config["marks"])).put("first line")
        Marks(Path(config["marks"])).put(STEP)
    while not Path(config["end"]).exists():
        time.sleep(0.05)


def our_worker(config: dict[str, Any]) -> "TrainingEnd":
    """The product's worker; rank 0 notes when its parts return."""
    marks = Marks(Path(config.pop("marks")))
    if not is_rank_zero():
        from orchestrator.training.worker import train_worker

        return train_worker(config)
    marks.put("first line")
    from orchestrator.training import loader_pool, worker
    from trainers.network import learner
    from trainers.training import assemble

    marks.put("imports")
    note_return(marks, worker, "acquire_start", "fencing token acquired")
    note_return(marks, assemble, "newest_everywhere", "newest state found and checked")
    note_return(marks, loader_pool.LoaderPool, "__enter__", "loader actors asked for")
    note_return(marks, assemble, "assemble", "network built")
    note_return(marks, assemble, "restore", "state restored")
    note_return(marks, assemble, "warm_up", "warmed up")
    note_return(marks, loader_pool.LoaderPool, "arrived", "first batch")
    note_return(marks, learner.Learner, "step", STEP)
    return worker.train_worker(config)


def note_return(marks: Marks, owner: Any, name: str, moment: str) -> None:
    """Note when `owner.name` returns for the first time; from then on it is as it was."""
    original = getattr(owner, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        setattr(owner, name, original)
        marks.put(moment)
        return result

    setattr(owner, name, noting)


class Fit:
    """One `fit` of Ray Train in a thread, ours or the empty one, that can be killed and ended."""

    def __init__(self, base: Path, toy: Any, configuration: str, *, is_ours: bool) -> None:
        from orchestrator.training.driver import trainer
        from orchestrator.training.worker import WorkerJob
        from tests.toy import toy_spec
        from trainers.contract.fencing import acquire_token
        from trainers.contract.run_folder import RunFolder
        from trainers.contract.run_spec import LoaderSpec, Schedule, WorkerSpec
        from trainers.storage.files import write_atomic

        spec = toy_spec(
            toy,
            configuration,
            workers=WorkerSpec(count=2, gpus=0, cpus=1),
            loader=LoaderSpec(actors=1, prefetch=3),
            schedule=Schedule(epochs=10_000, train_iterations=5, val_iterations=2),
            model_folder=base / "model",
        )
        self.folder, self.marks = RunFolder(spec.run_folder), Marks(base / "marks")
        write_atomic(self.folder.spec_file, spec.model_dump_json().encode())
        job = WorkerJob(str(self.folder.root), "benchmark", acquire_token(self.folder, "benchmark", {"role": "driver", "pid": os.getpid()}))
        made: Any = trainer(spec, self.folder, job)
        made.train_loop_per_worker = our_worker if is_ours else empty_worker
        own = vars(job) if is_ours else {"end": str(self.folder.stop_file)}
        made.train_loop_config = {**own, "marks": str(self.marks.path)}
        made.run_config.callbacks = [*(made.run_config.callbacks or [] if is_ours else []), controller_marks(self.marks)]
        self._thread = threading.Thread(target=made.fit)
        self._thread.start()
        self.marks.wait(STEP, 0.0)

    def kill(self, when: Callable[[int], bool]) -> dict[str, float]:
        """SIGKILL to rank 0 as soon as `when(its pid)` holds; seconds of each part until the next start has done a step."""
        pid = [mark["pid"] for mark in self.marks.read() if mark["name"] == "first line"][-1]
        while not when(pid):
            time.sleep(0.002)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        self.marks.wait(STEP, killed)
        first: dict[str, float] = {}
        for mark in self.marks.read(killed):
            first.setdefault(mark["name"], float(mark["unix"]))
        parts, before = {}, killed
        for name in (part for part in PARTS if part in first):
            parts[name], before = first[name] - before, first[name]
        return {**parts, "total": first[STEP] - killed}

    def end(self) -> None:
        """Let it end by itself."""
        self.folder.stop_file.write_text("{}")
        self._thread.join()


def loader_is_busy(pid: int) -> bool:
    """True while a loader actor on this machine is preparing a batch."""
    import psutil

    return any(" ".join(p.info["cmdline"] or []).startswith("ray::Loader.make") for p in psutil.process_iter(["cmdline"]))


def add_busy_configuration(toy: Any) -> None:
    """A configuration `busy` whose batches take a loader longer than the steps on them: large patches, a tiny network."""
    path = toy.preprocessed / "nnUNetPlans.json"
    plans = json.loads(path.read_text())
    busy = json.loads(json.dumps(plans["configurations"]["toy_3d"]))
    busy |= {"patch_size": [80, 80, 80], "batch_size": 2}
    busy["architecture"]["arch_kwargs"]["features_per_stage"] = [1, 1, 1]
    plans["configurations"]["busy"] = busy
    path.write_text(json.dumps(plans))


def main() -> None:
    import tempfile

    from tests.integration.cluster import local_ray
    from tests.toy import toy_dataset

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--busy", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nnf-") as base, local_ray(num_cpus=2):
        toy = toy_dataset(Path(base) / "toy")
        add_busy_configuration(toy)
        found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
        for number in range(options.rounds):
            for is_ours in (True, False):
                found[is_ours] += kills(Path(base) / f"{number}-{is_ours}", toy, "toy_3d", options.kills, is_ours, lambda pid: True)
        if options.rounds:
            print_table(found[True], found[False])
        if options.busy:
            busy = kills(Path(base) / "busy", toy, "busy", options.busy, True, loader_is_busy)
            noticed = ", ".join(f"{parts['noticed']:.2f}" for parts in busy)
            print(f"\nkilled while its loader prepares a batch: noticed after {noticed} s; next step after {told(busy, 'total')} s")


def kills(base: Path, toy: Any, configuration: str, count: int, is_ours: bool, when: Callable[[int], bool]) -> list[dict[str, float]]:
    """So many kills in one training, a few seconds apart."""
    base.mkdir(parents=True)
    fit = Fit(base, toy, configuration, is_ours=is_ours)
    found = []
    for _ in range(count):
        time.sleep(3.0)
        found.append(fit.kill(when))
    fit.end()
    return found


def told(rows: list[dict[str, float]], part: str) -> str:
    """Median of a part; a dash where there is none."""
    values = [row[part] for row in rows if part in row]
    return f"{statistics.median(values):.2f}" if values else "-"


def print_table(ours: list[dict[str, float]], empty: list[dict[str, float]]) -> None:
    """Medians of both, part by part."""
    print(f"\nrank 0 killed {len(ours)} times in each; median seconds of each part")
    print("\n| part | nnfleet | empty function |\n| --- | --- | --- |")
    for part in (*PARTS, "total"):
        print(f"| {part} | {told(ours, part)} | {told(empty, part)} |")
    pairs = [a["total"] - b["total"] for a, b in zip(ours, empty, strict=True)]
    print(f"\nnnfleet minus empty, pair by pair: median {statistics.median(pairs):.2f} s, {min(pairs):.2f} to {max(pairs):.2f} s")


if __name__ == "__main__":
    main()
