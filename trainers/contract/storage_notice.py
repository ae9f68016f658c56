"""How a run says that it waits for its disk (`storage.json`), also when that disk is full: the file has its size from the start, and is
overwritten in place, for which a full disk needs no room.

It informs people alone. Where it cannot be written, nobody is told by it; the log says the same.
"""

import contextlib
import time

from pydantic import Field

from trainers.contract.records import Record, read_record
from trainers.contract.run_folder import RunFolder
from trainers.errors import StorageError
from trainers.storage.files import write_atomic

SIZE_BYTES = 8192
LONGEST_CHARACTERS = 1000
"""Of what is told: at most four bytes each."""


class StorageWait(Record):
    """`storage.json`: what a job of the run waits for."""

    fencing_token: int = Field(alias="attempt")
    """Of the start of the workers, or of the training whose checkpoint is validated."""
    since_unix: float = 0.0
    because: str = ""
    """What is full or away, how much is free, what to do, and how long it is waited for; empty: nothing is waited for."""


class StorageNotice:
    """Tells of the waits of whoever has this fencing token. Never raises."""

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self._path = folder.storage_file
        self._fencing_token = fencing_token
        self._since_unix = 0.0

    def reserve(self) -> None:
        """Make the file, in its full size, while there is room."""
        with contextlib.suppress(OSError, StorageError):
            write_atomic(self._path, self._content(""))

    def tell(self, because: str) -> None:
        """Say why storage is waited for; with '' that it is waited for no more. For `retry_storage`."""
        if not because and not self._since_unix:
            return
        self._since_unix = (self._since_unix or time.time()) if because else 0.0
        present = read_record(self._path, StorageWait)
        if present is None or present.fencing_token != self._fencing_token:
            return  # another one has the run by now
        with contextlib.suppress(OSError), self._path.open("r+b") as stream:
            stream.write(self._content(because))

    def _content(self, because: str) -> bytes:
        wait = StorageWait(fencing_token=self._fencing_token, since_unix=self._since_unix, because=because[:LONGEST_CHARACTERS])
        return wait.model_dump_json().encode(errors="replace").ljust(SIZE_BYTES)


def storage_wait_seen(folder: RunFolder, fencing_token: int) -> StorageWait | None:
    """What the holder of this token waits for; None when it waits for nothing, or that cannot be read."""
    wait = read_record(folder.storage_file, StorageWait)
    return wait if wait is not None and wait.because and wait.fencing_token == fencing_token else None
