"""What a Ray job gets as its working directory: a copy of our own packages, without caches, and files beside them."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import orchestrator
import trainers


@contextlib.contextmanager
def staged(files: Mapping[str, str]) -> Iterator[Path]:
    """A temporary folder with the packages as they are installed here, and `files` (name -> text). Under a megabyte."""
    with tempfile.TemporaryDirectory(prefix="nnfleet-code-") as name:
        folder = Path(name)
        for package in (orchestrator, trainers):
            source = Path(next(iter(package.__path__)))
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        for file_name, text in files.items():
            (folder / file_name).write_text(text, encoding="utf-8")
        yield folder
