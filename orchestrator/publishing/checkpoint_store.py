"""Checkpoints in MLflow's artifacts: never half there, never gone before the next one is complete.

    checkpoints/<best|final>/e<epoch>-<first digits of the SHA-256>/checkpoint_<best|final>.pth
                                                                   /manifest.json           written last
    tag nnfleet.<best|final>                                        names the directory: this is the commit

A directory is written once. Readers follow the tag and check the digest, so an upload that dies costs that upload and nothing else.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import CheckpointError, TrackingError
from orchestrator.publishing.published import Published, published_in, published_tag
from trainers.contract.commits import Manifest
from trainers.contract.run_spec import WeightsName
from trainers.storage.files import sha256_of

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)


def directory_of(manifest: Manifest) -> str:
    """Artifact directory of a checkpoint, named by epoch and content."""
    return f"checkpoints/{manifest.checkpoint}/e{manifest.epoch:05d}-{manifest.sha256[:8]}"


def published(tracker: "Tracker", run_id: str, name: WeightsName) -> Published | None:
    """What MLflow holds as the best or final checkpoint of a run, or None. Raises TrackingError."""
    return published_in(tracker.tags(run_id), name)


def publish_checkpoint(
    tracker: "Tracker", run_id: str, manifest: Manifest, file: Path, before_commit: Callable[[], None] = lambda: None
) -> Published:
    """Upload a checkpoint, commit it by the tag, and delete all but this one and the one before. Does nothing when it is there already.

    `before_commit` is called just before the tag moves; what it raises (Superseded) leaves the published checkpoint as it was.
    Raises CheckpointError when `file` is not what `manifest` says, TrackingError when the server is away.
    """
    before = published(tracker, run_id, manifest.checkpoint)
    if before is not None and before.manifest.sha256 == manifest.sha256:
        return before
    check_file(file, manifest, str(file))
    record = Published(directory=directory_of(manifest), manifest=manifest)
    tracker.upload_file(run_id, file, record.directory, Path(record.file).name)
    arrived = tracker.list_files(run_id, record.directory).get(record.file)
    if arrived != manifest.size_bytes:
        raise TrackingError(
            f"mlflow: {record.file} of run {run_id} has {arrived} bytes on the server, {manifest.size_bytes} were sent. "
            "The upload is repeated; if this persists, read the server's log and free disk space."
        )
    tracker.upload_bytes(run_id, manifest.model_dump_json(indent=1).encode(), f"{record.directory}/manifest.json")
    before_commit()
    tracker.set_tags(run_id, {published_tag(manifest.checkpoint): record.model_dump_json()})
    _delete_others(tracker, run_id, manifest.checkpoint, {record.directory, before.directory if before else ""})
    return record


def keep_only_published(tracker: "Tracker", run_id: str, name: WeightsName) -> None:
    """Delete the checkpoint before the published one: once a run is over, no later one replaces that while somebody reads it."""
    record = published(tracker, run_id, name)
    if record is not None:
        _delete_others(tracker, run_id, name, {record.directory})


def replaced_uploads(tracker: "Tracker", run_id: str, name: WeightsName) -> dict[str, int]:
    """What `keep_only_published` would delete: artifact directory -> bytes. Raises TrackingError."""
    record = published(tracker, run_id, name)
    if record is None:
        return {}
    others = [each for each, size in tracker.list_files(run_id, f"checkpoints/{name}").items() if size is None and each != record.directory]
    return {each: sum(size or 0 for size in tracker.list_files(run_id, each).values()) for each in others}


def delete_leftovers(tracker: "Tracker", run_id: str, name: WeightsName) -> None:
    """Delete what publishers left that were killed: all but the published checkpoint and the newest of an epoch before it.

    One that was killed between its commit and its deletions leaves a directory too many, which only the next upload would find.
    """
    record = published(tracker, run_id, name)
    if record is None:
        return
    try:
        earlier = [each for each in tracker.list_files(run_id, f"checkpoints/{name}") if each < record.directory]
    except TrackingError as err:
        log.warning("%s checkpoints of run %s cannot be listed; the next upload tries again: %s", name, run_id, err)
        return
    _delete_others(tracker, run_id, name, {record.directory, max(earlier, default="")})


def _delete_others(tracker: "Tracker", run_id: str, name: WeightsName, kept: set[str]) -> None:
    """Also clears what killed uploads left behind. The commit is done, so an error here is only logged."""
    try:
        for directory, size in tracker.list_files(run_id, f"checkpoints/{name}").items():
            if size is None and directory not in kept:
                tracker.delete_directory(run_id, directory)
    except TrackingError as err:
        log.warning("older %s checkpoints of run %s were not deleted; the next upload tries again: %s", name, run_id, err)


def download_checkpoint(tracker: "Tracker", run_id: str, name: WeightsName, target: Path) -> Published:
    """Fetch the published checkpoint to `target`, which appears whole and verified or not at all.

    One new try if it was replaced meanwhile. Raises CheckpointError when none is published or its bytes are not what was published.
    """
    try:
        return _download(tracker, run_id, name, target)
    except (CheckpointError, TrackingError) as err:
        log.info("checkpoint %s of run %s is fetched once more: %s", name, run_id, err)
    return _download(tracker, run_id, name, target)


def _download(tracker: "Tracker", run_id: str, name: WeightsName, target: Path) -> Published:
    record = published(tracker, run_id, name)
    if record is None:
        raise CheckpointError(
            f"checkpoint: run {run_id} at {tracker.uri} has no {name} checkpoint yet. "
            "Wait until the run has published one (`nnfleet status` shows it)."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".nnfleet-download-", dir=target.parent) as folder:
        try:
            offered = tracker.list_files(run_id, record.directory).get(record.file)
            if offered != record.manifest.size_bytes:  # before anything of any size is fetched
                raise CheckpointError(
                    f"checkpoint: {record.file} of run {run_id} is not the file of its manifest: {offered} bytes on the server, "
                    f"expected {record.manifest.size_bytes}. It is not used."
                )
            local = tracker.download(run_id, record.file, Path(folder))
            check_file(local, record.manifest, f"{record.file} of run {run_id}")
        except TrackingError as err:
            raise CheckpointError(f"checkpoint: {record.file} of run {run_id} could not be fetched: {err}") from err
        shutil.move(local, target)
    return record


def check_file(file: Path, manifest: Manifest, where: str) -> None:
    """Raise CheckpointError unless `file` holds exactly the bytes that `manifest` names."""
    if not file.is_file():
        raise CheckpointError(f"checkpoint: {where} does not exist (epoch {manifest.epoch}, {manifest.size_bytes} bytes were expected).")
    found = (file.stat().st_size, sha256_of(file))
    if found != (manifest.size_bytes, manifest.sha256):
        raise CheckpointError(
            f"checkpoint: {where} is not the file of its manifest: {found[0]} bytes with SHA-256 {found[1][:12]}, "
            f"expected {manifest.size_bytes} with {manifest.sha256[:12]}. It is not used."
        )
