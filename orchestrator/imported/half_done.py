"""A fold that nnU-Net has not trained to its end, as its folder shows it: what it has reached, and the schedule that is left."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import CheckpointError, ConfigError, DataError
from orchestrator.imported.curves import MAX_EPOCHS
from orchestrator.imported.trained_fold import (
    FoldName,
    check_is_of,
    debug_of,
    epochs_of,
    fold_name,
    history_of,
    schedule_of,
    versions_in,
)
from trainers.contract.commits import EpochRow
from trainers.contract.names import shown
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Continued, Schedule
from trainers.contract.trainer_table import TRAINERS, canonical_trainer
from trainers.data.nnunet_checkpoint import read_training_facts
from trainers.storage.faults import reading
from trainers.storage.files import sha256_of

LATEST = "checkpoint_latest.pth"
SAVES_EVERY = 50
"""Epochs from one of them to the next."""


@dataclass(frozen=True)
class HalfDone:
    """A training of nnU-Net's that can go on."""

    folder: RunFolder
    name: FoldName
    schedule: Schedule
    history: tuple[EpochRow, ...]
    """Of the epochs that the checkpoint has behind it."""
    continued: Continued

    @property
    def latest(self) -> Path:
        """The checkpoint that it goes on from."""
        return self.folder.root / LATEST

    @property
    def best(self) -> Path | None:
        """The checkpoint of the best epoch, which may be of a later one."""
        found = self.folder.checkpoint("best")
        return found if found.is_file() else None


def read_half_done(folder: RunFolder) -> HalfDone:
    """Read a fold's folder. Raises ConfigError, DataError or CheckpointError for what cannot go on, with the cure; StorageError."""
    name, latest = fold_name(folder), folder.root / LATEST
    _check_is_half_done(folder, name)
    facts = read_training_facts(latest)
    check_is_whole(latest)
    check_is_of(facts, name, latest)
    debug = debug_of(folder)
    epochs, history = epochs_of(facts, latest), history_of(facts, latest)
    if len(history) < epochs:
        raise DataError(f"import: {latest} has {epochs} epochs behind it and curves of {len(history)}. Restore the file.")
    schedule = schedule_of(debug, total_epochs(debug, name.trainer, folder), name.trainer, folder)
    if fault := unlike_trainer(schedule, name.trainer):
        raise DataError(f"import: {folder.root / 'debug.json'} has {fault}: that is another trainer. Train it to the end with nnU-Net.")
    if epochs >= schedule.epochs:
        raise DataError(f"import: {latest} has all {schedule.epochs} epochs behind it. Let nnUNetv2_train ... --c end it, then import it.")
    continued = Continued(folder=folder.root, epochs=epochs, sha256=_digest(latest), versions=versions_in(debug))
    return HalfDone(folder, name, schedule, history[:epochs], continued)


def _check_is_half_done(folder: RunFolder, name: FoldName) -> None:
    if folder.checkpoint("final").is_file():
        raise ConfigError(f"import: {folder.root} has checkpoint_final.pth: its training has ended. Import it without --continue.")
    if canonical_trainer(name.trainer) != name.trainer:
        raise ConfigError(f"import: {name.trainer!r} is no trainer of nnU-Net's. Name a folder as nnU-Net made it.")
    if not (folder.root / LATEST).is_file():
        instead = f" To go on from the best epoch, copy checkpoint_best.pth to {LATEST}." if folder.checkpoint("best").is_file() else ""
        raise DataError(
            f"import: {folder.root} has no {LATEST}, which nnU-Net writes every {SAVES_EVERY} epochs: nothing to go on from.{instead} "
            f"To train it from the start: nnfleet train ... {name.fold} -tr {name.trainer} -p {name.plans}."
        )


def check_is_whole(path: Path) -> None:
    """Raise CheckpointError where a part of a checkpoint is not what was written, by the check sums in it; StorageError."""
    try:
        with reading(path), zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as err:
        raise CheckpointError(f"checkpoint: {path} is not read: {err}. Restore the file.") from err
    if damaged is not None:
        raise CheckpointError(f"checkpoint: {path} is damaged in {shown(damaged)}. Restore the file.")


def total_epochs(debug: Mapping[str, Any], trainer: str, folder: RunFolder) -> int:
    """How many epochs it was to have: by its notes, else by the trainer's name, else nnU-Net's usual number. Raises DataError."""
    if "num_epochs" not in debug:
        return TRAINERS[trainer].epochs or Schedule().epochs
    text = str(debug["num_epochs"])
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:9]) <= MAX_EPOCHS:
        raise DataError(f"import: {folder.root / 'debug.json'} gives num_epochs as {shown(text)}. Restore the file, or remove it.")
    return int(text)


def unlike_trainer(schedule: Schedule, trainer: str) -> str:
    """A setting in which a schedule differs from what the name of the trainer sets, in words; empty: in none. Pure."""
    named = TRAINERS[trainer].schedule
    return ", ".join(
        f"{field} {getattr(schedule, field):g}, where {trainer} sets {value:g}"
        for field, value in named.items()
        if getattr(schedule, field) != value
    )


def _digest(path: Path) -> str:
    with reading(path):
        return sha256_of(path)
