"""The JSON half of a committed state: what was reached, with the whole metric history. Its rename is the commit.

The other half, tensors of network and optimizer, lies beside it with the same stem; see `trainers/training/state.py`.
"""

import logging
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, ValidationError

from trainers.contract.early_end import EarlyEnd, early_end_text
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Frozen, RunSpec, WeightsName, is_checkpoint
from trainers.errors import CheckpointError
from trainers.storage.faults import reading

log = logging.getLogger(__name__)
_reported: deque[Path] = deque(maxlen=256)
"""Damaged commits that this process has warned of: whoever waits for a state looks at them many times a second."""


def _below(path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ValueError("must be a path below the run folder")
    return path


RECENT_EPOCHS = 9
"""The last so many epochs together show how fast a run is, and what limits it."""


class EpochRow(Frozen):
    """The measurements of one epoch. Losses and Dice are global (all ranks); times are rank 0's, in seconds."""

    epoch: int
    """Counted from 0."""
    fencing_token: int = Field(alias="attempt")
    started_unix: float
    ended_unix: float
    train_loss: float
    val_loss: float
    pseudo_dice: tuple[float, ...]
    """Per foreground class; NaN for a class neither present nor predicted in any validation patch."""
    pseudo_dice_mean: float
    ema_pseudo_dice: float | None
    """None until an epoch had foreground."""
    learning_rate: float
    world_size: int
    """0 where it is not known: nnU-Net does not record it. Times that it does not record are NaN."""
    epoch_s: float
    train_s: float
    val_s: float
    wait_data_s: float
    save_s: float
    """Seconds for which saving held the training thread at the end of the epoch before this one."""
    longest_wait_s: float = Field(math.nan, exclude_if=math.isnan)
    """Of the rank that waited longest for data: in a step all ranks wait for the last one. NaN where it is not known."""
    loaders: int = Field(0, exclude_if=lambda loaders: loaders == 0)
    """Loader actors of a rank; 0 where it is not known."""
    prepare_s: float = Field(math.nan, exclude_if=math.isnan)
    """Wall-clock seconds of rank 0's loaders for the batches of the epoch, over all of them."""
    prepare_cpu_s: float = Field(math.nan, exclude_if=math.isnan)
    """CPU seconds of rank 0's loaders for them."""
    read_wait_s: float = Field(math.nan, exclude_if=math.isnan)
    """Of `prepare_s`: waiting for the disk."""
    samples_per_s: float
    """Training samples of the global batch per second of the training part."""
    gpu_memory_gib: float
    """Peak of rank 0's GPU; 0 on CPU."""
    system: dict[str, float] = Field(default_factory=dict)
    """Load of rank 0's node, by MLflow's names of system metrics."""
    device: str = Field("", exclude_if=lambda name: not name)
    """Kind of rank 0's device: the name of its GPU, or of the CPU; empty where it is not known."""


class BestRecord(Frozen):
    """The values of the pure best policy (see `trainers/training/pseudo_dice.py`)."""

    ema: float | None = None
    score: float | None = None
    best_epoch: int | None = None
    skipped: int = 0
    decay: float = 0.9


class Manifest(Frozen):
    """Which bytes a checkpoint is, and what it stands for."""

    checkpoint: WeightsName
    file: Annotated[str, AfterValidator(_below)]
    """Path below the run folder."""
    epoch: int
    """Index of the epoch after which the weights were taken."""
    fencing_token: int = Field(alias="attempt")
    ema_pseudo_dice: float | None
    sha256: str
    size_bytes: int

    @property
    def origin(self) -> tuple[int, int, float | None]:
        """What two checkpoints of one run have in common if they hold the same weights."""
        return self.epoch, self.fencing_token, self.ema_pseudo_dice


class InFlight(Frozen):
    """How far the training part of an epoch had come when a state was saved within it."""

    iteration: int = Field(ge=1)
    """Optimizer steps of the epoch that are done."""
    train_loss_sums: tuple[float, ...]
    """Sum of the losses of these steps, one per rank of then."""
    elapsed_s: float
    """Seconds of work on the epoch so far, over all starts."""


class Committed(Frozen):
    """What a run has reached for good."""

    run_key: str
    epochs_done: int
    fencing_token: int = Field(alias="attempt")
    history: tuple[EpochRow, ...]
    in_flight: InFlight | None = None
    """Of a state that was saved within the epoch with the index `epochs_done`."""
    early_end: EarlyEnd | None = Field(None, exclude_if=lambda end: end is None)
    """Of a run that somebody asked to end before its schedule does; None, and not in the file: nobody did, or it has not taken effect."""
    best_policy: BestRecord = BestRecord()
    best: Manifest | None = None
    final: Manifest | None = None
    candidates: tuple[Manifest, ...] = Field((), exclude_if=lambda found: not found)
    """The best epochs, highest EMA pseudo-Dice first, of a run that keeps them."""
    state_sha256: str
    state_size_bytes: int
    rounding_version: int = Field(1, exclude_if=lambda version: version == 1)
    """`ROUNDING_VERSION` of the epoch that this state ends or lies in; 1 also where older versions wrote it."""

    @property
    def checkpoints(self) -> dict[CheckpointName, Manifest]:
        """The best and the final one, as far as they are there."""
        both: dict[CheckpointName, Manifest | None] = {"best": self.best, "final": self.final}
        return {name: manifest for name, manifest in both.items() if manifest is not None}

    @property
    def weights(self) -> dict[WeightsName, Manifest]:
        """All that a full validation may be of: `checkpoints`, then the candidates."""
        return {manifest.checkpoint: manifest for manifest in (*self.checkpoints.values(), *self.candidates)}

    @property
    def position(self) -> tuple[int, int]:
        """Epochs done, and training iterations done of the next one."""
        return self.epochs_done, self.in_flight.iteration if self.in_flight else 0

    @property
    def order(self) -> "Order":
        """Its place among the states of the run."""
        return Order(*self.position, self.fencing_token)

    @property
    def stem(self) -> str:
        """File name of both halves without ending."""
        return state_stem(self.epochs_done, self.fencing_token, self.position[1])


def state_stem(epochs_done: int, fencing_token: int, iteration: int = 0) -> str:
    """`e<epochs done>_a<fencing token>`, within an epoch `e<epochs done>i<iterations done>_a<fencing token>`; see `Order`."""
    within = f"i{iteration:06d}" if iteration else ""
    return f"e{epochs_done:05d}{within}_a{fencing_token:04d}"


class Order(NamedTuple):
    """What a state's file name says of its age: the greater, the newer. Names are not compared as text, since their numbers may outgrow
    their zeros.
    """

    epochs_done: int = 0
    iteration: int = 0
    fencing_token: int = 0


def order_of(path: Path) -> Order:
    """The place of a state, a best checkpoint or the half-written beginning of one among the others; before all when it is none of them."""
    found = re.match(r"\.?e([0-9]+)(?:i([0-9]+))?_a([0-9]+)", path.name)
    return Order(int(found[1]), int(found[2] or 0), int(found[3])) if found else Order()


def commit_files(folder: RunFolder) -> list[Path]:
    """The JSON halves of all commits of a run, newest first. Raises StorageError or OSError where a folder that is there is not listed."""
    try:
        with reading(folder.state):
            return sorted((path for path in folder.state.iterdir() if path.match("e*_a*.json")), key=order_of, reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []


def newest_first(folder: RunFolder) -> Iterator[Committed]:
    """The commits of a run, newest first; a damaged one is skipped with a warning. Raises as `read_committed` when it comes to a file."""
    found = (read_committed(path) for path in commit_files(folder))
    return (committed for committed in found if committed is not None)


def committed_states(folder: RunFolder) -> list[Committed]:
    """All commits of a run, newest first (see `newest_first`)."""
    return list(newest_first(folder))


def newest_committed(folder: RunFolder) -> Committed | None:
    """The newest commit of a run, or None. Reads JSON only; the tensors' digest is checked when they are loaded.

    Raises as `read_committed`: what cannot be read now may be the newest, so an older one is no answer.
    """
    return next(newest_first(folder), None)


def weights_file(folder: RunFolder, name: WeightsName) -> Path:
    """Where weights lie: those of a candidate where the newest commit names them, the others under nnU-Net's name.

    Raises CheckpointError for a candidate that the newest commit does not name, and as `read_committed`.
    """
    if is_checkpoint(name):
        return folder.checkpoint(name)
    committed = newest_committed(folder)
    manifest = committed.weights.get(name) if committed else None
    if manifest is None:
        raise CheckpointError(f"checkpoint: the newest state in {folder.state} names no {name}. Validate again.")
    return folder.root / manifest.file


class CommitReader:
    """The newest commit of a run for whoever asks again and again: a history of a thousand epochs is parsed only when its file is new."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._committed: Committed | None = None
        self._mark: tuple[str, int] | None = None

    def newest(self) -> Committed | None:
        """As `newest_committed`."""
        try:
            file = next(iter(commit_files(self._folder)), None)
            mark = None if file is None else (file.name, file.stat().st_mtime_ns)
        except FileNotFoundError:  # pruned between listing and asking
            mark = None
        if mark is None or mark != self._mark:
            self._committed, self._mark = newest_committed(self._folder), mark
        return self._committed


def begun_unix(history: Sequence[EpochRow]) -> float:
    """When the first epoch began; 0 before it has ended, and where nobody recorded it."""
    begun = history[0].started_unix if history else 0.0
    return 0.0 if math.isnan(begun) else begun


def epochs_of(spec: RunSpec, committed: Committed | None) -> int:
    """How many epochs a run has in all: those of its schedule, or fewer where somebody asked for an early end."""
    early = committed.early_end if committed is not None and committed.run_key == spec.run_key else None
    return spec.schedule.epochs if early is None else early.epochs


def early_end_of(spec: RunSpec, committed: Committed | None) -> str:
    """How a run ended, or will end, before its schedule, for users (`EarlyEnd.text`); empty for one that does not."""
    own = committed if committed is not None and committed.run_key == spec.run_key else None
    return early_end_text(own.early_end, spec.schedule.epochs) if own is not None else ""


def committed_position(folder: RunFolder) -> tuple[int, int]:
    """Where the newest commit of a run stands (see `Committed.position`); (0, 0) when there is none."""
    committed = newest_committed(folder)
    return committed.position if committed else (0, 0)


def read_committed(path: Path) -> Committed | None:
    """One commit, or None if the file has gone or does not parse; of the latter is warned, once.

    A file that is there and is not read may be sound: raises StorageError where its disk is away, else the error of the system.
    """
    try:
        with reading(path):
            return Committed.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None  # pruned between listing and reading
    except ValidationError as err:
        if path not in _reported:
            _reported.append(path)
            log.warning("state %s is damaged and is skipped: %s", path, err)
        return None
