"""nnfleet's own folder on a machine: private, and with a token that is one."""

import os
import sys
from pathlib import Path

import pytest

from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.processes import ProcessRecord, free_port, start_detached
from orchestrator.errors import ClusterError


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
    local_services.write_record(home, {"ray": dying})
    monkeypatch.setattr(local_services, "start_ray", lambda home, num_cpus: service(home, "ray", ANSWERS))
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

    def fails(home: Home, num_cpus: int | None) -> ProcessRecord:
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
