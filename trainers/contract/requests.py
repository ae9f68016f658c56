"""Requests to a run: somebody asks it to stop, to pause, to end early as a trained run, to save a state within the epoch, or for another
place in the queue. Each is a file in its folder.

One meaning for every reader: a file that is there is a request, and one whose content is not understood asks for the gentle stop; for an
early end, which cannot be taken back, only what names the run and is understood. A reader that can come back later calls `read_...`, which
raises OSError where the disk gives no answer. Whoever is between two training steps or two cases calls `..._seen`, which never raises: no
disk may end the work there, and a share that is away asks for nothing.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from trainers.contract.records import Record, read_heartbeat
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import TOP_PRIORITY
from trainers.contract.states import AskedEnd
from trainers.storage.files import write_json_atomic


class StopRequest(Record):
    """`stop.json`: somebody asks the run to stop, a training after its epoch and a validation after the cases in work, or at once."""

    is_now: bool = Field(False, alias="now")
    why: str = Field("", exclude_if=lambda why: not why)
    """Why a campaign asks for it; empty: a person asked."""
    campaigns: tuple[str, ...] = Field((), exclude_if=lambda campaigns: not campaigns)
    """Those that lived when a person asked: one that still began then leaves the run stopped, and only a later one continues it."""

    @property
    def is_for_validation(self) -> bool:
        """A validation obeys it too: a campaign stops trainings only, and a run that was trained by then is validated all the same."""
        return not self.why


class PauseRequest(Record):
    """`pause.json`: the run has reached a rung of successive halving, and its campaign asks its training to leave its workers, after the
    epoch, to one that has not. The campaign continues it. A file of its own: a person asks for a stop at the same time, and is heard.
    """

    comparison: str = ""
    """Which runs are compared, see `HalvingOfRun`."""
    rung: int = 0
    """Number of epochs at which they are."""
    value: float | None = None
    """The run's EMA pseudo-Dice then, the lowest of those that could pause; None: it had seen no foreground."""
    workers_to: str = ""
    """Key of the run that gets the workers."""
    why: str = ""
    """For users."""
    campaign: str = ""
    """Which one asked."""
    unix: float = 0.0


class FinishRequest(Record):
    """`finish.json`: somebody asks a training to end before its schedule does, as a trained run. It stays once it has taken effect."""

    run_key: str = ""
    """Of the run that is meant: for another one in this folder it is no request."""
    epoch: int = -1
    """Index of the epoch that was known to be in flight: the request holds from its end on, not where an earlier one is trained again."""
    anneal_epochs: int = Field(0, ge=0)
    """The learning rate is annealed over so many more epochs; 0: the run ends with the epoch in flight."""


class SaveRequest(Record):
    """`save.json`: somebody asks for a state within the epoch."""

    why: str = ""


class QueueRequest(Record):
    """`queue.json`: somebody asks for another place in the queue; it holds while the run waits, until it is submitted with another
    priority."""

    priority: int | None = Field(None, ge=0, le=TOP_PRIORITY)
    """In the place of the priority that the run was submitted with."""
    first_unix: float = 0.0
    """When it was moved before everything else of its user; 0: it was not."""


_R = TypeVar("_R", bound=Record)


def request_stop(folder: RunFolder, *, is_now: bool, why: str = "", campaigns: Collection[str] = ()) -> None:
    """Ask a run to stop; `why`: for users, where no person asks; `campaigns`: all that live. Raises StorageError."""
    write_json_atomic(folder.stop_file, StopRequest(is_now=is_now, why=why, campaigns=tuple(sorted(campaigns))).model_dump(mode="json"))


def read_stop_request(folder: RunFolder) -> StopRequest | None:
    """Whether somebody asks the run to stop. Raises OSError where the disk gives no answer: that is no request."""
    return _read(folder.stop_file, StopRequest)


def stop_request_seen(folder: RunFolder) -> StopRequest | None:
    """Whether a stop request is seen from here, now; never raises."""
    with contextlib.suppress(OSError):
        return read_stop_request(folder)
    return None


def request_pause(folder: RunFolder, request: PauseRequest) -> None:
    """Ask the training of a run to pause. Raises StorageError."""
    write_json_atomic(folder.pause_file, request.model_dump())


def read_pause_request(folder: RunFolder) -> PauseRequest | None:
    """Whether a campaign asks the run to pause, or has paused it. Raises OSError where the disk gives no answer."""
    return _read(folder.pause_file, PauseRequest)


