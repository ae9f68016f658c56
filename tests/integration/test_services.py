"""`up` and `down` with a real Ray head and a real MLflow server."""

import contextlib
import http.client
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import local_services
from orchestrator.cluster.home import LONGEST_RAY_TEMP, Home
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.mlflow_store import known_schemas, upgrade_database
from orchestrator.cluster.processes import SERVICE_PORTS, ProcessRecord, end, family, free_port, start_detached, wait_until_up
from orchestrator.cluster.service_environment import QUIET
from orchestrator.errors import ClusterError
from tests.integration.cluster import SHORT

UP = "import sys; from pathlib import Path; from orchestrator.cluster import local_services; from orchestrator.cluster.home import Home\n"
UP += "print(local_services.up(Home(Path(sys.argv[1])), num_cpus=1).model_dump_json())"


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="nnf-", dir=SHORT) as folder:
        place = Home(Path(folder) / "home")
        yield place
        local_services.down(place)


@pytest.fixture(scope="module")
def started(home: Home) -> Services:
    """Two `up` at the same moment: both have to give the same services."""
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", UP, str(home.root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], [path.read_text()[-3000:] for path in (home.ray_log, home.mlflow_log)]
    assert told[0] == told[1]
    deadline = time.monotonic() + 60  # the job server answers before the head has all its parts: its address is noted last
    while not (home.ray_temp / "ray_current_cluster").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return Services.model_validate_json(told[0])


def status_of(port: int, path: str, headers: dict[str, str] | None = None) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().status


def test_the_job_server_asks_for_the_token(started: Services) -> None:
    assert status_of(started.ray.port, "/api/jobs/") == 401
    assert status_of(started.ray.port, "/api/jobs/", {"Authorization": "Bearer wrong"}) == 403
    assert status_of(started.ray.port, "/api/jobs/", {"Authorization": f"Bearer {started.token}"}) == 200


GCS = """
import sys
from ray._raylet import GcsClient
print(len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)))
"""


@pytest.mark.parametrize(("token", "told"), [(None, ""), ("0" * 64, ""), ("own", "1")], ids=["no token", "wrong token", "its token"])
def test_the_control_store_asks_for_the_token(home: Home, started: Services, tmp_path: Path, token: str | None, told: str) -> None:
    address = (home.ray_temp / "ray_current_cluster").read_text().strip()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RAY_gcs_rpc_server_connect_timeout_s": "5"}
    if token is not None:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": started.token if token == "own" else token}
    asked = subprocess.run(
        [sys.executable, "-c", GCS, address], capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, check=False
    )
    assert asked.stdout.strip() == told
    assert (asked.returncode == 0) == bool(told), asked.stderr[-2000:]
    assert told or "auth" in asked.stderr.lower(), asked.stderr[-2000:]


def test_no_process_of_the_head_exports_metrics(home: Home, started: Services) -> None:
    switches = {name: value for name, value in QUIET.items() if name.startswith("RAY_enable_")}
    assert switches == {"RAY_enable_metrics_collection": "0", "RAY_enable_open_telemetry": "0"}
    seen = [(process.name(), process.environ()) for process in family(started.ray)]
    assert {"raylet", "gcs_server"} <= {name for name, _ in seen}
    assert [name for name, environment in seen if not switches.items() <= environment.items()] == []
    (port,) = (home.ray_temp / "session_latest").glob("metrics_export_port_*")
    assert port.read_text() == "-1"  # what a node writes that collects none


def test_no_secret_reaches_a_log_or_the_terminal(home: Home, started: Services, tmp_path: Path) -> None:
    secret = "hunter2-of-this-test"
    environment = {**os.environ, "NNFLEET_HOME": str(home.root), "MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": secret}
    environment = {key: value for key, value in environment.items() if not key.startswith("RAY_")}
    for verb in (["status"], ["stop", "nothing"]):
        shown = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "--debug", *verb],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )
        assert "DEBUG" in shown.stderr
        assert started.token not in shown.stdout + shown.stderr
        assert secret not in shown.stdout + shown.stderr
    logs = [path for folder in (home.logs, home.ray_temp) for path in folder.rglob("*") if path.suffix in (".log", ".out", ".err", ".txt")]
    assert len(logs) > 5
    assert [path for path in logs if started.token in path.read_text(errors="replace")] == []


