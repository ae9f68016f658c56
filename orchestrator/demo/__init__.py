"""The demo: a real nnU-Net dataset made of real anatomy, without a download, and the experiment that trains on it.

`build_demo_dataset` is idempotent: a stamp, written last, names the parameters that the folder was built with. A mark, written first,
makes a folder the demo's own: in another one no file or dataset is replaced.
"""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from orchestrator.demo.anatomy import MAX_SPACING_MM, MIN_SPACING_MM, load_template, make_subject, write_dataset_json, write_subject
from orchestrator.errors import ConfigError, DataError
from orchestrator.queue.file_lock import locked
from trainers.storage.files import expanded, write_atomic, write_json_atomic

log = logging.getLogger(__name__)

DATASET = "Dataset900_MNIBrain"
EXPERIMENT_FILE = Path(__file__).parent / "experiment.yaml"
"""The shipped experiment; its folders are filled in by `write_demo_experiment`."""
COMPARISON_FILE = Path(__file__).parent / "experiment_compare.yaml"
"""Likewise, of enough folds to compare two trainers."""
VERSION = 1
"""Raised whenever the same parameters give other data: older folders are then rebuilt."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many steps are done and how many there are."""


@dataclass(frozen=True)
class DemoPaths:
    """nnU-Net's three folders of the demo, below one base folder."""

    base: Path

    @property
    def raw(self) -> Path:
        """nnUNet_raw."""
        return self.base / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """nnUNet_preprocessed."""
        return self.base / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """nnUNet_results."""
        return self.base / "nnUNet_results"

    @property
    def experiment(self) -> Path:
        """The experiment file with this folder filled in, ready for `nnfleet submit`."""
        return self.base / "experiment.yaml"

    @property
    def report(self) -> Path:
        """The report that compares the trained models."""
        return self.base / "compare.html"

    @property
    def log(self) -> Path:
        """Everything that nnU-Net printed while it planned and preprocessed."""
        return self.base / "preprocess.log"

    @property
    def mark(self) -> Path:
        """What lies here is the demo's; written first."""
        return self.base / ".nnfleet_demo"

    @property
    def lock(self) -> Path:
        """Held by the demo that is at work here."""
        return self.base / ".nnfleet_demo.lock"

    @property
    def replaced(self) -> list[Path]:
        """What a demo replaces or removes."""
        return [self.experiment, self.report, self.log, self.raw / DATASET, self.preprocessed / DATASET]

    @property
    def stamp(self) -> Path:
        """The parameters that the dataset was built with; written last."""
        return self.preprocessed / DATASET / "nnfleet_demo.json"

    def environment(self) -> dict[str, str]:
        """nnU-Net's environment variables for these folders."""
        return {"nnUNet_raw": str(self.raw), "nnUNet_preprocessed": str(self.preprocessed), "nnUNet_results": str(self.results)}


@dataclass(frozen=True)
class DemoParameters:
    """What the demo dataset is a pure function of."""

    cases: int = 10
    spacing_mm: float = 3.0
    seed: int = 900
    version: int = VERSION

    def __post_init__(self) -> None:
        if not 5 <= self.cases <= 500:
            raise ConfigError(f"--cases: nnU-Net's five folds need 5 to 500 cases, got {self.cases}.")
        if not MIN_SPACING_MM <= self.spacing_mm <= MAX_SPACING_MM:
            raise ConfigError(f"--spacing-mm: the template allows {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm, got {self.spacing_mm:g}.")
        if self.seed < 0:
            raise ConfigError(f"seed: must not be negative, got {self.seed}.")


