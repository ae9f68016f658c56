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
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from trainers.contract.errors import ConfigError, DataError, StorageError
from trainers.contract.storage import free_space, reading, storing

log = logging.getLogger(__name__)

NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
"""How file systems say that they do not make hard links."""
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EISDIR}
"""How they say that a folder cannot be opened or synced like a file."""
NO_MODES = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
"""How they say that the permissions of a file cannot be changed."""
IS_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}
"""How they say that a folder is not replaced by another one."""
CLAIMED = "content"
"""Name of the file in a folder that is a claim."""


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
    write_through(target, lambda stream: _write_all(stream, content))


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


def create_exclusive(target: Path, content: bytes, mode: int = 0o644) -> bool:
    """Create `target` whole or not at all; False if it already exists. Safe between processes and nodes of a shared folder.

    Whoever moves or deletes such a file calls `release_claim` before.
    """
    temporary = write_beside(target, lambda stream: _write_all(stream, content), mode)
    with storing(target):
        try:
            is_made = _linked(temporary, target)
        except OSError as err:
            if err.errno not in NO_LINKS:
                raise
            is_made = _created_by_claim(temporary, target)
        finally:
            _remove(temporary)
        if is_made:
            fsync_folder(target.parent)
    return is_made


def _linked(temporary: Path, target: Path) -> bool:
    try:
        os.link(temporary, target)
    except FileExistsError:
        return os.stat(temporary).st_nlink >= 2  # it was made after all: NFS repeats a request whose answer was lost
    return True


def _created_by_claim(temporary: Path, target: Path) -> bool:
    """As `create_exclusive`, where there are no hard links. The exclusive act is the renaming of a folder with the content in it: a folder
    that is not empty is never replaced, so one of all wins.

    The claim stays: whatever a cache answers to the question whether `target` is there, no second one wins, and whoever writes `target`
    writes what the winner claimed. So a kill at any moment leaves `target` whole, or leaves it to the next.
    """
    if target.exists():
        return False
    claim = _claim_of(target)
    is_claimed = _renamed_onto(claim, temporary)
    _complete(claim, target)
    return is_claimed


def _claim_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.claim")


def _renamed_onto(claim: Path, temporary: Path) -> bool:
    """Make `claim` a folder that holds the file `temporary`; False if another was first."""
    own = _beside(claim)
    own.mkdir()
    try:
        os.replace(temporary, own / CLAIMED)
        fsync_folder(own)
        os.rename(own, claim)
    except OSError as err:
        if err.errno not in IS_TAKEN and not claim.is_dir():
            raise
        return False
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return True


def _complete(claim: Path, target: Path) -> None:
    """Make `target` of what `claim` holds, unless it is there. Whoever sees a claim may, and all at once."""
    held = claim / CLAIMED
    try:
        content, mode = held.read_bytes(), stat.S_IMODE(held.stat().st_mode)
    except FileNotFoundError:  # of a version that removed claims
        return
    if not target.exists():
        write_through(target, lambda stream: _write_all(stream, content), mode)


def release_claim(target: Path) -> None:
    """Let an exclusively created file be created anew once it is gone; without hard links its claim would bring it back.

    Called before `target` is moved, and after it was made where its users may delete it. Does nothing where there are hard links.
    """
    claim, released = _claim_of(target), _beside(_claim_of(target))
    with storing(target):
        try:
            os.rename(claim, released)
        except FileNotFoundError:
            return
    shutil.rmtree(released, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")


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
        _remove(temporary)  # rename() does nothing when both names already are the same file
        fsync_folder(target.parent)
    return True


def check_takes(folder: Path, size_bytes: int = 4 << 20) -> None:
    """Raise StorageError unless `folder` is there and takes a file of this size now; nothing is left of it."""
    if not folder.is_dir():
        raise StorageError(f"storage: {folder} is gone; {free_space(folder)}. Mount the shared folder again.")
    _remove(write_beside(folder / "probe", lambda stream: _write_all(stream, bytes(size_bytes))))


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


def _write_all(stream: IO[bytes], content: bytes) -> None:
    stream.write(content)


@contextlib.contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _remove(temporary)
        raise


def _remove(temporary: Path) -> None:
    """Delete a file if it is there; where even that fails, the error that led here says more."""
    with contextlib.suppress(OSError):
        temporary.unlink()
