"""Digest and voxel values of a dataset's label files, read once and remembered by path, size and time of change."""

import functools
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.contract.files import sha256_of, write_atomic
from trainers.contract.storage import find_outage

log = logging.getLogger(__name__)

CACHE_NAME = ".nnfleet_digests.json"
CACHE_VERSION = 1
MAX_VALUES = 100
"""More distinct values than this are no label map: the rest is not listed."""
SLAB_VOXELS = 2**20
"""Voxels that a thread looks at together: bounds its memory to some tens of MB."""
SETTLED_S = 2.0
"""A file changed less than this many seconds ago is not remembered: on file systems with coarse times its next change would be missed."""


@dataclass(frozen=True)
class LabelFile:
    """One label file: SHA-256 of its bytes and its distinct voxel values, ascending; or the reason why it cannot be read."""

    sha256: str = ""
    values: tuple[float, ...] = ()
    fault: str = ""


def read_label_files(files: Mapping[str, Path], reader: str, cache_file: Path | None = None) -> dict[str, LabelFile]:
    """Read the label files of cases (case id -> path), in parallel, with what `cache_file` remembers; a missing file is a fault.

    Raises StorageError where their disk is away.
    `reader` is the plans' `image_reader_writer`. A cache that cannot be read or written costs time only, and a warning.
    """
    known = _load_cache(cache_file)
    stamps = {case: _stamp(path) for case, path in files.items()}
    found = {case: known[str(path)][1] for case, path in files.items() if known.get(str(path), (None,))[0] == stamps[case] is not None}
    missing = [case for case in files if case not in found]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        found.update(zip(missing, threads.map(lambda case: _read(files[case], reader), missing), strict=True))
    fresh: _Known = {}
    for case in missing:
        stamp = stamps[case]
        if stamp is not None and stamp == _stamp(files[case]) and _is_settled(stamp) and not found[case].fault:
            fresh[str(files[case])] = (stamp, found[case])
    if cache_file is not None and fresh:
        _save_cache(cache_file, {**known, **fresh})
    return {case: found[case] for case in files}


_Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""
_Known = dict[str, tuple[_Stamp, LabelFile]]


def _stamp(path: Path) -> _Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _is_settled(stamp: _Stamp) -> bool:
    return stamp[1] < (time.time() - SETTLED_S) * 1e9


def _read(path: Path, reader: str) -> LabelFile:
    try:
        if not path.is_file():
            return LabelFile(fault="is missing")
        return LabelFile(sha256_of(path), voxel_values(path, reader))
    except Exception as err:  # image libraries raise whatever they like on a broken file
        find_outage(err, [path])
        return LabelFile(fault=f"cannot be read ({type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else ''})")


def voxel_values(path: Path, reader: str) -> tuple[float, ...]:
    """Distinct voxel values of a label image, ascending, at most MAX_VALUES. NIfTI is read in slabs, other formats by nnU-Net's reader."""
    if path.name.endswith((".nii", ".nii.gz")):
        return _distinct(_nifti_slabs(path))
    segmentation, _ = _nnunet_reader(reader)().read_seg(str(path))
    return _distinct([segmentation])


@functools.cache
def _nnunet_reader(name: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)


def _nifti_slabs(path: Path) -> Iterable[np.ndarray[Any, Any]]:
    import nibabel

    image = nibabel.load(path, keep_file_open=True)
    depth = image.shape[-1]
    step = max(1, SLAB_VOXELS * depth // max(1, math.prod(image.shape)))
    for start in range(0, depth, step):
        yield np.asanyarray(image.dataobj[..., start : start + step])


def _distinct(slabs: Iterable[np.ndarray[Any, Any]]) -> tuple[float, ...]:
    values: set[float] = set()
    for slab in slabs:
        values.update(_values_of(slab))
        if len(values) > MAX_VALUES:
            break
    return tuple(sorted(values))[:MAX_VALUES]


def _values_of(slab: np.ndarray[Any, Any]) -> list[float]:
    """Distinct values; small whole numbers are counted, which is many times faster than sorting all voxels."""
    lowest, highest = float(slab.min()), float(slab.max())
    is_whole = slab.dtype.kind in "ui" or (math.isfinite(lowest + highest) and bool(np.all(slab == np.rint(slab))))
    if is_whole and highest - lowest < 2**16:
        counts = np.bincount(slab.ravel(order="K").astype(np.int64) - int(lowest))
        return [float(v + int(lowest)) for v in np.flatnonzero(counts)]
    return [float(v) for v in np.unique(slab)[: MAX_VALUES + 1]]


def _load_cache(cache_file: Path | None) -> _Known:
    if cache_file is None or not cache_file.exists():
        return {}
    try:
        content = json.loads(cache_file.read_text(encoding="utf-8"))
        if content["version"] != CACHE_VERSION:
            return {}
        return {
            path: ((int(size), int(changed_ns)), LabelFile(str(sha256), tuple(float(v) for v in values)))
            for path, (size, changed_ns, sha256, values) in content["files"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as err:
        log.warning("digests in %s cannot be read (%s): the label files are read again", cache_file, err)
        return {}


def _save_cache(cache_file: Path, known: _Known) -> None:
    files = {path: [*stamp, label.sha256, label.values] for path, (stamp, label) in known.items()}
    try:
        write_atomic(cache_file, json.dumps({"version": CACHE_VERSION, "files": files}).encode())
    except OSError as err:
        log.warning("digests cannot be kept in %s (%s): the label files are read again next time", cache_file, err)
