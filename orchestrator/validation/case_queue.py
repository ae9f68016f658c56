"""Which case is validated next, when its retries are exhausted and when a place is unhealthy: a policy of values, without Ray or clock.

A place is what a worker runs on: a node, or a GPU of one. Where different cases fail in a row while other places do well, the place is
to blame and not the cases: their tries there do not count.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.run.outcome import EndState
from trainers.contract.run_spec import ValidationSpec, WeightsName
from trainers.contract.summary import SCORING, CaseResult


def largest_first(sizes: Mapping[str, int]) -> list[str]:
    """Cases by falling size, ties by name: the longest prediction starts first, so that no worker sits alone with it at the end."""
    return sorted(sizes, key=lambda case: (-sizes[case], case))


def is_finished(result: CaseResult | None, checkpoint_sha256: str, asked: ValidationSpec, has_prediction: bool) -> bool:
    """True when a stored result is of exactly these weights, tolerance and scoring rule, with its lesions counted if that is `asked`, and
    its prediction is there.
    """
    return (
        result is not None
        and has_prediction
        and result.checkpoint_sha256 == checkpoint_sha256
        and result.surface_tolerance_mm == asked.surface_tolerance_mm
        and result.scoring == SCORING
        and (result.has_lesions or not asked.lesions)
    )


CaseFailureKind = Literal["data", "lost", "code"]
"""The case's files are at fault (never tried again), the worker or what it needs went away, or an error was raised."""
UNHEALTHY_AFTER = 2
"""Different cases that fail in a row at one place, after which it counts as unhealthy, if another place has finished a case."""
LEAST_LIMIT_S = 4 * 3600.0
TIMES_THE_SLOWEST = 10.0


def case_limit_s(slowest_s: float) -> float:
    """How long one case may take: four hours, or ten times the slowest so far; the largest cases are done first."""
    return max(LEAST_LIMIT_S, TIMES_THE_SLOWEST * slowest_s)


@dataclass(frozen=True)
class CaseFailure:
    """One try of a case that came to nothing."""

    kind: CaseFailureKind
    reason: str
    place: str = ""


@dataclass
class CaseQueue:
    """Cases that wait, and how each failed. A case that fails goes to the end, until `tries` failures count."""

    waiting: deque[str]
    tries: int
    failures: dict[str, list[CaseFailure]] = field(default_factory=dict)
    exhausted: dict[str, CaseFailure] = field(default_factory=dict)
    """Cases that failed too often, with the last failure of each."""
    _streaks: dict[str, set[str]] = field(default_factory=dict)
    """Place -> cases that failed there since one was finished there."""
    _proven: set[str] = field(default_factory=set)
    """Places that have finished a case."""

    @classmethod
    def of(cls, cases: Sequence[str], tries: int) -> "CaseQueue":
        """A queue of `cases` in this order."""
        return cls(deque(cases), tries)

    def next(self) -> str | None:
        """Take the next case out; None when none waits."""
        return self.waiting.popleft() if self.waiting else None

    def done(self, place: str = "") -> None:
        """A case was finished at `place`: it is healthy, and others may turn out not to be, whose cases then wait again."""
        self._streaks.pop(place, None)
        self._proven.add(place)
        for case in [case for case in self.exhausted if not self._is_too_often(case)]:
            del self.exhausted[case]
            self.waiting.append(case)

    def failed(self, case_id: str, failure: CaseFailure) -> bool:
        """Note a failure of a case that was taken out; True when it will be tried again."""
        self.failures.setdefault(case_id, []).append(failure)
        if failure.kind != "data":
            self._streaks.setdefault(failure.place, set()).add(case_id)
        if self._is_too_often(case_id):
            self.exhausted[case_id] = failure
            return False
        self.waiting.append(case_id)
        return True

    def is_unhealthy(self, place: str) -> bool:
        """True where cases fail though others are finished elsewhere."""
        return len(self._streaks.get(place, ())) >= UNHEALTHY_AFTER and bool(self._proven - {place})

    def reinstate(self, place: str) -> None:
        """Reinstate an unhealthy place, because there is no other: what failed there counts from now on."""
        self._streaks.pop(place, None)

    def _is_too_often(self, case_id: str) -> bool:
        tries = self.failures[case_id]
        return tries[-1].kind == "data" or sum(not self.is_unhealthy(failure.place) for failure in tries) >= self.tries


def end_of(failures: Sequence[Sequence[CaseFailure]]) -> EndState:
    """How a validation ends whose exhausted cases failed so: bad data outweigh all; the cluster is to blame only where nothing else is."""
    kinds = {failure.kind for tries in failures for failure in tries}
    if "data" in kinds:
        return "FAILED_CONFIG"
    return "FAILED_CLUSTER" if kinds == {"lost"} else "FAILED_CODE"


def failure_message(
    name: WeightsName,
    failures: Mapping[str, Sequence[CaseFailure]],
    total: int,
    *,
    work: str = "full validation",
    again: str = "validate",
) -> str:
    """What the user reads when the retries of cases are exhausted. `again`: the verb that does it once more."""
    listed = "; ".join(f"{case} (tried {_times(len(tries))}): {tries[-1].reason}" for case, tries in sorted(failures.items()))
    return (
        f"{work} ({name}): {len(failures)} of {total} cases failed: {listed} "
        f"The other cases are done and kept: repair these and {again} again."
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
