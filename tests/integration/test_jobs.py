"""The Jobs API of a real local head: submission, what a job carries, logs, stop, refusals."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.jobs import Jobs, Modules
from orchestrator.cluster.list_nodes import nodes_of
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.target import reach
from orchestrator.errors import ClusterError, ConfigError
from orchestrator.run.job_record import JobRecord
from tests.integration.local_home import services_of_its_own
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WorkerSpec

PATIENCE_S = 240


@pytest.fixture(scope="module")
def local() -> Iterator[Services]:
    with services_of_its_own(num_cpus=1) as (_, services):
        yield services


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return RunSpec(
        run_key=tmp_path.name,  # of its own for each test: a submission id can be used once on a cluster
        dataset="Dataset001_X",
        preprocessed_folder=tmp_path,
        model_folder=tmp_path / "a b's model",
        plans="nnUNetPlans",
        configuration="3d",
        trainer="nnUNetTrainer",
        fold=0,
        train_cases=("a",),
        val_cases=("b",),
        data_digest="0",
        workers=WorkerSpec(count=2, gpus=0, cpus=3),
    )


def ended(jobs: Jobs, submission_id: str) -> JobRecord:
    deadline = time.monotonic() + PATIENCE_S
    while (record := jobs.find(submission_id)).is_live:
        assert time.monotonic() < deadline, record
        time.sleep(0.2)
    return record


def test_a_job_runs_our_code_and_carries_what_it_is(local: Services, spec: RunSpec) -> None:
    jobs = Jobs(local.ray_address, local.token, modules=Modules(training="orchestrator.campaign.control_job"))
    folder = RunFolder(spec.run_folder)
    name = jobs.submit_training(folder, spec, 3, campaign="c", mlflow_run_id="m")
    assert jobs.submit_training(folder, spec, 3, campaign="c", mlflow_run_id="m") == name == f"train-{spec.run_key}-a3"
    record = ended(jobs, name)
    assert [r for r in jobs.records() if r.run_key == spec.run_key] == [record], "submitted twice is submitted once"
    assert (record.kind, record.campaign, record.job_number, record.mlflow_run_id) == ("train", "c", 3, "m")
    assert record.reserved == spec.workers
    assert record.run_folder == str(spec.run_folder)
    assert record.state == "FAILED"
    assert record.exit_code == 2
    assert "invalid choice" in jobs.logs(name), "it ran our module, with the run folder as one argument"


def test_a_job_that_is_stopped_gets_an_interrupt_first(local: Services, spec: RunSpec) -> None:
    jobs = Jobs(local.ray_address, local.token, modules=Modules(training="tests.integration.patient"))
    name = jobs.submit_training(RunFolder(spec.run_folder), spec, 1)
    deadline = time.monotonic() + PATIENCE_S
    while "waiting" not in jobs.logs(name):
        assert time.monotonic() < deadline, jobs.find(name)
        time.sleep(0.2)
    jobs.stop(name)
    assert ended(jobs, name).state == "STOPPED"
    printed = jobs.logs(name)
    assert "interrupted" in printed, printed
    jobs.stop(name)


def test_a_wrong_token_is_refused(local: Services) -> None:
    with pytest.raises(ClusterError, match="refuses the token"):
        Jobs(local.ray_address, "wrong")


def test_an_unreachable_cluster_is_refused_at_once() -> None:
    with pytest.raises(ClusterError, match="nothing answers at http://127.0.0.1:1"):
        Jobs("http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("address", "refusal"), [("ray://head:10001", "an address of Ray Client"), ("nonsense", "no address"), ("http://", "no address")]
)
def test_what_is_no_address_of_a_job_server_is_refused(address: str, refusal: str) -> None:
    with pytest.raises(ConfigError, match=refusal):
        Jobs(address)


def test_rays_variables_name_the_cluster_but_never_override_a_named_one(local: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1 "):
        reach(None)
    assert reach(local.ray_address).jobs.records() is not None
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", local.ray_address)
    assert reach(None).jobs.address == local.ray_address


def test_the_nodes_of_the_local_head_are_listed_without_a_job(local: Services) -> None:
    jobs = Jobs(local.ray_address, local.token)
    before = jobs.records()
    (node,) = nodes_of(local_services.control_store(Home.default()), local.token_file)
    assert node.total["CPU"] == node.free["CPU"] == local_services.offered().cpus
    assert jobs.records() == before


def test_an_unknown_job_is_an_error(local: Services) -> None:
    with pytest.raises(ClusterError, match="look up job nothing"):
        Jobs(local.ray_address, local.token).find("nothing")


def test_outside_a_job_there_is_no_own_cluster() -> None:
    with pytest.raises(ClusterError, match="no entry point of a Ray job"):
        Jobs.inside_job()
