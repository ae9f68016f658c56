"""Preprocessed cases that wait for the rest of their configuration, and survive a job that is killed: each whole one has a mark.

A mark is written once the case's files are on disk, and names all that they were made from: another plans file, dataset.json, nnU-Net, or
raw files of the case make it void. Marks lie beside the folder of the cases, which is renamed into the dataset as it is.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainers.storage.files import write_atomic


class WholeCases:
    """Those of one configuration. `folder`: where its cases are made; `settings`: the files that all of them depend on."""

    def __init__(self, folder: Path, configuration: str, settings: Iterable[Path]) -> None:
        self.folder = folder
        self._marks = folder.with_name(f"{folder.name}.whole")
        common = hashlib.sha256(f"{version('nnunetv2')} {configuration}".encode())
        for path in settings:
            common.update(path.read_bytes())
        self._common = common.hexdigest()
        for place in (self.folder, self._marks):
            place.mkdir(parents=True, exist_ok=True)

    def mark_of(self, case: str, named: Mapping[str, Any]) -> tuple[Path, str]:
        """Where the mark of a case lies, and what it holds. `named`: its raw files, as nnU-Net lists them. Raises OSError."""
        made_from = hashlib.sha256(self._common.encode())
        for path in map(Path, (*named["images"], named["label"])):
            found = path.stat()
            made_from.update(f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode())
        return self._marks / case, made_from.hexdigest()

    def are_whole(self, files: Mapping[str, Any]) -> list[str]:
        """Those of the cases that an earlier job has made of the very same files."""
        return [case for case, named in files.items() if _is_valid(*self.mark_of(case, named))]

    def release(self) -> Path:
        """The folder of the cases, which may be renamed: no mark names its files any more."""
        shutil.rmtree(self._marks)
        return self.folder


def set_mark(mark: Path, content: str) -> None:
    """Note that the files of a case are whole and on disk."""
    write_atomic(mark, content.encode())


def _is_valid(mark: Path, content: str) -> bool:
    try:
        return mark.read_text() == content
    except FileNotFoundError:
        return False
