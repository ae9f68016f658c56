"""Failed starts of a run's workers: what kind of failure an error is, and the files that remember it (`failures/<attempt>.json`).

Written by the worker that failed, before it dies, and by Ray Train's controller, which also sees those that died without a word.
"""

import logging
import re
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.budgets import Failure, FailureKind
from orchestrator.outcome import EVIDENCE_CHARACTERS, EndState
from trainers.spec.attempts import newest_attempt
from trainers.spec.committed import reached_position
from trainers.spec.errors import ConfigError, DataError, DivergedError, StorageError, Superseded
from trainers.spec.files import write_atomic
from trainers.spec.folder import RunFolder

log = logging.getLogger(__name__)
RECENT_LINES = 40
MESSAGE_CHARACTERS = 2000
_LOST_NEIGHBOUR = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|Socket Timeout", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
_KILLED_FOR_MEMORY = re.compile(r"memory pressure|running low on memory|NODE_OUT_OF_MEMORY")  # Ray's own words; every death "may" be an OOM


class RecentLog(logging.Handler):
    """Keeps the last lines that this process has logged, as evidence."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._lines: deque[str] = deque(maxlen=RECENT_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._lines.append(self.format(record))

    def text(self) -> str:
        """The lines, oldest first."""
        return "\n".join(self._lines)


def kind_of(error: BaseException) -> tuple[FailureKind, EndState]:
    """What kind of failure an error is that a worker's own code raised, and how a run ends by it; pure."""
    match error:
        case Superseded():
            return "superseded", "SUPERSEDED"
        case ConfigError() | DataError():
            return "user", "FAILED_CONFIG"
        case DivergedError():
            return "user", "FAILED_CODE"
        case StorageError():
            return "cluster", "FAILED_CLUSTER"
    if is_out_of_memory(error):
        return "user", "FAILED_CONFIG"
    lost = any("Dist" in kind.__name__ and kind.__module__.startswith("torch") for kind in type(error).__mro__)
    if lost or (isinstance(error, RuntimeError | OSError) and _LOST_NEIGHBOUR.search(str(error))):
        return "cluster", "FAILED_CLUSTER"  # another rank went away and took this one's connections with it
    return "code", "FAILED_CODE"


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU or a host that has no memory left for what the run asks of it."""
    named = any(kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch") for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))


def message_of(error: BaseException) -> str:
    """What went wrong and what to change, in a sentence or two."""
    text = f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    if not is_out_of_memory(error):
        return text
    return (
        f"{text} The network does not fit into the memory of one worker. Raise workers.count (fewer samples per worker), use GPUs with "
        "more memory, or plan a smaller patch: nnUNetv2_plan_experiment -gpu_memory_target."
    )


def failure_of(
    folder: RunFolder, driver: str, attempt: int, error: BaseException, *, rank: int | None = None, node: str = "", log_text: str = ""
) -> Failure:
    """The record of an error that a worker's own code raised."""
    kind, state = kind_of(error)
    trace = "".join(traceback.format_exception(error))
    before = f"Last lines of its log:\n{log_text}\n" if log_text else ""
    where = "" if rank is None else f"rank {rank}{f' on node {node}' if node else ''}: "
    room = max(0, EVIDENCE_CHARACTERS - len(before))
    message, evidence = where + message_of(error), before + trace[-room:]
    now = _now(folder, attempt)
    return Failure(driver=driver, kind=kind, state=state, message=message, evidence=evidence, rank=rank, node=node, **now)


def failure_of_gang(folder: RunFolder, driver: str, attempt: int, errors: Mapping[int, tuple[bool, BaseException]]) -> Failure:
    """The record of what the controller saw of all ranks: per rank, whether its own code raised (else it is gone), and the error.

    A rank that died takes the others' connections with it, so one death outweighs their errors.
    """
    rank, (raised_itself, error) = to_blame(errors)
    if raised_itself:
        return failure_of(folder, driver, attempt, error, rank=rank)
    kind, state, text = kind_of_death(error)
    evidence = "".join(traceback.format_exception(error))[-EVIDENCE_CHARACTERS:]
    message = f"rank {rank} {text}"[:MESSAGE_CHARACTERS]
    return Failure(driver=driver, kind=kind, state=state, message=message, evidence=evidence, rank=rank, **_now(folder, attempt))


def to_blame(errors: Mapping[int, tuple[bool, BaseException]]) -> tuple[int, tuple[bool, BaseException]]:
    """Which rank's error counts: one of the user's making, else a death, else an error of the code, else a lost neighbour; pure."""

    def weight(item: tuple[int, tuple[bool, BaseException]]) -> tuple[int, int]:
        rank, (raised_itself, error) = item
        kind = kind_of(error)[0]
        order = 1 if not raised_itself else {"superseded": 0, "user": 0, "code": 2}.get(kind, 3)
        return order, rank

    return min(errors.items(), key=weight)


def kind_of_death(error: BaseException) -> tuple[FailureKind, EndState, str]:
    """What kind of failure the loss of a rank is, and words for it; pure."""
    cause = " ".join(str(error).split())
    if getattr(error, "preempted", False):
        return "preemption", "FAILED_CLUSTER", f"was on a node that was taken away: {cause}"
    if _KILLED_FOR_MEMORY.search(cause):
        advice = "Lower loader.actors or loader.prefetch, or give its node less to do."
        return "memory", "FAILED_CONFIG", f"was ended for want of memory on its node. {advice} Ray says: {cause}"
    return "cluster", "FAILED_CLUSTER", f"died or cannot be reached: {cause}"


def write_failure(folder: RunFolder, failure: Failure, *, by_controller: bool = False) -> None:
    """Store why a start failed, so that the worst of its errors stays: the user's own is never replaced, a lost neighbour's echo replaces
    nothing, and the controller, which sees all ranks, has the last word on the rest.

    Does nothing where the run folder is not to be seen: a folder made there would hide that it is not shared.
    """
    if not folder.own.is_dir():
        return
    path = folder.failures / f"{failure.attempt:04d}.json"
    present = _read(folder, path.stem)
    if present is not None:
        is_known = (present.kind, present.rank) == (failure.kind, failure.rank)  # by the rank itself, with the end of its log
        if present.kind in ("user", "superseded") or (is_known if by_controller else present.kind != "cluster"):
            return
    try:
        write_atomic(path, failure.model_dump_json(indent=1).encode())
    except StorageError as err:  # the error that is being recorded says more
        log.error("the failure of attempt %d is not stored: %s", failure.attempt, err)


def read_failures(folder: RunFolder, driver: str | None = None) -> list[Failure]:
    """Failed starts by their number; of one driver only, if it is named."""
    found = (_read(folder, path.stem) for path in sorted(folder.failures.glob("[0-9]*.json")))
    return [failure for failure in found if failure is not None and driver in (None, failure.driver)]


def _read(folder: RunFolder, stem: str) -> Failure | None:
    path = folder.failures / f"{stem}.json"
    try:
        return Failure.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as err:
        log.warning("%s is not readable and is passed over: %s", path, err)
        return None


def _now(folder: RunFolder, attempt: int) -> dict[str, Any]:
    """Number and moment of a start that fails at this moment, as fields of its record."""
    epochs_done, iteration = reached_position(folder)
    started = attempt or newest_attempt(folder)
    return {"attempt": started, "epochs_done": epochs_done, "iteration": iteration, "unix": time.time()}
