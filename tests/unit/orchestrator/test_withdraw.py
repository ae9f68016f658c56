"""Taking a submission back ends its campaign before anything that the campaign has started, and nothing of anybody else."""

import pytest

from orchestrator import api
from orchestrator.run.job_record import JobRecord


class FakeJobs:
    """Jobs of which a stopped one ends at the second look; the campaign starts one more run while it ends."""

    def __init__(self) -> None:
        self.jobs = [
            JobRecord(submission_id="train-k-a1", kind="train", state="RUNNING", campaign="c1"),
            JobRecord(submission_id="campaign-c1", kind="campaign", state="RUNNING", campaign="c1"),
            JobRecord(submission_id="train-x-a1", kind="train", state="RUNNING", campaign="c2"),
            JobRecord(submission_id="train-old-a1", kind="train", state="SUCCEEDED", campaign="c1"),
        ]
        self.stopped: list[str] = []
        self._looks: dict[str, int] = {}

    def records(self) -> list[JobRecord]:
        return list(self.jobs)

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        if submission_id == "campaign-c1":
            self.jobs.append(JobRecord(submission_id="train-l-a1", kind="train", state="PENDING", campaign="c1"))

    def find(self, submission_id: str) -> JobRecord:
        self._looks[submission_id] = self._looks.get(submission_id, 0) + 1
        for place, job in enumerate(self.jobs):
            if job.submission_id == submission_id:
                if self._looks[submission_id] == 2:
                    self.jobs[place] = job.model_copy(update={"state": "STOPPED"})
                return self.jobs[place]
        raise AssertionError(submission_id)


def test_the_campaign_ends_before_its_runs_and_no_other_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = FakeJobs()
    monkeypatch.setattr(api, "_required_jobs", lambda cluster: jobs)
    monkeypatch.setattr(api, "FIRST_EVENT_POLL_S", 0.0)
    assert api.withdraw("c1") == jobs.stopped == ["campaign-c1", "train-k-a1", "train-l-a1"]
    assert api.withdraw("c1") == []
