"""Which cluster is meant where Ray's own variables name one in Ray's own words."""

import re
from pathlib import Path

import pytest
from ray.exceptions import RpcError

from orchestrator.cluster import jobs, local_services, target
from orchestrator.cluster.discovery import ADDRESS_VARIABLES, chosen, named_by_environment
from orchestrator.cluster.jobs import Jobs
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.processes import ProcessRecord
from orchestrator.cluster.target import reach
from orchestrator.errors import ClusterError, ConfigError
from tests.serving import serving
from tests.unit.orchestrator.cluster.test_jobs import JobServer


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_cluster_of_a_node_is_the_latest_that_still_runs() -> None:
    assert chosen("10.0.0.1:6379", frozenset({"10.0.0.1:6379", "10.0.0.2:6379"})) == "10.0.0.1:6379"
    assert chosen("10.0.0.9:6379", frozenset({"10.0.0.1:6379"})) == "10.0.0.1:6379"
    assert chosen(None, frozenset({"10.0.0.1:6379"})) == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("latest", "running", "told"),
    [
        ("10.0.0.1:6379", frozenset[str](), "none runs on this machine"),
        (None, frozenset({"a:1", "b:2"}), r"several run here \(a:1, b:2\)"),
    ],
)
def test_auto_without_one_cluster_says_where_it_came_from_and_what_to_set(
    latest: str | None, running: frozenset[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ClusterError, match=rf"RAY_ADDRESS is 'auto'.*{told}.*Set RAY_API_SERVER_ADDRESS to the dashboard"):
        chosen(latest, running)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        (
            "RAY_ADDRESS",
            "ray://head:10001",
            r"RAY_ADDRESS is an address of Ray Client.*in RAY_API_SERVER_ADDRESS, which goes before it",
        ),
        ("RAY_API_SERVER_ADDRESS", "head", "RAY_API_SERVER_ADDRESS is no address"),
        (None, "ftp://head:1", "--cluster is no address"),
        ("RAY_ADDRESS", "http://u:secret@head:1", r"its address \(RAY_ADDRESS\) holds a user"),
    ],
)
def test_what_is_no_address_is_told_with_its_variable_and_not_repeated(
    variable: str | None, value: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=told) as refusal:
        Jobs(named_by_environment() or value)
    assert "secret" not in str(refusal.value)


def test_rays_word_for_no_cluster_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert named_by_environment() is None


def test_a_control_store_leads_to_its_job_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with serving(JobServer) as address:
        host_and_port = address.removeprefix("http://")
        monkeypatch.setattr(target, "cluster_of_this_machine", lambda: host_and_port)
        monkeypatch.setattr(local_services, "running", lambda: None)
        monkeypatch.setattr(jobs, "job_server_of", lambda control_store: f"http://{control_store}")
        assert reach().jobs.address == host_and_port, "jobs get it as Ray names it"


def test_a_control_store_that_does_not_answer_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(control_store: str) -> str:
        raise RpcError("Timed out while waiting for GCS to become available.")  # type: ignore[no-untyped-call] # of Ray

    monkeypatch.setattr(jobs, "job_server_of", silent)
    with serving(JobServer) as address:
        place = address.removeprefix("http://")
        with pytest.raises(
            ClusterError, match=rf"{re.escape(place)} does not answer as the control store.*write http://{re.escape(place)}"
        ):
            Jobs(place)


def test_auto_means_the_local_services_where_no_other_cluster_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFLEET_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(target, "cluster_of_this_machine", lambda: "127.0.0.1:7")
    monkeypatch.setattr(local_services, "control_store", lambda home: "127.0.0.1:7")
    (tmp_path / "token").write_text("t")
    with serving(JobServer) as address:
        record = ProcessRecord(name="Ray head", pid=1, started_unix=0, mark="m", port=int(address.rsplit(":", 1)[1]))
        services = Services(ray=record, mlflow=record, token_file=tmp_path / "token")
        monkeypatch.setattr(local_services, "running", lambda: services)
        assert reach().local == services


def test_a_named_cluster_is_reached_from_a_host_whose_home_is_in_use_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_another_host() -> None:
        raise ClusterError("services: of host node7")

    monkeypatch.setattr(local_services, "running", of_another_host)
    with serving(JobServer) as address:
        assert reach(address).jobs.address == address
        with pytest.raises(ClusterError, match="node7"):
            reach()
