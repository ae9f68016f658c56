"""What MLflow does not take of a run at present, left in the run folder by its publisher, for `status`."""

import re
import time
from contextlib import suppress
from pathlib import Path

from trainers.contract.records import Undelivered, read_record
from trainers.contract.run_folder import RunFolder
from trainers.errors import StorageError
from trainers.storage.files import write_json_atomic


def note_undelivered(folder: RunFolder, what: str, since_unix: float, because: str) -> None:
    """Say that MLflow has not taken `what` since then. A disk that does not let us is no harm; a folder that has gone is not made anew."""
    with suppress(OSError, StorageError):
        if not folder.spec_file.is_file():
            return
        record = Undelivered(what=what, since_unix=since_unix, because=because)
        write_json_atomic(_file(folder, what), record.model_dump(mode="json"))


def forget_undelivered(folder: RunFolder, what: str) -> None:
    """MLflow takes `what` again."""
    with suppress(OSError):
        _file(folder, what).unlink(missing_ok=True)


def undelivered_text(folder: RunFolder, *, has_ended: bool = False) -> str:
    """What MLflow lacks of a run, since when and why; empty when nothing is known to fail.

    `has_ended`: then its last job may be gone, and nobody tries any more.
    """
    with suppress(OSError, StorageError):
        found = [read_record(path, Undelivered) for path in sorted(folder.undelivered.glob("*.json"))]
        return " ".join(_sentence(record, has_ended) for record in found if record is not None)
    return ""


def _sentence(record: Undelivered, has_ended: bool) -> str:
    since = time.localtime(record.since_unix)
    if has_ended:
        when = time.strftime("%Y-%m-%d %H:%M", since)
        return f"MLflow lacks {record.what} since {when}, and `nnfleet sync` delivers what no job of it does: {record.because}"
    return f"MLflow gets no {record.what} since {time.strftime('%H:%M', since)} and is tried again: {record.because}"


def _file(folder: RunFolder, what: str) -> Path:
    return folder.undelivered / (re.sub(r"\W+", "_", what) + ".json")
