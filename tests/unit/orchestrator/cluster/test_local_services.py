"""The local services start again when another process takes a port between the choice and the bind; who they belong to."""

import errno
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster import local_services, neighbours, nodes
from orchestrator.cluster.capacity import Offer, usable_cpus
from orchestrator.cluster.home import Home
from orchestrator.cluster.processes import ProcessRecord, end, free_port, start_detached, wait_until_up
from orchestrator.cluster.service_environment import service_environment
from orchestrator.cluster.service_records import Recorded, write_record
from trainers.errors import ClusterError, ConfigError, StorageError


def web_server(name: str, log_file: Path, port: int) -> ProcessRecord:
    """A small server in place of Ray's dashboard or MLflow's: like them it ends when its port is taken."""
    return start_detached(name, [sys.executable, "-S", "-m", "http.server", "--bind", "127.0.0.1", str(port)], os.environ, log_file, port)


def answers(port: int, path: str, headers: object = None) -> int | None:
    with socket.socket() as client:
        return 200 if client.connect_ex(("127.0.0.1", port)) == 0 else None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home")
    monkeypatch.setattr(neighbours, "PLACES", (tmp_path,))
    monkeypatch.setattr(local_services, "_get", answers)
    monkeypatch.setattr(local_services, "start_ray", lambda home, offer: web_server("Ray head", home.ray_log, free_port()))
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


def test_a_service_that_lives_is_not_started_again_for_what_its_log_says(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []

    def silent(home: Home) -> ProcessRecord:
        starts.append(1)
        code = "import sys, time; print('[Errno 98] address already in use', flush=True); time.sleep(60)"
        return start_detached("MLflow server", [sys.executable, "-S", "-c", code], os.environ, home.mlflow_log, free_port())

    waits: list[str] = []

    def waited(record: ProcessRecord, answers: object, log_file: Path, timeout_s: float) -> None:
        waits.append(record.name)
        while record.name != "Ray head" and not log_file.stat().st_size:
            time.sleep(0.02)
        wait_until_up(record, lambda: record.name == "Ray head", log_file, 0.1)

    monkeypatch.setattr(local_services, "start_mlflow", silent)
    monkeypatch.setattr(local_services, "wait_until_up", waited)
    try:
        with pytest.raises(ClusterError, match=r"no answer(.|\n)*address already in use"):
            local_services.up(home)
        assert waits == ["Ray head", "MLflow server"]
        assert starts == [1]
    finally:
        local_services.down(home)


def test_of_two_heads_that_start_at_once_no_two_take_one_gpu(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = start_detached("Ray head", ["sleep", "60"], os.environ, tmp_path / "log", 1)
    given: list[Offer] = []

    def start(home: Home, offer: Offer) -> ProcessRecord:
        given.append(offer)
        if len(given) == 1:  # the other one has chosen too, and leaves its notice now
            neighbours.leave_notice(tmp_path / "another home", other, offer)
        return web_server("Ray head", home.ray_log, free_port())

    monkeypatch.setattr(nodes, "usable_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(local_services, "start_ray", start)
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: web_server("MLflow server", home.mlflow_log, free_port()))
    try:
        local_services.up(home, num_gpus=1)
        assert [offer.gpu_ids for offer in given] == [("0",), ("1",)]
        local_services.down(home)
        with pytest.raises(ConfigError, match="Free are 1 GPUs"):
            local_services.up(home)
    finally:
        local_services.down(home)
        end(other, grace_s=0)


def test_what_is_asked_for_holds_until_down_and_is_refused_of_a_head_with_other_numbers(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Offer] = []

    def start(home: Home, offer: Offer) -> ProcessRecord:
        given.append(offer)
        return web_server("Ray head", home.ray_log, free_port())

    monkeypatch.setattr(local_services, "start_ray", start)
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: web_server("MLflow server", home.mlflow_log, free_port()))
    try:
        started = local_services.up(home, num_cpus=3, memory_gib=2)
        assert local_services.offered(home) == given[0]
        assert local_services.up(home) == local_services.up(home, num_cpus=3) == started
        with pytest.raises(ConfigError, match=r"runs already, with 3 CPUs, no GPU, 2 GiB of memory. `nnfleet down` first"):
            local_services.up(home, num_cpus=4)
        end(started.ray, grace_s=0)
        assert local_services.offered(home) == given[0]
        local_services.up(home)
        assert [(offer.cpus, offer.memory_gib) for offer in given] == [(3, 2.0), (3, 2.0)]
    finally:
        local_services.down(home)
    assert local_services.offered(home).cpus == usable_cpus()


def test_a_head_leaves_a_notice_until_down(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: web_server("MLflow server", home.mlflow_log, free_port()))
    try:
        local_services.up(home, num_cpus=1000)
        other = Home(tmp_path / "other")
        assert "runs a head here with 1000 CPUs" in local_services.crowding_of(other, local_services.offered(other))
        assert local_services.crowding_of(home, local_services.offered(home)) == ""
    finally:
        local_services.down(home)
    assert list(tmp_path.glob("nnfleet-head-*")) == []


def of_host(host: str, boot: str) -> Recorded:
    """A record of a head on a host; its process id is that of a process that lives here."""
    return Recorded(
        records={"ray": ProcessRecord(name="Ray head", pid=os.getpid(), started_unix=0, mark="m", port=1, host=host, boot_id=boot)}
    )


def test_services_of_another_host_are_neither_dead_nor_ended_here(home: Home) -> None:
    home.create()
    write_record(home, of_host("node7", "another"))
    for verb in (local_services.up, local_services.down, local_services.running, local_services.offered):
        with pytest.raises(ClusterError, match=r"services on host node7.*NNFLEET_HOME=.*remove .*services.json"):
            verb(home)
    assert home.services_file.exists()


def test_services_of_an_earlier_start_of_this_machine_are_dead(home: Home) -> None:
    home.create()
    write_record(home, of_host(socket.gethostname(), "another"))
    assert local_services.running(home) is None
    local_services.down(home)
    assert not home.services_file.exists()


def test_services_survive_a_new_name_of_their_machine(home: Home) -> None:
    home.create()
    alive = web_server("Ray head", home.ray_log, free_port())
    renamed = alive.model_copy(update={"host": "before"})
    write_record(home, Recorded(records={"ray": renamed, "mlflow": renamed}))
    assert local_services.running(home) is not None
    local_services.down(home)
    assert not alive.is_alive


def test_records_without_host_stay_readable(home: Home) -> None:
    home.create()
    alive = web_server("Ray head", home.ray_log, free_port())
    old = alive.model_dump(exclude={"host", "boot_id"})
    home.services_file.write_text(json.dumps({"records": {"ray": old, "mlflow": old}}))
    found = local_services.running(home)
    assert found is not None
    assert found.ray.is_alive
    with pytest.raises(ConfigError, match="with what an earlier version gave it"):
        local_services.up(home, num_cpus=1)
    local_services.down(home)
    assert not alive.is_alive


def test_a_head_obeys_rays_switches_and_knows_of_no_other_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"RAY_memory_usage_threshold": "0.98", "RAY_memory_monitor_refresh_ms": "0", "RAY_BACKEND_LOG_LEVEL": "debug"}
    dropped = (
        "RAY_ADDRESS",
        "RAY_API_SERVER_ADDRESS",
        "RAY_AUTH_TOKEN",
        "RAY_JOB_ID",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_RUNTIME_ENV_HOOK",
    )
    for name, value in {**kept, **dict.fromkeys(dropped, "x"), "RAY_enable_metrics_collection": "1"}.items():
        monkeypatch.setenv(name, value)
    environment = service_environment()
    assert kept.items() <= environment.items()
    assert set(dropped).isdisjoint(environment)
    assert environment["RAY_enable_metrics_collection"] == "0"


