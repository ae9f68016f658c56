"""Runs the rings of tests: the unit ring on all its processes, then each integration file in a process of its own, two at a time.

    python -m tests.rings [--limit-s=1500] [--at-once=2] [--unit-once=FILE] [FOLDER or FILE ...] [arguments of pytest, -m "not long"]

With --unit-once the unit ring is not run again where FILE says that it has passed for the very same files, interpreter and packages.

Ray does not stand being started again and again in one process (its metrics exporter leaves a thread behind each time, which may kill
it), so no process sees more than one file. A file that crashes or hangs is one failure with a name, and the next one runs.
The last line is `N passed, N failed`, with `, N skipped` if there were any. The status is 0 only if something passed and nothing failed.
"""

import ast
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

import psutil

from tests.ring_record import Record, read_record
from trainers.storage.files import write_atomic

REPOSITORY = Path(__file__).parents[1]
UNIT, INTEGRATION = REPOSITORY / "tests/unit", REPOSITORY / "tests/integration"
MARK = "NNFLEET_RING"
"""In the environment of every process that a file starts, inherited by whatever those start."""
FOLDER = "NNFLEET_RING_FOLDER"
"""Where the file's Ray clusters put their temporary folders: short, because of the unix sockets below it."""
LIMIT_S = 1500.0
LEFT_OUT = ("__pycache__", "build", "dist", "nnfleet-demo")
"""Folders of the repository that no test depends on."""
STACKS_S = 10.0
"""How long a process that is over its limit may take to print its stacks."""
SHOWN_LINES = 300
LOG_LINES = 20
LOGS = 6
SLOWEST = 15
LONGEST = (
    *("test_training", "test_validation_job", "test_campaign", "test_no_network", "test_main_job"),
    *("test_world_size_math", "test_inference_parity", "test_publisher"),
)
"""Started first, so that no long file runs alone at the end."""


@dataclass(frozen=True)
class Ended:
    """What became of one file, or of the unit ring."""

    name: str
    seconds: float
    record: Record
    death: str = ""
    """How its process died, if it did: by a signal, at its limit, or with a status that no test explains."""
    output: str = ""

    @property
    def failures(self) -> list[str]:
        """Failed tests, and what was running when the process died."""
        failed = [f"FAILED {name}" for name in self.record.names("failed")]
        if not self.death:
            return failed
        where = ", ".join(self.record.unfinished) or f"{self.name} (outside its tests)"
        return [*failed, f"CRASHED {where}: {self.death}"]

    def line(self) -> str:
        """The row of the summary."""
        counts = [f"{len(self.record.names('passed'))} passed", f"{len(self.failures)} failed"]
        skipped = len(self.record.names("skipped"))
        return f"{self.seconds:7.1f} s  {self.name}  {', '.join([*counts, *([f'{skipped} skipped'] if skipped else [])])}"


@dataclass
class Running:
    """A pytest process of its own session, with a folder for its record, its output and its Ray clusters."""

    target: Path
    arguments: Sequence[str]
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="nnr", dir="/tmp")))
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        command = [*(sys.executable, "-X", "faulthandler", "-m", "pytest", str(self.target), "-q"), *self.arguments]
        command += ["-p", "tests.ring_record", f"--ring-record={self.folder / 'record'}"]
        path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, MARK: self.mark, FOLDER: str(self.folder), "PYTHONPATH": path},
                start_new_session=True,
            )

    @property
    def name(self) -> str:
        """The path below the repository."""
        return str(self.target.relative_to(REPOSITORY) if self.target.is_relative_to(REPOSITORY) else self.target)

    def ended(self, limit_s: float) -> Ended | None:
        """What became of it, with nothing left of it; None while it runs within its limit."""
        seconds = time.monotonic() - self.started
        death = ""
        if self.process.poll() is None:
            if seconds < limit_s:
                return None
            death = f"ended at its limit of {limit_s:.0f} s"
            self.process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of all threads
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STACKS_S)
        self.kill()
        record = read_record(self.folder / "record")
        death = death or _death(self.process.returncode, record)
        text = self._tail() if death or record.names("failed") else ""
        shutil.rmtree(self.folder, ignore_errors=True)
        return Ended(self.name, seconds, record, death, text)

    def kill(self) -> None:
        """End whatever it has started, in sessions of their own too, until nothing is left."""
        deadline = time.monotonic() + 20
        while (left := list(_marked(self.mark))) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def _tail(self) -> str:
        logs = [
            path for path in self.folder.glob("**/session_2*/logs/*") if path.suffix in (".log", ".out", ".err") and path.stat().st_size
        ]
        drivers_first = sorted(logs, key=lambda path: ("core-driver" not in path.name, "dashboard" in path.name, -path.stat().st_mtime))
        parts = [_end_of(self.folder / "output", SHOWN_LINES)]
        parts += [f"--- the end of Ray's {path.name}\n{_end_of(path, LOG_LINES)}" for path in drivers_first[:LOGS]]
        return "\n".join(parts)


def _death(status: int, record: Record) -> str:
    if status < 0:
        return f"died by {signal.Signals(-status).name}"
    is_explained = status in (0, 5) or (status in (1, 2) and bool(record.names("failed")))  # 5: pytest found no test to run
    return "" if is_explained and not record.unfinished else f"ended with status {status}"


