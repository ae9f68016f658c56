"""Retry budgets: may a run's workers start again after what has failed? Pure, over records of failures.

The user's own errors are never repeated: the same files would fail again. An error of the code is tried once more, since an unhealthy
node can look like one. Failures of the cluster are retried as long as the run makes progress in between. A preemption costs nothing.
"""

from collections.abc import Sequence

from orchestrator.run.failure import Failure, FailureKind

STARTS_WITHOUT_PROGRESS: dict[FailureKind, int] = {"user": 1, "superseded": 1, "code": 2, "memory": 2, "cluster": 5}
"""Failed starts of one kind, with no commit in between, that end the job. Preemptions have no limit."""


def verdict(failures: Sequence[Failure], position: tuple[int, int]) -> Failure | None:
    """The failure that ends the job, or None when the workers may start again. `position`: where the newest commit stands now."""
    for failure in reversed(failures):
        if failure.kind == "preemption":
            continue
        alike = [f for f in failures if f.kind == failure.kind and (f.position == position or STARTS_WITHOUT_PROGRESS[f.kind] == 1)]
        if len(alike) >= STARTS_WITHOUT_PROGRESS[failure.kind]:
            return _counted(alike)
    return None


def _counted(alike: Sequence[Failure]) -> Failure:
    """The last of the failures of one kind; its message says how often it was tried."""
    last = alike[-1]
    if len(alike) == 1:
        return last
    where = f"epoch {last.epochs_done}" + (f", iteration {last.iteration}" if last.iteration else "")
    return last.model_copy(update={"message": f"{last.message} ({len(alike)} starts in a row failed like this in {where}.)"})
