"""Fencing tokens of a run and the fences that go by them.

Workers of a dead head node go on for a minute, so two drivers of one run, or two starts of its workers, can be alive at once. Each acquires
a token, by an exclusively created file. The token is in the name of every file that its holder writes; only the newest holder may commit,
and only the newest driver may publish. Users know a token as an attempt of the run.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from trainers.contract.records import TokenClaim, claim_seen, read_claim
from trainers.contract.run_folder import RunFolder
from trainers.errors import Superseded
from trainers.storage.exclusive import create_exclusive
from trainers.storage.faults import reading

TAKEOVER = "takeover"
"""Role of a token that fences off the run that had the folder before; nobody trains under it."""


def fencing_tokens(folder: RunFolder) -> list[int]:
    """The tokens that were acquired, lowest first.

    Raises StorageError or OSError where the folder is there and is not listed: a newer token that is not seen would pass every fence.
    """
    try:
        with reading(folder.tokens):
            return sorted(int(path.stem) for path in folder.tokens.iterdir() if path.suffix == ".json" and path.stem.isdecimal())
    except (FileNotFoundError, NotADirectoryError):
        return []


def newest_token(folder: RunFolder) -> int:
    """The highest token that was acquired; 0 when none was. Raises as `fencing_tokens`."""
    return max(fencing_tokens(folder), default=0)


def newest_token_of(folder: RunFolder, driver: str) -> int:
    """The highest token that `driver` acquired, for itself or for its workers; 0 when none. Raises as `read_claim`."""
    return next((token for token in reversed(fencing_tokens(folder)) if read_claim(folder, token).driver == driver), 0)


def claims_seen(folder: RunFolder) -> list[TokenClaim]:
    """Who acquired the tokens, lowest first; nobody where that cannot be read. Raises as `fencing_tokens`."""
    return [claim_seen(folder, token) for token in fencing_tokens(folder)]


def acquire_token(folder: RunFolder, driver: str, info: dict[str, Any] | None = None, least: int = 1) -> int:
    """Acquire the next token, at least `least`, for a driver or a start of its workers; every older token is fenced off then.

    `driver` names the training driver that the token belongs to; `info` are further fields of `TokenClaim`.
    """
    while True:
        token = max(newest_token(folder) + 1, least)
        claim = TokenClaim(fencing_token=token, driver=driver, claimed_unix=time.time(), **(info or {}))
        if create_exclusive(folder.token_file(token), claim.model_dump_json(indent=1, exclude_unset=True).encode()):
            return token


def check_fence(folder: RunFolder, fencing_token: int) -> None:
    """Raise Superseded when anyone acquired a newer token than this: asked before each commit of a state."""
    newest = newest_token(folder)
    if newest > fencing_token:
        raise Superseded(
            f"fencing token {fencing_token} of the run in {folder.root} was superseded by token {newest}: it stops without writing."
        )


@contextlib.contextmanager
def gone_when_superseded(folder: RunFolder, fencing_token: int) -> Iterator[None]:
    """A file that is found gone inside becomes Superseded when there is a newer token: its holder clears away what was begun."""
    try:
        yield
    except FileNotFoundError:
        check_fence(folder, fencing_token)
        raise


def check_driver_fence(folder: RunFolder, fencing_token: int) -> None:
    """Raise Superseded when another driver than the one of this token acquired the newest: asked before each publishing."""
    newest = newest_token(folder)
    if newest > fencing_token and read_claim(folder, newest).driver != read_claim(folder, fencing_token).driver:
        raise Superseded(
            f"the driver with fencing token {fencing_token} of the run in {folder.root} was superseded by token "
            f"{newest}: it stops publishing."
        )


def count_drivers(folder: RunFolder) -> int:
    """How many training drivers the run has had: how often its job was started. Tokens of workers are not counted, nor those of a run that
    had the folder before.

    Only people read it, so a claim that cannot be read is passed over.
    """
    drivers: set[str] = set()
    for claim in claims_seen(folder):
        if claim.role == TAKEOVER:
            drivers.clear()
        elif claim.driver:
            drivers.add(claim.driver)
    return len(drivers)
