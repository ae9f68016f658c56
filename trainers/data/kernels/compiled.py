"""Compiled kernels: numba's machine code of a function, kept on disk for the next process.

Every kernel has one signature and is compiled, or read from the disk, when its module is imported. The code lies in a folder named after
what it depends on (the sources of all kernels, numba, Python, the CPU), so that copies of one package share it and no two kinds of CPU do.
Where no folder can be written, each process compiles for itself.
"""

import contextlib
import functools
import hashlib
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import llvmlite.binding
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache

log = logging.getLogger(__name__)

_LONGEST_COMPILING_S = 120.0
"""A process that waits longer for another one to compile does so itself, and waits for none of the other kernels."""
_unlocked: set[Path] = set()
"""Folders whose lock was not free in time, such as one that a process of another host left behind."""


def kernel(signature: str, fused: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles a function for one signature; it frees the GIL, and operations keep their order.

    fused: a product and the sum that it goes into are rounded once, where the CPU can do that, as in torch's vectorised kernels.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(nogil=True, fastmath={"contract"} if fused else False, error_model="numpy")(function)
        folder = cache_folder()
        if folder is not None:
            dispatcher._cache = _KeptCode(function)
        with _one_at_a_time(folder):
            dispatcher.compile(signature)
        dispatcher.disable_compile()  # another type would be a mistake of ours, and cost seconds
        return dispatcher

    return compiled


part: Callable[[Callable[..., Any]], Any] = numba.njit(nogil=True, fastmath=False, error_model="numpy")
"""Marks a function that kernels of its module call; it is compiled with each of them."""
fused_part: Callable[[Callable[..., Any]], Any] = numba.njit(nogil=True, fastmath={"contract"}, error_model="numpy")
"""The same for parts of `fused` kernels."""


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled code is kept: in the user's cache folder, else in one of the temporary folder that is the user's alone."""
    shared = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nnfleet-kernels")
    own = Path(tempfile.gettempdir(), f"nnfleet-kernels-{os.getuid()}")
    for base in (shared, own):
        with contextlib.suppress(OSError):
            return _private_folder(base) / _content_key()
    log.warning("neither %s nor %s can be written: each process compiles the kernels of augmentation for itself", shared, own)
    return None


def _private_folder(base: Path) -> Path:
    """`base` with a folder for this version in it. Raises OSError unless it belongs to this user and nobody else may write to it."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = base.lstat()
    # what lies there is unpickled and run: of another user nothing is
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{base} is not a folder of this user alone")
    versioned = base / _content_key()
    versioned.mkdir(exist_ok=True)
    tempfile.TemporaryFile(dir=versioned).close()
    return base


@functools.cache
def _content_key() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256("".join((numba.__version__, llvmlite.__version__, sys.version, _cpu())).encode())
    for source in sources:
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    return f"{llvmlite.binding.get_host_cpu_name()} {llvmlite.binding.get_host_cpu_features().flatten()}"


@contextlib.contextmanager
def _one_at_a_time(folder: Path | None) -> Iterator[None]:
    """One process compiles what the others then read; where that cannot be agreed on, each does it."""
    lock = None if folder is None or folder in _unlocked else filelock.FileLock(folder / "lock")
    try:
        if lock is not None:
            lock.acquire(timeout=_LONGEST_COMPILING_S)
    except (OSError, NotImplementedError, filelock.Timeout) as err:
        log.info("kernels are compiled without a lock on %s: %s", folder, err)
        if folder is not None:
            _unlocked.add(folder)
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class _Place(CompileResultCacheImpl):  # type: ignore[misc]
    """Where numba keeps the code of one function: `cache_folder`, whose name covers all that it depends on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._lineno = function.__code__.co_firstlineno
        self._locator = self
        self._filename_base = f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}"

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def ensure_cache_path(self) -> None:
        os.makedirs(self.get_cache_path(), exist_ok=True)

    def get_source_stamp(self) -> str:
        return _content_key()


class _KeptCode(FunctionCache):  # type: ignore[misc]
    """numba's cache of one function, whose faults (a full disk, a file that was cut) cost a compilation and nothing else."""

    _impl_class = _Place

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception as err:  # of pickle, LLVM or the disk
            log.info("the compiled %s was not read: %s: %s", self._name, type(err).__name__, err)
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except Exception as err:
            log.info("the compiled %s was not kept: %s: %s", self._name, type(err).__name__, err)
