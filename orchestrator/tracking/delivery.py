"""What of a run folder MLflow still lacks, and the sending of it. The run folder is the authority; MLflow is made equal to it.

Every step can be interrupted at any point and repeated by this or another process: metrics carry fixed times, checkpoints are
committed by a tag, files are replaced as a whole.
"""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import CheckpointError, DataError, TrackingError
from orchestrator.tracking.binding import Address, address_of
from orchestrator.tracking.records import class_names, job_tags
from orchestrator.tracking.shared_files import shared_files
from trainers.contract.commits import Committed, EpochRow, Manifest, newest_commit_file, newest_committed
from trainers.contract.fencing import check_driver_fence
from trainers.contract.files import link_atomic, read_json, sha256_of, write_atomic, write_json_atomic
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)

CHECKPOINTS: tuple[CheckpointName, ...] = ("best", "final")
PICTURE_INTERVAL_S = 30.0
"""Least time between two drawings of progress.png: drawing takes up to a second of one core."""


def epochs_missing(history: Sequence[EpochRow], logged: Collection[int]) -> list[int]:
    """Epochs of a committed history that MLflow lacks, in order; gaps are filled too."""
    return [row.epoch for row in history if row.epoch not in logged]


def checkpoints_due(
    committed: Committed, held: Mapping[CheckpointName, Manifest | None], seconds_since_upload: float, interval_s: float, closing: bool
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


class Delivery:
    """Sends one run folder to MLflow, step by step. Not shared between threads: each thread has its own."""

    def __init__(self, folder: RunFolder, fencing_token: int) -> None:
        self.folder = folder
        self.fencing_token = fencing_token
        self.spec = folder.spec()
        self._address: Address | None = None
        self._tracker: Tracker | None = None
        self._logged: frozenset[int] | None = None
        self._held: dict[CheckpointName, Manifest | None] | None = None
        self._sent: dict[str, str] = {}  # artifact path -> SHA-256
        self._looked_at: dict[str, tuple[int, int]] = {}  # artifact path -> time and size of the file when it was compared
        self._uploaded_at = self._drawn_at = float("-inf")
        self._epochs_drawn = 0
        self._finalised = False
        self._committed: Committed | None = None
        self._committed_mark: tuple[str, int] | None = None

    def committed(self) -> Committed | None:
        """The newest commit; parsed again only when the file has changed."""
        newest = newest_commit_file(self.folder)
        try:
            mark = None if newest is None else (newest.name, newest.stat().st_mtime_ns)
        except FileNotFoundError:
            mark = None
        if mark is None or mark != self._committed_mark:
            self._committed = newest_committed(self.folder)
            self._committed_mark = mark
        return self._committed

    def _open(self) -> "tuple[Tracker, str] | None":
        """The server and the run's id there; at the first time the run is told which job and attempt delivers it."""
        if self._tracker is None or self._address is None:
            self._address = address_of(self.folder, self.spec)
            if self._address is None:
                return None
            from orchestrator.tracking.client import Tracker  # seconds and 150 MB: not before it is needed

            tracker = Tracker(self._address.tracking_uri)
            check_driver_fence(self.folder, self.fencing_token)
            tracker.set_tags(self._address.run_id, job_tags(os.environ.get("NNFLEET_SUBMISSION_ID", ""), self.fencing_token))
            self._tracker = tracker
        return self._tracker, self._address.run_id

    def forget_server(self) -> None:
        """Ask anew which run this is and what the server has: it failed, and may come back with another database."""
        self._tracker = self._address = self._logged = self._held = None
        self._sent, self._looked_at = {}, {}

    # ---- metrics ----------------------------------------------------------------------------------------------------

    def send_metrics(self, closing: bool) -> None:
        """Send the epochs that MLflow lacks; when `closing`, MLflow is asked again what it has. Raises TrackingError, Superseded."""
        committed = self.committed()
        opened = self._open()
        if opened is None or committed is None:
            return
        tracker, run_id = opened
        if self._logged is None or closing:
            self._logged = tracker.logged_epochs(run_id)
        if epochs_missing(committed.history, self._logged):
            check_driver_fence(self.folder, self.fencing_token)
            self._logged = tracker.log_epochs(run_id, committed.history, class_names(self.spec), self._logged)

    # ---- checkpoints and files --------------------------------------------------------------------------------------

    def draw(self, closing: bool) -> None:
        """Draw progress.png into the run folder when it is due; needs no server."""
        committed = self.committed()
        now = time.monotonic()
        if committed is None or not picture_due(len(committed.history), self._epochs_drawn, now - self._drawn_at, closing):
            return
        from orchestrator.tracking.pictures import progress_png

        check_driver_fence(self.folder, self.fencing_token)
        write_atomic(self.folder.root / "progress.png", progress_png(committed.history))
        self._drawn_at, self._epochs_drawn = now, len(committed.history)

    def send_files(self, closing: bool) -> None:
        """Upload changed small files, then publish the checkpoints that are due. Raises TrackingError, CheckpointError, Superseded."""
        opened = self._open()
        if opened is None:
            return
        for name, path in shared_files(self.folder, self.spec, closing).items():
            self._send_changed(*opened, name, path)
        self._send_checkpoints(*opened, closing)
        if closing:
            self._finalise(*opened)

    def _send_checkpoints(self, tracker: "Tracker", run_id: str, closing: bool) -> None:
        from orchestrator.tracking.checkpoint_store import publish_checkpoint, published

        committed = self.committed()
        if committed is None:
            return
        if self._held is None or closing:
            records = {name: published(tracker, run_id, name) for name in CHECKPOINTS}
            self._held = {name: record.manifest if record else None for name, record in records.items()}
        waited = time.monotonic() - self._uploaded_at
        damaged: CheckpointError | None = None
        for manifest in checkpoints_due(committed, self._held, waited, self.spec.upload_interval_s, closing):
            check_driver_fence(self.folder, self.fencing_token)
            try:
                with self._linked_for_upload(manifest) as file:
                    if file is None:
                        continue
                    publish_checkpoint(tracker, run_id, manifest, file, before_commit=self._check_fence)
            except CheckpointError as err:  # one damaged file keeps back no other
                damaged = err
                continue
            self._held[manifest.checkpoint] = manifest
            self._uploaded_at = time.monotonic()
        if damaged is not None:
            raise damaged

    def _check_fence(self) -> None:
        check_driver_fence(self.folder, self.fencing_token)

    def _finalise(self, tracker: "Tracker", run_id: str) -> None:
        """The entry in the Models tab is a convenience: trouble with it is told and changes nothing."""
        from orchestrator.tracking.model_entry import finalise_model

        committed = self.committed()
        if committed is None or committed.best is None or self._finalised:
            return
        try:
            self._finalised = finalise_model(tracker, run_id, self.folder, committed.best) is not None
        except (TrackingError, OSError) as err:
            log.warning("run %s gets no entry in MLflow's Models tab for now: %s", self.spec.run_key, err)

    @contextlib.contextmanager
    def _linked_for_upload(self, manifest: Manifest) -> Iterator[Path | None]:
        """The file of a manifest under a name of our own, so that training may replace it during the upload.

        None when a newer commit has replaced it already. Raises CheckpointError when it is just gone.
        """
        aside = self.folder.uploading / f"{manifest.checkpoint}_{manifest.sha256[:12]}.pth"
        aside.parent.mkdir(exist_ok=True)
        try:
            link_atomic(self.folder.root / manifest.file, aside)
        except FileNotFoundError as err:
            newest = newest_committed(self.folder)
            if newest is None or manifest in (newest.best, newest.final):
                gone = self.folder.root / manifest.file
                raise CheckpointError(f"checkpoint: {gone} is committed but does not exist. It cannot be published to MLflow.") from err
            yield None
            return
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def _send_changed(self, tracker: "Tracker", run_id: str, name: str, path: Path) -> None:
        stat = path.stat()
        mark = (stat.st_mtime_ns, stat.st_size)
        if self._looked_at.get(name) == mark:
            return
        known = self._sent or self._read_sent(tracker, run_id)
        digest = sha256_of(path)
        if known.get(name) == digest:
            self._looked_at[name] = mark
            return
        directory, _, base = name.rpartition("/")
        tracker.upload_file(run_id, path, directory, base)
        self._sent = {**known, name: digest}
        write_json_atomic(self.folder.published_file, {"run_id": run_id, "files": self._sent})

    def _read_sent(self, tracker: "Tracker", run_id: str) -> dict[str, str]:
        """What earlier deliveries to the same MLflow run have noted; only spares uploads, so a broken note is no harm."""
        try:
            content = read_json(self.folder.published_file, "note of delivered files")
            noted = dict(content["files"]) if content["run_id"] == run_id else {}
        except (DataError, KeyError, TypeError, ValueError):
            return {}
        there = tracker.list_files(run_id) if noted else {}
        return {name: digest for name, digest in noted.items() if name.split("/", 1)[0] in there}

    # ---- the end ----------------------------------------------------------------------------------------------------

    def is_complete(self) -> bool:
        """True when all that is committed now has been delivered by this object's calls of the same channel."""
        committed = self.committed()
        if committed is None or self._address is None:
            return True
        metrics = self._logged is None or not epochs_missing(committed.history, self._logged)
        return metrics and (self._held is None or not checkpoints_due(committed, self._held, 0.0, 0.0, closing=True))
