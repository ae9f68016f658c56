"""The comparison of a campaign's models: once all runs have ended, a job makes it and sends its report to MLflow, as
`nnfleet compare --mlflow` does. The next campaign of the same models brings it up to date.
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.campaign.events import ComparisonMade
from orchestrator.run.below import RAW
from orchestrator.run.clock import Clock
from orchestrator.run.events import events_in
from orchestrator.run.job_record import JobRecord
from orchestrator.tracking.address import masked
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.errors import ClusterError, ConfigError

log = logging.getLogger(__name__)

CHECKPOINT: CheckpointName = "final"
"""The fair comparison."""
COMPARISONS = TypeAdapter(ComparisonMade)
MESSAGE_LENGTH = 300
PATIENCE_S = 900.0
"""How long a campaign waits for the job that compares its models."""


class ModelsToCompare(NamedTuple):
    """Models that are compared with each other."""

    results: Path
    tracking_uri: str
    models: tuple[str, ...]
    """Their addresses without a fold."""

    @property
    def by_hand(self) -> str:
        """The command that does it."""
        return f"nnfleet compare {' '.join(self.models)} --mlflow"


def models_to_compare(validated: Iterable[RunSpec]) -> list[ModelsToCompare]:
    """What is compared of runs that have ended well: the models of each dataset of which there are two at least. Pure."""
    found: dict[tuple[Path, str, str], dict[str, None]] = {}
    for spec in validated:
        if spec.tracking_uri and spec.fold != "all" and CHECKPOINT in spec.validation.checkpoints:
            found.setdefault((spec.model_folder.parents[1], spec.tracking_uri, spec.dataset), {})[spec.model] = None
    return [ModelsToCompare(results, uri, tuple(models)) for (results, uri, _), models in found.items() if len(models) > 1]


class Comparisons:
    """Those of one campaign, which ends after them. Whatever becomes of them changes no run's end."""

    def __init__(
        self, campaign: str, cluster: ClusterJobs, made: Callable[[ComparisonMade], None], warn: Callable[[str], None], clock: Clock
    ) -> None:
        self.is_wanted = False
        """The campaign had something to do."""
        self._campaign = campaign
        self._cluster = cluster
        self._made = made
        self._warn = warn
        self._clock = clock
        self._jobs: dict[str, ModelsToCompare] | None = None
        """By submission id; None until all runs have ended."""
        self._began_s = 0.0

    def are_over(self, validated: Iterable[RunSpec]) -> bool:
        """Asked once all runs have ended: has those that have ended well compared; True when no job does so any more. Raises ClusterError
        where the cluster does not answer."""
        if self._jobs is None:
            self._jobs, self._began_s = {}, self._clock.monotonic()
            for number, meant in enumerate(models_to_compare(validated) if self.is_wanted else ()):
                self._start(f"compare-{self._campaign}-{number}", meant)
        if self._jobs:
            known = {job.submission_id: job for job in self._cluster.records()}
            for submission_id, meant in list(self._jobs.items()):
                if self._has_ended(submission_id, meant, known.get(submission_id)):
                    del self._jobs[submission_id]
        return not self._jobs

    def _start(self, name: str, meant: ModelsToCompare) -> None:
        assert self._jobs is not None
        arguments = ["compare", *meant.models, "--results", str(meant.results), "--tracking-uri", meant.tracking_uri]
        try:
            self._jobs[self._cluster.submit_control(name, arguments)] = meant
        except ClusterError as err:
            self._failed(meant, str(err))

    def _has_ended(self, submission_id: str, meant: ModelsToCompare, job: JobRecord | None) -> bool:
        """Report what a job has found, once it has ended."""
        if job is not None and job.is_live:
            if self._clock.monotonic() - self._began_s < PATIENCE_S:
                return False
            self._failed(meant, f"the job {submission_id} has not ended within {PATIENCE_S / 60:.0f} minutes.")
            return True
        found = list(events_in(self._cluster.logs(submission_id), COMPARISONS)) if job is not None else []
        if not found:
            self._failed(meant, f"the job {submission_id} failed{_error_in(job)}.")
        for each in found:
            if each.link:
                log.info("%s", each.text)
                self._made(each)
            else:
                log.info("%s are not compared in MLflow: %s", ", ".join(meant.models), each.why_not)
        return True

    def _failed(self, meant: ModelsToCompare, why: str) -> None:
        self._warn(f"the comparison of {', '.join(meant.models)} is not in MLflow: {why} `{meant.by_hand}` sends it.")


def _error_in(job: JobRecord | None) -> str:
    """The last line of a job that failed, in brackets."""
    lines = [line.strip() for line in (job.message if job is not None else "").splitlines() if line.strip()]
    return f" ({masked(lines[-1]).removeprefix('Error: ').rstrip('.')[-MESSAGE_LENGTH:]})" if lines else ""


def compare_and_publish(models: Sequence[str], results: Path, tracking_uri: str) -> ComparisonMade:
    """Compare the models below a results folder, and send the report to an MLflow server; where they cannot be compared, nothing is sent.
    Raises TrackingError, StorageError, DataError, ConfigError."""
    from orchestrator.compare.choice import compared
    from orchestrator.report.case_pictures import case_pictures
    from orchestrator.report.comparison_run import publish_comparison
    from orchestrator.tracking.client import Tracker

    try:
        found = compared(results, models, CHECKPOINT)
    except ConfigError as err:
        return ComparisonMade(models=tuple(models), why_not=str(err))
    if len(found.answer.models) < 2:
        return ComparisonMade(models=tuple(models), why_not=" ".join(["fewer than two are validated.", *found.left]))
    tracker, raw = Tracker(tracking_uri), os.environ.get(RAW)
    tracker.ping()
    link = publish_comparison(found.answer, case_pictures(found.answer.models, Path(raw) if raw else None), tracker)
    return ComparisonMade(models=tuple(models), verdict=found.answer.verdict, link=link)
