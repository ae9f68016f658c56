"""What a laptop learns of runs from the campaigns of a cluster: which report counts, how often logs are read, how a campaign is ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign.events import ComparisonMade, Failed, Planned, StatusChanged, Waiting
from orchestrator.campaign.follower import STORES_S, Follower
from orchestrator.errors import ClusterError, ConfigError, TrackingError
from orchestrator.experiment.plan import PlanReport
from orchestrator.run.events import Event, line_of
from orchestrator.run.job_record import HandedRun, JobRecord, JobState
from orchestrator.run.status import RunStatus, match
from trainers.contract.run_spec import WorkerSpec
from trainers.contract.states import RunState

ADDRESS = "1/3d/t/0"


class FakeJobs:
    """A job server; tests say which jobs it has and what their logs hold. A job that is stopped ends at the second look."""

    def __init__(self) -> None:
        self.address = "http://head:8265"
        self.jobs: dict[str, JobRecord] = {}
        self.texts: dict[str, str] = {}
        self.reads: list[str] = []
        self.stopped: list[str] = []
        self.controls: list[list[str]] = []
        """What small jobs were asked to do."""
        self._ending: set[str] = set()

    # what a follower asks for

    def records(self) -> list[JobRecord]:
        self.reads.append("list")
        return list(self.jobs.values())

    def find(self, submission_id: str) -> JobRecord:
        job = self.jobs[submission_id]
        if submission_id in self.stopped:
            if submission_id in self._ending:
                self.set_state(submission_id, "STOPPED")
            self._ending.add(submission_id)
        return job

    def logs(self, submission_id: str) -> str:
        self.reads.append(submission_id)
        return self.texts[submission_id]

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)
        if submission_id == "campaign-c1":  # it starts one more run while it ends
            self.add("train-l-a1", "train", "PENDING", campaign="c1")

    def submit_control(self, name: str, arguments: list[str]) -> str:
        self.controls.append(arguments)
        self.add(name, "control", "SUCCEEDED")
        return name

    # what tests let happen

    def add(self, submission_id: str, kind: Any, state: JobState, text: str = "", **more: Any) -> None:
        self.jobs[submission_id] = JobRecord(submission_id=submission_id, kind=kind, state=state, **{"run_key": "r", **more})
        self.texts[submission_id] = text

    def set_state(self, submission_id: str, state: JobState) -> None:
        self.jobs[submission_id] = self.jobs[submission_id].model_copy(update={"state": state})

    def campaign(
        self,
        name: str,
        job_state: JobState,
        state: RunState,
        since: float,
        num_drivers: int = 0,
        run_key: str = "r",
        run_folder: Path = Path("/r"),
        epochs_done: int = 0,
        address: str = ADDRESS,
        epochs: int = 1,
    ) -> None:
        status = RunStatus(
            run_key=run_key,
            address=address,
            campaign=name,
            state=state,
            epochs=epochs,
            epochs_done=epochs_done,
            since_unix=since,
            num_drivers=num_drivers,
            run_folder=run_folder,
        )
        event = {"event": "status", "status": status.model_dump(mode="json")}
        self.add(f"campaign-{name}", "campaign", job_state, f"NNFLEET {json.dumps(event)}\n", campaign=name, run_key="")

    def hand_over(self, name: str, job_state: JobState, *events: Event, started_unix: float = 9.0, **more: Any) -> None:
        """A campaign that was handed the run `r` and has reported `events`."""
        run = HandedRun(run_key="r", address=ADDRESS, epochs=7, run_folder=Path("/r"), workers=WorkerSpec())
        text = "".join(line_of(event) + "\n" for event in events)
        more = {"campaign": name, "run_key": "", "handed": (run,), "started_unix": started_unix, **more}
        self.add(f"campaign-{name}", "campaign", job_state, text, **more)

    def shown(self) -> RunStatus:
        (status,) = Follower(self).statuses()
        return status


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


def test_a_living_campaign_that_goes_on_with_a_run_counts_first(jobs: FakeJobs) -> None:
    jobs.campaign("goes_on", "RUNNING", RunState.RUNNING, 5)
    jobs.campaign("died", "FAILED", RunState.RUNNING, 9)
    assert jobs.shown().campaign == "goes_on"


def test_without_one_the_newest_counts(jobs: FakeJobs) -> None:
    jobs.campaign("ended", "SUCCEEDED", RunState.SUCCEEDED, 9)
    jobs.campaign("died", "FAILED", RunState.RUNNING, 5)
    assert jobs.shown().campaign == "ended"
    jobs.campaign("died", "FAILED", RunState.RUNNING, 10)
    jobs.campaign("later", "FAILED", RunState.RUNNING, 11)
    assert "died" in jobs.shown().reason


def test_a_run_submitted_again_takes_the_address_from_the_failed_one_whose_folder_it_owns(jobs: FakeJobs) -> None:
    jobs.campaign("first", "SUCCEEDED", RunState.FAILED_CONFIG, 5, num_drivers=2, run_key="old-1")
    jobs.campaign("second", "RUNNING", RunState.RUNNING, 9, run_key="new-1")
    assert match(ADDRESS, Follower(jobs).statuses()).run_key == "new-1"
    assert match("old-1", Follower(jobs).statuses()).run_key == "old-1"
    jobs.campaign("third", "SUCCEEDED", RunState.STOPPED, 11, run_key="old-1")  # its folder was brought back
    assert match(ADDRESS, Follower(jobs).statuses()).run_key == "old-1"


@pytest.mark.parametrize(
    ("exit_code", "end"), [(-9, "died (was killed by signal 9)"), (1, "died (ended with exit code 1 and no result: OSError: gone)")]
)
def test_a_dead_campaign_is_named_in_words_and_not_by_its_events(jobs: FakeJobs, exit_code: int, end: str) -> None:
    jobs.campaign("died", "FAILED", RunState.RUNNING, 5)
    message = 'last available logs:\nOSError: gone\nNNFLEET {"event": "status", "status": {"run_key": "r"}}\n'
    job = jobs.jobs["campaign-died"]
    jobs.jobs["campaign-died"] = job.model_copy(update={"message": message, "exit_code": exit_code})
    assert jobs.shown().reason == f"its campaign died {end}; this is its last report. `nnfleet resume` continues it."


def test_a_clock_that_jumped_back_does_not_hide_the_newer_campaign(jobs: FakeJobs) -> None:
    jobs.campaign("died", "FAILED", RunState.RUNNING, 5000, num_drivers=1)
    jobs.campaign("ended", "SUCCEEDED", RunState.SUCCEEDED, 5, num_drivers=2)
    assert jobs.shown().campaign == "ended"


def test_the_log_of_a_campaign_that_has_ended_is_read_once(jobs: FakeJobs) -> None:
    jobs.campaign("ended", "SUCCEEDED", RunState.SUCCEEDED, 1)
    jobs.campaign("lives", "RUNNING", RunState.RUNNING, 2)
    follower = Follower(jobs)
    for _ in range(3):
        follower.statuses()
    assert [jobs.reads.count(name) for name in ("campaign-ended", "campaign-lives", "list")] == [1, 3, 3]


def test_an_unknown_campaign_is_an_error(jobs: FakeJobs) -> None:
    jobs.campaign("c1", "RUNNING", RunState.RUNNING, 1)
    jobs.add("campaign-c2", "campaign", "RUNNING", campaign="c2")
    assert Follower(jobs).statuses("c2") == [], "it has reported nothing yet"
    with pytest.raises(ConfigError, match="no campaign 'c3' on http://head:8265"):
        Follower(jobs).statuses("c3")


def test_a_campaign_that_dies_before_its_plan_is_an_error_with_its_message(jobs: FakeJobs) -> None:
    jobs.add("campaign-c1", "campaign", "FAILED", message="no module", campaign="c1")
    for ask in (lambda: Follower(jobs).first_plan("campaign-c1"), lambda: Follower(jobs).wait("c1")):
        with pytest.raises(ClusterError, match="(?s)campaign-c1 died.*no module"):
            ask()


def test_a_plan_that_is_reported_a_moment_after_the_runs_is_waited_for(jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign names its runs just before its plan, so a look may fall between the two."""
    status = RunStatus(run_key="r", address=ADDRESS, campaign="c1", epochs=1, run_folder=Path("/r"))
    plan = PlanReport(experiment="e", cluster="c", rows=(), n_now=0, n_later=0, n_never=0, n_finished=0)
    first = line_of(StatusChanged(status=json.loads(status.model_dump_json()))) + "\n"
    jobs.add("campaign-c1", "campaign", "RUNNING", first, campaign="c1")

    def reports(seconds: float) -> None:
        jobs.texts["campaign-c1"] = first + line_of(Planned(plan=plan)) + "\n"

    monkeypatch.setattr("orchestrator.campaign.follower.time.sleep", reports)
    assert Follower(jobs).first_plan("campaign-c1") == plan


