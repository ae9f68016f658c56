"""Failed starts of a run's workers: what kind of failure an error is, and the files that remember it (`failures/<fencing token>.json`).

A worker that fails raises its error with the last lines of its log; Ray Train's controller, which also sees the workers that died
without an error, decides by it and writes it down (`failure_policy.py`).
"""

import copy
import errno
import logging
import pickle
import re
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from orchestrator.run.failure import Failure, FailureKind, failure_files
from orchestrator.run.outcome import EVIDENCE_CHARACTERS, EndState
from orchestrator.training.memory_report import memory_report
from trainers.contract.run_folder import RunFolder
from trainers.errors import ConfigError, DataError, DivergedError, StorageError, Superseded
from trainers.storage.faults import is_of_storage
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)
RECENT_LINES = 40
MESSAGE_CHARACTERS = 2000
_EVIDENCE = "nnfleet_evidence"
_LOST_NEIGHBOUR = re.compile(
    r"""\A(\w+Error:[ ])?(
        \[[^]]*\bgloo/[\w./-]+\.(cc|h):\d+\]  # gloo names the line of its own source
        |gloo\b(?!/) | NCCL\b | application[ ]timeout[ ]caused[ ]pair[ ]closure
        |(\[[^]]*\][ ])?(connection[ ](closed|reset|refused)|broken[ ]pipe|socket[ ]timeout)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)
"""How messages of torch's collectives begin, which under gloo have no type of their own; a path within a text says nothing."""
_OUT_OF_MEMORY = re.compile(
    r"\b(CUDA|HIP|XPU|MPS)( backend| error:)? out of memory\b"
    r"|Allocator: (can't allocate|not enough) memory\b|\bcannot allocate memory \(12\)",
    re.IGNORECASE,
)
_KILLED_FOR_MEMORY = re.compile(r"\bkilled due to (memory pressure|the node running low on memory)\b|\bNODE_OUT_OF_MEMORY\b")
"""Ray's own words for the death of an actor; every other death "may" be one for want of memory."""


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


@dataclass(frozen=True)
class RankError:
    """What became of one rank."""

    error: BaseException
    is_raised: bool
    """True when the rank's own code raised it; False when the rank is gone."""


@dataclass(frozen=True)
class Blame:
    """What one failed start comes to."""

    kind: FailureKind
    state: EndState
    """How the run ends if it is not tried again."""
    message: str
    evidence: str
    rank: int | None = None


def keep_evidence(error: BaseException, where: str, log_text: str) -> None:
    """Attach to an error, where it was raised, its traceback and the end of the log: on its way to the controller the former is lost."""
    trace = "".join(traceback.format_exception(error))
    log_lines = f"Last lines of its log:\n{_tail(log_text, EVIDENCE_CHARACTERS // 2)}\n" if log_text else ""
    head = f"{where}. {log_lines}"
    setattr(error, _EVIDENCE, head + _tail(trace, EVIDENCE_CHARACTERS - len(head)))


def _tail(text: str, characters: int) -> str:
    """The end of a text; of length 0 it is empty, where `text[-0:]` would be all."""
    return text[max(0, len(text) - max(0, characters)) :]


def can_be_sent(error: BaseException) -> bool:
    """True when an error reaches another process as what it is."""
    try:
        pickle.dumps(error)
        return type(copy.copy(error)) is type(error)  # made anew as pickle would
    except Exception:
        return False


def kind_of(error: BaseException) -> tuple[FailureKind, EndState]:
    """What kind of failure an error is that a worker's own code raised, and how a run ends by it; pure."""
    match error:
        case Superseded():
            return "superseded", "SUPERSEDED"
        case ConfigError() | DataError():
            return "user", "FAILED_CONFIG"
        case DivergedError():
            return "user", "FAILED_CODE"
    if is_of_storage(error):
        return "cluster", "FAILED_CLUSTER"
    if _is_from("ray", error):  # a loader of the rank's is gone
        return kind_of_death(error)[:2]
    if is_out_of_memory(error):
        return "user", "FAILED_CONFIG"
    is_lost = isinstance(error, ConnectionError) or _is_from("torch", error, "DistError")
    if is_lost or (isinstance(error, RuntimeError) and _LOST_NEIGHBOUR.search(str(error))):
        return "cluster", "FAILED_CLUSTER"  # another rank went away and took this one's connections with it
    return "code", "FAILED_CODE"


def _is_from(package: str, error: BaseException, name: str = "") -> bool:
    """True for an error of a class (called `name`, if given) that is defined in `package`, which need not be loaded here."""
    return any(kind.__module__.split(".")[0] == package and name in ("", kind.__name__) for kind in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU or a host that has no memory left for what the run asks of it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_told = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    return is_told or isinstance(error, MemoryError) or _is_from("torch", error, "OutOfMemoryError")


def message_of(error: BaseException) -> str:
    """What went wrong and what to change, in a sentence or two."""
    text = f"{type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    if not is_out_of_memory(error):
        return text
    return (
        f"{text} The network does not fit into the memory of one worker. Raise workers.count (fewer samples per worker), use GPUs with "
        "more memory, or plan a smaller patch: nnUNetv2_plan_experiment -gpu_memory_target."
    )


def blame(errors: Mapping[int, RankError]) -> Blame:
    """Which rank's error is to blame for a failed start, and what it is; pure.

    A rank that died takes the others' connections with it, so one death outweighs their errors.
    """
    rank, found = min(errors.items(), key=_weight)
    evidence = str(getattr(found.error, _EVIDENCE, "")) or "".join(traceback.format_exception(found.error))
    if found.is_raised:
        kind, state = kind_of(found.error)
        text = f"rank {rank}: {message_of(found.error)}"
    else:
        kind, state, fate = kind_of_death(found.error)
        text = f"rank {rank} {fate}"
    return Blame(kind, state, text[:MESSAGE_CHARACTERS], evidence[-EVIDENCE_CHARACTERS:], rank)


def _weight(item: tuple[int, RankError]) -> tuple[int, int]:
    """The user's error counts first, then a preemption, a death, an error of the code, and last the echo of another rank's death."""
    rank, found = item
    if found.is_raised:
        order = {"superseded": 0, "user": 0, "code": 3}.get(kind_of(found.error)[0], 4)
    else:
        order = 1 if kind_of_death(found.error)[0] == "preemption" else 2
    return order, rank


def kind_of_death(error: BaseException) -> tuple[FailureKind, EndState, str]:
    """What kind of failure the loss of a rank is, and words for it; pure."""
    cause = " ".join(str(error).split())
    if getattr(error, "preempted", False):
        return "preemption", "FAILED_CLUSTER", f"was on a node that was taken away: {cause}"
    if _is_from("ray", error, "OutOfMemoryError") or _KILLED_FOR_MEMORY.search(cause):
        return _kind_of_kill(cause)
    return "cluster", "FAILED_CLUSTER", f"died or cannot be reached: {cause}"


def _kind_of_kill(cause: str) -> tuple[FailureKind, EndState, str]:
    """Of a worker that Ray's memory monitor has ended: the run's own affair unless other processes had most of the memory."""
    report = memory_report(cause)
    fate = f"was ended because its node ran out of memory. {report.words if report else ''}".rstrip()
    if report and report.is_of_others:
        advice = (
            "Let them end, or train where less runs. When Ray acts is set by RAY_memory_usage_threshold (0.95) and, 0 for never, "
            "RAY_memory_monitor_refresh_ms: in the environment of whatever starts the head or node (`nnfleet up`)."
        )
        return "cluster", "FAILED_CLUSTER", f"{fate} {advice} Ray reports: {cause}"
    advice = "Lower loader.actors or loader.prefetch, or give its node less to do."
    return "memory", "FAILED_CONFIG", f"{fate} {advice} Ray reports: {cause}"


def write_failure(folder: RunFolder, failure: Failure) -> None:
    """Store why a start failed, in a file of its own. A disk that does not take it is only logged: the budgets do not depend on it.

    Does nothing where the run folder cannot be seen: a folder made there would hide that it is not shared.
    """
    try:
        if not folder.own.is_dir():
            return
        path = folder.failures / f"{failure.fencing_token:04d}.json"
        of_token = (path.stem, f"{path.stem}_")  # with a suffix: a start that died before it had a token of its own
        beside = sum(other.stem == of_token[0] or other.stem.startswith(of_token[1]) for other in failure_files(folder))
        write_atomic(path.with_stem(f"{path.stem}_{beside:03d}") if beside else path, failure.model_dump_json(indent=1).encode())
    except (OSError, StorageError) as err:  # the error that is being recorded says more
        log.error("the failure of the start with fencing token %d is not stored: %s", failure.fencing_token, err)


def read_failures(folder: RunFolder, driver: str | None = None) -> list[Failure]:
    """Failed starts by their number; of one driver only, if it is named. Records that cannot be read are skipped with a warning."""
    found: list[Failure] = []
    try:
        paths = failure_files(folder)
    except OSError as err:
        log.warning("%s cannot be listed: %s", folder.failures, err)
        return []
    for path in paths:
        try:
            found.append(Failure.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as err:
            log.warning("%s cannot be read and is skipped: %s", path, err)
    return [failure for failure in found if driver in (None, failure.driver)]
