"""The files of a preprocessed case: arrays and properties, checked on reading, with nothing in them executed.

nnU-Net's own classes unpickle the properties with every case, so they are not used here. Imports no torch.
C image channels, Z Y X voxels. Source: nnunetv2/training/dataloading/nnunet_dataset.py (nnUNetDatasetBlosc2, nnUNetDatasetNumpy).
"""

import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np

from trainers.data.not_finite import middle_is_finite, not_finite
from trainers.data.restricted_pickle import read_pickle
from trainers.errors import DataError
from trainers.storage.faults import find_outage

log = logging.getLogger(__name__)

_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")
Part = Literal["image", "labels"]
_HEADERS: dict[tuple[int, int], Any] = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Readers of the headers of .npy, by version; later ones are for named fields."""
PARTS: tuple[Part, ...] = ("image", "labels")


def open_case(folder: Path, case_id: str, channels: int, wanted: Collection[Part] = PARTS) -> tuple[Any, Any]:
    """Image (C, Z, Y, X) and labels (1, Z, Y, X) of a case; slicing them reads only what is asked for.

    Of the format before nnU-Net 2.6 the unpacked .npy are mapped, else the `wanted` parts of the .npz are unpacked; another one only has
    its shape and type.
    Raises DataError when they are damaged or are not arrays of these shapes, StorageError when the disk is away.
    """
    try:
        is_blosc2 = (folder / f"{case_id}.b2nd").is_file()
        image, labels = _open_blosc2(folder, case_id) if is_blosc2 else _open_numpy(folder, case_id, wanted)
        fault = fault_of_arrays(image, labels, channels)
    except Exception as err:  # blosc2, numpy and zipfile raise many kinds for a broken file
        raise damaged(folder, case_id, err) from err
    if fault:
        raise DataError(f"preprocessed data: case {case_id} in {folder} {fault}. Run nnUNetv2_preprocess again.")
    return image, labels


def shape_of_case(folder: Path, case_id: str, channels: int) -> tuple[int, ...]:
    """Voxels (Z, Y, X) of a preprocessed case. Unpacks nothing. Raises as `open_case`."""
    image, _ = open_case(folder, case_id, channels, ())
    return tuple(int(size) for size in image.shape[1:])


def open_previous(folder: Path, case_id: str, shape_ZYX: tuple[int, ...]) -> Any:
    """The previous stage's segmentation (Z, Y, X) of a case, in one of nnU-Net's three formats; slicing it reads only what is asked for.

    Raises DataError when it is missing, damaged or of another shape than the case, StorageError when the disk is away.
    """
    try:
        array = _open_previous(folder, case_id)
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    except Exception as err:  # as above
        raise damaged_previous(folder, case_id, err) from err
    if shape != shape_ZYX or dtype.kind not in "iu":
        found = f"holds {dtype} values of shape {shape} where the case has {shape_ZYX}"
        raise DataError(f"previous stage: the segmentation of case {case_id} in {folder} {found}. {_PREDICT_AGAIN}")
    return array


def previous_sha256(folder: Path, case_id: str) -> str:
    """SHA-256 of the values of a previous stage's segmentation, with shape and type: the same in each format. Unpacks all of them.

    Raises as `open_previous`.
    """
    try:
        values_ZYX = np.ascontiguousarray(_open_previous(folder, case_id)[:])
    except Exception as err:  # as above
        raise damaged_previous(folder, case_id, err) from err
    return hashlib.sha256(f"{list(values_ZYX.shape)} {values_ZYX.dtype.str}".encode() + values_ZYX.tobytes()).hexdigest()


def previous_file(folder: Path, case_id: str) -> Path:
    """The file that `open_previous` reads; of a case that has none the one that nnU-Net writes today."""
    known = (folder / f"{case_id}{ending}" for ending in (".b2nd", ".npy", ".npz"))
    return next((file for file in known if file.is_file()), folder / f"{case_id}.b2nd")


_PREDICT_AGAIN = "Validate the previous stage's runs again."


def _open_previous(folder: Path, case_id: str) -> Any:
    file = previous_file(folder, case_id)
    if file.suffix == ".npz":
        return _array(file, "seg", True)
    if file.suffix == ".npy":
        return _mapped_if_possible(_load_npy, file)
    _one_thread()
    return _plain(_mapped_if_possible(_open_b2nd, file))


def damaged_previous(folder: Path, case_id: str, error: Exception) -> DataError:
    """What a library's error about a previous stage's file comes to. Raises StorageError where it is its disk that is away."""
    find_outage(error, [folder / f"{case_id}{ending}" for ending in (".b2nd", ".npy", ".npz")])
    if not previous_file(folder, case_id).is_file():
        return DataError(f"previous stage: {folder} has no segmentation of case {case_id}. Train and validate the previous stage first.")
    found = f"cannot be read ({type(error).__name__}: {error})"
    return DataError(f"previous stage: the segmentation of case {case_id} in {folder} {found}. {_PREDICT_AGAIN}")


def check_case(folder: Path, case_id: str, channels: int) -> None:
    """Open a case and look at the middle line of its image: 2 ms. Of packed .npz only the list of contents is read.

    Raises as `open_case` does, and DataError for a line with values that are not finite numbers.
    """
    packed = folder / f"{case_id}.npz"
    if any((folder / f"{case_id}{ending}").is_file() for ending in (".b2nd", ".npy")):
        image, _ = open_case(folder, case_id, channels)
        _check_middle(folder, case_id, image)
        return
    try:
        with packed.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            missing = {"data", "seg"} - set(arrays.files)
    except Exception as err:  # as above
        raise damaged(folder, case_id, err) from err
    if missing:
        raise DataError(f"preprocessed data: {packed} lacks {' and '.join(sorted(missing))}. Run nnUNetv2_preprocess again.")


def _check_middle(folder: Path, case_id: str, image: Any) -> None:
    try:
        fault = None if middle_is_finite(image) else not_finite(folder, case_id, image)
    except Exception as err:  # blosc2 finds a damaged chunk only when it unpacks it
        raise damaged(folder, case_id, err) from err
    if fault:
        raise fault


def file_of(folder: Path, case_id: str, part: Part) -> Path:
    """The file that `open_case` reads a case's image or labels from."""
    end = "" if part == "image" else "_seg"
    if (folder / f"{case_id}.b2nd").is_file():
        return folder / f"{case_id}{end}.b2nd"
    unpacked = folder / f"{case_id}{end}.npy"
    return unpacked if unpacked.is_file() else folder / f"{case_id}.npz"


