"""A preprocessed nnU-Net dataset as a folder: its name, its cases and its split, found as nnU-Net finds them."""

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import ConfigError, DataError, StorageError
from trainers.contract.names import LONGEST_CASE, fault_of_name, nearest, shown
from trainers.contract.plans import PREPROCESS_COMMAND, Split, check_case_ids, load_splits
from trainers.storage.exclusive import create_exclusive, release_claim
from trainers.storage.faults import reading

log = logging.getLogger(__name__)

NUM_FOLDS = 5


def find_dataset(preprocessed: Path, text: str, raw: Path | None = None) -> str:
    """Folder name of the dataset that `text` means (`17`, `017`, `Dataset017_X`) below nnUNet_preprocessed. Raises ConfigError."""
    names = datasets_in(preprocessed)
    if names is None:
        if not preprocessed.exists() and _unprepared(text, raw):  # nnU-Net makes the folder
            raise ConfigError(_unknown_dataset(preprocessed, text, [], raw))
        raise ConfigError(
            f"nnUNet_preprocessed: {preprocessed} is not a folder. Name an existing one, as seen by the cluster's nodes, in the "
            "environment (export nnUNet_preprocessed=...) or in the experiment file."
        )
    refuse_own_folder("nnUNet_preprocessed", preprocessed)
    if not text.isdecimal():
        if text in names:
            return _plain(preprocessed, text)
        raise ConfigError(_unknown_dataset(preprocessed, text, names, raw))
    found = [name for name in names if number_of(name) == int(text)]
    if len(found) > 1:
        raise ConfigError(f"dataset: {text} means several folders of {preprocessed}: {', '.join(found)}. Write the whole name.")
    if not found:
        raise ConfigError(_unknown_dataset(preprocessed, text, names, raw))
    return _plain(preprocessed, found[0])


def _plain(preprocessed: Path, name: str) -> str:
    if fault := fault_of_name(name, LONGEST_CASE):
        raise ConfigError(f"dataset: the folder {shown(name)} of {preprocessed} {fault}. Rename the dataset.")
    return name


def cases_in(folder: Path) -> tuple[str, ...]:
    """Ids of the preprocessed cases in a folder, sorted: blosc2 (`.b2nd`) or those of older versions (`.npz`, `.npy`)."""
    names = file_names(folder)
    cases = {stem for name in names for ending in (".b2nd", ".npz", ".npy") if (stem := name.removesuffix(ending)) != name}
    return tuple(sorted(case for case in cases if not (case.endswith("_seg") and case.removesuffix("_seg") in cases)))


def file_names(folder: Path) -> frozenset[str]:
    """Names of the files in a folder; empty if there is none. Raises DataError when it may not be listed, or StorageError."""
    try:
        with reading(folder), os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as err:
        raise DataError(f"folder: {folder} cannot be listed: {err.strerror}. Let user id {os.getuid()} read it.") from err


def ensure_splits(dataset_folder: Path, case_ids: Iterable[str]) -> list[Split]:
    """The folds of splits_final.json; a missing file is made once and whole, with the folds that nnU-Net itself would write.

    Source: nnunetv2 nnUNetTrainer.do_split: 5 folds, shuffled with seed 12345, over the sorted case ids. Raises DataError.
    """
    path = dataset_folder / "splits_final.json"
    if path.exists():
        return load_splits(dataset_folder)
    ids = sorted(case_ids)
    check_case_ids(ids, f"the preprocessed cases of {dataset_folder}")
    if len(ids) < NUM_FOLDS:
        raise DataError(
            f"splits_final.json: {path} does not exist, and {len(ids)} cases are too few for nnU-Net's {NUM_FOLDS} folds. "
            f"Write the file (a list of objects with 'train' and 'val') or preprocess more cases."
        )
    from nnunetv2.utilities.crossval_split import generate_crossval_split  # imports scikit-learn: only where a split is made

    folds = [{part: [str(case) for case in fold[part]] for part in ("train", "val")} for fold in generate_crossval_split(ids)]
    try:
        if create_exclusive(path, json.dumps(folds, indent=4, sort_keys=True).encode()):
            log.info("made %s with %d folds, as nnU-Net does on its first training", path, len(folds))
        release_claim(path)  # users delete it to have it made anew
    except (OSError, StorageError) as err:
        log.warning("%s cannot be written (%s): this plan uses the folds that nnU-Net would make", path, err)
        return [Split(tuple(fold["train"]), tuple(fold["val"])) for fold in folds]
    return load_splits(dataset_folder)


def datasets_in(folder: Path) -> list[str] | None:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and number_of(p.name) is not None)
    except OSError:
        return None


def number_of(name: str) -> int | None:
    found = re.fullmatch(r"Dataset(\d{1,9})_.+", name, re.ASCII | re.DOTALL)
    return int(found[1]) if found else None


def refuse_own_folder(key: str, folder: Path) -> None:
    """Raise ConfigError where one of nnU-Net's variables names a dataset's own folder in place of the folder of all datasets."""
    if number_of(folder.name) is not None and not datasets_in(folder):
        raise ConfigError(f"{key}: {folder} is a dataset's own folder; set it to its parent, {folder.parent}.")


def _unprepared(text: str, raw: Path | None) -> list[str]:
    """The raw datasets that `text` means."""
    names = (datasets_in(raw) or []) if raw else []
    return [name for name in names if name == text or (text.isdecimal() and number_of(name) == int(text))]


def _unknown_dataset(preprocessed: Path, text: str, names: list[str], raw: Path | None) -> str:
    here = f"Found: {', '.join(names) or 'no datasets'}."
    if unprepared := _unprepared(text, raw):
        return (
            f"dataset: {unprepared[0]} is raw but not preprocessed in {preprocessed}. {here} "
            f"Run {PREPROCESS_COMMAND} -d {number_of(unprepared[0])}, or write `preprocess: true` in the experiment file."
        )
    hint = "" if text.isdecimal() else nearest(text, names)
    if raw is not None:
        refuse_own_folder("nnUNet_raw", raw)
    if raw is not None and not raw.is_dir():
        here += f" Raw datasets are not seen either: nnUNet_raw names {raw}, which is not a folder (export nnUNet_raw=...)."
    return f"dataset: {text} is not in {preprocessed}.{hint} {here} Name one of these or run {PREPROCESS_COMMAND}."
