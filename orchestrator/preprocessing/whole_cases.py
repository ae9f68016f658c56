"""Preprocessed cases that wait for the rest of their configuration, and survive a job that is killed: each whole one has a mark.

A mark is written once the case's files are on disk, and names all that they were made from: another plans file, dataset.json, nnU-Net (its
code, which people extend in place), or raw files of the case make it void. Marks lie beside the folder of the cases, which is renamed
into the dataset.
"""

import functools
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator.preprocessing.due import WHOLE
from trainers.storage.files import fsync_folder, write_atomic


class WholeCases:
    """Those of one configuration. `folder`: where its cases are made; `settings`: the files that all of them depend on."""

    def __init__(self, folder: Path, configuration: str, settings: Iterable[Path]) -> None:
        self.folder = folder
        self._marks = folder.with_name(f"{folder.name}.whole")
        common = hashlib.sha256(f"{version('nnunetv2')} {code_digest()} {configuration}".encode())
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
        marked = [case for case, named in files.items() if _is_valid(*self.mark_of(case, named))]
        return [case for case in marked if all((self.folder / f"{case}{ending}").is_file() for ending in WHOLE)]

    def release(self, cases: Collection[str]) -> Path:
        """The folder, which may be renamed: it holds these cases alone, and no mark names its files any more."""
        shutil.rmtree(self._marks)
        wanted = {f"{case}{ending}" for case in cases for ending in WHOLE}
        for left in self.folder.iterdir():
            if left.name not in wanted:  # of a case that is not in the raw dataset any more
                left.unlink()
        return self.folder


def put_whole(made: Path, folder: Path, mark: Path, made_from: str) -> None:
    """Move the files of a case, which are on disk, to the whole ones and mark it. At no moment does a mark stand beside files of another
    making."""
    mark.unlink(missing_ok=True)
    fsync_folder(mark.parent)
    for ending in WHOLE:
        os.replace(f"{made}{ending}", folder / f"{made.name}{ending}")
    fsync_folder(folder)
    write_atomic(mark, made_from.encode())


@functools.cache
def code_digest() -> str:
    """SHA-256 of the code by which the installed nnU-Net reads and preprocesses."""
    found = find_spec("nnunetv2")
    places = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    files = sorted(file for place in places for part in ("preprocessing", "imageio") for file in (place / part).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _is_valid(mark: Path, content: str) -> bool:
    try:
        return mark.read_text() == content
    except FileNotFoundError:
        return False