def test_a_running_mlflow_starts_again_with_a_new_host_alone_and_is_left_without_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: web_server("MLflow server", home.mlflow_log, free_port()))
    try:
        first = local_services.up(home)
        second = local_services.up(home, allow_hosts=["hub.clinic.example"])
        assert (second.ray, second.mlflow.pid == first.mlflow.pid) == (first.ray, False)
        assert local_services.up(home) == local_services.up(home, allow_hosts=["hub.clinic.example"]) == second
    finally:
        local_services.down(home)


def test_a_full_home_is_an_error_of_the_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local_services, "ensure_token", full)
    with pytest.raises(StorageError, match=r"home cannot be written: the file system is full.*Free space there"):
        local_services.up(home)


HEAD = """
import os, pathlib, signal, subprocess, sys
jobs = [
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], env={**os.environ, "NNFLEET_SUBMISSION_ID": name})
    for name in ("train-k-a1", "campaign-c")
]
place = pathlib.Path(sys.argv[1])
def ended(*_):
    (place / "seen").write_text(str([job.wait(5) for job in jobs]))
    os._exit(0)
signal.signal(signal.SIGTERM, ended)
(place / "ready").touch()
signal.pause()
signal.pause()
"""
"""Ends after its jobs, as a head whose nodes go first."""


def test_down_ends_the_jobs_before_the_head_so_that_none_of_them_counts_its_death(home: Home, tmp_path: Path) -> None:
    home.create()
    record = start_detached("Ray head", [sys.executable, "-S", "-c", HEAD, str(tmp_path)], dict(os.environ), tmp_path / "log", 1)
    wait_until_up(record, (tmp_path / "ready").exists, tmp_path / "log", 60)
    write_record(home, Recorded(records={"ray": record}))
    local_services.down(home)
    assert (tmp_path / "seen").read_text() == "[-9, -9]"