def test_the_log_of_a_run_is_that_of_its_newest_training_and_validation_or_of_all_its_jobs(jobs: FakeJobs) -> None:
    jobs.add("train-1", "train", "FAILED", "the node died\n")
    jobs.add("train-2", "train", "SUCCEEDED", "epoch 0\n")
    jobs.add("validate-2", "validate", "RUNNING", "case 1\ncase")

    def log(*, earlier: bool) -> str:
        return "".join(Follower(jobs).logs("r", "none", earlier=earlier))

    assert log(earlier=False) == "epoch 0\ncase 1\ncase"
    assert log(earlier=True) == (
        "--- train-1 (FAILED)\nthe node died\n--- train-2 (SUCCEEDED)\nepoch 0\n--- validate-2 (RUNNING)\ncase 1\ncase"
    )


def test_a_log_that_grows_is_given_in_whole_lines_until_its_job_and_its_campaign_end(jobs: FakeJobs) -> None:
    jobs.campaign("c1", "RUNNING", RunState.RUNNING, 1)
    jobs.add("train-1", "train", "RUNNING", "epoch 0\nepo")
    parts = Follower(jobs, poll_s=0.0).logs("r", "c1", follow=True)
    assert next(parts) == "epoch 0\n"
    jobs.texts["train-1"] = "epoch 0\nepoch 1\nkilled"
    assert next(parts) == "epoch 1\n"
    jobs.set_state("train-1", "FAILED")
    assert next(parts) == "killed"
    jobs.add("train-2", "train", "RUNNING", "epoch 1\n")
    assert next(parts) == "epoch 1\n", "the campaign started it again"
    jobs.set_state("train-2", "SUCCEEDED")
    jobs.campaign("c1", "SUCCEEDED", RunState.SUCCEEDED, 2)
    assert list(parts) == []


