"""What of runs that have ended takes space and is needed by nobody, and how it goes.

Of a finished run the newest state stays, which holds its final weights, with its best checkpoint and its candidates: all that `export`,
`compare`, `evaluate` and `validate` read. Of a run that has not finished every committed state stays, since it may go on. What no commit
names goes of both: bests that were replaced, halves of states that a kill left, second names of uploads that died.

What is to go is listed before the fence is read once more, so nothing that a newer start makes is touched.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from orchestrator.resume.removal import at_work
from orchestrator.resume.unfinished import Found, find_runs
from orchestrator.run.names import resolve_all
from orchestrator.run.status import RunStatus
from trainers.contract.commits import Committed, Order, commit_files, committed_states, newest_committed, order_of
from trainers.contract.fencing import newest_token
from trainers.contract.records import read_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Frozen
from trainers.errors import DataError, NnfleetError
from trainers.storage.files import sha256_of

if TYPE_CHECKING:
    from orchestrator.run.job_record import JobRecord
    from orchestrator.tracking.client import Tracker

Kind = Literal["states", "bests", "unfinished writes", "uploads"]
"""States of a finished run; bests that no state names; what a kill left half written; second names of uploads that died."""
CHECKPOINTS: tuple[CheckpointName, ...] = ("best", "final")


class Garbage(Frozen):
    """What of one run is needed by nobody."""

    run_key: str
    address: str
    run_folder: Path
    is_finished: bool
    files: dict[Kind, tuple[Path, ...]] = Field(default_factory=dict)
    """In the order in which they go; folders among the uploads."""
    sizes: dict[Kind, int] = Field(default_factory=dict)
    """Bytes on the disk that go with each kind; a file with a name elsewhere, which stays, counts nothing."""
    uploads: dict[str, int] = Field(default_factory=dict)
    """Artifact directories of replaced checkpoints in MLflow -> bytes."""
    held_bytes: int = 0
    """Bytes of the whole run folder before."""
    fencing_token: int = 0
    """The newest one when this was listed."""

    @property
    def size_bytes(self) -> int:
        """Bytes that go, MLflow's included."""
        return sum(self.sizes.values()) + sum(self.uploads.values())


def garbage_below(
    names: Sequence[str], results: Path, statuses: Sequence[RunStatus] = (), jobs: "Sequence[JobRecord]" = (), *, mlflow: bool = False
) -> tuple[list[Garbage], list[str], list[str]]:
    """What the runs below `results` (those that the names mean, else all) hold that nobody needs, a sentence for each that is left out
    because somebody works on it or its run.json is damaged, and one for each that failed: a disk or MLflow gave no answer. `statuses` and
    `jobs`: what the cluster knows; `mlflow`: look there too.

    Raises ConfigError for a name that means no run.
    """
    found, left = find_runs(results)
    place, known = f"below {results}", [run.names for run in found]
    wanted = [found[i] for i in resolve_all(names, known, place, hints=False, left=left)] if names else found
    garbage: list[Garbage] = []
    failed: list[str] = []
    for run in wanted:
        if why := at_work(run, statuses, jobs):
            left.append(f"{run} {why}.")
            continue
        try:
            each = garbage_of(run)
            garbage.append(_with_uploads(each) if mlflow and each.is_finished else each)
        except (NnfleetError, OSError) as err:
            failed.append(f"{run}: {err}")
    return garbage, left, failed


def garbage_of(run: Found) -> Garbage:
    """What a run on which nobody works holds that nobody needs. Raises StorageError, OSError."""
    folder, is_finished = RunFolder(run.spec.run_folder), run.progress.stage == "finished"
    token = newest_token(folder)
    states = _own_states(folder, run)
    kept = states[:1] if is_finished else states
    files: dict[Kind, tuple[Path, ...]] = {
        "states": tuple(_states_but(folder, kept)) if is_finished and kept else (),
        "bests": tuple(_bests_but(folder, kept)) if kept else (),
        "unfinished writes": tuple(_half_written(folder)),
        "uploads": tuple(sorted(folder.uploading.iterdir())) if folder.uploading.is_dir() else (),
    }
    files = {kind: paths for kind, paths in files.items() if paths}
    return Garbage(
        run_key=run.spec.run_key,
        address=run.spec.address,
        run_folder=folder.root,
        is_finished=is_finished,
        files=files,
        sizes=freed_by(files),
        held_bytes=sum(size for size, _ in _inodes([folder.root]).values()),
        fencing_token=token,
    )


def _own_states(folder: RunFolder, run: Found) -> list[Committed]:
    return [state for state in committed_states(folder) if state.run_key == run.spec.run_key]


def _states_but(folder: RunFolder, kept: Sequence[Committed]) -> Iterator[Path]:
    """Commits before their tensors: whoever reads in between finds no commit without them."""
    stems = {state.stem for state in kept}
    found = chain(commit_files(folder), sorted(folder.state.glob("e*.json.damaged")), sorted(folder.state.glob("e*.pth")))
    return (path for path in found if path.name.split(".", 1)[0] not in stems)


