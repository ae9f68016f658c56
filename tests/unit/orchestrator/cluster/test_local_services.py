"""The local services start again when another process takes a port between the choice and the bind."""

import os
import socket
import sys
from pathlib import Path

import pytest

from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.processes import ProcessRecord, free_port, start_detached
from trainers.contract.errors import ClusterError


def web_server(name: str, log_file: Path, port: int) -> ProcessRecord:
    """A small server in place of Ray's dashboard or MLflow's: like them it ends when its port is taken."""
    return start_detached(name, [sys.executable, "-S", "-m", "http.server", "--bind", "127.0.0.1", str(port)], os.environ, log_file, port)


def answers(port: int, path: str, headers: object = None) -> int | None:
    with socket.socket() as client:
        return 200 if client.connect_ex(("127.0.0.1", port)) == 0 else None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home")
    monkeypatch.setattr(local_services, "_get", answers)
    monkeypatch.setattr(local_services, "start_ray", lambda home, num_cpus: web_server("Ray head", home.ray_log, free_port()))
    return home


def test_a_service_whose_port_was_taken_while_it_started_gets_another(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()  # it would answer, and get the token
        taken = other.getsockname()[1]
        ports = [taken, free_port()]
        monkeypatch.setattr(local_services, "start_mlflow", lambda home: web_server("MLflow server", home.mlflow_log, ports.pop(0)))
        try:
            services = local_services.up(home)
            assert services.mlflow.port != taken
            assert services.mlflow.is_alive
            assert ports == []
        finally:
            local_services.down(home)


def test_a_port_that_was_taken_for_a_moment_only_is_told_by_the_log(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "raise SystemExit('[Errno 98] error while attempting to bind on address: address already in use')"
    starts: list[int] = []

    def unlucky_once(home: Home) -> ProcessRecord:
        starts.append(1)
        if len(starts) == 1:
            return start_detached("MLflow server", [sys.executable, "-S", "-c", code], os.environ, home.mlflow_log, free_port())
        return web_server("MLflow server", home.mlflow_log, free_port())

    monkeypatch.setattr(local_services, "start_mlflow", unlucky_once)
    try:
        assert local_services.up(home).mlflow.is_alive
        assert starts == [1, 1]
    finally:
        local_services.down(home)


def test_a_service_that_ends_for_another_reason_is_started_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def broken(home: Home) -> ProcessRecord:
        starts.append(1)
        return start_detached(
            "MLflow server", [sys.executable, "-S", "-c", "raise SystemExit(3)"], os.environ, home.mlflow_log, free_port()
        )

    monkeypatch.setattr(local_services, "start_mlflow", broken)
    try:
        with pytest.raises(ClusterError, match="MLflow server: ended while starting"):
            local_services.up(home)
        assert starts == [1]
    finally:
        local_services.down(home)


def test_a_running_mlflow_starts_again_with_a_new_host_alone_and_is_left_without_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: web_server("MLflow server", home.mlflow_log, free_port()))
    try:
        first = local_services.up(home)
        second = local_services.up(home, allow_hosts=["hub.clinic.example"])
        assert (second.ray, second.mlflow.pid == first.mlflow.pid) == (first.ray, False)
        assert local_services.up(home) == local_services.up(home, allow_hosts=["hub.clinic.example"]) == second
    finally:
        local_services.down(home)
