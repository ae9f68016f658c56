"""Durable file operations: a reader sees the old file or the whole new one, never a part of it.

Whatever writes here raises StorageError when the disk is full, read-only or away, and leaves nothing half written behind.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from trainers.errors import ConfigError, DataError, StorageError
from trainers.storage.faults import free_space, reading, storing

log = logging.getLogger(__name__)

NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
"""How file systems say that they do not make hard links."""
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EISDIR}
"""How they say that a folder cannot be opened or synced like a file."""
NO_MODES = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
"""How they say that the permissions of a file cannot be changed."""


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries (renames, links) durable, where its file system can: SMB and some of FUSE make them so when they choose."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as err:
        if err.errno not in NO_FOLDER_SYNC:
            raise
        _tell_once(f"the file system of {folder} does not sync folders ({err.strerror}): a power cut there may take the newest files along")


@functools.cache
def _tell_once(text: str) -> None:
    log.info("%s", text)


def write_beside(target: Path, fill: Callable[[IO[bytes]], None], mode: int = 0o644) -> Path:
    """Write a durable temporary file next to `target` through `fill` and return its path; leaves nothing behind on error."""
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        with _removed_on_error(Path(name)), os.fdopen(descriptor, "wb") as stream:
            fill(stream)
            stream.flush()
            _set_mode(stream.fileno(), mode, target)
            os.fsync(stream.fileno())
        return Path(name)


def _set_mode(descriptor: int, mode: int, target: Path) -> None:
    """Set a file's permissions where its file system keeps any (not vfat, nor many an SMB share); a secret that stays open is told."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as err:
        if err.errno not in NO_MODES:
            raise
    if not mode & 0o077 and os.fstat(descriptor).st_mode & 0o077:
        log.warning("%s is to be read by its owner alone, but its file system does not keep permissions: others may read it", target)


def filled(content: bytes) -> Callable[[IO[bytes]], None]:
    """What `write_beside` and `write_through` are given to write these bytes."""

    def fill(stream: IO[bytes]) -> None:
        stream.write(content)

    return fill


def write_through(target: Path, fill: Callable[[IO[bytes]], None], mode: int = 0o644) -> None:
    """Replace `target` atomically and durably by what `fill` writes into the stream that it is given."""
    temporary = write_beside(target, fill, mode)
    with storing(target):
        with _removed_on_error(temporary):
            os.replace(temporary, target)
        fsync_folder(target.parent)


def write_hashed(target: Path, fill: Callable[[IO[bytes]], None]) -> str:
    """As `write_through`; returns the SHA-256 of what `fill` wrote, taken while it was written. `fill` may only write and flush."""
    digest = hashlib.sha256()
    write_through(target, lambda stream: fill(cast(IO[bytes], _Hashing(stream, digest))))
    return digest.hexdigest()


def write_atomic(target: Path, content: bytes) -> None:
    """Replace `target` atomically and durably by `content`."""
    write_through(target, filled(content))


def write_if_changed(target: Path, content: bytes) -> None:
    """As `write_atomic`; an equal file keeps its modification time, by which the tracking server knows a score that it has already."""
    if not target.is_file() or target.read_bytes() != content:
        write_atomic(target, content)


def write_json_atomic(target: Path, value: Any) -> None:
    """Replace `target` atomically by `value` as JSON. NaN is written as `NaN`, as Python and nnU-Net do."""
    write_atomic(target, json.dumps(value, indent=1).encode())


def write_heartbeat(target: Path, value: Any, writer: int) -> None:
    """Replace `target` atomically by `value` as JSON, but neither durably nor where its folder is missing: a sign that is lost is no harm.

    `writer` tells those apart who may write at once. Raises OSError.
    """
    beside = target.with_suffix(f".{writer}.part")
    beside.write_text(json.dumps(value))
    os.replace(beside, target)


def link_atomic(source: Path, target: Path) -> bool:
    """Make `target` a second name of `source`'s content, replacing what was there in one step. Where links are not supported it is copied
    and False returned."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        os.link(source, temporary)
    except OSError as err:
        if err.errno in NO_LINKS:
            with source.open("rb") as opened:
                write_through(target, lambda stream: shutil.copyfileobj(opened, stream, 1 << 22))
            return False
        with storing(target):
            raise
    with storing(target):
        with _removed_on_error(temporary):
            os.replace(temporary, target)
        remove_quietly(temporary)  # rename() does nothing when both names already are the same file
        fsync_folder(target.parent)
    return True


def check_takes(folder: Path, size_bytes: int = 4 << 20) -> None:
    """Raise StorageError unless `folder` is there and takes a file of this size now; nothing is left of it."""
    if not folder.is_dir():
        raise StorageError(f"storage: {folder} is gone; {free_space(folder)}. Mount the shared folder again.")
    remove_quietly(write_beside(folder / "probe", filled(bytes(size_bytes))))


@contextlib.contextmanager
def takes_files(folder: Path) -> Iterator[None]:
    """For long work that writes into `folder`: asked before it, and again where it fails, since libraries hide a full disk behind errors of
    their own, or write half a file. Raises StorageError as `check_takes`.
    """
    check_takes(folder)
    try:
        yield
    except Exception:
        check_takes(folder)
        raise


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder below the system's temporary one (TMPDIR), gone at the end. Raises StorageError when that takes none."""
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as err:
        raise StorageError(
            f"storage: no temporary folder can be made: {err.strerror or err}. Free space there, or name another folder in TMPDIR."
        ) from err
    with made as name:
        yield Path(name)


def expanded(path: Path) -> Path:
    """The absolute path, `~` being the home folder of this user. Raises ConfigError where that is not known."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as err:
        raise ConfigError(
            f"{path}: {err} HOME is not set, or this system does not know that user. Write the whole path, or set HOME."
        ) from err


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file; a missing or broken one becomes a `DataError` that names `what` it is, a disk that is away a `StorageError`."""
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text: nothing could print or store it
        return value
    except FileNotFoundError as err:
        raise DataError(f"{what}: {path} does not exist.") from err
    except (OSError, ValueError, RecursionError) as err:
        raise DataError(f"{what}: {path} cannot be read as JSON: {err}. Restore the file or make it anew.") from err


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _Hashing:
    """Hashes what passes through it. It cannot seek, so what is hashed is the file."""

    def __init__(self, stream: IO[bytes], digest: "hashlib._Hash") -> None:
        self._stream, self._digest = stream, digest
        self.flush = stream.flush

    def write(self, block: bytes | memoryview) -> int:
        self._digest.update(block)
        return self._stream.write(block)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        remove_quietly(temporary)
        raise


def remove_quietly(temporary: Path) -> None:
    """Delete a file if it is there; where even that fails, the error that led here says more."""
    with contextlib.suppress(OSError):
        temporary.unlink()
