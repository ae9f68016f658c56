"""What it means when a file system does not take what has to be stored or does not give what it holds, and how long that is waited for.

An error of the disk becomes a StorageError that says which place, how much is free there and what to do. Other errors pass unchanged. Of
a file that is read, one that is missing or may not be read is such another error: the user has to mend that, no retry does. But where a
whole dataset is missing that a job has found before, its share is away.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from trainers.errors import DataError, StorageError

log = logging.getLogger(__name__)

STORAGE_RETRY_S = 300.0
"""How long a commit waits for its disk; below the time after which the other ranks give up their collectives."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
_T = TypeVar("_T")

_AWAY = {
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.ETIMEDOUT),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EREMOTEIO),
}
_FAULTS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the file system is full", "Free space there"),
    errno.EDQUOT: ("the quota is used up", "Free space of this user or group, or raise the quota"),
    errno.EROFS: ("the file system is read-only", "Mount it for writing"),
    errno.EFBIG: ("a file of this size is not allowed", "Raise the limit of file sizes (ulimit -f)"),
    errno.EACCES: ("this user may not write", "Give the user of the Ray cluster the right to write there"),
    errno.EPERM: ("this user may not write", "Give the user of the Ray cluster the right to write there"),
    **dict.fromkeys(_AWAY, ("the file system is unavailable or broken", "Bring back the disk, or the server of the shared folder")),
}


def is_of_storage(error: BaseException) -> bool:
    """True for errors that say that the disk takes nothing now, whatever is written."""
    return isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _FAULTS)


def storage_error(error: OSError, place: Path, verb: str = "written") -> StorageError:
    """The error of a file at `place` that could not be written (or what `verb` says). `error` is one for which `is_of_storage` holds."""
    fault, advice = _FAULTS[error.errno or 0]
    return StorageError(f"storage: {place} cannot be {verb}: {fault} ({error.strerror}); {free_space(place)}. {advice}.")


@contextlib.contextmanager
def storing(place: Path) -> Iterator[None]:
    """Errors of the disk inside become a StorageError that names `place`; others pass."""
    try:
        yield
    except OSError as err:
        if is_of_storage(err):
            raise storage_error(err, place) from err
        raise


@contextlib.contextmanager
def reading(place: Path) -> Iterator[None]:
    """Errors inside of a file system that is away or broken become a StorageError that names `place`; others pass."""
    try:
        yield
    except OSError as err:
        if err.errno in _AWAY:
            raise storage_error(err, place, "read") from err
        raise


def is_there(path: Path) -> bool:
    """Whether a file or folder is there. Raises StorageError where its disk is away, or OSError, where `Path.exists`
    says no from Python 3.14 on."""
    try:
        with reading(path):
            path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def find_outage(error: Exception, files: Sequence[Path], dataset: Path | None = None) -> None:
    """Raise StorageError if a library's `error` about `files` comes of a file system that is away; returns for any other.

    Libraries may hide that behind words of their own, so the files are read once, whole; what is missing or refused is passed, but where
    none can be opened, the preprocessed dataset that they are part of has to be there (`check_dataset_is_there`).
    """
    if isinstance(error, OSError) and error.errno in _AWAY:
        raise storage_error(error, files[0], "read") from error
    is_one_there = False
    for path in files:
        with contextlib.suppress(OSError), reading(path), path.open("rb") as stream:
            is_one_there = True
            while stream.read(1 << 22):
                pass
    if dataset is not None and not is_one_there:
        check_dataset_is_there(dataset)


def check_dataset_is_there(folder: Path) -> None:
    """Raise StorageError where a preprocessed dataset that a job of its run has found before is not to be seen: its share is not mounted.

    Its own dataset.json tells, since an empty mount point is a folder, too. Raises DataError where this user may not look.
    """
    path = folder / "dataset.json"
    try:
        with reading(path):
            path.stat()
    except (FileNotFoundError, NotADirectoryError) as err:
        raise StorageError(f"storage: {path} is not there on this node. Mount the folder of the preprocessed datasets.") from err
    except OSError as err:
        raise DataError(
            f"preprocessed data: {path} cannot be read: {err.strerror}. Give the user of the Ray cluster the right to read that folder."
        ) from err


def free_space(place: Path) -> str:
    """How much is free on the file system of `place`, in words."""
    for folder in (place, *place.parents):
        try:
            found = os.statvfs(folder)
        except FileNotFoundError:
            continue
        except OSError as err:
            return f"what is free there is not known ({err.strerror})"
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        return f"{free / 2**20:.1f} of {total / 2**20:.0f} MiB and {found.f_favail} files are free in {folder}"
    return "no folder of that path is there"


def backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    """How long to wait after so many failures in a row: `first_s` after the first, doubled each time, at most `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(failures - 1, 30))  # the bound keeps a long outage from overflowing


def retry_storage(
    act: Callable[[], _T],
    what: str,
    limit_s: float = STORAGE_RETRY_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    tell: Callable[[str], None] = lambda _: None,
) -> _T:
    """Call `act`, again and again with longer waits while storage is unavailable; logged once when that begins and once when it ends.

    `tell` is called with why it is waited for after each failure, and with '' at the end of a wait (`StorageNotice.tell`).
    `act` must be able to run again after it failed at any point. Raises StorageError after `limit_s`; other errors at once.
    """
    began, failures = 0.0, 0
    try:
        while True:
            try:
                result = act()
            except (OSError, StorageError) as err:
                if not is_of_storage(err):
                    raise
                now = clock()
                if failures == 0:
                    began, at = now, time.strftime("%H:%M:%S")
                    log.warning("%s: storage is unavailable since %s: %s Retrying for %.0f s.", what, at, err, limit_s)
                failures += 1
                left = began + limit_s - now
                if left <= 0:
                    raise StorageError(
                        f"{err} {what} was tried {failures} times in {now - began:.0f} s. What was committed before is whole: "
                        "when the storage works again, submit the experiment again or resume it."
                    ) from err
                tell(f"{err} {_tried_until(what, left)}")
                sleep(min(backoff_s(failures, FIRST_WAIT_S, LONGEST_WAIT_S), left))
            else:
                if failures:
                    log.warning("%s: storage recovered after %.0f s and %d failures.", what, clock() - began, failures)
                return result
    finally:
        tell("")


def _tried_until(what: str, left_s: float) -> str:
    until = time.strftime("%H:%M UTC", time.gmtime(time.time() + left_s))
    return f"{what[:1].upper()}{what[1:]} is tried again until {until}."
