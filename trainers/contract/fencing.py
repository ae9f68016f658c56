"""Attempts of a run and the fences between them.

Workers of a dead head node go on for a minute, so two attempts of one run can be alive at once. The training driver and every start of
its workers claim a number each, by an exclusively created file. The number is in every file that an attempt writes; only the newest
attempt may commit, and only the newest driver may publish.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from trainers.contract.errors import DataError, StorageError, Superseded
from trainers.contract.files import create_exclusive, read_json
from trainers.contract.run_folder import RunFolder
from trainers.contract.storage import reading


def fencing_tokens(folder: RunFolder) -> list[int]:
    """The attempt numbers that were claimed, lowest first.

    Raises StorageError or OSError where the folder is there and is not listed: a newer attempt that is not seen would pass every fence.
    """
    try:
        with reading(folder.tokens):
            return sorted(int(path.stem) for path in folder.tokens.iterdir() if path.suffix == ".json" and path.stem.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


def newest_token(folder: RunFolder) -> int:
    """The highest attempt number that was claimed; 0 when none was. Raises as `fencing_tokens`."""
    return max(fencing_tokens(folder), default=0)


def newest_token_of(folder: RunFolder, driver: str) -> int:
    """The highest attempt number that `driver` claimed, for itself or for its workers; 0 when none."""
    return next((n for n in reversed(fencing_tokens(folder)) if _driver(folder, n) == driver), 0)


def acquire_token(folder: RunFolder, driver: str, info: dict[str, Any] | None = None, least: int = 1) -> int:
    """Claim the next attempt number, at least `least`, for a job or worker group of `driver`; every older attempt is fenced off then.

    `driver` names the training driver that the attempt belongs to (its Ray job's submission id).
    """
    while True:
        number = max(newest_token(folder) + 1, least)
        content = {"attempt": number, "driver": driver, "claimed_unix": time.time(), **(info or {})}
        if create_exclusive(folder.tokens / f"{number:04d}.json", json.dumps(content, indent=1).encode()):
            return number


def check_fence(folder: RunFolder, fencing_token: int) -> None:
    """Raise Superseded when a newer attempt than `attempt` was claimed by anyone: asked before each commit of a state."""
    newest = newest_token(folder)
    if newest > fencing_token:
        raise Superseded(
            f"attempt {fencing_token} of the run in {folder.root} was superseded by attempt {newest}: it stops without writing."
        )


@contextlib.contextmanager
def gone_when_superseded(folder: RunFolder, fencing_token: int) -> Iterator[None]:
    """A file that is found gone inside becomes Superseded when there is a newer attempt: those clear away what older ones have begun."""
    try:
        yield
    except FileNotFoundError:
        check_fence(folder, fencing_token)
        raise


def check_driver_fence(folder: RunFolder, fencing_token: int) -> None:
    """Raise Superseded when another driver than the one of `attempt` claimed the newest attempt: asked before each publishing."""
    newest = newest_token(folder)
    if newest > fencing_token and _driver(folder, newest) != _driver(folder, fencing_token):
        raise Superseded(
            f"the driver of attempt {fencing_token} of the run in {folder.root} was superseded by attempt {newest}: it stops publishing."
        )


def count_drivers(folder: RunFolder) -> int:
    """How many training drivers the run has had: how often its job was started. Numbers that workers claimed are not counted.

    Only people read it, so a claim that cannot be read is passed over.
    """
    drivers = set()
    for number in fencing_tokens(folder):
        with contextlib.suppress(DataError, StorageError):
            drivers.add(_driver(folder, number))
    return len(drivers)


def _driver(folder: RunFolder, fencing_token: int) -> str:
    path = folder.tokens / f"{fencing_token:04d}.json"
    claim = read_json(path, "attempt")
    if not isinstance(claim, dict) or "driver" not in claim:
        raise DataError(
            f"attempt: {path} does not say which driver claimed it. Restore the file, or delete it if nothing of the run lives."
        )
    return str(claim["driver"])
