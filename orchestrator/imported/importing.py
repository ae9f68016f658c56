"""Makes folds that nnU-Net trained to runs of ours: validated, finished, ready to be compared, exported and sent to MLflow.

In place our folder `nnfleet` is added beside nnU-Net's files, none of which changes; for another results folder they are linked there.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import ConfigError, NnfleetError, StorageError
from orchestrator.imported.first_stage import warn_of_lack, warn_of_younger
from orchestrator.imported.fold_data import IMPORTED, read_fold_data, spec_of
from orchestrator.imported.scores import ScoredData, score_fold
from orchestrator.imported.trained_fold import FoldName, TrainedFold, fold_name, read_trained_fold
from orchestrator.publishing.reconcile import sync
from orchestrator.publishing.validation_report import write_report
from orchestrator.run.aside import move_aside
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.progress import full_dice
from trainers.contract.fencing import acquire_token, newest_token
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen, Imported, RunSpec
from trainers.contract.summary import SCORING, CaseResult
from trainers.storage.files import expanded, link_atomic, sha256_of, write_atomic, write_json_atomic

log = logging.getLogger(__name__)
_MODEL_FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
_FOLD_FILES = ("checkpoint_*.pth", "training_log_*.txt", "debug.json", "progress.png", "validation/*")


class ImportedFold(Frozen):
    """What became of one fold."""

    folder: Path
    """nnU-Net's."""
    run_key: str = ""
    address: str = ""
    run_folder: Path | None = None
    dice: float | None = None
    """Mean over its cases, per class, then over the classes."""
    note: str = ""
    delivered: tuple[str, ...] = ()
    lacking: str = ""
    """Why it was not imported, or not sent to MLflow."""

    @property
    def line(self) -> str:
        """The fold in one line."""
        if not self.run_key:
            return f"{self.folder}: not imported: {self.lacking}"
        scored = "" if self.dice is None else f"mean Dice {self.dice:.4f}"
        parts = [part for part in (self.note or "imported", scored, *self.delivered) if part]
        return f"{self.address} ({self.run_key}): {', '.join(parts)}" + (f"; LACKING: {self.lacking}" if self.lacking else "")


def import_folder(folder: Path, preprocessed: Path, results: Path | None = None, tracking_uri: str = "") -> Iterator[ImportedFold]:
    """Import every fold of a model folder of nnU-Net's, or the one fold that `folder` is; an error of one stops no other.

    `preprocessed`: nnUNet_preprocessed with the dataset that it was trained on. `results`: a results folder to link it into; None: it
    becomes a run where it lies. `tracking_uri`: MLflow server that gets it; empty: none. Raises ConfigError where no fold is meant.
    """
    return each_fold(folder, lambda fold: _imported(fold, preprocessed, results, tracking_uri))


def each_fold(folder: Path, imported: Callable[[RunFolder], ImportedFold]) -> Iterator[ImportedFold]:
    """What becomes of each fold that `folder` means; an error of one stops no other. Raises ConfigError where no fold is meant."""
    for fold in folds_of(expanded(folder)):
        try:
            yield imported(fold)
        except (NnfleetError, OSError) as err:
            yield ImportedFold(folder=fold.root, lacking=str(err))


def folds_of(folder: Path) -> list[RunFolder]:
    """The folds that a folder of nnU-Net's means, itself or those in it. Raises ConfigError."""
    found = [folder] if folder.name.startswith("fold_") else sorted(path for path in folder.glob("fold_*") if path.is_dir())
    folds = [RunFolder(Path(os.path.abspath(path))) for path in found if path.is_dir()]  # two names of one folder would be two runs
    if not folds:
        raise ConfigError(
            f"import: {folder} is no fold and holds none. Name a folder that nnU-Net trained: "
            "nnUNet_results/DatasetNNN_Name/Trainer__Plans__configuration, or fold_K in it."
        )
    for fold in folds:
        fold_name(fold)
    return folds


