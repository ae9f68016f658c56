"""nnU-Net's own integrity check, fingerprint, planning and preprocessing of what is due, with its results put in place whole.

nnU-Net works in a folder beside the preprocessed datasets, where nobody looks for any; what it has made there is renamed into the dataset.
So a job that is killed leaves nothing that could be taken for whole, and nothing that is there is changed. Cases that are done wait there
for the rest of their configuration, and the next job goes on from them (`whole_cases.py`).
"""

import contextlib
import logging
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from orchestrator.dataset.raw import load_raw_dataset_json, raw_cases
from orchestrator.errors import ClusterError, ConfigError, DataError
from orchestrator.preprocessing.due import WHOLE, Due, DuePlans, lacking_cases
from orchestrator.preprocessing.order import Order, Progressed
from orchestrator.preprocessing.whole_cases import WholeCases, put_whole
from orchestrator.queue.file_lock import locked
from trainers.contract.names import shown
from trainers.contract.plans import load_plans, load_splits
from trainers.storage.exclusive import create_exclusive
from trainers.storage.faults import storing
from trainers.storage.files import read_json

log = logging.getLogger(__name__)

WORKPLACE = ".nnfleet_preprocessing"
"""Folder beside the preprocessed datasets: a lock for each, and what is being made."""
LOCK_S = 180.0
"""How long the lock of a dataset is waited for: a share keeps that of a node that died until its lease ends, NFS 4 usually for 90 s."""
MOST_LINES = 5
"""Lines of nnU-Net's own complaints that an error quotes."""

Report = Callable[[Progressed], None]


def preprocess(order: Order, report: Report) -> None:
    """Make everything of an order that is still lacking. For a process of its own: nnU-Net's folders are set in its environment.

    Raises ConfigError and DataError for what nnU-Net refuses, ClusterError where another job stays at work on the dataset (`LOCK_S`), or a
    process was killed; StorageError.
    """
    due = order.due
    workplace = due.preprocessed / WORKPLACE
    with storing(workplace):
        workplace.mkdir(parents=True, exist_ok=True)
    lock = workplace / f"{due.dataset}.lock"
    with locked(lock, f"preprocessing of {due.dataset}", LOCK_S), _stage(workplace, due) as stage:
        _Work(order, stage, report).do()


