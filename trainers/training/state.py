"""The resume stream: save a state durably without holding up training, find the newest valid one, restore from it.

One commit is two files below `nnfleet/state/`: e<epochs done>_a<fencing token>.pth, a complete nnU-Net checkpoint, and the .json beside it,
whose appearance is the commit (`trainers/contract/commits.py`). A state may also be saved within an epoch; nnU-Net's names are then left
where they are. Order of one commit, in a thread of rank 0:

    weights of a new best or candidate (durable) -> state tensors (durable) -> fence -> json (the commit) -> links for nnU-Net -> prune

The training thread is held only for the copy of the tensors, and when the commit before is still being written. A disk that is full,
read-only or away is waited for in that thread, while training goes on to the next commit: one snapshot is in memory, never two.
"""

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from trainers.contract.candidates import candidate_epochs, candidates_after
from trainers.contract.commits import (
    BestRecord,
    Committed,
    EpochRow,
    InFlight,
    Manifest,
    Order,
    commit_files,
    newest_first,
    order_of,
    state_stem,
)
from trainers.contract.early_end import EarlyEnd
from trainers.contract.fencing import check_fence, gone_when_superseded, newest_token
from trainers.contract.requests import acknowledge_save, complete_save
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WeightsName, candidate_name
from trainers.contract.storage_notice import StorageNotice
from trainers.contract.trainer_table import ROUNDING_VERSION
from trainers.errors import CheckpointError, StorageError
from trainers.network.checkpoint import Checkpoint, copied_to_cpu, training_part, whole_state
from trainers.storage.faults import STORAGE_RETRY_S, free_space, reading, retry_storage
from trainers.storage.files import link_atomic, sha256_of, write_atomic, write_hashed, write_through

log = logging.getLogger(__name__)
KEEP_STATES = 2
"""So many of the newest, and the newest of an epoch's end, which passed that epoch's checks."""


@dataclass(frozen=True)
class TrainingProgress:
    """What a run has reached: everything of the state but the tensors."""

    history: tuple[EpochRow, ...] = ()
    best_policy: BestRecord = field(default_factory=BestRecord)
    in_flight: InFlight | None = None
    """Within an epoch: how far it has come."""
    early_end: EarlyEnd | None = None
    """Where somebody asked for an end before that of the schedule."""

    @property
    def epochs_done(self) -> int:
        """Finished epochs; the next one to train has this index."""
        return len(self.history)

    @property
    def iterations_done(self) -> int:
        """Training iterations that are done of that next epoch."""
        return self.in_flight.iteration if self.in_flight else 0

    @property
    def elapsed_s(self) -> float:
        """Seconds of work on that next epoch so far."""
        return self.in_flight.elapsed_s if self.in_flight else 0.0

    @property
    def position(self) -> tuple[int, int]:
        """Epochs and iterations done."""
        return self.epochs_done, self.iterations_done

    def is_trained(self, epochs: int) -> bool:
        """True once all epochs of a schedule of `epochs` are done, or those until the early end."""
        return self.epochs_done >= (epochs if self.early_end is None else self.early_end.epochs)


