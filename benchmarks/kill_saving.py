"""kill -9 at random moments of saving and uploading: does anybody ever read a broken or a worse best checkpoint?

    python -m benchmarks.kill_saving [--kills 100] [--seed 0]

A writer commits states without pause (some are new bests, some lie within an epoch), a publisher sends the bests to a real MLflow server,
each in a process of its own; one of them is killed at a random moment, looked after and started again. All the time a reader follows the
newest commit, `checkpoint_best.pth` and the published best: bytes agree with their digests, the weights are those of the score, and no
score falls. The weights of every state are filled with its score, so a checkpoint says itself what it is.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import logging
import math
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from orchestrator.errors import CheckpointError, TrackingError
from orchestrator.publishing import checkpoint_store
from orchestrator.publishing.checkpoint_store import download_checkpoint, published
from orchestrator.publishing.publisher import Publisher, deliver_run
from orchestrator.tracking.client import Tracker
from tests.fake_run import FakeRun, epoch_row
from tests.integration.mlflow_server import MlflowServer
from trainers.contract.commits import BestRecord, Committed, InFlight, Manifest, newest_committed
from trainers.contract.fencing import acquire_token, newest_token
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import sha256_of, write_json_atomic
from trainers.training import state
from trainers.training.state import StateWriter, TrainingProgress, newest_valid

DRIVER = "driver-1"
VALUES = 600_000
"""Numbers in the weights, and as many in the momentum: a state of 5 MB."""
LONGEST_LIFE_S = 1.2
"""A child is killed somewhere between its start (mostly the publisher's first step) and this age."""


# ---- where a child is ------------------------------------------------------------------------------------------------------


class Phase:
    """What a process is doing, in a file that outlives a kill."""

    SIZE = 64

    def __init__(self, path: Path) -> None:
        path.write_bytes(b" " * self.SIZE)
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), self.SIZE)
        self.set("starting")

    def set(self, name: str) -> None:
        """From now on the process does this."""
        self._memory[:] = name.encode().ljust(self.SIZE)

    def during(self, name: Callable[..., str], function: Callable[..., Any], thread: str = "") -> Callable[..., Any]:
        """`function`, saying where it is, and afterwards that it is between two things. Only in threads of this name, if one is given."""

        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> Any:
            if thread not in threading.current_thread().name:
                return function(*args, **kwargs)
            self.set(name(*args))
            try:
                return function(*args, **kwargs)
            finally:
                self.set("between")

        return told

    @staticmethod
    def read(path: Path) -> str:
        """What the process did last."""
        return path.read_bytes().decode().strip() or "starting"


def watch_writer(phase: Phase) -> None:
    """Make the steps of a commit tell where they are."""
    writes = {"best": "best: tensors", "state": "state: tensors"}
    state.write_hashed = phase.during(lambda path, _: writes[path.parent.name], state.write_hashed)  # type: ignore[attr-defined]
    state.write_atomic = phase.during(lambda *_: "commit: json", state.write_atomic)  # type: ignore[attr-defined]
    state.link_atomic = phase.during(lambda *_: "nnU-Net's names: links", state.link_atomic)  # type: ignore[attr-defined]
    state.prune = phase.during(lambda *_: "prune", state.prune)
    state.newest_valid = phase.during(lambda *_: "restore", state.newest_valid)


def watch_publisher(phase: Phase) -> None:
    """Make the steps of an upload tell where they are."""
    kinds = {".pth": "checkpoint", ".json": "manifest and other json"}
    names = {
        "upload_file": lambda *args: f"upload: {kinds.get(args[2].suffix, 'other files')}",
        "list_files": lambda *_: "upload: size asked",
        "set_tags": lambda *_: "upload: tag (the commit)",
        "delete_directory": lambda *_: "upload: older ones deleted",
    }
    for method, name in names.items():
        setattr(Tracker, method, phase.during(name, getattr(Tracker, method), thread="checkpoints"))
    checkpoint_store.check_file = phase.during(lambda *_: "upload: digest", checkpoint_store.check_file, thread="checkpoints")


# ---- the children ----------------------------------------------------------------------------------------------------------


