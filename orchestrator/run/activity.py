"""What a run folder tells of those who work on it now: the wish to stop, the last sign of life, the owner of the newest attempt."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.run.status import CasesDone
from trainers.contract.fencing import newest_token
from trainers.contract.files import write_heartbeat
from trainers.contract.run_folder import RunFolder

FRESH_S = 60.0
"""Workers that gave no sign of life for so long are taken to be gone."""


@dataclass(frozen=True)
class StopRequest:
    """Somebody asked the run to stop: after its epoch, or at once."""

    is_now: bool


@dataclass(frozen=True)
class Owner:
    """Who claimed the newest attempt of a run."""

    fencing_token: int
    driver: str
    job: str
    """Submission id of the driver's job; empty if it did not say."""
    cluster: str = ""
    """Address of the cluster that the job is of: the same name may be taken on several. Empty if it did not say."""

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"attempt {self.fencing_token} of {self.driver}"


def owner_of(folder: RunFolder) -> Owner | None:
    """Who claimed the newest attempt; None while there is none. Worker groups claim under the name of their driver."""
    newest = newest_token(folder)
    if not newest:
        return None
    driver = str(_read(folder.tokens / f"{newest:04d}.json").get("driver", ""))
    claims = (_read(path) for path in sorted(folder.tokens.glob("[0-9]*.json")))
    own = next((claim for claim in claims if claim.get("driver") == driver and claim.get("job")), {})
    return Owner(newest, driver, str(own.get("job", "")), str(own.get("cluster", "")))


def stop_request(folder: RunFolder) -> StopRequest | None:
    """Whether somebody asked the run to stop; a stop file that is no JSON asks for the gentle stop.

    Raises OSError where the disk gives no answer: that is nobody's wish.
    """
    try:
        content = json.loads(folder.stop_file.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        content = {}
    return StopRequest(is_now=isinstance(content, dict) and bool(content.get("now")))


def read_heartbeat(folder: RunFolder) -> dict[str, Any]:
    """The last sign of life of rank 0; empty when there is none."""
    return _read(folder.progress_file)


def report_cases(folder: RunFolder, fencing_token: int, done: CasesDone) -> None:
    """Say how far the validation of `attempt` is."""
    with contextlib.suppress(OSError):
        write_heartbeat(folder.validating_file, {"attempt": fencing_token, **done.model_dump()}, fencing_token)


def cases_done(folder: RunFolder, fencing_token: int) -> CasesDone | None:
    """How far the validation of `attempt` said it is; None while it has said nothing."""
    said = _read(folder.validating_file)
    with contextlib.suppress(ValidationError):
        return CasesDone.model_validate(said) if said.pop("attempt", None) == fencing_token else None
    return None


def newest_failure(folder: RunFolder) -> dict[str, Any]:
    """The record of the newest start of the workers that failed (`orchestrator/training/retry_budgets.py`); empty when none has."""
    newest = max((path.name for path in folder.failures.glob("[0-9]*.json")), default="")
    return _read(folder.failures / newest) if newest else {}


def token_of(record: Mapping[str, Any]) -> int:
    """The attempt that a sign of life or a failure names; 0 when it names none."""
    fencing_token = record.get("attempt", 0)
    return fencing_token if isinstance(fencing_token, int) else 0


def newest_stamp(folder: RunFolder) -> float:
    """Unix time of the newest sign of life or claim, by the clock of whoever gave it; 0 when there is none."""
    claim = _read(folder.tokens / f"{newest_token(folder):04d}.json").get("claimed_unix")
    stamps = [stamp for stamp in (claim, read_heartbeat(folder).get("unix")) if isinstance(stamp, int | float)]
    return max(map(float, stamps), default=0.0)


def has_begun(folder: RunFolder) -> bool:
    """True once the workers of the newest attempt hold their resources."""
    newest = newest_token(folder)
    return newest > 0 and token_of(read_heartbeat(folder)) >= newest


def workers_now(folder: RunFolder) -> int:
    """How many workers the newest start of the workers has; 0 while a driver has claimed the run and none of its workers has started."""
    size = _read(folder.tokens / f"{newest_token(folder):04d}.json").get("world_size")
    return size if isinstance(size, int) and size > 0 else 0


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