@contextlib.contextmanager
def _stage(workplace: Path, due: Due) -> Iterator[Path]:
    """The folder in which a job of this dataset works; what jobs that were killed left there is removed, all but whole cases.

    Yields an empty folder in it, of this job's own, which nnU-Net takes for its nnUNet_preprocessed: a process that a killed job has left
    may still write into that one's. A job that does all of its work leaves nothing.
    """
    of_former_version = re.compile(re.escape(due.dataset) + "-[0-9a-f]{8}")  # `Dataset004_A-B` may be at work beside `Dataset004_A`
    for left in workplace.iterdir():
        if of_former_version.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)
    stage = workplace / f"{due.dataset}-stage"
    for left in stage.glob("made-*"):
        shutil.rmtree(left, ignore_errors=True)
    made = stage / f"made-{uuid.uuid4().hex[:8]}"
    with storing(stage):
        (made / due.dataset).mkdir(parents=True)
    os.environ |= {"nnUNet_raw": str(due.raw), "nnUNet_preprocessed": str(made), "OMP_NUM_THREADS": "1"}
    os.environ.pop("nnUNet_results", None)
    try:
        yield made
        shutil.rmtree(stage, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        with contextlib.suppress(OSError):  # it holds whole cases, for the next job
            stage.rmdir()


class _Work:
    """One order at work."""

    def __init__(self, order: Order, stage: Path, report: Report) -> None:
        self.due, self.processes, self.report = order.due, order.processes, report
        self.stage = stage / order.due.dataset
        self.whole = stage.parent / "cases"
        self.raw = order.due.raw / order.due.dataset
        self.folder = order.due.preprocessed / order.due.dataset

    def do(self) -> None:
        """All of it, one part after the other: each is put in place once it is whole."""
        self._check()
        with storing(self.folder):
            self.folder.mkdir(exist_ok=True)
            create_exclusive(self.folder / "dataset.json", (self.raw / "dataset.json").read_bytes())
        for part in self.due.parts:
            if not (self.folder / f"{part.plans}.json").is_file():
                self._plan(part)
        files = _training_files(self.raw)
        self._put_labels(files)
        for part in self.due.parts:
            for configuration in part.configurations:
                self._configuration(part.plans, configuration, files)

    def _check(self) -> None:
        self.report(Progressed(what="integrity check"))
        load_raw_dataset_json(self.raw)
        from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

        with _captured() as lines:
            try:
                verify_dataset_integrity(str(self.raw), self.processes)
            except Exception as err:  # it raises whatever comes: assertions, errors of readers
                found = [line for line in lines() if line.strip() and not line.startswith(("Using ", "####"))]
                texts = " ".join(" ".join([*found[:MOST_LINES], str(err)]).split())
                raise DataError(
                    f"dataset: nnU-Net's integrity check refuses {self.raw}: {texts[:1500]} Correct the raw dataset, then submit again."
                ) from err

    def _plan(self, part: DuePlans) -> None:
        """Make a plans file by nnU-Net's planner, from the dataset's fingerprint."""
        fingerprint = "dataset_fingerprint.json"
        if not (self.folder / fingerprint).is_file():
            self.report(Progressed(what="fingerprint"))
            from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

            DatasetFingerprintExtractor(self.due.dataset, self.processes).run(overwrite_existing=True)
            self._put_file(fingerprint)
        shutil.copyfile(self.folder / fingerprint, self.stage / fingerprint)
        self.report(Progressed(what=f"{part.plans} by {part.planner}"))
        options = {} if part.gpu_memory_target is None else {"gpu_memory_target_in_gb": part.gpu_memory_target}
        _planner_class(part.planner)(self.due.dataset, plans_name=part.plans, **options).plan_experiment()
        self._put_file(f"{part.plans}.json")

    def _put_file(self, name: str) -> None:
        create_exclusive(self.folder / name, (self.stage / name).read_bytes())

    def _put_labels(self, files: Mapping[str, Any]) -> None:
        """The label files, for the full validation; with their times, as nnU-Net copies them. One that is there stays."""
        ending = read_json(self.folder / "dataset.json", "dataset.json")["file_ending"]
        target, stage = self.folder / "gt_segmentations", self.stage / "gt_segmentations"
        with storing(target):
            target.mkdir(exist_ok=True)
            stage.mkdir(exist_ok=True)
            for case, named in files.items():
                name = f"{case}{ending}"
                if not (target / name).exists():
                    shutil.copy2(named["label"], stage / name)
                    os.replace(stage / name, target / name)

    def _configuration(self, plans: str, configuration: str, files: Mapping[str, Any]) -> None:
        settings = load_plans(self.folder, plans).configuration(configuration)
        identifier = str(settings["data_identifier"])
        cases = lacking_cases(self.folder, identifier, self._cases(identifier, files))
        if not cases:
            return
        if unknown := [case for case in cases if case not in files]:
            raise DataError(
                f"splits_final.json: {self.folder / 'splits_final.json'} names cases that {self.raw} has no images of: "
                f"{', '.join(unknown[:5])}. Restore them, or correct the file."
            )
        with storing(self.whole):
            whole = WholeCases(self.whole / identifier, configuration, (self.folder / f"{plans}.json", self.folder / "dataset.json"))
            self._cases_by_nnunet(plans, configuration, whole, {case: files[case] for case in cases})
            self._put_cases(whole.release(cases), self.folder / identifier, cases)

    def _cases(self, identifier: str, files: Mapping[str, Any]) -> tuple[str, ...]:
        """Those that the folder is to hold: all, or where it is there already those of the split file."""
        splits_file = self.folder / "splits_final.json"
        if (self.folder / identifier).is_dir() and splits_file.is_file():
            return tuple(sorted({case for split in load_splits(self.folder) for case in (*split.train, *split.val)}))
        return tuple(files)

    def _cases_by_nnunet(self, plans: str, configuration: str, whole: WholeCases, files: Mapping[str, Any]) -> None:
        """Preprocess the cases that no earlier job has made whole, several at the same time."""
        there, total = set(whole.are_whole(files)), len(files)
        made = self.stage / whole.folder.name
        made.mkdir(exist_ok=True)
        self.report(Progressed(what=configuration, done=len(there), total=total))
        plans_file = str(self.folder / f"{plans}.json")
        with ProcessPoolExecutor(self.processes, get_context("spawn"), initializer=_quiet) as pool:
            pending = {
                pool.submit(_save_case, made / case, whole.folder, named, plans_file, configuration, *whole.mark_of(case, named)): case
                for case, named in files.items()
                if case not in there
            }
            try:
                for done, future in enumerate(as_completed(pending), len(there) + 1):
                    _refuse_failed(future.exception(), pending[future], configuration, self.processes)
                    self.report(Progressed(what=configuration, done=done, total=total))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _put_cases(self, stage: Path, target: Path, cases: tuple[str, ...]) -> None:
        """A new folder at once; into one that is there only what it lacks, the file last by which nnU-Net knows a case."""
        with contextlib.suppress(OSError):
            target.rmdir()  # an empty one
        if not target.exists():
            os.rename(stage, target)
            return
        for case in cases:
            for ending in WHOLE:
                os.replace(stage / f"{case}{ending}", target / f"{case}{ending}")


def _planner_class(name: str) -> Any:
    """nnU-Net's planner of this name. Raises ConfigError."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = os.path.join(nnunetv2.__path__[0], "experiment_planning")
    found = recursive_find_python_class(folder, name, current_module="nnunetv2.experiment_planning")
    if found is None:
        raise ConfigError(f"preprocess.planner: {shown(name)} is not in the installed nnU-Net. Update it, or name another planner.")
    return found


def _training_files(raw: Path) -> dict[str, Any]:
    """Images and label of every training case, by its id. Raises DataError for ids that no file can be named by."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    content = load_raw_dataset_json(raw)
    raw_cases(raw, content)
    return {str(case): files for case, files in get_filenames_of_train_images_and_targets(str(raw), content).items()}


def _save_case(made: Path, whole: Path, named: Mapping[str, Any], plans_file: str, configuration: str, mark: Path, made_from: str) -> None:
    """Preprocess one case as `made`, wait until the disk has it, move it to the folder of the whole ones and mark it; in a process of the
    pool."""
    manager, settings, preprocessor, dataset_json = _settings(plans_file, configuration)
    preprocessor.run_case_save(str(made), named["images"], named["label"], manager, settings, dataset_json)
    for ending in WHOLE:
        descriptor = os.open(f"{made}{ending}", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    put_whole(made, whole, mark, made_from)


@cache
def _settings(plans_file: str, configuration: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans_file)
    settings = manager.get_configuration(configuration)
    return (
        manager,
        settings,
        settings.preprocessor_class(verbose=False),
        read_json(Path(plans_file).parent / "dataset.json", "dataset.json"),
    )


def _quiet() -> None:
    import warnings

    warnings.simplefilter("ignore")


def _refuse_failed(error: BaseException | None, case: str, configuration: str, processes: int) -> None:
    """Raise what the failure of a case means. A full disk passes as the OSError that it is."""
    if error is None:
        return
    if isinstance(error, BrokenProcessPool):
        fewer = f"fewer of them (preprocess: {{cpus: {max(1, processes // 2)}}})" if processes > 1 else "a node with more memory"
        raise ClusterError(
            f"preprocessing: one of {processes} processes at work on {configuration} was killed, most often for lack of memory. "
            f"Submit again with {fewer}; what is whole is kept."
        ) from error
    if isinstance(error, OSError):
        raise error
    raise DataError(
        f"cases: nnU-Net cannot preprocess {case} for {configuration}: {type(error).__name__}: {' '.join(str(error).split())[:500]} "
        "Correct its files, then submit again."
    ) from error


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], list[str]]]:
    """Inside the block, what this process and those that it starts print goes to a file; its lines so far. Printed at the end."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(1)
        os.dup2(sink.fileno(), 1)

        def lines() -> list[str]:
            sys.stdout.flush()
            return os.pread(sink.fileno(), 1 << 20, 0).decode(errors="replace").splitlines()

        try:
            yield lines
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            sys.stdout.write("".join(f"{line}\n" for line in lines()))
            sys.stdout.flush()
