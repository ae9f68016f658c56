"""nnfleet's own folder on a machine: private, and with a token that is one."""

import os
import pwd
import sys
from pathlib import Path

import pytest

from orchestrator.cluster import local_services
from orchestrator.cluster.capacity import Offer
from orchestrator.cluster.home import LONGEST_RAY_TEMP, Home
from orchestrator.cluster.processes import ProcessRecord, free_port, start_detached
from orchestrator.cluster.service_records import Recorded, write_record
from orchestrator.errors import ClusterError, ConfigError


def test_a_home_that_others_can_read_is_narrowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o755)
    home.root.chmod(0o755)
    with caplog.at_level("INFO"):
        home.create()
    assert [path.stat().st_mode & 0o777 for path in (home.root, home.artifacts, home.logs)] == [0o700] * 3
    assert [record.message for record in caplog.records if "narrowed" in record.message]
    caplog.clear()
    home.create()
    assert caplog.records == []


def test_a_home_that_cannot_be_narrowed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o755)
    home.root.chmod(0o755)

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(ClusterError, match=r"home: .* stays open to others, since its file system \(\w+\).*Set NNFLEET_HOME"):
        home.create()


@pytest.mark.parametrize("content", ["", "\n", " "])
def test_an_empty_token_is_replaced(content: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    local_services.ensure_token(token)
    assert len(local_services.read_token(token)) == 64
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_token_that_is_one_stays(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("mine")
    token.chmod(0o644)
    local_services.ensure_token(token)
    assert local_services.read_token(token) == "mine"
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("ray_tmpdir", "expected"), [(None, "/tmp/nnf-"), ("/var/tmp", "/var/tmp/nnf-")])
def test_a_long_home_and_a_long_tmpdir_give_a_short_folder_for_sockets(
    ray_tmpdir: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("t" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    if ray_tmpdir:
        monkeypatch.setenv("RAY_TMPDIR", ray_tmpdir)
    home = Home(tmp_path / ("h" * 60))
    assert str(home.ray_temp).startswith(expected)
    assert len(str(home.ray_temp)) <= LONGEST_RAY_TEMP


def test_rays_own_variable_moves_its_sessions_and_is_refused_when_it_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/r")
    assert str(Home(Path("/h")).ray_temp).startswith("/r/nnf-")
    monkeypatch.setenv("RAY_TMPDIR", "/r" * 30)
    with pytest.raises(ConfigError, match=r"too long for Ray's unix sockets.*NNFLEET_HOME or RAY_TMPDIR"):
        Home(Path("/h")).create()


def test_a_user_without_home_is_told_which_variable_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("NNFLEET_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ConfigError, match=r"HOME is not set.*NNFLEET_HOME names another place"):
        Home.default()
    monkeypatch.setenv("NNFLEET_HOME", "/data/me")
    assert Home.default() == Home(Path("/data/me"))


ANSWERS = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def service(home: Home, name: str, code: str) -> ProcessRecord:
    """A process in the place of a service."""
    port = free_port()
    return start_detached(name, [sys.executable, "-c", code, str(port)], os.environ, home.logs / name, port)


def test_a_head_that_is_found_alive_and_dies_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "home")
    home.create()
    dying = service(home, "ray", "import time; time.sleep(0.5)")
    write_record(home, Recorded(records={"ray": dying}))
    monkeypatch.setattr(local_services, "start_ray", lambda home, offer: service(home, "ray", ANSWERS))
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: service(home, "mlflow", ANSWERS))
    try:
        started = local_services.up(home)
        assert started.ray.pid != dying.pid
        assert local_services.running(home) == started
        assert local_services.up(home) == started
    finally:
        local_services.down(home)


def test_a_head_that_does_not_start_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, tries = Home(tmp_path / "home"), []

    def fails(home: Home, offer: Offer) -> ProcessRecord:
        tries.append(service(home, "ray", "raise SystemExit(3)"))
        return tries[-1]

    monkeypatch.setattr(local_services, "start_ray", fails)
    monkeypatch.setattr(local_services, "start_mlflow", lambda home: service(home, "mlflow", ANSWERS))
    try:
        with pytest.raises(ClusterError, match="ray: ended while starting"):
            local_services.up(home)
        assert len(tries) == 1
    finally:
        local_services.down(home)
