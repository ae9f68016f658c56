"""Digest and voxel values of a dataset's label files, as the reader of its plans gives them."""

import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.dataset.remembered import Reading, read_files
from trainers.data.segmentation_file import read_segmentation
from trainers.data.whole_file import check_whole
from trainers.storage.faults import find_outage
from trainers.storage.files import sha256_of

MAX_VALUES = 100
"""More distinct values than this are no label map: the rest is not listed."""
SLAB_VOXELS = 2**20
"""Voxels that a thread looks at together: bounds its memory to some tens of MB."""


def read_label_files(files: Mapping[str, Path], reader: str, cache_file: Path | None = None) -> dict[str, Reading]:
    """Read the label files of cases (case id -> path), with what `cache_file` remembers; a missing file is a fault.

    Raises StorageError where their disk is away. `reader` is the plans' `image_reader_writer`.
    """
    return read_files(files, lambda case: _read(files[case], reader), f"labels by {reader}", cache_file)


def _read(path: Path, reader: str) -> Reading:
    try:
        if not path.is_file():
            return Reading(fault="is missing")
        return Reading(sha256_of(path), voxel_values(path, reader))
    except Exception as err:  # image libraries raise whatever they like on a broken file
        find_outage(err, [path])
        return Reading(fault=f"cannot be read ({type(err).__name__}: {_reason(err)})")


def _reason(error: Exception) -> str:
    """What a library says in its last line: SimpleITK's first one names a file of its own sources."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else ""


def voxel_values(path: Path, reader: str) -> tuple[float, ...]:
    """Distinct voxel values of a label image as nnU-Net's `reader` gives them, ascending, at most MAX_VALUES.

    NIfTI files whose values need no arithmetic are read in slabs, which takes a fifth of the time and little memory; others by the reader.
    Raises whatever the reader raises: the same file would fail in the validation.
    """
    check_whole(path)
    slabs = _plain_slabs(path, reader)
    return _distinct([read_segmentation(path, _nnunet_reader(reader)()).values_ZYX] if slabs is None else slabs)


@functools.cache
def _nnunet_reader(name: str) -> Any:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    return recursive_find_reader_writer_by_name(name)


def _plain_slabs(path: Path, reader: str) -> Iterable[np.ndarray[Any, Any]] | None:
    """The slabs of a NIfTI file whose stored numbers are what `reader` gives but for their type; None where only it can tell."""
    import nibabel

    family = next((name for name in ("SimpleITK", "Nibabel") if reader.startswith(name)), None)
    if family is None or not path.name.endswith((".nii", ".nii.gz")):
        return None
    try:
        image = nibabel.load(path, keep_file_open=True)
    except Exception:  # of a file that the reader may take nevertheless
        return None
    if image.ndim != 3 or image.get_data_dtype().kind not in "iuf" or _is_scaled(image.dataobj):
        return None
    if family == "SimpleITK":
        _check_geometry(path)
    return _slabs(image)


def _is_scaled(stored: Any) -> bool:
    """Asked of the stored array: the header that nibabel hands out has forgotten slope and intercept."""
    return bool((stored.slope, stored.inter) != (1, 0))


def _check_geometry(path: Path) -> tuple[int, ...]:
    """The size of an image along its axes, X first, from its header. Reads no voxel.

    Raises RuntimeError for a header that SimpleITK refuses, such as of axes that are not at right angles.
    """
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    return tuple(int(size) for size in header.GetSize())


def unlike_shape(path: Path, image_shape_ZYX: Iterable[int]) -> str:
    """How a label file's shape differs from that of its image; '' where it does not, or where its header does not say.

    The axes are compared in any order: some of nnU-Net's readers turn images.
    """
    try:
        size = _check_geometry(path)
    except RuntimeError:  # of a format or a header that only the reader of the plans takes
        return ""
    labels, image = (1,) * (3 - len(size)) + size[::-1], tuple(image_shape_ZYX)
    return "" if sorted(labels) == sorted(image) else f"has the shape {labels}, its image had {image} when it was preprocessed"


def _slabs(image: Any) -> Iterable[np.ndarray[Any, Any]]:
    depth = image.shape[-1]
    step = max(1, SLAB_VOXELS * depth // max(1, math.prod(image.shape)))
    for start in range(0, depth, step):
        slab = np.asanyarray(image.dataobj[..., start : start + step])
        yield slab.astype(np.float32) if slab.dtype.kind == "f" else slab


def _distinct(slabs: Iterable[np.ndarray[Any, Any]]) -> tuple[float, ...]:
    values: set[float] = set()
    for slab in slabs:
        values.update(_values_of(slab))
        if len(values) > MAX_VALUES:
            break
    return tuple(sorted(values, key=lambda value: (math.isnan(value), value)))[:MAX_VALUES]


def _values_of(slab: np.ndarray[Any, Any]) -> list[float]:
    """Distinct values; small whole numbers are counted, which is many times faster than sorting all voxels."""
    lowest, highest = float(slab.min()), float(slab.max())
    is_whole = slab.dtype.kind in "ui" or (math.isfinite(lowest + highest) and bool(np.all(slab == np.rint(slab))))
    if is_whole and highest - lowest < 2**16:
        counts = np.bincount(slab.ravel(order="K").astype(np.int64) - int(lowest))
        return [float(v + int(lowest)) for v in np.flatnonzero(counts)]
    return [math.nan if np.isnan(v) else float(v) for v in np.unique(slab)[: MAX_VALUES + 1]]  # one NaN: none equals another