@contextlib.contextmanager
def demo_folder(base: Path) -> Iterator[DemoPaths]:
    """The folder of a demo, inside the block of this one alone.

    Raises ConfigError for one that cannot be made, or holds what a demo would replace and none has made; ClusterError while another demo
    is at work in it; StorageError where its file system takes no lock.
    """
    paths = DemoPaths(expanded(base))
    try:
        paths.base.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"demo: {paths.base} cannot be made: {err}. Name a folder that you may write: --folder.") from err
    is_own = paths.mark.exists() or paths.stamp.exists()  # a stamp alone: of a version without the mark
    if not is_own and (there := next(filter(os.path.lexists, paths.replaced), None)):
        raise ConfigError(f"demo: {there} is there, and no demo has made it. Name an empty folder: --folder DIR, or move that one away.")
    with locked(paths.lock, f"demo: another one is at work in {paths.base}", 0):
        paths.mark.touch()
        yield paths


def build_demo_dataset(
    paths: DemoPaths, *, cases: int = 10, spacing_mm: float = 3.0, seed: int = 900, on_progress: Progress | None = None
) -> None:
    """Build (or find built) Dataset900_MNIBrain in the demo's folder: raw, planned, preprocessed, with five folds.

    Raises ConfigError for parameters out of range, DataError when nnU-Net's preprocessing fails (its log is named).
    """
    wanted = DemoParameters(cases, spacing_mm, seed)
    if _built_with(paths) == asdict(wanted):
        log.info("demo dataset in %s is up to date", paths.base)
        return
    report = on_progress or (lambda what, done, total: None)
    _clear(paths)
    _write_raw(paths, wanted, report)
    _preprocess(paths, report)
    paths.results.mkdir(parents=True, exist_ok=True)
    write_json_atomic(paths.stamp, asdict(wanted))


def _built_with(paths: DemoPaths) -> object:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(paths.stamp.read_text(encoding="utf-8"))
    return None


def _clear(paths: DemoPaths) -> None:
    """Remove the dataset of other parameters. Results stay: they may be wanted."""
    paths.stamp.unlink(missing_ok=True)
    for folder in (paths.raw / DATASET, paths.preprocessed / DATASET):
        if folder.exists():
            shutil.rmtree(folder)


def _write_raw(paths: DemoPaths, wanted: DemoParameters, report: Progress) -> None:
    raw = paths.raw / DATASET
    raw.mkdir(parents=True)
    template = load_template(wanted.spacing_mm)
    for number in range(wanted.cases):
        subject = make_subject(template, seed=wanted.seed, number=number, spacing_mm=wanted.spacing_mm)
        write_subject(subject, f"brain_{number:03d}", raw)
        report("Subjects", number + 1, wanted.cases)
    write_dataset_json(raw, wanted.cases)


def _preprocess(paths: DemoPaths, report: Progress) -> None:
    """Run `orchestrator.demo.preprocess` in a process of its own, with its output in the log file."""
    report("Plans", 0, 1)
    command = [sys.executable, "-W", "ignore", "-m", "orchestrator.demo.preprocess", DATASET]
    environment = {**os.environ, **paths.environment(), "OMP_NUM_THREADS": "1", "PYTHONPATH": _import_path()}
    with paths.log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink, text=True, encoding="utf-8"
        )
        with process:
            try:
                _follow(process, sink, report)
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        tail = "\n".join(paths.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
        raise DataError(
            f"demo: nnU-Net's preprocessing ended with exit code {process.returncode}. Whole log: {paths.log}. Its end:\n{tail}"
        )


def _follow(process: subprocess.Popen[str], sink: IO[str], report: Progress) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("CASE "):
            _, done, total = line.split()
            report("Preprocessing", int(done), int(total))
        else:
            sink.write(line)
            sink.flush()


def _import_path() -> str:
    """PYTHONPATH that finds these packages also when they are not installed but lie in a checkout."""
    root = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)


def write_demo_experiment(paths: DemoPaths, shipped: Path = EXPERIMENT_FILE, **overrides: int) -> Path:
    """Write a shipped experiment with the demo's folders (and `overrides`, such as epochs=3); it can be submitted again by hand."""
    import yaml

    content = {**yaml.safe_load(shipped.read_text(encoding="utf-8")), **paths.environment(), **overrides}
    write_atomic(paths.experiment, yaml.safe_dump(content, sort_keys=False).encode())
    return paths.experiment