def test_what_is_secret_is_readable_by_its_user_alone(home: Home, started: Services) -> None:
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home.root, home.token_file, home.services_file)] == [0o700, 0o600, 0o600]


def test_mlflow_answers_and_nothing_listens_beyond_loopback(started: Services) -> None:
    assert status_of(started.mlflow.port, "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default") == 200
    sockets = [
        connection.laddr.ip
        for record in (started.ray, started.mlflow)
        for process in family(record)
        for connection in process.net_connections(kind="inet")
        if connection.status == "LISTEN"
    ]
    assert len(sockets) >= 4
    assert {address.removeprefix("::ffff:") for address in sockets} == {"127.0.0.1"}


def test_up_again_finds_what_runs(home: Home, started: Services) -> None:
    assert local_services.up(home) == started
    assert local_services.running(home) == started


def test_a_killed_mlflow_server_is_mended_at_its_port_and_ray_is_left_alone(home: Home, started: Services) -> None:
    end(started.mlflow, grace_s=0.0)
    mended = local_services.up(home)
    assert mended.ray == started.ray
    assert mended.mlflow.port == started.mlflow.port
    assert mended.mlflow.pid != started.mlflow.pid


def test_down_leaves_nothing_and_can_be_repeated(home: Home, started: Services) -> None:
    now = local_services.running(home)
    assert now is not None
    local_services.down(home)
    assert [family(record) for record in (started.ray, now.mlflow)] == [[], []]
    assert local_services.running(home) is None
    assert not home.services_file.exists()
    local_services.down(home)


def test_a_process_id_that_was_given_to_another_process_is_not_ours() -> None:
    record = ProcessRecord(name="x", pid=os.getpid(), started_unix=1.0, mark="none", port=1)
    assert not record.is_alive
    end(record, grace_s=0.0)  # and is never killed


def test_a_service_that_does_not_come_up_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    record = start_detached("Ray head", [sys.executable, "-c", "print('no room'); raise SystemExit(3)"], os.environ, log_file, 1)
    with pytest.raises(ClusterError, match=r"Ray head: ended while starting(.|\n)*no room"):
        wait_until_up(record, lambda: False, log_file, 60)


def test_descendants_are_ended_even_when_their_parent_is_gone(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
    record = start_detached("parent", [sys.executable, "-c", code], os.environ, tmp_path / "log", 1)
    psutil.wait_procs([psutil.Process(record.pid)], timeout=60)
    assert len(family(record)) == 1
    end(record, grace_s=0.0)
    assert family(record) == []


def test_a_taken_port_is_not_chosen_again() -> None:
    first = free_port()
    assert free_port(first) == first
    assert free_port() in SERVICE_PORTS


def test_a_long_home_gets_a_short_folder_for_sockets(tmp_path: Path) -> None:
    home = Home(tmp_path / ("long" * 20))
    assert len(str(home.ray_temp)) <= LONGEST_RAY_TEMP
    assert Home(Path("/home/me/.nnfleet")).ray_temp == Path("/home/me/.nnfleet/ray")


OLDER = """
import sys
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore(sys.argv[1], sys.argv[2]).create_experiment("made before")
command.downgrade(_get_alembic_config(sys.argv[1]), "-1")
"""
"""MLflow's own migration back: a database as the version before left it."""


def asked(database: Path, question: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return [row[0] for row in opened.execute(question)]


def test_an_older_database_is_upgraded_and_kept_as_it_was(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    uri = f"sqlite:///{home.mlflow_db}"
    subprocess.run([sys.executable, "-c", OLDER, uri, str(home.artifacts)], check=True, capture_output=True)
    (older,) = asked(home.mlflow_db, "SELECT version_num FROM alembic_version")
    kept = upgrade_database(home, os.environ)
    assert kept is not None
    assert asked(kept, "SELECT version_num FROM alembic_version") == [older]
    (newest,) = asked(home.mlflow_db, "SELECT version_num FROM alembic_version")
    assert known_schemas()[newest] == older
    assert "made before" in asked(home.mlflow_db, "SELECT name FROM experiments")
    assert upgrade_database(home, os.environ) is None
    assert {path.name for path in home.root.glob("mlflow.db*")} == {"mlflow.db", kept.name}
