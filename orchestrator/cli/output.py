"""Output of every verb: results on stdout, everything else on stderr, no control characters into a pipe or file."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from orchestrator.run.interrupts import HungUp, Terminated

if TYPE_CHECKING:
    from rich.console import Console

EXIT_DIFFERENT = 1
"""Two runs that were compared differ, as diff(1)."""
EXIT_RUN_FAILED = 8
"""A run that was waited for ended as FAILED_CODE."""
EXIT_RUN_STOPPED = 9
"""A run that was waited for was stopped before its end."""
EXIT_DETACHED = 10
"""Runs that were waited for continue without this command."""
EXIT_UNEXPECTED = 70
"""An unforeseen error."""
EXIT_INTERRUPTED = 130
"""Ctrl-C while nothing needed an answer."""
EXIT_TERMINATED = 143
"""SIGTERM, likewise."""
EXIT_HUNG_UP = 129
"""SIGHUP, likewise."""

PIPED_WIDTH = 140
"""Columns of a table that goes into a pipe or file, where the environment variable COLUMNS does not name them."""


@dataclass
class Terminal:
    """Options that hold for every verb."""

    debug: bool = False


terminal = Terminal()


def console(*, stderr: bool = False) -> "Console":
    """A console on stdout or stderr; on a pipe plain, and wide unless COLUMNS names its width."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:  # rich would end the process as failed
            raise BrokenPipeError

    stream = sys.stderr if stderr else sys.stdout
    is_wide = not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit()  # else rich reads it, or asks the terminal
    width = PIPED_WIDTH if is_wide else None
    return Plain(file=stream, width=width, highlight=False, emoji=False, markup=False, soft_wrap=False)


def say(text: str) -> None:
    """One line of a result on stdout, never wrapped or cut."""
    print(text, flush=True)


def write(text: str) -> None:
    """A piece of text on stdout, with its colours on a terminal only."""
    print(text if sys.stdout.isatty() else click.unstyle(text), end="", flush=True)


def note(text: str) -> None:
    """One line on stderr: progress, warnings, errors."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """A result for scripts: one JSON document on stdout. NaN becomes null."""
    say(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value != value:  # NaN
        return None
    return value


def answering_interrupts(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb`, with what typer would turn into a silent or a failed end: Ctrl-C, and a closed pipe (`| head`)."""

    @wraps(verb)
    def answered(*arguments: Any, **options: Any) -> None:
        try:
            verb(*arguments, **options)
        except KeyboardInterrupt as interrupt:
            note("Interrupted.")
            sys.exit(_exit_code_of(interrupt))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
            sys.exit(0)

    return answered


def _exit_code_of(interrupt: KeyboardInterrupt) -> int:
    if isinstance(interrupt, HungUp):
        return EXIT_HUNG_UP
    return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something takes a moment: a spinner on a terminal, nothing in a pipe."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield
        return
    with err.status(text):
        yield
