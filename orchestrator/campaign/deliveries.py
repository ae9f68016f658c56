"""The jobs that send MLflow what it lacks of runs that were finished before: another server is meant now, or it lost its database."""

from collections.abc import Callable, Sequence

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.run.job_record import JobRecord
from orchestrator.run.undelivered import undelivered_text
from trainers.contract.states import RunState
from trainers.errors import ClusterError

SENDS = "was finished before; a job sends its results to MLflow."
SENT = "was finished before; a job has sent its results to MLflow."
LACKS = "was finished before."
"""What MLflow lacks is added from the run's folder."""
FAILED = "was finished before; the job {job} that sends its results to MLflow failed: `nnfleet sync` sends them."


class Deliveries:
    """Those of one campaign, which ends after them."""

    def __init__(self, campaign: str, cluster: ClusterJobs, warn: Callable[[str], None]) -> None:
        self._campaign = campaign
        self._cluster = cluster
        self._warn = warn
        self._runs: dict[str, list[FollowedRun]] = {}
        """By the submission id of the job that delivers them."""

    def start(self, finished: Sequence[FollowedRun]) -> None:
        """Have what MLflow lacks of finished runs sent there, by one job for each results folder. It changes nothing in their folders that
        anybody decides by: another cluster may have made them, and follows them still."""
        places = sorted({run.spec.model_folder.parents[1] for run in finished})
        for number, place in enumerate(places):
            runs = [run for run in finished if run.spec.model_folder.parents[1] == place]
            keys = [run.key for run in runs]
            try:
                job = self._cluster.submit_control(f"sync-{self._campaign}-{number}", ["sync", *keys, "--results", str(place)])
            except ClusterError as err:
                self._warn(f"the results of {', '.join(keys)} are not sent to MLflow: {err} `nnfleet sync` sends them.")
                continue
            self._runs[job] = runs
            for run in runs:
                run.is_delivering = True

    def check(self, jobs: Sequence[JobRecord]) -> None:
        """Say of the runs whose job has ended what has become of it."""
        known = {job.submission_id: job for job in jobs}
        for submission_id, runs in list(self._runs.items()):
            job = known.get(submission_id)
            if job is not None and job.is_live:
                continue
            del self._runs[submission_id]
            has_failed = job is not None and job.state != "SUCCEEDED"
            lacking = [run for run in runs if undelivered_text(run.folder)] if has_failed else []
            for run in runs:
                run.is_delivering = False
                reason = FAILED.format(job=submission_id) if has_failed and not lacking else LACKS if run in lacking else SENT
                run.enter(RunState.SUCCEEDED, reason)
            if has_failed:
                self._warn(f"MLflow lacks results of {', '.join(run.key for run in lacking or runs)}: `nnfleet sync` sends them.")

    @property
    def is_over(self) -> bool:
        """True when no job delivers any more."""
        return not self._runs