@dataclass
class StateWriter:
    """Commits states of one start of the workers on rank 0, one at a time, in a thread of its own.

    `fixed` is the constant part of every checkpoint (`trainers.network.checkpoint.describe`), `total_epochs` tells when
    a state is the final one.
    """

    folder: RunFolder
    run_key: str
    fencing_token: int
    fixed: Checkpoint
    total_epochs: int
    patience_s: float = STORAGE_RETRY_S
    """How long a commit waits for a disk that does not take it, over all its steps."""
    num_candidates: int = 0
    """The weights of so many of the best epochs are kept, see `trainers/contract/candidates.py`."""
    held_s: float = 0.0
    """Seconds for which the newest `commit` held its caller."""
    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _best: Manifest | None = None
    _candidates: tuple[Manifest, ...] = ()
    _copied_best: str | None = None
    """SHA-256 of the best checkpoint that has nnU-Net's name as a copy, where there are no hard links."""
    _snapshot: dict[str, Any] | None = None
    """The newest one: the memory of the next."""

    def __post_init__(self) -> None:
        self._notice = StorageNotice(self.folder, self.fencing_token)

    def commit(self, reached: TrainingProgress, is_best: bool, tensors: Callable[[], dict[str, Any]]) -> None:
        """Snapshot `tensors()` (network_weights, optimizer_state, grad_scaler_state) and write the commit in the background.

        Waits for the commit before, so at most one is in memory; an error of that one (Superseded, StorageError) is raised here.
        Whoever asked for a state is answered by this one, once it is durable.
        """
        started = time.perf_counter()
        self.drain()
        acknowledge_save(self.folder)
        self._snapshot = snapshot = copied_to_cpu(tensors(), older=self._snapshot)
        self._thread = threading.Thread(target=self._run, args=(reached, is_best, snapshot), name="state-writer", daemon=True)
        self._thread.start()
        self.held_s = time.perf_counter() - started

    def drain(self) -> None:
        """Wait until the newest commit is durable; raises the error that it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def start_from(self, committed: Committed | None) -> None:
        """Take over where a restored commit stands: its best stays the best, its candidates stay candidates, nnU-Net's names are linked.

        Raises Superseded when somebody has acquired a newer token already.
        """
        self._best, self._candidates = (committed.best, committed.candidates) if committed else (None, ())
        with gone_when_superseded(self.folder, self.fencing_token):
            quarantine_newer(self.folder, committed, self.fencing_token)
            self._notice.reserve()
            if committed is not None:
                self._link(committed)

    def _run(self, reached: TrainingProgress, is_best: bool, snapshot: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            what = f"the state after {describe_position(reached)}"
            with gone_when_superseded(self.folder, self.fencing_token):
                committed = retry_storage(lambda: self._write(reached, is_best, snapshot), what, self.patience_s, tell=self._notice.tell)
                complete_save(self.folder)
                left_s = max(0.0, began + self.patience_s - time.monotonic())
                retry_storage(lambda: self._tidy(committed), f"nnU-Net's names for {what}", left_s, tell=self._notice.tell)
        except BaseException as err:  # handed to the training thread by the next commit or drain
            self._error = err

    def _write(self, reached: TrainingProgress, is_best: bool, snapshot: dict[str, Any]) -> Committed:
        """Store one state; may be called again after it failed at any point."""
        self._check_presence()
        check_fence(self.folder, self.fencing_token)
        stem = state_stem(reached.epochs_done, self.fencing_token, reached.iterations_done)
        if is_best:
            self._best = self._save_weights("best", stem, reached, snapshot)
        self._candidates = self._candidates_at(stem, reached, snapshot, self._best if is_best else None)
        curves = training_part(reached.history, reached.best_policy)
        full = whole_state(snapshot, self.fixed, curves)
        state = self._save("final", self.folder.state / f"{stem}.pth", full, reached)
        committed = Committed(
            run_key=self.run_key,
            epochs_done=reached.epochs_done,
            fencing_token=self.fencing_token,
            history=reached.history,
            in_flight=reached.in_flight,
            early_end=reached.early_end,
            best_policy=reached.best_policy,
            best=self._best,
            candidates=self._candidates,
            final=state if reached.is_trained(self.total_epochs) else None,
            state_sha256=state.sha256,
            state_size_bytes=state.size_bytes,
            rounding_version=ROUNDING_VERSION,
        )
        check_fence(self.folder, self.fencing_token)
        write_atomic(self.folder.state / f"{stem}.json", committed.model_dump_json().encode())
        return committed

    def _candidates_at(self, stem: str, reached: TrainingProgress, snapshot: dict[str, Any], best: Manifest | None) -> tuple[Manifest, ...]:
        """The candidates once this state is committed, the weights of a new one on disk; `best`: those of an epoch that is a new best."""
        if self.num_candidates == 0:
            return ()
        epoch, epochs = reached.epochs_done - 1, candidate_epochs(reached.history, self.num_candidates)
        if reached.in_flight is not None or epoch not in epochs:
            return candidates_after(epochs, self._candidates, {})
        own = best or self._save_weights(candidate_name(epoch), stem, reached, snapshot)
        return candidates_after(epochs, self._candidates, {epoch: own})

    def _save_weights(self, name: WeightsName, stem: str, reached: TrainingProgress, snapshot: dict[str, Any]) -> Manifest:
        """A checkpoint that predicts and does not train on."""
        content = {"network_weights": snapshot["network_weights"], **self.fixed, "current_epoch": reached.epochs_done}
        return self._save(name, self.folder.best / f"{stem}.pth", content, reached)

    def _tidy(self, committed: Committed) -> None:
        self._link(committed)
        prune(self.folder, self.fencing_token)

    def _link(self, committed: Committed) -> None:
        """nnU-Net's names for the end of an epoch. Who stalls just behind the fence keeps them until the next commit or the validation;
        without hard links the best's until the next best."""
        if committed.in_flight is None:
            check_fence(self.folder, self.fencing_token)
            self._copied_best = link_for_nnunet(self.folder, committed, self._copied_best)

    def _check_presence(self) -> None:
        """Where a share is not mounted, writing would make the folders on the disk below, out of everybody's sight."""
        if newest_token(self.folder) < self.fencing_token:
            found = f"{self.folder.tokens} lacks fencing token {self.fencing_token}, so it is not the folder that this start began in"
            raise StorageError(f"storage: {found}; {free_space(self.folder.root)}. Mount the shared folder again.")

    def _save(self, name: WeightsName, path: Path, content: Checkpoint, reached: TrainingProgress) -> Manifest:
        sha256 = write_hashed(path, lambda stream: save_to(stream, content))
        return Manifest(
            checkpoint=name,
            file=str(path.relative_to(self.folder.root)),
            epoch=reached.epochs_done - 1,
            fencing_token=self.fencing_token,
            ema_pseudo_dice=reached.history[-1].ema_pseudo_dice if reached.history else None,
            sha256=sha256,
            size_bytes=path.stat().st_size,
        )


