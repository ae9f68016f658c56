"""Which case is validated next, and when a case is given up: a policy of values, without Ray or clock."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainers.spec.run_spec import CheckpointName
from trainers.spec.summary import CaseResult


def largest_first(sizes: Mapping[str, int]) -> list[str]:
    """Cases by falling size, ties by name: the longest prediction starts first, so that no worker sits alone with it at the end."""
    return sorted(sizes, key=lambda case: (-sizes[case], case))


def is_finished(result: CaseResult | None, checkpoint_sha256: str, surface_tolerance_mm: float, has_prediction: bool) -> bool:
    """True when a stored result is of exactly these weights and this tolerance and its prediction is there: the case is not done again."""
    return (
        result is not None
        and has_prediction
        and result.checkpoint_sha256 == checkpoint_sha256
        and result.surface_tolerance_mm == surface_tolerance_mm
    )


@dataclass
class CaseQueue:
    """Cases that wait, and how often each failed. A case that fails goes to the end; after `attempts` failures it is given up."""

    waiting: deque[str]
    attempts: int
    failures: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Sequence[str], attempts: int) -> "CaseQueue":
        """A queue of `cases` in this order."""
        return cls(deque(cases), attempts)

    def next(self) -> str | None:
        """Take the next case out; None when none waits."""
        return self.waiting.popleft() if self.waiting else None

    def failed(self, case_id: str, reason: str) -> bool:
        """Note a failure of a case that was taken out; True when it will be tried again."""
        reasons = self.failures.setdefault(case_id, [])
        reasons.append(reason)
        if len(reasons) >= self.attempts:
            return False
        self.waiting.append(case_id)
        return True

    @property
    def given_up(self) -> dict[str, str]:
        """Cases that failed too often, with the last reason of each."""
        return {case: reasons[-1] for case, reasons in self.failures.items() if len(reasons) >= self.attempts}


def failure_message(name: CheckpointName, given_up: Mapping[str, str], attempts: int, total: int) -> str:
    """What the user reads when cases were given up."""
    listed = "; ".join(f"{case}: {reason}" for case, reason in sorted(given_up.items()))
    return (
        f"full validation ({name}): {len(given_up)} of {total} cases failed {attempts} times each: {listed} "
        "The other cases are done and kept: repair these and validate again."
    )
