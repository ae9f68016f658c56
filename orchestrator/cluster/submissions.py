"""Submissions that the local head has taken, as files of the home folder: how they are submitted again where their campaign could not
begin, and the only trace of them where the head ends before that. And which runs that never began are not to be shown any more.
"""

import json
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

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
AGAIN = "Submit it again."
CHANGE = "Change the experiment, then submit it again."
"""Where the same experiment would be refused again: its command is not shown."""
Stage = Literal["begins", "failed", "begun"]
"""Of a campaign: it has reported nothing yet; it could not begin; it owned its runs, or was withdrawn."""
_HIDDEN = TypeAdapter(dict[str, float])


class TakenSubmission(Frozen):
    """A submission as the job server has stored it."""

    campaign: str
    sent_unix: float
    command: str = ""
    """That submits it again; empty where a script submitted it."""
    folder: Path
    """In which the command ran."""
    runs: tuple[HandedRun, ...]
    has_failed: bool = False
    """Its campaign could not begin, and its head has shown why."""

    @property
    def again(self) -> str:
        """What submits it again, as a sentence."""
        place = "" if self.folder == Path.cwd() else f"cd {shlex.quote(str(self.folder))} && "
        return f"Submit it again: {place}{self.command}" if self.command else AGAIN


def keep(home: Home, submission: TakenSubmission) -> None:
    """Note a submission, in place of earlier ones of the same run folders. Raises OSError, StorageError."""
    folders = {run.run_folder for run in submission.runs}
    _drop_all(home, lambda run: run.run_folder in folders)
    _write(home, submission)


def drop(home: Home, campaign: str) -> None:
    """Forget a submission."""
    with suppress(OSError):
        _file(home, campaign).unlink(missing_ok=True)


def drop_runs(home: Home, run_keys: Collection[str]) -> None:
    """Forget the submissions that hold no other runs than these."""
    _drop_all(home, lambda run: run.run_key in run_keys)


def _drop_all(home: Home, is_meant: Callable[[HandedRun], bool]) -> None:
    """Forget the submissions all of whose runs are meant."""
    for submission in _read(home):
        if all(map(is_meant, submission.runs)):
            drop(home, submission.campaign)


def never_begun(home: Home, campaigns: Mapping[str, Stage]) -> list[RunStatus]:
    """The runs of submissions that no campaign of the head and no folder knows. What nobody needs any more is forgotten.

    `campaigns`: those that the job server lists.
    """
    found: list[RunStatus] = []
    for submission in _read(home):
        stage = campaigns.get(submission.campaign)
        if stage == "failed" and not submission.has_failed:
            with suppress(OSError, StorageError):
                _write(home, submission.model_copy(update={"has_failed": True}))
        if stage in ("begins", "failed"):
            continue
        is_over = stage == "begun" or submission.has_failed or time.time() - submission.sent_unix > KEPT_S
        runs = [] if is_over else [run for run in submission.runs if not _has_begun(run, submission.sent_unix)]
        if not runs:
            drop(home, submission.campaign)
        found += [_status(run, submission) for run in runs]
    return found


def hide(home: Home, statuses: Iterable[RunStatus]) -> None:
    """Show these runs no more, none of which ever began, unless they are submitted again. Raises OSError, StorageError."""
    if more := {status.run_key: status.since_unix for status in statuses}:
        home.submissions.mkdir(mode=0o700, exist_ok=True)
        write_atomic(_hidden_file(home), json.dumps(_hidden(home) | more).encode())


def shown(home: Home, statuses: Iterable[RunStatus]) -> list[RunStatus]:
    """Without the runs that never began and are not to be shown; those that are with the command that submits them again."""
    found = list(statuses)
    if all(status.is_claimed for status in found):
        return found
    hidden, again = _hidden(home), {taken.campaign: taken.again for taken in _read(home) if taken.command}
    left = [s for s in found if s.is_claimed or s.since_unix > hidden.get(s.run_key, -1.0)]
    return [s if s.is_claimed or s.campaign not in again else _with_command(s, again[s.campaign]) for s in left]


def _with_command(status: RunStatus, again: str) -> RunStatus:
    if status.reason.endswith(CHANGE):
        return status
    return status.model_copy(update={"reason": f"{status.reason.removesuffix(AGAIN).rstrip(' .')}. {again}"})


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


def _hidden_file(home: Home) -> Path:
    return home.submissions / "hidden"


def _write(home: Home, submission: TakenSubmission) -> None:
    home.submissions.mkdir(mode=0o700, exist_ok=True)
    write_atomic(_file(home, submission.campaign), submission.model_dump_json(indent=1).encode())


def _hidden(home: Home) -> dict[str, float]:
    """Runs that are not to be shown, by key: since when what was shown of them held."""
    try:
        return _HIDDEN.validate_json(_hidden_file(home).read_bytes())
    except (OSError, ValidationError):
        return {}


def _read(home: Home) -> Iterator[TakenSubmission]:
    """Those that are noted, oldest first; what cannot be read is passed over."""
    found = []
    for file in home.submissions.glob("*.json"):
        with suppress(OSError, ValidationError):
            found.append(TakenSubmission.model_validate_json(file.read_bytes()))
    yield from sorted(found, key=lambda submission: submission.sent_unix)
