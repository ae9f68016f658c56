"""Which status of a run counts when several campaigns have told one, and how often their logs are read."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from orchestrator import api
from orchestrator.cluster import local_services
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.nodes import this_machine
from orchestrator.cluster.processes import ProcessRecord
from orchestrator.run.job_record import JobRecord, JobState
from orchestrator.run.status import RunStatus
from tests.fake_campaign import Stage
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState


class FakeJobs:
    """Campaign jobs and their logs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.jobs: dict[str, JobRecord] = {}
        self.texts: dict[str, str] = {}
        self.reads: list[str] = []

    def records(self) -> list[JobRecord]:
        return list(self.jobs.values())

    def logs(self, submission_id: str) -> str:
        self.reads.append(submission_id)
        return self.texts[submission_id]

    def campaign(self, name: str, job_state: JobState, state: RunState, since: float, num_drivers: int = 0) -> None:
        job = JobRecord(submission_id=f"campaign-{name}", kind="campaign", state=job_state, campaign=name)
        status = RunStatus(
            run_key="r",
            address="1/3d/t/0",
            campaign=name,
            state=state,
            epochs=1,
            since_unix=since,
            num_drivers=num_drivers,
            run_folder=Path("/r"),
        )
        event = {"event": "status", "status": status.model_dump(mode="json")}
        self.jobs[job.submission_id] = job
        self.texts[job.submission_id] = f"NNFLEET {json.dumps(event)}\n"

    def shown(self) -> RunStatus:
        (status,) = api._statuses(cast(Jobs, self), None)
        return status


@pytest.fixture
def jobs(request: Any) -> FakeJobs:
    return FakeJobs(request.node.name)


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


@pytest.mark.parametrize(
    ("exit_code", "end"), [(-9, "died (was killed by signal 9)"), (1, "died (ended with exit code 1 and no result: OSError: gone)")]
)
def test_a_dead_campaign_is_told_in_words_and_not_in_its_events(jobs: FakeJobs, exit_code: int, end: str) -> None:
    jobs.campaign("died", "FAILED", RunState.RUNNING, 5)
    message = 'last available logs:\nOSError: gone\nNNFLEET {"event": "status", "status": {"run_key": "r"}}\n'
    job = jobs.jobs["campaign-died"]
    jobs.jobs["campaign-died"] = job.model_copy(update={"message": message, "exit_code": exit_code})
    assert jobs.shown().reason == f"its campaign died {end}; this is what it said last. `nnfleet resume` continues it."


def test_a_clock_that_jumped_back_does_not_hide_the_newer_campaign(jobs: FakeJobs) -> None:
    jobs.campaign("died", "FAILED", RunState.RUNNING, 5000, num_drivers=1)
    jobs.campaign("ended", "SUCCEEDED", RunState.SUCCEEDED, 5, num_drivers=2)
    assert jobs.shown().campaign == "ended"


def test_lost_runs_are_those_that_the_cluster_knows_nothing_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path)
    run, known = stage.run(0), stage.run(1)
    stage.campaign(run, known)
    monkeypatch.setattr(api, "status", lambda cluster=None: [told_of(known)])
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    assert api.lost() == [], "no folder is known"
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert [item.run_key for item in api.lost()] == [run.run_key]
    assert [item.run_key for item in api.lost("http://head:8265")] == [], "of another machine"
    assert [item.run_key for item in api.lost("http://head:8265", tmp_path / "results")] == [run.run_key]


def told_of(run: RunSpec) -> RunStatus:
    return RunStatus(run_key=run.run_key, address=run.address, campaign="c", epochs=1, run_folder=run.run_folder)


def test_the_log_of_a_campaign_that_has_ended_is_read_once(jobs: FakeJobs) -> None:
    jobs.campaign("ended", "SUCCEEDED", RunState.SUCCEEDED, 1)
    jobs.campaign("lives", "RUNNING", RunState.RUNNING, 2)
    for _ in range(3):
        jobs.shown()
    assert (jobs.reads.count("campaign-ended"), jobs.reads.count("campaign-lives")) == (1, 3)


def test_this_machine_offers_what_ray_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert this_machine().total["GPU"] == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert this_machine().total["GPU"] == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert this_machine().total["GPU"] == 4


def add_job(jobs: FakeJobs, name: str, kind: Any, state: JobState, text: str) -> None:
    jobs.jobs[name] = JobRecord(submission_id=name, kind=kind, state=state, run_key="r")
    jobs.texts[name] = text


def test_the_log_of_a_run_is_that_of_its_newest_training_and_validation_or_of_all_its_jobs(jobs: FakeJobs) -> None:
    add_job(jobs, "train-1", "train", "FAILED", "the node died\n")
    add_job(jobs, "train-2", "train", "SUCCEEDED", "epoch 0\n")
    add_job(jobs, "validate-2", "validate", "RUNNING", "case 1\ncase")

    def log(*, earlier: bool) -> str:
        return "".join(api._logs(cast(Jobs, jobs), "r", "none", follow=False, earlier=earlier))

    assert log(earlier=False) == "epoch 0\ncase 1\ncase"
    assert log(earlier=True) == (
        "--- train-1 (FAILED)\nthe node died\n--- train-2 (SUCCEEDED)\nepoch 0\n--- validate-2 (RUNNING)\ncase 1\ncase"
    )


def test_a_log_that_grows_is_told_in_whole_lines_until_its_job_ends(jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    add_job(jobs, "train-1", "train", "RUNNING", "epoch 0\nepo")
    monkeypatch.setattr(api, "POLL_S", 0.0)
    parts = api._logs(cast(Jobs, jobs), "r", "none", follow=True, earlier=False)
    assert next(part for part in parts if part) == "epoch 0\n"
    jobs.texts["train-1"] = "epoch 0\nepoch 1\nkilled"
    assert next(part for part in parts if part) == "epoch 1\n"
    add_job(jobs, "train-1", "train", "FAILED", "epoch 0\nepoch 1\nkilled")
    monkeypatch.setattr(api, "_goes_on", lambda *_: False)
    assert "".join(parts) == "killed"


@pytest.mark.parametrize(("health", "outage"), [(200, ""), (None, "MLflow is down")])
def test_a_server_that_answers_is_not_called_down_though_its_supervisor_died(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, health: int | None, outage: str
) -> None:
    dead = ProcessRecord(name="MLflow server", pid=2**22 + 1, started_unix=0.0, mark="none", port=1)
    found = Services(ray=dead, mlflow=dead, token_file=tmp_path / "token")
    monkeypatch.setattr(local_services, "running", lambda: found)
    monkeypatch.setattr(local_services, "_get", lambda port, path: health)
    assert api.tracking_outage().startswith(outage)
    assert bool(api.tracking_outage()) == bool(outage)
