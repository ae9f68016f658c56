"""Lock files whose holder has a name: whoever waits for one says for whom, and does not wait for ever."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from trainers.errors import ClusterError, StorageError
from trainers.storage.faults import storing

log = logging.getLogger(__name__)

NOTICE_S = 5.0
"""A wait as long as this is reported."""


@contextlib.contextmanager
def locked(path: Path, purpose: str, timeout_s: float) -> Iterator[None]:
    """Hold the lock file `path` (flock, so that it ends with its process). Raises ClusterError, with the holder, after `timeout_s` (0: at
    once); StorageError where the file system takes no lock."""
    lock = FileLock(path)
    with _locking(path, purpose):
        try:
            lock.acquire(timeout=min(NOTICE_S, timeout_s))
        except Timeout:
            if timeout_s == 0:
                raise ClusterError(f"{purpose}: {_holder_of(path)}. Wait until that one has ended, then try again.") from None
            _wait(lock, path, purpose, timeout_s)
    holder = _holder_file(path)
    try:
        with contextlib.suppress(OSError):  # only people read it
            holder.write_text(_own_name())
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink()
        lock.release()


@contextlib.contextmanager
def _locking(path: Path, purpose: str) -> Iterator[None]:
    try:
        with storing(path):
            yield
    except OSError as err:
        raise StorageError(
            f"{purpose}: {path} cannot be locked: {err.strerror or err}. Its file system has to know locks (NFS: its lock service; Lustre: "
            "mounted with -o flock), or name a folder on a local disk: NNFLEET_HOME for the local services, TMPDIR for campaigns."
        ) from err


def _wait(lock: FileLock, path: Path, purpose: str, timeout_s: float) -> None:
    began = time.strftime("%H:%M:%S")
    log.warning(
        "%s has waited for %s since %s: it is held by %s. It goes on when that process releases the lock or ends; limit: %.0f s.",
        *(purpose, path, began, _holder_of(path), timeout_s),
    )
    try:
        lock.acquire(timeout=max(timeout_s - NOTICE_S, 0.0))
    except Timeout:
        raise ClusterError(
            f"{purpose}: {path} has been locked for {timeout_s:.0f} s, by {_holder_of(path)}. Check what that process waits for, or "
            "end it; then try again."
        ) from None


def _own_name() -> str:
    job = os.environ.get("NNFLEET_SUBMISSION_ID")
    return f"{f'job {job}, ' if job else ''}process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%H:%M:%S')}"


def _holder_of(path: Path) -> str:
    try:
        return _holder_file(path).read_text() or "a process that just took it"
    except OSError:
        return "a process that has not left its name"


def _holder_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.holder")