def last_pause(folder: RunFolder) -> PauseRequest | None:
    """The last pause that the run was asked for, also one that is over. Raises as `read_pause_request`."""
    return read_pause_request(folder) or _read(folder.paused_file, PauseRequest)


def end_pause(folder: RunFolder) -> None:
    """The run goes on: nothing of it pauses by the last request any more, which is kept as `paused.json`. Raises StorageError or OSError.

    Not a rename: by NFS a node that has read the file may find it under its old name for a minute, and workers that start would pause.
    """
    request = read_pause_request(folder)
    if request is not None:
        write_json_atomic(folder.paused_file, request.model_dump())
        folder.pause_file.unlink(missing_ok=True)


def withdraw_pause(folder: RunFolder) -> None:
    """Nobody needs the run's workers any more: as if it had not been asked, unless it has seen it already. Raises OSError."""
    folder.pause_file.unlink(missing_ok=True)


def end_asked_for(folder: RunFolder) -> AskedEnd | None:
    """How a training is asked to end, as it is seen from here, now: a stop comes before a pause. None: it is not asked. Never raises."""
    if stop_request_seen(folder) is not None:
        return "STOPPED"
    with contextlib.suppress(OSError):
        return None if read_pause_request(folder) is None else "PAUSED"
    return None


def request_finish(folder: RunFolder, run_key: str, *, anneal_epochs: int) -> None:
    """Ask the training of a run to end early, as a trained run. Raises StorageError."""
    request = FinishRequest(run_key=run_key, epoch=read_heartbeat(folder).epoch, anneal_epochs=anneal_epochs)
    write_json_atomic(folder.finish_file, request.model_dump())


def finish_request_seen(folder: RunFolder, run_key: str) -> FinishRequest | None:
    """Whether somebody asks the training of this run to end early; never raises. What is not understood asks for nothing."""
    with contextlib.suppress(OSError):
        found = _read(folder.finish_file, FinishRequest)
        return found if found is not None and found.run_key == run_key else None
    return None


def request_place(folder: RunFolder, *, priority: int | None, first_unix: float) -> None:
    """Ask for another place in the queue; what is not named (None, 0) stays as it was asked for before. Raises StorageError."""
    with contextlib.suppress(FileNotFoundError):
        before = _read(folder.queue_file, QueueRequest)
        if before is not None:
            priority, first_unix = before.priority if priority is None else priority, first_unix or before.first_unix
    write_json_atomic(folder.queue_file, QueueRequest(priority=priority, first_unix=first_unix).model_dump())


def place_request_seen(folder: RunFolder) -> QueueRequest:
    """Which place in the queue somebody asks for; never raises: without a request that can be read, none."""
    with contextlib.suppress(OSError):
        return _read(folder.queue_file, QueueRequest) or QueueRequest()
    return QueueRequest()


def withdraw_place(folder: RunFolder) -> None:
    """Forget what was asked for the queue; never raises."""
    with contextlib.suppress(OSError):
        folder.queue_file.unlink()


def request_save(folder: RunFolder, why: str) -> None:
    """Ask a training for a state within the epoch. Raises StorageError."""
    write_json_atomic(folder.save_file, SaveRequest(why=why).model_dump())


def save_request_seen(folder: RunFolder) -> SaveRequest | None:
    """Whether a request for a state is seen that none answers yet; never raises."""
    with contextlib.suppress(OSError):
        return _read(folder.save_file, SaveRequest)
    return None


def is_save_open(folder: RunFolder) -> bool:
    """Whether a state was asked for that is not durable yet; never raises."""
    return any(map(os.path.exists, (folder.save_file, folder.accepted_save_file)))  # in this order: the first becomes the second


def acknowledge_save(folder: RunFolder) -> None:
    """Say, before a state is copied, that it answers the request: no second state does, and whoever waits sees it as open; never raises."""
    with contextlib.suppress(OSError):
        os.replace(folder.save_file, folder.accepted_save_file)


def complete_save(folder: RunFolder) -> None:
    """Say that the state which answers the acknowledged request is durable; never raises."""
    with contextlib.suppress(OSError):
        folder.accepted_save_file.unlink()


def withdraw_save(folder: RunFolder) -> None:
    """Remove a request for a state that nobody has acknowledged; never raises."""
    with contextlib.suppress(OSError):
        folder.save_file.unlink()


def _read(path: Path, kind: type[_R]) -> _R | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        return kind()
