"""What was read of a dataset's files: each is read once, and remembered by path, size and time of change in one file.

A cache that cannot be read or written costs time only, and a warning.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StorageError
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)

CACHE_NAME = ".nnfleet_digests.json"
CACHE_VERSION = 2
MOST_THREADS = 8
SETTLED_S = 2.0
"""A file changed less than this many seconds ago is not remembered: on file systems with coarse times its next change would be missed."""
PROGRESS_S = 10.0
"""How often a long reading says how far it is."""


@dataclass(frozen=True)
class Reading:
    """What one file holds: a SHA-256 and, of labels, the distinct voxel values, ascending; or the reason why it cannot be read."""

    sha256: str = ""
    values: tuple[float, ...] = ()
    fault: str = ""


def read_files(
    files: Mapping[str, Path],
    read: Callable[[str], Reading],
    kind: str,
    cache_file: Path | None = None,
    most_threads: int = MOST_THREADS,
) -> dict[str, Reading]:
    """`read` of each name in `files`, in parallel, unless `cache_file` remembers it of the name's file as it is now.

    `kind` says in words what is read of them: one file may be read in several ways. A fault is never remembered.
    """
    known = _load_cache(cache_file)
    with ThreadPoolExecutor(max_workers=min(most_threads, os.cpu_count() or 1)) as threads:
        stamps = dict(zip(files, threads.map(_stamp, files.values()), strict=True))
        keys = {name: f"{kind}: {path}" for name, path in files.items()}
        found = {name: known[key][1] for name, key in keys.items() if known.get(key, (None,))[0] == stamps[name] is not None}
        missing = [name for name in files if name not in found]
        progress, is_known = _Progress(kind, len(missing)), True
        for name, reading in zip(missing, threads.map(read, missing), strict=True):
            found[name] = reading
            stamp = stamps[name]
            if stamp is not None and stamp == _stamp(files[name]) and _is_settled(stamp) and not reading.fault:
                known[keys[name]], is_known = (stamp, reading), False
            if progress.step() and not is_known:
                _save_cache(cache_file, known)  # whoever interrupts a long reading keeps what was read
                is_known = True
    if not is_known:
        _save_cache(cache_file, known)
    return {name: found[name] for name in files}


_Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""
_Known = dict[str, tuple[_Stamp, Reading]]


class _Progress:
    """Says from time to time how far a reading is."""

    def __init__(self, kind: str, count: int) -> None:
        self._kind, self._count, self._done, self._said = kind, count, 0, time.monotonic()

    def step(self) -> bool:
        """One more file; True when it was time to say so."""
        self._done += 1
        if time.monotonic() - self._said < PROGRESS_S:
            return False
        self._said = time.monotonic()
        log.info("reading %s: %d of %d files", self._kind, self._done, self._count)
        return True


def _stamp(path: Path) -> _Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _is_settled(stamp: _Stamp) -> bool:
    return stamp[1] < (time.time() - SETTLED_S) * 1e9


def _load_cache(cache_file: Path | None) -> _Known:
    if cache_file is None or not cache_file.exists():
        return {}
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
        if content["version"] != CACHE_VERSION:
            return {}
        return {
            key: ((int(size), int(changed_ns)), Reading(str(sha256), tuple(float(v) for v in values)))
            for key, (size, changed_ns, sha256, values) in content["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as err:
        log.warning("digests in %s cannot be read (%s): the files are read again", cache_file, err)
        return {}


def _save_cache(cache_file: Path | None, known: _Known) -> None:
    if cache_file is None:
        return
    files = {key: [*stamp, reading.sha256, reading.values] for key, (stamp, reading) in known.items()}
    try:
        write_atomic(cache_file, json.dumps({"version": CACHE_VERSION, "files": files}).encode())
    except (OSError, StorageError) as err:
        log.warning("digests cannot be kept in %s (%s): the files are read again next time", cache_file, err)
