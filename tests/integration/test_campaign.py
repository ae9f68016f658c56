"""Campaigns on a real head with a real MLflow server; training and validation are stubs that wait for the test's word."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import api
from orchestrator.cluster.jobs import Jobs, Modules
from orchestrator.cluster.local_services import Services
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.experiment.model import Experiment, single_training
from orchestrator.run.job_record import JobRecord
from orchestrator.run.status import RunStatus
from orchestrator.tracking.client import Tracker
from tests.conftest import Toys
from tests.integration.local_home import services_of_its_own
from tests.toy import Toy, environment
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState

STUBS = Modules(training="tests.integration.stub_jobs", validation="tests.integration.stub_jobs")
PATIENCE_S = 300
SEEDS = itertools.count(10, 10)


@pytest.fixture(scope="module")
def local() -> Iterator[Services]:
    with services_of_its_own(num_cpus=2) as (_, services):
        yield services


@dataclass
class Place:
    """One results folder for one test, and the jobs of the cluster."""

    toy: Toy
    results: Path
    jobs: Jobs
    seed: int
    """Of its own for each test: the same data and seed are the same run, on this cluster and in MLflow."""

    def experiment(self, folds: list[int], *, workers: int | dict[str, int] = 1, seed: int | None = None, **more: Any) -> Experiment:
        gang = {"count": workers, "gpus": 0, "cpus": 1} if isinstance(workers, int) else workers
        fields = {"workers": gang, "loader": {"actors": 1}, "epochs": 2, **more}
        made = single_training(
            self.toy.name, "toy_3d", folds[0], seeds=[self.seed if seed is None else seed], nnUNet_results=str(self.results), **fields
        )
        return made.model_copy(update={"folds": tuple(folds)})

    def orders(self, fold: int, **orders: Any) -> None:
        folder = self._model_folder(self.seed)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"stub_{fold}.json").write_text(json.dumps(orders))

    def release(self, fold: int) -> None:
        (self._model_folder(self.seed) / f"release_{fold}").touch()

    def usage(self, *seeds: int) -> list[dict[str, Any]]:
        files = [self._model_folder(seed) / "usage.jsonl" for seed in seeds or (self.seed,)]
        lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
        return sorted(lines, key=lambda line: float(line["unix"]))

    def of(self, run_key: str, kind: str) -> list[JobRecord]:
        return [job for job in self.jobs.records() if job.run_key == run_key and job.kind == kind]

    def _model_folder(self, seed: int) -> Path:
        suffix = f"__seed{seed}" if seed else ""
        return self.results / self.toy.name / f"nnUNetTrainer__nnUNetPlans__toy_3d{suffix}"


@pytest.fixture
def place(local: Services, toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    toy = toys("labels")
    for name, value in environment(toy.base).items():
        monkeypatch.setenv(name, value)
    jobs = Jobs(local.ray_address, local.token, modules=STUBS)
    monkeypatch.setattr("orchestrator.cluster.target.Jobs", lambda address, token=None: jobs)
    return Place(toy, tmp_path / "results", jobs, next(SEEDS))


def until(what: Callable[[], bool], told: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.3)


def one(campaign: str) -> RunStatus:
    (status,) = api.status(campaign=campaign)
    return status


def is_in(campaign: str, *states: RunState) -> bool:
    found = api.status(campaign=campaign)
    return len(found) == 1 and found[0].state in states


def kill_entry_point(submission_id: str) -> None:
    for process in psutil.process_iter():
        try:
            is_it = process.environ().get("NNFLEET_SUBMISSION_ID") == submission_id and "RAY_JOB_CONFIG_JSON_ENV_VAR" in process.environ()
            if is_it and "orchestrator.campaign.job" in process.cmdline():
                process.kill()
        except psutil.Error:
            continue


def test_runs_that_do_not_fit_together_go_one_after_the_other_to_the_end(place: Place, local: Services) -> None:
    report = api.plan(place.experiment([0, 1], workers=2))
    assert [row.fits for row in report.rows] == ["now", "later"]
    submission = api.submit(place.experiment([0, 1], workers=2))
    assert [status.run_key for status in api.status(campaign=submission.campaign_id)] == [row.run_key for row in report.rows]
    assert [row.run_key for row in submission.plan.rows] == [row.run_key for row in report.rows]
    seen: list[list[RunStatus]] = []
    done = api.wait(submission.campaign_id, on_status=seen.append)
    assert [status.state for status in done] == [RunState.SUCCEEDED] * 2
    assert [status.full_dice for status in done] == [{"best": 0.5, "final": 0.75}] * 2
    order = [(line["fold"], line["job"], line["what"]) for line in place.usage()]
    one_run = [("training", "begin"), ("training", "end"), ("validation", "begin"), ("validation", "end")]
    assert order == [(fold, *step) for fold in ("0", "1") for step in one_run]
    tracker = Tracker(local.mlflow_uri)
    for status in done:
        assert tracker.tags(status.mlflow_run_id)["nnfleet.state"] == "SUCCEEDED"
        assert status.mlflow_run_id in status.mlflow_url
    log = "".join(api.logs(done[0].address))
    assert "stub trains" in log
    assert "stub validates" in log
    assert RunFolder(done[0].run_folder).spec().tracking_uri == local.mlflow_uri


def test_a_campaign_that_dies_leaves_its_run_to_the_next_one(place: Place) -> None:
    place.orders(0, holds=True, forgets=True)
    first = api.submit(place.experiment([0]))
    run_key = first.plan.rows[0].run_key
    until(lambda: bool(place.usage()))
    kill_entry_point(first.submission_id)
    until(lambda: not place.jobs.find(first.submission_id).is_live)
    assert "died" in one(first.campaign_id).reason
    with pytest.raises(ClusterError, match="Its jobs continue"):
        api.wait(first.campaign_id)
    second = api.submit(place.experiment([0]))
    until(lambda: is_in(second.campaign_id, RunState.RUNNING))
    place.release(0)
    (done,) = api.wait(second.campaign_id)
    assert done.state is RunState.SUCCEEDED
    assert len(place.of(run_key, "train")) == len(place.of(run_key, "validate")) == 1
    assert [s.campaign for s in api.status() if s.run_key == run_key] == [second.campaign_id]
    again = api.submit(place.experiment([0]))
    assert again.plan.n_finished == 1
    (skipped,) = api.wait(again.campaign_id)
    assert skipped.state is RunState.SUCCEEDED
    assert len(place.of(run_key, "train")) == 1


def test_a_trained_run_is_validated_again_by_hand(place: Place) -> None:
    (before,) = api.wait(api.submit(place.experiment([0])).campaign_id)
    (submission_id,) = api.validate([before.run_key])
    (after,) = api.wait(submission_id.removeprefix("campaign-"))
    assert after.state is RunState.SUCCEEDED
    assert [len(place.of(before.run_key, kind)) for kind in ("train", "validate")] == [1, 2]


def test_a_killed_training_driver_is_started_again(place: Place) -> None:
    place.orders(0, dies=1)
    submission = api.submit(place.experiment([0]))
    (done,) = api.wait(submission.campaign_id)
    assert done.state is RunState.SUCCEEDED
    assert [(job.job_number, job.state) for job in place.of(done.run_key, "train")] == [(1, "FAILED"), (2, "SUCCEEDED")]


def test_two_campaigns_together_never_take_more_than_the_cluster_has(place: Place) -> None:
    submissions = [api.submit(place.experiment([0, 1, 2], seed=seed)) for seed in (1, 2)]  # two folders
    for submission in submissions:
        assert {status.state for status in api.wait(submission.campaign_id)} == {RunState.SUCCEEDED}
    running, most = 0, 0
    for line in place.usage(1, 2):
        running += line["workers"] * (1 if line["what"] == "begin" else -1)
        most = max(most, running)
    assert most <= 2


def test_a_second_submission_of_a_running_experiment_follows_it(place: Place) -> None:
    place.orders(0, holds=True)
    first, second = (api.submit(place.experiment([0])) for _ in range(2))
    until(lambda: is_in(second.campaign_id, RunState.RUNNING) and is_in(first.campaign_id, RunState.RUNNING))
    place.release(0)
    for submission in (first, second):
        (done,) = api.wait(submission.campaign_id)
        assert done.state is RunState.SUCCEEDED
    assert len(place.of(done.run_key, "train")) == len(place.of(done.run_key, "validate")) == 1


def test_stop_reaches_running_and_waiting_runs_and_a_new_submission_continues(place: Place) -> None:
    for fold in (0, 1):
        place.orders(fold, holds=True)
    submission = api.submit(place.experiment([0, 1], workers=2))
    until(lambda: bool(place.usage()))
    running, waiting = (row.run_key for row in submission.plan.rows)
    api.stop([waiting])
    api.stop([running])
    done = api.wait(submission.campaign_id)
    assert [status.state for status in done] == [RunState.STOPPED] * 2
    for fold in (0, 1):
        place.release(fold)
    again = api.submit(place.experiment([0, 1], workers=2))
    assert {status.state for status in api.wait(again.campaign_id)} == {RunState.SUCCEEDED}


def test_bad_input_comes_back_as_the_error_that_it_is(place: Place) -> None:
    wrong = place.experiment([0]).model_copy(update={"configurations": ("toy_3",)})
    with pytest.raises(ConfigError, match="Did you mean 'toy_3d'"):
        api.submit(wrong)
    with pytest.raises(ConfigError, match="fold 7 does not exist"):
        api.plan(place.experiment([7]))
    with pytest.raises(ClusterError, match="GPU"):
        api.submit(place.experiment([0], workers={"count": 1, "gpus": 1, "cpus": 1}))
    with pytest.raises(ConfigError, match="there is no run 'nonsense'"):
        api.stop(["nonsense"])
    with pytest.raises(ConfigError, match="there is no campaign"):
        api.status(campaign="nonsense")
    assert not list(place.results.glob("*/*/fold_*")), "nothing was begun"
