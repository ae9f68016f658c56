"""Second names of checkpoints that are on their way to MLflow, so that training may replace the first ones meanwhile."""

import contextlib
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import CheckpointError
from orchestrator.run.outcome import is_newest
from trainers.contract.commits import Manifest, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.errors import StorageError
from trainers.storage.files import link_atomic

LONGEST_UPLOAD_S = 86_400.0
"""A link of the run's own driver that is older was left by a publisher that was killed."""


class UploadLinks:
    """The links of one publisher, in a sub-folder of its own: the driver still delivers when a short validation begins to."""

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self._folder = folder
        self._own = folder.uploading / f"{fencing_token:04d}_{uuid.uuid4().hex[:12]}"

    @contextlib.contextmanager
    def link(self, manifest: Manifest) -> Iterator[Path | None]:
        """The file of a manifest under a name of our own; None when a newer commit has replaced it already.

        Raises CheckpointError when it is committed and gone.
        """
        aside = self._own / f"{manifest.checkpoint}_{manifest.sha256[:12]}.pth"
        self._folder.uploading.mkdir(exist_ok=True)
        self._own.mkdir(exist_ok=True)
        try:
            yield self._linked(manifest, aside)
        finally:
            aside.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._own.rmdir()

    def _linked(self, manifest: Manifest, aside: Path) -> Path | None:
        file = self._folder.root / manifest.file
        try:
            link_atomic(file, aside)
        except FileNotFoundError as err:
            newest = newest_committed(self._folder)
            if newest is None or manifest in (newest.best, newest.final):
                raise CheckpointError(f"checkpoint: {file} is committed but does not exist. It cannot be published to MLflow.") from err
            return None
        return aside


def clear_uploads(folder: RunFolder, now_unix: float) -> None:
    """Remove the links that dead publishers left: of superseded drivers, and very old ones. A disk that does not let us is no harm."""
    with contextlib.suppress(OSError, StorageError):
        for left in folder.uploading.iterdir():
            token = re.match(r"(\d+)_", left.name)
            is_old = now_unix - left.lstat().st_ctime > LONGEST_UPLOAD_S  # the time of its last link: a link has its checkpoint's mtime
            if is_old or (token is not None and not is_newest(folder, int(token[1]))):
                _remove(left)


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)
