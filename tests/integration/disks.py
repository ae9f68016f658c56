"""Small file systems of a test's own, that can be filled, made read-only and taken away. Needs the right to mount."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A tmpfs of a few MiB, seen through a second mount, as a node sees a share."""

    def __init__(self, base: Path, size_mib: int) -> None:
        self._server, self.folder = base / "server", base / "share"
        self._ballast = self._server / "ballast"
        for place in (self._server, self.folder):
            place.mkdir(parents=True)
        mount("-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(self._server))
        self.come_back()

    def fill(self, left_bytes: int = 0) -> None:
        """Leave no more than this free."""
        with self._ballast.open("wb", buffering=0) as stream:
            while True:
                try:
                    stream.write(bytes(1 << 16))
                except OSError:
                    break
            stream.truncate(max(0, stream.tell() - left_bytes))

    def make_room(self) -> None:
        """Take out what filled it."""
        self._ballast.unlink()

    def make_read_only(self) -> None:
        """Refuse every change."""
        mount("-o", "remount,ro,bind", str(self.folder))

    def make_writable(self) -> None:
        """Accept changes again."""
        mount("-o", "remount,rw,bind", str(self.folder))

    def go_away(self) -> None:
        """The share is not mounted any more: an empty folder is in its place."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True, capture_output=True)

    def come_back(self) -> None:
        """Mount the share, with what was on it."""
        mount("--bind", str(self._server), str(self.folder))

    def end(self) -> None:
        """Unmount all."""
        for place in (self.folder, self._server):
            subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def mount(*arguments: str) -> None:
    """Mount, or skip the test where that is not allowed."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as err:
        pytest.skip(f"this machine does not let the test mount a file system: {getattr(err, 'stderr', err)}")


def small_disk(base: Path, size_mib: int) -> Iterator[Disk]:
    """A disk for one test; to be used by fixtures."""
    disk = Disk(base, size_mib)
    try:
        yield disk
    finally:
        disk.end()
