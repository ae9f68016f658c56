"""Loader processes of one side of a comparison, suspended while the other side is measured."""

import os
import signal
from collections.abc import Iterable

import psutil


def children() -> list[int]:
    """Process ids of all living descendants."""
    return [p.pid for p in psutil.Process().children(recursive=True)]


def suspend(pids: Iterable[int]) -> None:
    """SIGSTOP to each."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def resume(pids: Iterable[int]) -> None:
    """SIGCONT to each."""
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