def _imported(source: RunFolder, preprocessed: Path, results: Path | None, tracking_uri: str) -> ImportedFold:
    if source.spec_file.is_file() and source.spec().imported is None:
        raise ConfigError(f"import: {source.root} was trained by nnfleet, as {source.spec().run_key}: it is compared as it is.")
    trained = read_trained_fold(source)
    target = _target(source, trained.name, results)
    found = read_fold_data(trained.name, source.model_folder, preprocessed, target.model_folder.parent)
    imported = Imported(folder=source.root, versions=trained.versions)
    spec = spec_of(found, target, trained.schedule, tracking_uri, imported=imported, final_sha256=trained.final.sha256)
    data, note = found.scored, ""
    if _is_imported(target, spec):
        note = "already imported"
    else:
        warn_of_lack(found.first_stage)
        warn_of_younger(found.first_stage, trained.history)
        scores = score_fold(source, spec, data, trained.final.sha256, target.validation("final"))
        try:
            _write(trained, target, spec, data, scores)
        except (OSError, StorageError) as err:
            raise ConfigError(
                f"import: {target.root} cannot be written: {err}. Link it into a results folder of yours: --results FOLDER."
            ) from err
    synced = next(iter(sync([target], [])))
    return ImportedFold(
        folder=source.root,
        run_key=spec.run_key,
        address=spec.address,
        run_folder=target.root,
        dice=full_dice(target, spec).get("final"),
        note=note,
        delivered=synced.delivered,
        lacking=synced.lacking,
    )


def _target(source: RunFolder, name: FoldName, results: Path | None) -> RunFolder:
    """Where the run will lie: in place, or in a model folder of its own below another results folder."""
    if results is None or source.model_folder.parent.parent == expanded(results).absolute():
        return source
    model = f"{source.model_folder.name}__{IMPORTED}"
    return RunFolder(expanded(results).absolute() / name.dataset / model / source.root.name)


def _is_imported(target: RunFolder, spec: RunSpec) -> bool:
    """True when the folder holds this very import, whole. Raises ConfigError when it belongs to a run that was trained here."""
    if not target.spec_file.is_file():
        return False
    present = target.spec()
    if present.imported is None:
        raise ConfigError(
            f"import: {target.root} belongs to the run {present.run_key}, which was trained by nnfleet. Name another folder: --results."
        )
    outcome = read_outcome(target)
    if present.run_key != spec.run_key or outcome is None or not target.extended_summary("final").is_file():
        return False
    stored = [read_result(target, "final", case) for case in spec.val_cases]
    if not all(result is not None and result.scoring == SCORING for result in stored):
        return False
    if spec.tracking_uri and present.tracking_uri != spec.tracking_uri:
        write_atomic(target.spec_file, spec.model_dump_json(indent=1).encode())
    return True


def _write(trained: TrainedFold, target: RunFolder, spec: RunSpec, data: ScoredData, scores: list[CaseResult]) -> None:
    """Everything that a finished run of ours has. run.json comes after the rest that it vouches for, the outcome last."""
    if target.root != trained.folder.root:
        _link(trained, target)
    if target.spec_file.is_file():
        log.warning("%s was imported before, by other data or weights or not to its end: it is imported anew", target.root)
        shutil.rmtree(target.own)
    elif target.own.is_dir():  # of an import that was killed, or of a run whose run.json was lost
        log.warning("%s has no run.json: its folder is kept as %s", target.own, move_aside(target.own, "without-run", time.time()).name)
    for result in scores:
        write_json_atomic(target.cases("final") / f"{result.case_id}.json", result.model_dump())
    committed = trained.committed(spec.run_key)
    write_atomic(target.state / f"{committed.stem}.json", committed.model_dump_json().encode())
    if newest_token(target) == 0:
        acquire_token(target, "import")
    write_atomic(target.spec_file, spec.model_dump_json(indent=1).encode())
    if scores:
        write_report(target, spec, data.labels, "final", scores)
    message = f"trained and validated by nnU-Net itself in {trained.folder.root}, and imported"
    write_outcome(target, Outcome(job="validation", state="SUCCEEDED", fencing_token=newest_token(target), message=message))


def _link(trained: TrainedFold, target: RunFolder) -> None:
    """nnU-Net's files under a second name, or copied where the file system makes none. Raises ConfigError for a folder in use."""
    there = target.checkpoint("final")
    if there.is_file() and sha256_of(there) != trained.final.sha256:
        raise ConfigError(f"import: {there} is of another training than {trained.folder.root}. Name another --results FOLDER.")
    source = trained.folder
    pairs = [(source.model_folder / name, target.model_folder / name) for name in _MODEL_FILES]
    pairs += [(file, target.root / file.relative_to(source.root)) for pattern in _FOLD_FILES for file in source.root.glob(pattern)]
    for file, second in pairs:
        if file.is_file() and not (second.exists() and os.path.samefile(file, second)):
            second.parent.mkdir(parents=True, exist_ok=True)
            link_atomic(file, second)
