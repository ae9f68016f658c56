"""Processes that this one forks end when it does: the loaders of a trainer of the user's."""

import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Iterator

SET_PDEATHSIG = 1
"""Linux's prctl."""
_bound: list[int] = []
"""The process whose children end with it, while there is one."""


@contextlib.contextmanager
def children_bound() -> Iterator[None]:
    """Within it, what this thread forks is killed when the thread ends, however it ends. Ray notices that a worker was killed by its
    connections, which forked processes hold open too; and loaders that nobody reads from would stay for ever. On Linux alone."""
    _register()
    _bound.append(os.getpid())
    try:
        yield
    finally:
        _bound.clear()


@functools.cache
def _register() -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)  # before any fork

    def in_child() -> None:
        if _bound:
            parent = _bound.pop()
            libc.prctl(SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # gone before
                os._exit(1)

    os.register_at_fork(after_in_child=in_child)