def save_to(stream: IO[bytes], content: Checkpoint) -> None:
    """torch.save; an error of the stream is raised as it is, where torch raises one of its own over it."""
    try:
        torch.save(content, stream)
    except RuntimeError as err:
        if isinstance(err.__context__, OSError):
            raise err.__context__ from None
        raise


def describe_position(reached: TrainingProgress) -> str:
    """How far a state has come, in words."""
    within = f" and {reached.iterations_done} iterations" if reached.iterations_done else ""
    return f"{reached.epochs_done} epochs{within}"


def link_for_nnunet(folder: RunFolder, committed: Committed, copied: str | None = None) -> str | None:
    """Give the committed files nnU-Net's names: checkpoint_best, and checkpoint_final after the last epoch or checkpoint_latest before.

    Returns the SHA-256 of a best checkpoint that had to be copied; one that is `copied` already is not copied again.
    """
    best, named = committed.best, folder.checkpoint("best")
    if best is not None and not (best.sha256 == copied and named.is_file()):
        copied = None if link_atomic(folder.root / best.file, named) else best.sha256
    latest = folder.root / "checkpoint_latest.pth"
    if committed.final is None:
        link_atomic(folder.state / f"{committed.stem}.pth", latest)
    else:
        link_atomic(folder.root / committed.final.file, folder.checkpoint("final"))
        latest.unlink(missing_ok=True)
    return copied


def newest_valid(folder: RunFolder) -> Committed | None:
    """The newest commit whose tensors are whole, by SHA-256; damaged ones are passed over with a warning. None for a fresh run.

    A best checkpoint that is gone does not cost the state: it is taken from nnU-Net's name for it, or forgotten with a warning; so is a
    candidate that is gone.
    Raises CheckpointError when there are commits and none is whole: a run never starts anew over what it has reached. What cannot be read
    now is not damaged: raises StorageError, or what the system says, rather than to go on from an older state.
    """
    for committed in newest_first(folder):
        path = folder.state / f"{committed.stem}.pth"
        digest = digest_if_there(path)
        if digest == committed.state_sha256:
            return _with_candidates(folder, _with_best(folder, committed))
        problem = "missing" if digest is None else "not what its commit names"
        log.warning("state %s is skipped: its tensors are %s", path, problem)
    if commit_files(folder):
        raise CheckpointError(
            f"state: none of the commits in {folder.state} is whole, so the run cannot go on from any. "
            f"Restore the files, or delete {folder.own} to train this run from the start."
        )
    return None