def content_sha256(folder: Path, case_id: str, channels: int, part: Part) -> str:
    """SHA-256 of the values of a case's image or labels, with shape and type: the same however they are packed. Unpacks all of them.

    Raises as `open_case` does.
    """
    image, labels = open_case(folder, case_id, channels, (part,))
    try:
        return _sha256_of_values(image if part == "image" else labels)
    except Exception as err:  # blosc2 finds a damaged chunk only when it unpacks it
        raise damaged(folder, case_id, err) from err


def _sha256_of_values(array_CZYX: Any) -> str:
    """Slices are unpacked as many at a time as are packed together, and each channel is hashed apart, in the order of its voxels."""
    by_channel = [hashlib.sha256() for _ in range(array_CZYX.shape[0])]
    step = array_CZYX.chunks[1] if isinstance(array_CZYX, blosc2.NDArray) else array_CZYX.shape[1]
    for start in range(0, array_CZYX.shape[1], step):
        slab_CZYX = np.ascontiguousarray(array_CZYX[:, start : start + step])
        for digest, values_ZYX in zip(by_channel, slab_CZYX, strict=True):
            digest.update(values_ZYX)
    whole = hashlib.sha256(f"{[int(size) for size in array_CZYX.shape]} {np.dtype(array_CZYX.dtype).str}".encode())
    for digest in by_channel:
        whole.update(digest.digest())
    return whole.hexdigest()