def tensors_of(score: float) -> dict[str, Any]:
    """A state whose every number is the score."""
    values = torch.full((VALUES,), score, dtype=torch.float32)
    optimizer = {"state": {0: {"momentum_buffer": torch.full((VALUES,), -score)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    return {"network_weights": {"w": values}, "optimizer_state": optimizer, "grad_scaler_state": None}


def write(folder: RunFolder, run_key: str, seed: int, phase_file: Path) -> None:
    """Restore and commit, for ever."""
    phase = Phase(phase_file)
    watch_writer(phase)
    draw = random.Random(seed)
    found = state.newest_valid(folder)
    writer = StateWriter(folder, run_key, acquire_token(folder, DRIVER), {"trainer_name": "nnUNetTrainer"}, 10**6)
    writer.start_from(found)
    reached = TrainingProgress(found.history, found.best_policy, found.in_flight) if found else TrainingProgress()
    while True:
        is_best = False
        if reached.iterations_done < 250 and draw.random() < 0.4:  # within the epoch, from where the state before stands
            sums = InFlight(iteration=reached.iterations_done + 10, train_loss_sums=(1.0,), elapsed_s=1.0)
            reached = TrainingProgress(reached.history, reached.best_policy, sums)
            score = (reached.best_policy.score or 0.0) / 2
        else:
            epoch, best = reached.epochs_done, reached.best_policy
            is_best = draw.random() < 0.7
            score = (best.score or 0.0) + 0.0001 if is_best else (best.score or 0.0) * draw.random()
            if is_best:
                best = BestRecord(ema=score, score=score, best_epoch=epoch)
            reached = TrainingProgress((*reached.history, epoch_row(epoch, score, writer.fencing_token)), best)
        writer.commit(reached, is_best, functools.partial(tensors_of, score))


def publish(folder: RunFolder, phase_file: Path) -> None:
    """Publish, for ever."""
    logging.basicConfig(level=logging.WARNING)
    watch_publisher(Phase(phase_file))
    Publisher(folder, 1, interval_s=0.02).start()
    time.sleep(3600)


@dataclass
class Reader:
    """Reads what others would read, counts it, and notes whatever must not be."""

    folder: RunFolder
    tracker: Any
    """Only what is published needs it."""
    run_id: str
    target: Path
    reads: dict[str, int] = field(default_factory=lambda: collections.defaultdict(int))
    violations: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    """The highest score that each place has shown."""

    def read_all(self) -> None:
        """One round."""
        self.commit()
        self.best_file()
        self.published()

    def commit(self) -> None:
        """The newest commit and the files that it names. A file that is gone counts only if the commit is the newest still."""
        while (committed := newest_committed(self.folder)) is not None:
            named = [(self.folder.state / f"{committed.stem}.pth", committed.state_sha256)]
            named += [(self.folder.root / m.file, m.sha256) for m in (committed.best,) if m is not None]
            problem = next((f"{path.name} {how}" for path, digest in named if (how := differs(path, digest))), None)
            now = newest_committed(self.folder)
            if problem is not None and (now is None or now.stem != committed.stem):
                continue  # replaced and deleted while it was read
            if problem is not None:
                self.violations.append(f"newest commit {committed.stem}: {problem}")
            if committed.best is not None:
                self._score("newest commit", committed.best.ema_pseudo_dice or 0.0)
            elif self.scores["newest commit"]:
                self.violations.append(f"newest commit {committed.stem} has lost its best")
            self.reads["newest commit"] += 1
            return

    def best_file(self) -> None:
        """checkpoint_best.pth, as nnU-Net's predictor would load it."""
        try:
            content = self.folder.checkpoint("best").read_bytes()
        except FileNotFoundError:
            if self.scores["checkpoint_best.pth"]:
                self.violations.append("checkpoint_best.pth is gone")
            return
        self._weights("checkpoint_best.pth", content, None)

    def published(self) -> None:
        """The published best: the tag's pointer, its bytes, its weights. Replaced meanwhile is no fault, so the tag is compared after."""
        while True:
            try:
                before = published(self.tracker, self.run_id, "best")
                if before is None:
                    if self.scores["published best"]:
                        self.violations.append("the published best is gone")
                    return
                record = download_checkpoint(self.tracker, self.run_id, "best", self.target)
            except CheckpointError as err:
                if published(self.tracker, self.run_id, "best") != before:
                    continue
                self.violations.append(f"published best: {err}")
                return
            self._weights("published best", self.target.read_bytes(), record.manifest)
            return

    def _weights(self, place: str, content: bytes, manifest: Manifest | None) -> None:
        self.reads[place] += 1
        try:
            values = torch.load(io.BytesIO(content), weights_only=True)["network_weights"]["w"]
        except Exception as err:
            self.violations.append(f"{place} cannot be loaded: {type(err).__name__}: {err}")
            return
        score = float(values[0])
        if not bool((values == values[0]).all()):
            self.violations.append(f"{place} mixes two states")
        if manifest is not None and not math.isclose(score, manifest.ema_pseudo_dice or 0.0, rel_tol=1e-5):
            self.violations.append(f"{place}: the weights are of score {score}, the pointer says {manifest.ema_pseudo_dice}")
        self._score(place, score)

    def _score(self, place: str, score: float) -> None:
        if score < self.scores[place] * (1 - 1e-6):
            self.violations.append(f"{place}: the score fell from {self.scores[place]} to {score}")
        self.scores[place] = max(score, self.scores[place])


def differs(path: Path, digest: str) -> str | None:
    """Why a file is not what its digest says."""
    try:
        return None if sha256_of(path) == digest else "is not what its digest says"
    except FileNotFoundError:
        return "is gone"


def read(folder: RunFolder, uri: str, run_id: str, report: Path, stop: Path) -> None:
    """Read until somebody makes the file `stop`; the report is the last thing."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as own:
        reader = Reader(folder, Tracker(uri), run_id, Path(own) / "checkpoint.pth")
        while not stop.exists():
            try:
                reader.read_all()
            except TrackingError as err:
                reader.violations.append(f"the server that nobody kills did not answer: {err}")
        write_json_atomic(report, {"reads": reader.reads, "violations": reader.violations})


# ---- the killing -----------------------------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What a series of kills has shown."""

    moments: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    """(process, what it did) -> kills."""
    reads: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    epochs: int = 0
    states_read_after_kills: int = 0


class Children:
    """Processes forked from one that has imported everything: a start takes no seconds."""

    def __init__(self, folder: RunFolder, run_key: str, base: Path, seed: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__ if __name__ != "__main__" else "benchmarks.kill_saving"])
        self._folder, self._run_key, self._base, self._seed = folder, run_key, base, seed
        self._running: dict[str, Any] = {}

    def start(self, name: str, number: int = 0) -> None:
        """Start the writer or the publisher."""
        from benchmarks import kill_saving  # by its name also where this file is the program

        phase = self.phase_file(name)
        work: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "writer": (kill_saving.write, (self._folder, self._run_key, self._seed * 100_003 + number, phase)),
            "publisher": (kill_saving.publish, (self._folder, phase)),
        }
        self.run(name, *work[name])

    def run(self, name: str, function: Any, arguments: tuple[Any, ...]) -> None:
        """Start anything."""
        process = self._context.Process(target=function, args=arguments, name=name, daemon=True)
        process.start()
        self._running[name] = process

    def phase_file(self, name: str) -> Path:
        """Where a child says what it does."""
        return self._base / f"phase_{name}"

    def kill(self, name: str) -> str:
        """SIGKILL; returns what the child was doing."""
        process = self._running.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the {name} had ended by itself with {process.exitcode}: see its output above")
        return Phase.read(self.phase_file(name))

    def join(self, name: str) -> None:
        """Wait for one that ends by itself."""
        self._running.pop(name).join(120)

    def end(self) -> None:
        """End what runs."""
        for process in self._running.values():
            process.kill()
            process.join()


@contextlib.contextmanager
def children(folder: RunFolder, run_key: str, base: Path, seed: int) -> Iterator[Children]:
    started = Children(folder, run_key, base, seed)
    try:
        yield started
    finally:
        started.end()


def kill_saving(base: Path, server: MlflowServer, kills: int, seed: int) -> Findings:
    """Kill `kills` times and say what was seen. `base` is an empty folder."""
    from benchmarks import kill_saving as module

    run, tracker, draw, findings = FakeRun(base), Tracker(server.uri), random.Random(seed), Findings()
    folder = run.folder
    run_id = tracker.get_or_create_run(tracker.ensure_experiment("Dataset901_Toy"), run.spec)
    run.track(server.uri, run_id)
    report, stop = base / "report.json", base / "stop"
    with children(folder, run.spec.run_key, base, seed) as living:
        living.start("writer")
        living.start("publisher")
        living.run("reader", module.read, (folder, server.uri, run_id, report, stop))
        wait_for(lambda: published(tracker, run_id, "best") is not None and folder.checkpoint("best").is_file())
        highest = 0.0
        for number in range(1, kills + 1):
            name = draw.choice(["writer", "writer", "publisher"])
            if name == "publisher" and draw.random() < 0.9:  # it takes seconds to open its connection
                wait_for(lambda: Phase.read(living.phase_file("publisher")) != "starting")
            time.sleep(draw.uniform(0, LONGEST_LIFE_S))
            findings.moments[name, living.kill(name)] += 1
            if name == "writer":
                highest = look(folder, highest, findings)
            living.start(name, number)
        wait_for(lambda: Phase.read(living.phase_file("writer")) not in ("starting", "restore"))
        living.kill("writer")
        living.kill("publisher")
        newest = newest_valid(folder)
        StateWriter(folder, run.spec.run_key, acquire_token(folder, DRIVER), {}, 10**6).start_from(newest)  # a last restart tidies up
        finish(folder, tracker, run_id, base / "last.pth", newest, findings)
        stop.touch()
        living.join("reader")
    seen = json.loads(report.read_text())
    findings.reads, findings.violations = seen["reads"], [*seen["violations"], *findings.violations]
    findings.epochs = newest.epochs_done if newest else 0
    return findings


def look(folder: RunFolder, highest: float, findings: Findings) -> float:
    """What a restart would find after a kill of the writer; returns the best score, which must not have fallen."""
    try:
        found = newest_valid(folder)
    except CheckpointError as err:
        findings.violations.append(f"after a kill: {err}")
        return highest
    score = found.best.ema_pseudo_dice if found and found.best else None
    if score is None or score < highest:
        findings.violations.append(f"after a kill the best score is {score}, before it was {highest}")
        return highest
    findings.states_read_after_kills += 1
    return score


def finish(folder: RunFolder, tracker: Tracker, run_id: str, target: Path, newest: Committed | None, findings: Findings) -> None:
    """What is left when all is quiet: one best in three places, no half files, no more uploads than the newest two."""
    delivered = deliver_run(folder, newest_token(folder), 120.0)
    manifest = newest.best if newest else None
    if newest is None or manifest is None or not delivered:
        findings.violations.append(f"at the end: nothing valid or not delivered ({newest is not None}, {delivered})")
        return
    record = download_checkpoint(tracker, run_id, "best", target)
    digests = {manifest.sha256, record.manifest.sha256, sha256_of(target), sha256_of(folder.checkpoint("best"))}
    if len(digests) != 1:
        findings.violations.append("at the end committed, linked and published best differ")
    left = [
        str(path) for place in (folder.root, folder.state, folder.best) for path in place.glob(".*.part") if "progress" not in path.name
    ]
    kept = [name for name, size in tracker.list_files(run_id, "checkpoints/best").items() if size is None]
    if left or len(kept) > 2:
        findings.violations.append(f"at the end there are leftovers: {left}, {kept}")


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not reached within {limit_s} s")
        time.sleep(0.02)


def table(findings: Findings) -> str:
    """The report in words."""
    lines = ["process    was doing                       kills", *("-" * 49,)]
    lines += [f"{process:<10} {phase:<30} {count:>6}" for (process, phase), count in sorted(findings.moments.items())]
    lines.append(f"{sum(findings.moments.values())} kills; {findings.epochs} epochs were committed all in all")
    reads = ", ".join(f"{place} {count}" for place, count in findings.reads.items())
    lines.append(f"reads meanwhile: {reads}; restarts that found a whole state and best: {findings.states_read_after_kills}")
    lines.append(f"violations: {len(findings.violations)}")
    return "\n".join([*lines, *findings.violations[:20]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"  # of children, which find this module imported already
    base = Path(tempfile.mkdtemp(prefix="nnf-kill-"))
    server = MlflowServer(base / "mlflow").start()
    started = time.monotonic()
    try:
        findings = kill_saving(base / "run", server, options.kills, options.seed)
    finally:
        server.kill()
        shutil.rmtree(base, ignore_errors=True)
    print(table(findings))
    print(f"seed {options.seed}, {time.monotonic() - started:.0f} s")
    return 1 if findings.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())
