"""The files of a preprocessed case: arrays and properties, checked on reading, with nothing in them executed.

nnU-Net's own classes unpickle the properties with every case, so they are not used here. Imports no torch.
C image channels, Z Y X voxels. Source: nnunetv2/training/dataloading/nnunet_dataset.py (nnUNetDatasetBlosc2, nnUNetDatasetNumpy).
"""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np

from trainers.contract.errors import DataError
from trainers.contract.storage import find_outage
from trainers.data.restricted_pickle import read_pickle

_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")
Part = Literal["image", "labels"]
_MAPPED = {} if os.name == "nt" else {"mmap_mode": "r"}


def open_case(folder: Path, case_id: str, channels: int) -> tuple[Any, Any]:
    """Image (C, Z, Y, X) and labels (1, Z, Y, X) of a case; slicing them reads only what is asked for.

    Of the format before nnU-Net 2.6 the unpacked .npy are mapped, else the whole .npz is unpacked.
    Raises DataError when they are damaged or are not arrays of these shapes, StorageError when the disk is away.
    """
    try:
        is_blosc2 = (folder / f"{case_id}.b2nd").is_file()
        image, labels = _open_blosc2(folder, case_id) if is_blosc2 else _open_numpy(folder, case_id)
        fault = fault_of_arrays(image, labels, channels)
    except Exception as err:  # blosc2, numpy and zipfile raise many kinds for a broken file
        raise damaged(folder, case_id, err) from err
    if fault:
        raise DataError(f"preprocessed data: case {case_id} in {folder} {fault}. Run nnUNetv2_preprocess again.")
    return image, labels


def check_case(folder: Path, case_id: str, channels: int) -> None:
    """Open a case without unpacking it: 1.5 ms. Raises as `open_case` does, but of packed .npz only the list of contents is read."""
    packed = folder / f"{case_id}.npz"
    if any((folder / f"{case_id}{ending}").is_file() for ending in (".b2nd", ".npy")):
        open_case(folder, case_id, channels)
        return
    try:
        with packed.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            missing = {"data", "seg"} - set(arrays.files)
    except Exception as err:  # as above
        raise damaged(folder, case_id, err) from err
    if missing:
        raise DataError(f"preprocessed data: {packed} lacks {' and '.join(sorted(missing))}. Run nnUNetv2_preprocess again.")


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
    image, labels = open_case(folder, case_id, channels)
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
    options = {"mode": "r", "dparams": {"nthreads": 1}, **_MAPPED}
    arrays = tuple(blosc2.open(urlpath=str(folder / f"{case_id}{end}.b2nd"), **options) for end in ("", "_seg"))
    for array in arrays:
        if type(array) is not blosc2.NDArray:  # blosc2 also stores expressions and links to other servers
            raise ValueError(f"it holds a {type(array).__name__}, no plain array")
    return arrays


@functools.cache
def _one_thread() -> None:
    blosc2.set_nthreads(1)


def _open_numpy(folder: Path, case_id: str) -> tuple[Any, ...]:
    return tuple(_array(folder, case_id, end, key) for end, key in (("", "data"), ("_seg", "seg")))


def _array(folder: Path, case_id: str, end: str, key: str) -> Any:
    unpacked = folder / f"{case_id}{end}.npy"
    if unpacked.is_file():
        return np.load(unpacked, mmap_mode="r", allow_pickle=False)
    with (folder / f"{case_id}.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as packed:
        return packed[key]
