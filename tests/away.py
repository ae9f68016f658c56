"""A disk that is away, for single files and without the right to mount anything."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

BROKEN = Path("/proc/self/mem")
"""Its beginning is mapped nowhere: whoever reads it gets EIO."""


class Away:
    """The file at `path` cannot be read any more, until it comes back."""

    def __init__(self, path: Path) -> None:
        self.path, self._kept = path, path.with_name(f".{path.name}.kept")
        path.rename(self._kept)
        path.symlink_to(BROKEN)

    def come_back(self) -> None:
        """Everything is as it was."""
        self._kept.replace(self.path)


class OnlyHere:
    """The file at `path` is seen by this process alone, as where only its node has mounted a share, until it is shared again."""

    def __init__(self, path: Path) -> None:
        self.path, self._kept = path, path.with_name(f".{path.name}.kept")
        path.rename(self._kept)
        self._opened = os.open(self._kept, os.O_RDONLY)
        os.dup2(self._opened, 900)  # a number that no other process has
        path.symlink_to("/proc/self/fd/900")

    def share(self) -> None:
        """Everybody sees it."""
        self._kept.replace(self.path)


def share_is_away(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whoever looks up files of this name gets an error, which `Path.exists` and `is_file` take for no from Python 3.14 on."""
    stat = os.stat

    def refuse(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if os.path.basename(os.fspath(path)) == name:
            raise OSError(errno.EIO, "Input/output error")
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))
    monkeypatch.setattr(Path, "is_file", lambda path: os.path.isfile(path))
