"""Bad and hostile case files and pickles, each with the error that answers it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from orchestrator.errors import DataError, StorageError
from tests.away import Away
from tests.hostile import Evil, Place, Row, check
from trainers.data.case_files import check_case, open_case, open_previous, read_properties
from trainers.data.dataset import read_locations


def _case(place: Place, image: Any = None, labels: Any = None) -> Path:
    """A folder with one preprocessed case `c`."""
    folder = place.base / "cases"
    folder.mkdir(exist_ok=True)
    arrays = {"": np.zeros((1, 4, 5, 6), np.float32) if image is None else image, "_seg": np.zeros((1, 4, 5, 6), np.int8)}
    arrays["_seg"] = arrays["_seg"] if labels is None else labels
    for end, array in arrays.items():
        blosc2.asarray(array, urlpath=str(folder / f"c{end}.b2nd"), mode="w")
    (folder / "c.pkl").write_bytes(pickle.dumps({"class_locations": {1: np.zeros((2, 4), np.int64)}}))
    return folder


def _opened(place: Place, damage: Callable[[Path], object] = lambda folder: None, **arrays: Any) -> object:
    folder = _case(place, **arrays)
    damage(folder)
    return [np.asarray(array[:]) for array in open_case(folder, "c", 1)]


def _checked(place: Place, damage: Callable[[Path], object] = lambda folder: None, image: Any = None) -> None:
    folder = _case(place, image, None if image is None else np.zeros((1, *image.shape[1:]), np.int8))
    damage(folder)
    check_case(folder, "c", 1 if image is None else len(image))


def _properties(place: Place, content: bytes) -> object:
    folder = _case(place)
    (folder / "c.pkl").write_bytes(content)
    return read_properties(folder, "c")


def _locations(place: Place, value: Any) -> object:
    folder = _case(place)
    (folder / "c.pkl").write_bytes(pickle.dumps(value))
    return read_locations(folder, "c")


def _npz(folder: Path, **arrays: Any) -> None:
    for path in folder.glob("*.b2nd"):
        path.unlink()
    np.savez(folder / "c.npz", **arrays)


def _broken_npz(folder: Path) -> None:
    _npz(folder)
    (folder / "c.npz").write_bytes(b"PK\x03\x04")


def _previous(place: Place, content: Any, ending: str = ".npy") -> object:
    """A previous stage's segmentation of the case `c`, which has 4 x 5 x 6 voxels."""
    path = place.base / f"c{ending}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif ending == ".npz":
        np.savez(path, **content)
    else:
        np.save(path, content, allow_pickle=True)
    return np.asarray(open_previous(place.base, "c", (4, 5, 6))[:])