def _bests_but(folder: RunFolder, kept: Sequence[Committed]) -> Iterator[Path]:
    """Older than the newest state, as `prune` has it: a newer one may be of a commit in the making, of a worker that is not seen here."""
    named = {manifest.file for state in kept for manifest in state.weights.values()}
    newest = max(state.order for state in kept)
    found = (path for path in sorted(folder.best.glob("e*.pth")) if Order() < order_of(path) < newest)
    return (path for path in found if str(path.relative_to(folder.root)) not in named)


def _half_written(folder: RunFolder) -> Iterator[Path]:
    places = ((folder.state, ".*.part"), (folder.best, ".*.part"), (folder.root, ".checkpoint_*.part"))
    return (path for place, pattern in places for path in sorted(place.glob(pattern)))


def freed_by(files: Mapping[Kind, Sequence[Path]]) -> dict[Kind, int]:
    """Bytes that each kind frees. A file all of whose names go counts with the first kind that has one of them."""
    leaving = _inodes(list(chain(*files.values())))
    sizes: dict[Kind, int] = {}
    counted: set[tuple[int, int]] = set()
    for kind, paths in files.items():
        own = {inode for inode in _inodes(list(paths)) if inode not in counted}
        counted |= own
        sizes[kind] = sum(leaving[inode][0] for inode in own if leaving[inode][1] == 0)
    return sizes


def _inodes(paths: Sequence[Path]) -> dict[tuple[int, int], tuple[int, int]]:
    """Each file at or below the paths, by its inode: bytes on the disk, and how many other names it has that are not among them."""
    files = chain(paths, *(path.rglob("*") for path in paths if path.is_dir() and not path.is_symlink()))
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for path in dict.fromkeys(files):
        try:
            stat = os.lstat(path)
        except FileNotFoundError:
            continue
        if path.is_symlink() or path.is_dir():
            continue
        inode = stat.st_dev, stat.st_ino
        others = found[inode][1] if inode in found else stat.st_nlink
        found[inode] = stat.st_blocks * 512, others - 1
    return found


def free(garbage: Garbage) -> Garbage:
    """Let go the files that were listed; returns what went. Uploads stay.

    Raises DataError, and removes nothing, where the run was started since, or its newest state is not whole: then an older one may be the
    only one that is.
    """
    folder = RunFolder(garbage.run_folder)
    if garbage.files.get("states"):
        _check_newest_is_whole(folder, garbage.address)
    if newest_token(folder) != garbage.fencing_token:
        raise DataError(
            f"gc: {garbage.address} was started meanwhile. Nothing of it was removed; run `nnfleet gc` again once it has ended."
        )
    try:
        for path in chain(*garbage.files.values()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as err:
        raise DataError(
            f"gc: {err.filename or garbage.run_folder} cannot be removed: {err.strerror or err}. Let this user write there."
        ) from err
    return garbage.model_copy(update={"uploads": {}})


def _check_newest_is_whole(folder: RunFolder, address: str) -> None:
    newest = newest_committed(folder)
    file = folder.state / f"{newest.stem}.pth" if newest else folder.state
    if newest is None or not file.is_file() or sha256_of(file) != newest.state_sha256:
        raise DataError(f"gc: the newest state of {address}, {file}, is not whole. Nothing of it was removed; restore the file.")


def _with_uploads(garbage: Garbage) -> Garbage:
    """With what MLflow holds of checkpoints that were replaced. Raises TrackingError."""
    from orchestrator.publishing.checkpoint_store import replaced_uploads

    bound = _bound(RunFolder(garbage.run_folder))
    if bound is None:
        return garbage
    tracker, run_id = bound
    found: dict[str, int] = {}
    for name in CHECKPOINTS:
        found |= replaced_uploads(tracker, run_id, name)
    return garbage.model_copy(update={"uploads": found})


def _free_uploads(folder: RunFolder) -> None:
    from orchestrator.publishing.checkpoint_store import keep_only_published

    if (bound := _bound(folder)) is not None:
        for name in CHECKPOINTS:
            keep_only_published(*bound, name)


def _bound(folder: RunFolder) -> "tuple[Tracker, str] | None":
    found = read_mlflow_run(folder)
    if found is None:
        return None
    from orchestrator.tracking.client import Tracker  # seconds and 150 MB: not before it is needed

    tracker = Tracker(found.tracking_uri)
    tracker.ping()
    return tracker, found.run_id


def free_all(found: Sequence[Garbage]) -> tuple[list[Garbage], list[str]]:
    """Let go what was listed of each run, whatever becomes of the others; returns what went, and a sentence for each that failed."""
    freed: list[Garbage] = []
    failed: list[str] = []
    for garbage in found:
        try:
            freed.append(free(garbage))
            if garbage.uploads:
                _free_uploads(RunFolder(garbage.run_folder))
                freed[-1] = garbage
        except (NnfleetError, OSError) as err:
            failed.append(f"{garbage.address} ({garbage.run_key}): {err}")
    return freed, failed