def _end_of(path: Path, lines: int) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def run(targets: Sequence[Path], arguments: Sequence[str], *, limit_s: float = LIMIT_S, at_once: int = 2) -> list[Ended]:
    """Run each target in a process of its own, `at_once` at a time, in this order. However it leaves, none of them runs on."""
    waiting, running, over = list(targets), list[Running](), list[Ended]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(Running(waiting.pop(0), arguments))
            time.sleep(0.1)
            for one in list(running):
                if ended := one.ended(limit_s):
                    running.remove(one)
                    over.append(ended)
                    print("\n".join([ended.line(), *filter(None, [ended.output])]), flush=True)
    finally:
        for one in running:
            one.kill()
            print(f"Interrupted: {', '.join(read_record(one.folder / 'record').unfinished) or one.name}", flush=True)
            shutil.rmtree(one.folder, ignore_errors=True)
    return over


def summary(over: Sequence[Ended]) -> list[str]:
    """What is printed at the end: a line per file, the slowest tests, every failure, and the counts alone on the last line."""
    slowest = sorted(((s, name) for ended in over for name, s in ended.record.seconds.items()), reverse=True)
    failures = [failure for ended in over for failure in ended.failures]
    passed, skipped = (sum(len(ended.record.names(outcome)) for ended in over) for outcome in ("passed", "skipped"))
    return [
        *("", *(ended.line() for ended in over)),
        *("", "The slowest tests:", *(f"{seconds:7.1f} s  {name}" for seconds, name in slowest[:SLOWEST])),
        *("", *failures),
        f"{passed} passed, {len(failures)} failed" + (f", {skipped} skipped" if skipped else ""),
    ]


def files(targets: Sequence[Path]) -> list[Path]:
    """The test files of the targets, those that take longest first."""
    found = {path for target in targets for path in (target.glob("**/test_*.py") if target.is_dir() else [target])}
    rank = {name: place for place, name in enumerate(LONGEST)}
    return sorted(found, key=lambda path: (rank.get(path.stem, len(rank)), path))


def may_have_tests(path: Path, expression: str) -> bool:
    """Whether a file can hold a test for `-m expression`: seen in its text, since collecting takes many seconds of imports for each."""
    text = path.read_text(encoding="utf-8")
    if expression == "long":
        return "pytest.mark.long" in text
    marks = [ast.unparse(node.value) for node in ast.parse(text).body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node)]
    return expression != "not long" or not any("pytest.mark.long" in mark for mark in marks)


def fingerprint(folder: Path) -> str:
    """Digest of everything that the unit ring depends on: the files below `folder`, the interpreter, the installed packages."""
    digest = hashlib.sha256(f"{sys.version} {os.environ.get('PYTEST_ADDOPTS', '')}".encode())
    for name in sorted(f"{found.name}=={found.version}" for found in distributions()):
        digest.update(name.encode())
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name == ".ci" or not (name.startswith(".") or name in LEFT_OUT or name.endswith(".egg-info"))
        )
        for name in sorted(names):
            path = Path(place) / name
            if not path.is_file():  # a link that leads nowhere, as editors leave
                continue
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def run_unit(arguments: Sequence[str], limit_s: float, at_once: int, passed_file: Path | None) -> list[Ended]:
    """The unit ring on all its processes, unless `passed_file` says that it has passed as it is now; nothing then."""
    before = fingerprint(REPOSITORY) if passed_file is not None else ""
    if passed_file is not None and passed_file.is_file() and passed_file.read_text() == before:
        print(f"{UNIT.relative_to(REPOSITORY)} has passed for these very files before: not run again ({passed_file})", flush=True)
        return []
    over = run([UNIT], ["-n", str(at_once), "--dist", "loadfile", "--max-worker-restart=0", *arguments], limit_s=limit_s)
    has_passed = bool(over[0].record.names("passed")) and not over[0].failures
    if passed_file is not None and has_passed and fingerprint(REPOSITORY) == before:  # nobody has changed a file meanwhile
        write_atomic(passed_file, before.encode())
    return over


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    rest, limit_s, at_once, targets = list(arguments), LIMIT_S, 2, list[Path]()
    passed_file: Path | None = None
    while rest and (rest[0].startswith(("--limit-s=", "--at-once=", "--unit-once=")) or not rest[0].startswith("-")):
        option, _, value = rest.pop(0).partition("=")
        if option == "--limit-s":
            limit_s = float(value)
        elif option == "--at-once":
            at_once = int(value)
        elif option == "--unit-once":
            passed_file = Path(value).absolute()
        else:
            targets.append(Path(option).resolve())
    targets = targets or [UNIT, INTEGRATION]
    over: list[Ended] = []
    is_whole = rest in ([], ["-m", "not long"])  # with other arguments only a part of it may run
    if UNIT in targets:
        over += run_unit(rest, limit_s, at_once, passed_file if is_whole else None)
        if targets == [UNIT] and not over:
            return 0
    expression = rest[rest.index("-m") + 1] if "-m" in rest[:-1] else ""
    chosen = [path for path in files([target for target in targets if target != UNIT]) if may_have_tests(path, expression)]
    over += run(chosen, rest, limit_s=limit_s, at_once=at_once)
    print("\n".join(summary(over)), flush=True)
    return 0 if any(ended.record.names("passed") for ended in over) and not any(ended.failures for ended in over) else 1


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)  # what a shell starts in the background ignores it
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