ROWS: tuple[Row, ...] = (
    Row(
        "previous stage",
        "a pickle in an array",
        lambda p: _previous(p, np.array([Evil(p.mark)], dtype=object)),
        DataError,
        ("previous stage: the segmentation of case c in", "cannot be read", "Validate the previous stage's runs again"),
    ),
    Row("previous stage", "none", lambda p: open_previous(p.base, "c", (4, 5, 6)), DataError, ("has no segmentation of case c",)),
    Row("previous stage", "of another case", lambda p: _previous(p, np.zeros((4, 5, 7), np.uint8)), DataError, ("of shape (4, 5, 7)",)),
    Row(
        "previous stage", "with a channel", lambda p: _previous(p, np.zeros((1, 4, 5, 6), np.uint8)), DataError, ("of shape (1, 4, 5, 6)",)
    ),
    Row("previous stage", "probabilities", lambda p: _previous(p, np.zeros((4, 5, 6))), DataError, ("holds float64 values",)),
    Row("previous stage", "packed without it", lambda p: _previous(p, {"data": np.zeros(3)}, ".npz"), DataError, ("cannot be read",)),
    Row("previous stage", "not blosc2 at all", lambda p: _previous(p, b"hello" * 99, ".b2nd"), DataError, ("cannot be read",)),
    Row("previous stage", "half a zip", lambda p: _previous(p, b"PK\x03\x04", ".npz"), DataError, ("cannot be read",)),
    Row(
        "case",
        "truncated blosc2",
        lambda p: _opened(p, lambda f: (f / "c.b2nd").write_bytes((f / "c.b2nd").read_bytes()[:60])),
        DataError,
        ("case c in", "cannot be read", "Run nnUNetv2_preprocess again"),
    ),
    Row(
        "case",
        "an empty file",
        lambda p: _opened(p, lambda f: (f / "c_seg.b2nd").write_bytes(b"")),
        DataError,
        ("case c in", "cannot be read"),
    ),
    Row(
        "case",
        "not blosc2 at all",
        lambda p: _opened(p, lambda f: (f / "c.b2nd").write_bytes(b"hello" * 99)),
        DataError,
        ("case c in", "cannot be read"),
    ),
    Row(
        "case",
        "image without channels",
        lambda p: _opened(p, image=np.zeros((4, 5, 6), np.float32)),
        DataError,
        ("has an image of shape (4, 5, 6), expected (1, Z, Y, X)",),
    ),
    Row(
        "case",
        "more channels than named",
        lambda p: _opened(p, image=np.zeros((3, 4, 5, 6), np.float32)),
        DataError,
        ("shape (3, 4, 5, 6), expected (1,",),
    ),
    Row(
        "case",
        "labels of another case",
        lambda p: _opened(p, labels=np.zeros((1, 9, 5, 6), np.int8)),
        DataError,
        ("labels of shape (1, 9, 5, 6) beside an image of shape (1, 4, 5, 6)",),
    ),
    Row(
        "case",
        "texts in place of voxels",
        lambda p: _opened(p, image=np.full((1, 4, 5, 6), "a", "U4")),
        DataError,
        ("in place of numbers",),
    ),
    Row(
        "case",
        "an image without voxels",
        lambda p: _opened(p, lambda f: _npz(f, data=np.zeros((1, 0, 5, 6)), seg=np.zeros((1, 0, 5, 6)))),
        DataError,
        ("shape (1, 0, 5, 6), expected",),
    ),
    Row(
        "case",
        "npz with pickled objects",
        lambda p: _opened(p, lambda f: _npz(f, data=np.array([Evil(p.mark)], object), seg=np.zeros(1))),
        DataError,
        ("cannot be read", "allow_pickle=False"),
    ),
    Row(
        "case",
        "npz without labels",
        lambda p: _opened(p, lambda f: _npz(f, data=np.zeros((1, 4, 5, 6)))),
        DataError,
        ("cannot be read", "seg"),
    ),
    Row(
        "case",
        "broken npz",
        lambda p: _opened(p, _broken_npz),
        DataError,
        ("cannot be read",),
    ),
    Row(
        "case",
        "a disk that gives no bytes",
        lambda p: _opened(p, lambda f: Away(f / "c.b2nd")),
        StorageError,
        ("c.b2nd cannot be read: the file system is unavailable", "Bring back the disk"),
    ),
    Row(
        "case",
        "packed npz without labels, before a worker starts",
        lambda p: _checked(p, lambda f: _npz(f, data=np.zeros((1, 4, 5, 6)))),
        DataError,
        ("c.npz lacks seg", "Run nnUNetv2_preprocess again"),
    ),
    Row(
        "case",
        "a cut packed npz, before a worker starts",
        lambda p: _checked(p, _broken_npz),
        DataError,
        ("case c in", "cannot be read"),
    ),
    Row(
        "case",
        "values that are no numbers",
        lambda p: _checked(p, image=np.full((1, 4, 5, 6), np.nan, np.float32)),
        DataError,
        ("case c in", "not finite numbers", "120 of 120 voxels of channel 0"),
    ),
    Row(
        "case",
        "an endless value in the middle of the second channel",
        lambda p: _checked(p, image=np.stack([np.zeros((5, 5, 5)), np.where(np.arange(125) == 62, np.inf, 0.0).reshape(5, 5, 5)])),
        DataError,
        ("1 of 125 voxels of channel 1",),
    ),
    Row(
        "pkl",
        "a pickle that runs a command",
        lambda p: _properties(p, pickle.dumps(Evil(p.mark))),
        DataError,
        ("c.pkl is not read", "'posix.system'", "could run code", "Find out who wrote it"),
    ),
    Row(
        "pkl",
        "the same in the oldest protocol",
        lambda p: _properties(p, pickle.dumps({"a": Evil(p.mark)}, 0)),
        DataError,
        ("'posix.system'",),
    ),
    Row(
        "pkl",
        "an array of objects",
        lambda p: _properties(p, pickle.dumps(np.array([1, None], object))),
        DataError,
        ("an array of type 'O8'",),
    ),
    Row(
        "pkl",
        "truncated",
        lambda p: _properties(p, pickle.dumps({"a": np.zeros(99)})[:80]),
        DataError,
        ("c.pkl is not read", "no whole pickle"),
    ),
    Row("pkl", "empty", lambda p: _properties(p, b""), DataError, ("no whole pickle",)),
    Row(
        "pkl",
        "an array that says to be larger",
        lambda p: _properties(p, pickle.dumps(np.zeros(4)).replace(b"K\x04\x85", b"K\x09\x85")),
        DataError,
        ("an array of shape (9,) in 32 bytes",),
    ),
    Row(
        "pkl",
        "an announced exabyte",
        lambda p: _properties(p, b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."),
        DataError,
        ("bytes in a file of",),
    ),
    Row(
        "pkl",
        "a million nested tuples",
        lambda p: _properties(p, b"\x80\x04)" + b"\x85" * 10**6 + b"."),
        DataError,
        ("more than 50 containers",),
    ),
    Row("pkl", "no properties", lambda p: _properties(p, pickle.dumps([1])), DataError, ("holds a list, no properties",)),
    Row(
        "pkl",
        "no voxels to draw from",
        lambda p: _locations(p, {"spacing": (1.0,)}),
        DataError,
        ("c.pkl holds no voxels", "no class_locations"),
    ),
    Row(
        "pkl",
        "voxels at negative places",
        lambda p: _locations(p, {"class_locations": {1: np.full((2, 4), -5)}}),
        DataError,
        ("are no list of voxels (N, 4)",),
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)
