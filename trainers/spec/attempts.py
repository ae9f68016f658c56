"""Attempts of a run and the fence between them.

Workers of a dead head node go on for a minute, so two attempts of one run can be alive at once. Each attempt claims a number by an
exclusively created file; the number is in every file that it writes, and only the newest attempt may commit or publish.
"""

import json
import time
from typing import Any

from trainers.spec.errors import Superseded
from trainers.spec.files import create_exclusive
from trainers.spec.folder import RunFolder


def newest_attempt(folder: RunFolder) -> int:
    """The highest attempt number that was claimed; 0 when none was."""
    return max((int(p.stem) for p in folder.attempts.glob("[0-9]*.json")), default=0)


def claim_attempt(folder: RunFolder, info: dict[str, Any]) -> int:
    """Claim the next attempt number for the caller and return it; from then on every older attempt is fenced off."""
    while True:
        number = newest_attempt(folder) + 1
        content = json.dumps({"attempt": number, "claimed_unix": time.time(), **info}, indent=1).encode()
        if create_exclusive(folder.attempts / f"{number:04d}.json", content):
            return number


def check_fence(folder: RunFolder, attempt: int) -> None:
    """Raise Superseded when a newer attempt than `attempt` owns the run."""
    newest = newest_attempt(folder)
    if newest > attempt:
        raise Superseded(f"attempt {attempt} of the run in {folder.root} was superseded by attempt {newest}: it stops without writing.")
