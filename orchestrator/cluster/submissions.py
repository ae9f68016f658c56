"""Submissions that the local head has taken, as files of the home folder until their campaigns report: a head that ends before these begin
leaves no other trace of them.
"""

import shlex
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from orchestrator.cluster.home import Home
from orchestrator.run.job_record import HandedRun
from orchestrator.run.status import RunStatus
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen
from trainers.contract.states import RunState
from trainers.errors import DataError, StorageError
from trainers.storage.files import write_atomic

KEPT_S = 30 * 86400.0
"""How long a submission is shown that nobody submits again."""


class TakenSubmission(Frozen):
    """A submission as the job server has stored it."""

    campaign: str
    sent_unix: float
    command: str = ""
    """That submits it again; empty where a script submitted it."""
    folder: Path
    """In which the command ran."""
    runs: tuple[HandedRun, ...]

    @property
    def again(self) -> str:
        """What submits it again, as a sentence."""
        place = "" if self.folder == Path.cwd() else f"cd {shlex.quote(str(self.folder))} && "
        return f"Submit it again: {place}{self.command}" if self.command else "Submit it again."


def keep(home: Home, submission: TakenSubmission) -> None:
    """Note a submission, in place of earlier ones of the same runs. Raises OSError, StorageError."""
    drop_runs(home, {run.run_key for run in submission.runs})
    home.submissions.mkdir(mode=0o700, exist_ok=True)
    write_atomic(_file(home, submission.campaign), submission.model_dump_json(indent=1).encode())


def drop(home: Home, campaign: str) -> None:
    """Forget a submission."""
    with suppress(OSError):
        _file(home, campaign).unlink(missing_ok=True)


def drop_runs(home: Home, run_keys: Collection[str]) -> None:
    """Forget the submissions that hold no other runs than these."""
    for submission in _read(home):
        if {run.run_key for run in submission.runs} <= set(run_keys):
            drop(home, submission.campaign)


def never_begun(home: Home, campaigns: Mapping[str, bool]) -> list[RunStatus]:
    """The runs of submissions that no campaign of the head and no folder knows. The others are forgotten, once they have reported.

    `campaigns`: those that the job server lists, and whether each has reported anything.
    """
    found: list[RunStatus] = []
    for submission in _read(home):
        if not campaigns.get(submission.campaign, True):
            continue
        is_over = submission.campaign in campaigns or time.time() - submission.sent_unix > KEPT_S
        runs = [] if is_over else [run for run in submission.runs if not _has_begun(run, submission.sent_unix)]
        if not runs:
            drop(home, submission.campaign)
        found += [_status(run, submission) for run in runs]
    return found


def _status(run: HandedRun, submission: TakenSubmission) -> RunStatus:
    at = datetime.fromtimestamp(submission.sent_unix)
    return RunStatus(
        run_key=run.run_key,
        address=run.address,
        campaign="",
        state=RunState.FAILED_CLUSTER,
        epochs_done=run.epochs_done,
        epochs=run.epochs,
        reason=f"the head ended before its campaign {submission.campaign}, submitted {at:%Y-%m-%d %H:%M}, began. {submission.again}",
        since_unix=submission.sent_unix,
        run_folder=run.run_folder,
        is_claimed=False,
    )


def _has_begun(run: HandedRun, sent_unix: float) -> bool:
    """True if a campaign took possession of the folder: the run's own, or a later one for another run."""
    folder = RunFolder(run.run_folder)
    with suppress(OSError, DataError, StorageError):
        return folder.spec().run_key == run.run_key or folder.spec_file.stat().st_mtime > sent_unix
    return False


def _file(home: Home, campaign: str) -> Path:
    return home.submissions / f"{campaign}.json"


def _read(home: Home) -> Iterator[TakenSubmission]:
    """Those that are noted, oldest first; what cannot be read is passed over."""
    found = []
    for file in home.submissions.glob("*.json"):
        with suppress(OSError, ValidationError):
            found.append(TakenSubmission.model_validate_json(file.read_bytes()))
    yield from sorted(found, key=lambda submission: submission.sent_unix)
