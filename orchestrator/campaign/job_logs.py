"""What the jobs of a campaign's runs have printed, kept in the run folders: Ray's own copy is lost with its head, or with a reboot."""

import logging
import re
from collections.abc import Collection, Sequence

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobRecord
from orchestrator.tracking.address import masked
from trainers.contract.run_folder import RunFolder
from trainers.errors import ClusterError, StorageError
from trainers.storage.faults import STORAGE_RETRY_S
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)

KEPT_CHARACTERS = 500_000
"""Of a longer log the end is kept: it tells how the job ended."""
RETRY_S = 20.0
LAST_WORDS_S = 60.0
"""How long a job is waited for that still lives though its run has ended: it has stored its outcome and prints its last lines."""


class JobLogs:
    """Those of one campaign that are not kept yet."""

    def __init__(self, cluster: ClusterJobs, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock
        self._due: dict[str, FollowedRun] = {}
        """By the submission id of a job that has ended."""
        self._noted: set[str] = set()
        self._is_any_live = False
        self._waits_since_s: float | None = None
        self._failing_since_s: float | None = None
        self._again_s = 0.0

    def note(self, runs: Collection[FollowedRun], jobs: Sequence[JobRecord]) -> None:
        """Take in which jobs of the runs have ended."""
        by_key = {run.key: run for run in runs if not run.observer.reassigned_to}
        self._is_any_live = False
        for job in jobs:
            run = by_key.get(job.run_key)
            if run is None or job.kind not in ("train", "validate") or job.run_folder != str(run.folder.root):
                continue
            self._is_any_live |= job.is_live
            if not job.is_live and job.submission_id not in self._noted:
                self._noted.add(job.submission_id)
                self._due[job.submission_id] = run

    def keep(self) -> None:
        """Write what is due; a disk or a server that is away is tried again, for minutes."""
        now_s = self._clock.monotonic()
        if now_s < self._again_s:
            return
        for submission_id, run in list(self._due.items()):
            try:
                keep_log(self._cluster, run.folder, submission_id)
            except (ClusterError, StorageError, OSError) as err:
                self._refused(submission_id, err, now_s)
                return
            self._failing_since_s = None
            del self._due[submission_id]

    @property
    def is_over(self) -> bool:
        """Asked once all runs have ended: True when nothing is left to keep, and no job of theirs lives or is waited for any longer."""
        if self._due or not self._is_any_live:
            return not self._due
        now_s = self._clock.monotonic()
        self._waits_since_s = now_s if self._waits_since_s is None else self._waits_since_s
        return now_s - self._waits_since_s >= LAST_WORDS_S

    def _refused(self, submission_id: str, error: Exception, now_s: float) -> None:
        self._again_s = now_s + RETRY_S
        if self._failing_since_s is None:
            self._failing_since_s = now_s
            log.warning("the log of %s is not kept yet, and tried again for %.0f s: %s", submission_id, STORAGE_RETRY_S, error)
        elif now_s - self._failing_since_s >= STORAGE_RETRY_S:
            self._failing_since_s = None
            del self._due[submission_id]
            log.warning("the log of %s is not kept in its run folder: %s", submission_id, error)


def keep_log(cluster: ClusterJobs, folder: RunFolder, submission_id: str) -> None:
    """Keep what a job has printed in the folder of its run, once. Raises ClusterError, StorageError or OSError."""
    target = folder.job_log(submission_id)
    if not re.fullmatch(r"[\w.-]+", submission_id) or target.is_file() or not folder.spec_file.is_file():
        return
    write_atomic(target, kept_text(cluster.logs(submission_id)).encode())


def kept_text(text: str) -> str:
    """What is kept of a log: without logins and tokens, and of a long one the end, in whole lines. Pure."""
    kept = masked(text[-KEPT_CHARACTERS:])
    if len(text) <= KEPT_CHARACTERS:
        return kept
    left_out = len(text) - KEPT_CHARACTERS
    return f"... {left_out} characters before this are left out ...\n{kept.partition(chr(10))[2]}"