def _with_best(folder: RunFolder, committed: Committed) -> Committed:
    """`committed` with its best checkpoint whole on disk, or without one."""
    best = committed.best
    if best is None or digest_if_there(folder.root / best.file) == best.sha256:
        return committed
    if digest_if_there(folder.checkpoint("best")) == best.sha256:
        log.warning("best checkpoint %s was damaged; it is restored from %s", best.file, folder.checkpoint("best"))
        write_through(folder.root / best.file, lambda stream: _copy(folder.checkpoint("best"), stream))
        return committed
    log.warning("best checkpoint %s of epoch %d is lost; the next epoch that beats it gives a new one", best.file, best.epoch)
    return committed.model_copy(update={"best": None})


def _with_candidates(folder: RunFolder, committed: Committed) -> Committed:
    """`committed` with those of its candidates whose weights are whole."""
    lost = [manifest for manifest in committed.candidates if digest_if_there(folder.root / manifest.file) != manifest.sha256]
    for manifest in lost:
        log.warning("candidate %s of epoch %d is damaged or missing and will not be validated", manifest.file, manifest.epoch)
    whole = tuple(manifest for manifest in committed.candidates if manifest not in lost)
    return committed.model_copy(update={"candidates": whole}) if lost else committed


def digest_if_there(path: Path) -> str | None:
    """SHA-256 of a file, or None if it is not there. Raises StorageError where its disk is away."""
    try:
        with reading(path):
            return sha256_of(path)
    except FileNotFoundError:
        return None


def _copy(source: Path, stream: IO[bytes]) -> None:
    with source.open("rb") as opened:
        shutil.copyfileobj(opened, stream, 1 << 22)


def quarantine_newer(folder: RunFolder, committed: Committed | None, fencing_token: int) -> None:
    """Rename damaged commits above the restored one, so that nothing takes them for the newest, and delete what kills left half written.

    What to touch is listed before the fence is asked, so nothing of a newer start is, however long this one stalls.
    """
    places = ((folder.state, ".*.part"), (folder.best, ".*.part"), (folder.root, ".checkpoint_*.part"))
    half_written = [path for place, pattern in places for path in place.glob(pattern) if order_of(path).fencing_token <= fencing_token]
    commits = [path for path in commit_files(folder) if order_of(path).fencing_token <= fencing_token]
    check_fence(folder, fencing_token)
    for path in commits:
        if committed is not None and order_of(path) > committed.order:
            with contextlib.suppress(FileNotFoundError):  # another start has renamed it
                path.rename(path.with_suffix(".json.damaged"))
    for path in half_written:
        path.unlink(missing_ok=True)


def prune(folder: RunFolder, fencing_token: int) -> None:
    """Delete all but the commits that are kept (see KEEP_STATES) and the best checkpoints and candidates that they name.

    Files of commits in the making stay, and all of a newer start: as in `quarantine_newer`, the fence is asked after the listing.
    Reads only what is kept; where that cannot be read, raises StorageError and deletes nothing.
    """
    states = newest_first(folder)
    kept = list(islice(states, KEEP_STATES))
    newest = [state.order for state in kept]
    if all(state.in_flight for state in kept):
        kept += islice((state for state in states if state.in_flight is None), 1)
    stems = {state.stem for state in kept}
    named = {manifest.file for state in kept for manifest in (*state.candidates, *filter(None, [state.best]))}
    old = [
        path
        for path in (*commit_files(folder), *folder.state.glob("e*.pth"))
        if path.stem not in stems and Order() < order_of(path) < min(newest, default=Order())
    ]
    old += [
        path
        for path in folder.best.glob("e*.pth")
        if str(path.relative_to(folder.root)) not in named and Order() < order_of(path) < max(newest, default=Order())
    ]
    check_fence(folder, fencing_token)
    for path in old:
        path.unlink(missing_ok=True)
