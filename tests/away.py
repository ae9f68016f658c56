"""A disk that is away, for single files and without the right to mount anything."""

import os
from pathlib import Path

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