def damaged(folder: Path, case_id: str, error: Exception) -> DataError:
    """What a library's error about the files of a case comes to. Raises StorageError where it is their disk that is away.

    `folder` lies in the folder of its preprocessed dataset.
    """
    find_outage(error, [folder / f"{case_id}{ending}" for ending in _ENDINGS], folder.parent)
    found = f"cannot be read ({type(error).__name__}: {error})"
    return DataError(f"preprocessed data: case {case_id} in {folder} {found}. Run nnUNetv2_preprocess again.")


def read_properties(folder: Path, case_id: str) -> dict[str, Any]:
    """What preprocessing noted of a case (`<case>.pkl`), without executing it. Raises DataError or StorageError."""
    path = folder / f"{case_id}.pkl"
    try:
        properties = read_pickle(path)
    except DataError as err:
        find_outage(err, [path], folder.parent)
        raise
    if not isinstance(properties, dict):
        raise DataError(f"preprocessed data: {path} holds a {type(properties).__name__}, no properties. Run nnUNetv2_preprocess again.")
    return properties


def fault_of_arrays(image: Any, labels: Any, channels: int) -> str:
    """Why two arrays are not image and labels of one case; '' when they are. Looks at shapes and types alone."""
    shapes = tuple(image.shape), tuple(labels.shape)
    if len(shapes[0]) != 4 or shapes[0][0] != channels or 0 in shapes[0]:
        return f"has an image of shape {shapes[0]}, expected ({channels}, Z, Y, X)"
    if shapes[1] != (1, *shapes[0][1:]):
        return f"has labels of shape {shapes[1]} beside an image of shape {shapes[0]}"
    kinds = np.dtype(image.dtype).kind, np.dtype(labels.dtype).kind
    return "" if kinds[0] in "fiu" and kinds[1] in "fiu" else f"holds {image.dtype} and {labels.dtype} in place of numbers"


def _open_blosc2(folder: Path, case_id: str) -> tuple[Any, ...]:
    _one_thread()
    arrays = tuple(_mapped_if_possible(_open_b2nd, folder / f"{case_id}{end}.b2nd") for end in ("", "_seg"))
    return tuple(map(_plain, arrays))


def _plain(array: Any) -> Any:
    if type(array) is not blosc2.NDArray:  # blosc2 also stores expressions and links to other servers
        raise ValueError(f"it holds a {type(array).__name__}, no plain array")
    return array


def _open_b2nd(path: Path, mmap_mode: Literal["r"] | None) -> Any:
    options = {} if mmap_mode is None or os.name == "nt" else {"mmap_mode": mmap_mode}
    return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, **options)


def _load_npy(path: Path, mmap_mode: Literal["r"] | None) -> Any:
    return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)


def _mapped_if_possible(opened: Callable[[Path, Literal["r"] | None], Any], path: Path) -> Any:
    """A case's array, mapped, or where its file system (some of FUSE, SMB and 9P) maps no files, read."""
    try:
        return opened(path, "r")
    except (OSError, RuntimeError, ValueError):  # blosc2 does not say what failed; a broken file raises again
        array = opened(path, None)
    _tell_unmapped(path.parent)
    return array


@functools.cache
def _tell_unmapped(folder: Path) -> None:
    log.info("the file system of %s does not map files into memory: cases are read from it, which may be slower", folder)


@functools.cache
def _one_thread() -> None:
    blosc2.set_nthreads(1)


def _open_numpy(folder: Path, case_id: str, wanted: Collection[Part]) -> tuple[Any, ...]:
    return tuple(_array(file_of(folder, case_id, part), key, part in wanted) for part, key in zip(PARTS, ("data", "seg"), strict=True))


def _array(path: Path, key: str, is_wanted: bool) -> Any:
    if path.suffix == ".npy":
        return _mapped_if_possible(_load_npy, path)
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
        return packed[key] if is_wanted else _outline(packed.zip, key)


def _outline(packed: zipfile.ZipFile, key: str) -> Any:
    """An array with the shape and type of a packed one, whose values take no memory: zeros."""
    with packed.open(f"{key}.npy") as stream:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    return np.broadcast_to(np.zeros((), dtype), shape)
