"""Retry budgets: may a run's workers start again after what has failed? Pure, over records of failures.

The user's own errors are never repeated: the same files would fail again. An error of the code is tried once more, since an unhealthy
node can look like one. Failures of the cluster are retried as long as the run makes progress in between. A preemption costs nothing.
"""

from collections.abc import Sequence
from itertools import takewhile

from orchestrator.run.failure import Failure, FailureKind

STARTS_WITHOUT_PROGRESS: dict[FailureKind, int] = {"user": 1, "superseded": 1, "code": 2, "memory": 2, "cluster": 5}
"""Failed starts of one kind, with no commit since, that end the job. Preemptions have no limit."""


def starts_charged(failures: Sequence[Failure]) -> int:
    """How many starts, with the last one, have failed in its way since the newest commit moved. Each knows where that stood."""
    last = failures[-1]
    since = takewhile(lambda failure: failure.position == last.position, reversed(failures))
    return sum(failure.kind == last.kind for failure in since)


def final_failure(failures: Sequence[Failure]) -> Failure | None:
    """The last failure, with how often it happened, when it ends the job; None when the workers may start again.

    Those before it were judged when they were the last.
    """
    last, charged = failures[-1], starts_charged(failures)
    if last.kind == "preemption" or charged < STARTS_WITHOUT_PROGRESS[last.kind]:
        return None
    if charged == 1:
        return last
    return last.model_copy(update={"message": f"{last.message} ({charged} starts failed like this in {last.where}, without progress.)"})
