"""Reads nnU-Net's pickles of case properties without executing them: plain containers, numbers, texts and arrays of numbers alone.

A pickle is a program: it names functions and calls them. Of the names that nnU-Net's files hold (all of numpy's, versions 1 and 2) none
is looked up here; each stands for a small function of ours that makes the array itself from its type, shape and bytes and checks that
they agree. numpy's own are not called, since a forged type makes them take bytes of the file for addresses. Any other name is an error.

What nnU-Net writes: nnunetv2/preprocessing/preprocessors/default_preprocessor.py (shapes, bounding box, class_locations) and
nnunetv2/imageio (spacing; `sitk_stuff`: tuples and a text; `nibabel_stuff`: affine matrices).
"""

import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from trainers.contract.names import shown
from trainers.errors import DataError
from trainers.storage.faults import reading

MAX_DEPTH = 50
"""Containers within containers; nnU-Net's properties have four."""


class _Refused(Exception):
    """The pickle asks for something that no case properties hold; the text says what."""


class _Dtype:
    """A type of numbers while a pickle is read: `'i8'`, then its byte order."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?([biufc]\d{1,2})", name, re.ASCII):
            raise _Refused(f"an array of type {shown(name)}")
        self.value: np.dtype[Any] = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, order, *rest = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in rest[:3]):
            raise _Refused("an array of a structured type")
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array between numpy's two steps: made empty, then given shape, type and bytes."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, *_: object) -> None:
        self.value: npt.NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _filled(content, dtype, shape, "F" if is_fortran else "C")


def _filled(content: Any, dtype: Any, shape: Any, order: Any = "C") -> npt.NDArray[Any]:
    """An array of its own memory from raw bytes: numpy's `_frombuffer`."""
    whole = isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and n >= 0 for n in shape)
    if not whole or not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray) or order not in ("C", "F"):
        raise _Refused("an array that is not plain bytes")
    if math.prod(shape) * dtype.value.itemsize != len(content):
        raise _Refused(f"an array of shape {shape} in {len(content)} bytes")
    return np.frombuffer(content, dtype.value).reshape(shape, order=order).copy(order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _filled(content, dtype, ())[()]


def _no_bytes() -> bytes:
    return b""


def _encoded(text: Any, encoding: Any) -> bytes:
    """How pickles of protocol 2 and below hold bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused("a text in another code than latin1")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,  # protocol 2 and below
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _filled for core in ("core", "_core")},
}


NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dtype, "numpy.dtype"),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""What stands for numpy's single numbers (nnU-Net's checkpoints hold scores as such), each with the name that a pickle calls it by."""


_InPython: Any = pickle._Unpickler
"""The unpickler in C allots memory by numbers in the file. Properties are few steps, so speed does not matter."""


class PropertiesUnpickler(_InPython):  # type: ignore[misc]
    """Runs the steps of a pickle with `_NAMES` in place of every import, and refuses steps that properties do not need."""

    what: ClassVar[str] = "case properties"
    """What is read, as errors name it."""
    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def __init__(self, content: bytes) -> None:
        self._length = len(content)
        super().__init__(io.BytesIO(content))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _Refused(f"{shown(f'{module}.{name}')}, which no {self.what} need: it could run code")
        return _NAMES[module, name]

    def get_extension(self, code: int) -> Any:
        raise _Refused(f"the registered name {code}, which no case properties need: it could run code")

    def load_bytearray8(self) -> None:
        length = int.from_bytes(self.read(8), "little")
        if length > self._length:
            raise _Refused(f"{length} bytes in a file of {self._length}")
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _put(self.stack[-1], key, value)

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(self.stack[-1], key, value)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        items = self.pop_mark()
        made: dict[Any, Any] = {}
        for key, value in zip(items[::2], items[1::2], strict=True):
            _put(made, key, value)
        self.append(made)

    dispatch[pickle.DICT[0]] = load_dict

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Dtype | _Array):
            raise _Refused(f"a state for {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def _refuse(unpickler: PropertiesUnpickler) -> None:
    raise _Refused("a set, an object or a value from outside, which no case properties need")


for _code in (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.FROZENSET, pickle.ADDITEMS, pickle.EMPTY_SET):
    PropertiesUnpickler.dispatch[_code[0]] = _refuse
for _code in (pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
    PropertiesUnpickler.dispatch[_code[0]] = _refuse


def _put(target: Any, key: Any, value: Any) -> None:
    if not isinstance(target, dict) or not _is_key(key):
        raise _Refused(f"a key of type {type(key).__name__} in a {type(target).__name__}")
    target[key] = value


def _is_key(key: Any) -> bool:
    """Names, labels and regions. No tuples within tuples: hashing a deep one ends the process."""
    parts = key if isinstance(key, tuple) else (key,)
    return all(isinstance(part, str | int | float | np.number) for part in parts)


def loads(content: bytes) -> Any:
    """The value in a pickle. Raises ValueError for one that is broken or asks for a name that no case properties need."""
    return loads_with(PropertiesUnpickler(content))


def loads_with(unpickler: PropertiesUnpickler) -> Any:
    """As `loads`, with an unpickler that may know more names."""
    try:
        return _finished(unpickler.load(), 0, {})
    except _Refused as err:
        raise ValueError(f"it holds {err}") from err
    except Exception as err:  # a broken pickle may raise any kind
        raise ValueError(f"it is no whole pickle ({type(err).__name__}: {shown(str(err), 200)})") from err


def read_pickle(path: Path) -> Any:
    """The value in a pickle of nnU-Net's. Raises DataError, naming the file and what is wrong with it, or StorageError."""
    try:
        with reading(path):
            content = path.read_bytes()
        return loads(content)
    except OSError as err:
        raise DataError(f"preprocessed data: {path} cannot be read: {err.strerror}. Run nnUNetv2_preprocess again.") from err
    except ValueError as err:
        raise DataError(
            f"preprocessed data: {path} is not read: {err}. Find out who wrote it, then run nnUNetv2_preprocess again."
        ) from err


def _finished(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """`value` with every array complete. What is there twice is finished once: memory stays that of the file."""
    if isinstance(value, str | bytes | bool | int | float | complex | np.generic | np.ndarray) or value is None:
        return value
    if depth > MAX_DEPTH:
        raise _Refused(f"more than {MAX_DEPTH} containers within each other")
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, dict):
        found: Any = {key: _finished(item, depth + 1, known) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(_finished(item, depth + 1, known) for item in value)
    else:
        raise _Refused(f"a {type(value).__name__.strip('_').lower()} without content")
    known[id(value)] = found
    return found