def test_withdrawing_ends_the_campaign_before_its_runs_and_touches_no_other(jobs: FakeJobs) -> None:
    jobs.add("train-k-a1", "train", "RUNNING", campaign="c1")
    jobs.add("campaign-c1", "campaign", "RUNNING", campaign="c1")
    jobs.add("train-x-a1", "train", "RUNNING", campaign="c2")
    jobs.add("train-old-a1", "train", "SUCCEEDED", campaign="c1")
    follower = Follower(jobs, first_poll_s=0.0)
    assert follower.withdraw("c1") == jobs.stopped == ["campaign-c1", "train-k-a1", "train-l-a1"]
    assert follower.withdraw("c1") == []


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_campaign_that_is_still_being_stored_is_waited_for_before_it_is_withdrawn(
    jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += 1.0
        if is_stored and now_s == 2.0:
            jobs.add("campaign-c1", "campaign", "PENDING", campaign="c1")

    monkeypatch.setattr("orchestrator.campaign.follower.time.sleep", sleep)
    monkeypatch.setattr("orchestrator.campaign.follower.time.monotonic", lambda: now_s)
    ended = Follower(jobs).withdraw("c1")
    assert ended[:1] == (["campaign-c1"] if is_stored else [])
    assert is_stored or now_s == STORES_S


def test_runs_that_a_campaign_was_handed_are_shown_until_it_reports_them(jobs: FakeJobs) -> None:
    jobs.hand_over("c", "PENDING")
    assert (jobs.shown().state, jobs.shown().epochs, jobs.shown().campaign) == (RunState.QUEUED, 7, "c")
    assert jobs.shown().reason == "its campaign begins."
    jobs.hand_over("c", "RUNNING", Waiting(message="old workers"))
    assert jobs.shown().reason == "old workers"
    (status,) = Follower(jobs).statuses("c")
    reported = status.model_copy(update={"state": RunState.RUNNING, "reason": ""})
    jobs.hand_over("c", "RUNNING", StatusChanged(status=json.loads(reported.model_dump_json())))
    assert (jobs.shown().state, jobs.shown().reason) == (RunState.RUNNING, "")


def test_a_campaign_that_could_not_begin_says_why_and_takes_nothing_from_what_is_known(jobs: FakeJobs) -> None:
    refusal = Failed(error="ConfigError", message="mlflow: mixed")
    jobs.hand_over("c", "FAILED", refusal)
    assert jobs.shown().state is RunState.FAILED_CONFIG
    assert jobs.shown().reason == "its campaign c could not begin: mlflow: mixed. Change the experiment, then submit it again."
    jobs.hand_over("c", "FAILED", exit_code=-9)
    assert jobs.shown().state is RunState.FAILED_CLUSTER
    assert "c could not begin: it died (was killed by signal 9). Submit it again." in jobs.shown().reason
    jobs.jobs = {}
    jobs.campaign("before", "SUCCEEDED", RunState.SUCCEEDED, 5, num_drivers=2)
    jobs.hand_over("c", "FAILED", refusal)
    assert (jobs.shown().state, jobs.shown().num_drivers) == (RunState.SUCCEEDED, 2)
    assert "mlflow: mixed" in jobs.shown().reason


def test_a_campaign_that_could_not_begin_ends_no_living_run_and_owns_no_folder(jobs: FakeJobs) -> None:
    jobs.campaign("c1", "FAILED", RunState.RUNNING, 5, num_drivers=1)
    jobs.hand_over("c2", "FAILED", Failed(error="TrackingError", message="away"))
    assert (jobs.shown().state, jobs.shown().campaign) == (RunState.RUNNING, "c1"), "its training goes on, and can be stopped"
    assert jobs.shown().reason == "its campaign c2 could not begin: away"
    jobs.jobs = {}
    jobs.campaign("owner", "RUNNING", RunState.RUNNING, 5, run_key="owner")
    jobs.hand_over("c2", "FAILED", Failed(error="TrackingError", message="away"))
    statuses = Follower(jobs).statuses()
    assert [status.run_key for status in statuses] == ["r", "owner"]
    assert match(ADDRESS, statuses).run_key == "owner"
    assert "is_claimed" not in statuses[0].model_dump()


def test_a_run_that_is_followed_already_is_shown_as_its_campaign_reports_it(jobs: FakeJobs) -> None:
    jobs.campaign("first", "RUNNING", RunState.RUNNING, 5, num_drivers=1)
    for state in ("PENDING", "FAILED"):
        jobs.hand_over("second", state)
        assert (jobs.shown().state, jobs.shown().campaign) == (RunState.RUNNING, "first")
    jobs.hand_over("second", "PENDING")
    assert [status.state for status in Follower(jobs).statuses("second")] == [RunState.QUEUED]


def test_a_campaign_that_was_withdrawn_before_it_began_leaves_nothing(jobs: FakeJobs) -> None:
    jobs.hand_over("c", "STOPPED")
    assert Follower(jobs).statuses() == []


def test_whoever_waits_for_a_campaign_that_begins_sees_its_runs_and_gets_its_error(jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.hand_over("c", "RUNNING")
    monkeypatch.setattr(
        "orchestrator.campaign.follower.time.sleep",
        lambda seconds: jobs.hand_over("c", "FAILED", Failed(error="TrackingError", message="away")),
    )
    seen: list[list[RunStatus]] = []
    with pytest.raises(TrackingError, match="away"):
        Follower(jobs).wait("c", seen.append)
    assert [status.state for status in seen[0]] == [RunState.QUEUED]
    jobs.hand_over("c", "RUNNING")
    with pytest.raises(TrackingError, match="away"):
        Follower(jobs).first_report("campaign-c")


def test_the_newest_comparison_of_a_set_of_models_counts_and_campaigns_that_only_end_are_known() -> None:
    jobs = FakeJobs()
    for name, models, job_state in (("a", ("x", "y"), "SUCCEEDED"), ("b", ("x", "z"), "SUCCEEDED"), ("c", ("y", "x"), "RUNNING")):
        jobs.campaign(name, job_state, RunState.SUCCEEDED, 1, run_key=name)  # type: ignore[arg-type]
        jobs.texts[f"campaign-{name}"] += f"{line_of(ComparisonMade(models=models, verdict=name, link='l'))}\n"
    jobs.campaign("d", "RUNNING", RunState.RUNNING, 1, run_key="d")
    follower = Follower(jobs)
    statuses = follower.statuses()
    assert [made.verdict for made in follower.comparisons()] == ["c", "b"]
    assert follower.ending(statuses) == {"c"}
