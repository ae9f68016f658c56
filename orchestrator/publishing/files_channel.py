"""One of the two channels from a run folder to MLflow: its small files, its checkpoints and its entry in the Models tab.

Every step can be interrupted at any point and repeated by this or another process: checkpoints are committed by a tag, files are replaced
as a whole.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import CheckpointError, NnfleetError, Superseded, TrackingError
from orchestrator.publishing.shared_files import shared_files
from orchestrator.publishing.upload_links import UploadLinks
from orchestrator.tracking.binding import Destination
from trainers.contract.commits import Committed, Manifest
from trainers.contract.records import PublishedFiles, read_published_files, write_published_files
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, WeightsName
from trainers.storage.files import sha256_of, write_atomic

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)

CHECKPOINTS: tuple[CheckpointName, ...] = ("best", "final")
PICTURE_INTERVAL_S = 30.0
"""Least time between two drawings of progress.png: drawing takes up to a second of one core."""


def checkpoints_due(
    committed: Committed, held: Mapping[WeightsName, Manifest | None], seconds_since_upload: float, interval_s: float, closing: bool
) -> list[Manifest]:
    """Checkpoints to publish now. `held`: what MLflow has of each.

    The final one is due as soon as it exists. The best waits until `interval_s` has passed since the last upload, unless this is the
    first, the training is over, or the time is up (`closing`); of several bests in one interval only the newest is ever sent.

    A best of an epoch that the run has still to reach is kept: the run went on from an older state, or this is an older copy of its
    folder. Once the run has passed that epoch, MLflow is made equal to what is committed, so it always is when training has ended.
    """
    due = []
    is_over = committed.final is not None
    best, final = held.get("best"), held.get("final")
    if committed.best is not None:
        has_passed = best is None or is_over or best.epoch < committed.epochs_done
        is_time = best is None or is_over or closing or seconds_since_upload >= interval_s
        if has_passed and is_time and (best is None or best.sha256 != committed.best.sha256):
            due.append(committed.best)
    if committed.final is not None and (final is None or final.sha256 != committed.final.sha256):
        due.append(committed.final)
    return due


def picture_due(epochs: int, epochs_drawn: int, seconds_since_drawing: float, closing: bool) -> bool:
    """True when progress.png should be drawn anew."""
    return epochs > epochs_drawn and (closing or epochs_drawn == 0 or seconds_since_drawing >= PICTURE_INTERVAL_S)


class FilesChannel:
    """Makes MLflow's files and checkpoints of one run equal to those of its run folder."""

    name = "checkpoints and files"

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self._destination = Destination(folder, fencing_token)
        self._folder = folder
        self._links = UploadLinks(folder, fencing_token)
        self._held: dict[WeightsName, Manifest | None] | None = None
        self._sent: dict[str, str] = {}  # artifact path -> SHA-256
        self._compared: dict[str, tuple[int, int]] = {}  # artifact path -> time and size of the file when it was compared
        self._uploaded_at = self._drawn_at = float("-inf")
        self._epochs_drawn = 0
        self._lacks_picture = self._has_entry = False

    def send(self, closing: bool) -> bool:
        """Draw progress.png, then `send_files`. What goes wrong with the picture delays no checkpoint and is logged once."""
        try:
            self.draw(closing)
            self._lacks_picture = False
        except Superseded:
            raise
        except Exception as err:
            if not self._lacks_picture:
                is_known = isinstance(err, NnfleetError)
                log.warning("progress.png of %s is not drawn: %s", self._folder.root, err, exc_info=not is_known)
            self._lacks_picture = True
        return self.send_files(closing)

    def draw(self, closing: bool) -> None:
        """Draw progress.png into the run folder when it is due; needs no server. That of nnU-Net is left as it is."""
        if self._destination.spec.imported is not None:
            return
        committed = self._destination.committed()
        now = time.monotonic()
        if committed is None or not picture_due(len(committed.history), self._epochs_drawn, now - self._drawn_at, closing):
            return
        from orchestrator.publishing.pictures import progress_png

        self._destination.check_fence()
        write_atomic(self._folder.root / "progress.png", progress_png(committed.history))
        self._drawn_at, self._epochs_drawn = now, len(committed.history)

    def send_files(self, closing: bool) -> bool:
        """Upload changed small files, then publish the checkpoints that are due. Returns True when all that is committed has arrived.

        Raises TrackingError, CheckpointError, Superseded.
        """
        opened = self._destination.open()
        if opened is None:
            return True
        for path, file in shared_files(self._folder, self._destination.spec, closing).items():
            self._send_changed(*opened, path, file)
        self.send_checkpoints(*opened, closing)
        if closing:
            self._finalise(*opened)
        committed = self._destination.committed()
        return committed is None or not checkpoints_due(committed, self._held or {}, 0.0, 0.0, closing=True)

    def send_checkpoints(self, tracker: "Tracker", run_id: str, closing: bool) -> None:
        """Publish the checkpoints that are due. Raises as `send_files`; one damaged file delays no other."""
        from orchestrator.publishing.checkpoint_store import delete_leftovers, published

        committed = self._destination.committed()
        if committed is None:
            return
        if self._held is None:
            self._destination.check_fence()
            delete_leftovers(tracker, run_id, "best")
        if self._held is None or closing:
            records = {name: published(tracker, run_id, name) for name in CHECKPOINTS}
            self._held = {name: record.manifest if record else None for name, record in records.items()}
        waited_s = time.monotonic() - self._uploaded_at
        damaged: CheckpointError | None = None
        for manifest in checkpoints_due(committed, self._held, waited_s, self._destination.spec.upload_interval_s, closing):
            try:
                self._publish(tracker, run_id, manifest, self._held)
            except CheckpointError as err:
                damaged = err
        if damaged is not None:
            raise damaged

    def _publish(self, tracker: "Tracker", run_id: str, manifest: Manifest, held: dict[WeightsName, Manifest | None]) -> None:
        from orchestrator.publishing.checkpoint_store import publish_checkpoint

        self._destination.check_fence()
        with self._links.link(manifest) as file:
            if file is not None:
                publish_checkpoint(tracker, run_id, manifest, file, before_commit=self._destination.check_fence)
                held[manifest.checkpoint] = manifest
                self._uploaded_at = time.monotonic()

    def _finalise(self, tracker: "Tracker", run_id: str) -> None:
        """Make a validated run's entry in the Models tab, and delete the best checkpoint before the last; a failure is only logged."""
        from orchestrator.publishing.checkpoint_store import keep_only_published
        from orchestrator.publishing.model_entry import finalise_model

        committed = self._destination.committed()
        if committed is None or committed.best is None or self._has_entry:
            return
        try:
            self._has_entry = finalise_model(tracker, run_id, self._folder, committed.best) is not None
            if self._has_entry and committed.final is not None:
                self._destination.check_fence()
                keep_only_published(tracker, run_id, "best")
        except (TrackingError, OSError) as err:
            log.warning("run %s gets no entry in MLflow's Models tab for now: %s", self._destination.spec.run_key, err)

    def _send_changed(self, tracker: "Tracker", run_id: str, path: str, file: Path) -> None:
        stat = file.stat()
        mark = (stat.st_mtime_ns, stat.st_size)
        if self._compared.get(path) == mark:
            return
        known = self._sent or self._read_sent(tracker, run_id)
        digest = sha256_of(file)
        if known.get(path) == digest:
            self._compared[path] = mark
            return
        directory, _, name = path.rpartition("/")
        tracker.upload_file(run_id, file, directory, name)
        self._sent = {**known, path: digest}
        write_published_files(self._folder, PublishedFiles(run_id=run_id, files=self._sent))

    def _read_sent(self, tracker: "Tracker", run_id: str) -> dict[str, str]:
        """What earlier deliveries to the same MLflow run have recorded, as far as it is there."""
        recorded = read_published_files(self._folder)
        if recorded.run_id != run_id or not recorded.files:
            return {}
        there = tracker.list_files(run_id)
        return {path: digest for path, digest in recorded.files.items() if path.split("/", 1)[0] in there}

    def forget_server(self) -> None:
        """Ask anew what MLflow has: it failed, and may come back with another database."""
        self._destination.forget()
        self._held = None
        self._sent, self._compared = {}, {}
