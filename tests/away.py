"""A disk that is away, for single files and without the right to mount anything."""

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
