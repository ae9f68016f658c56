"""Bad and hostile records of local services, addresses of clusters and names of hosts, each with the error that answers it."""

import os
from pathlib import Path

import pytest

from orchestrator.cluster.discovery import server_of
from orchestrator.cluster.home import Home
from orchestrator.cluster.mlflow_store import keep_settings, read_settings
from orchestrator.cluster.service_records import read_record
from orchestrator.errors import ClusterError, ConfigError
from tests.hostile import Place, Row, check

RECORD = '{"name": "ray", "pid": 1, "started_unix": 1.0, "mark": "m", "port": 1, "boot_id": "x", "host": "another-host"}'


def _home(place: Place, name: str = "", content: str | bytes = b"") -> Home:
    """A home folder with one file of its own."""
    home = Home(place.base)
    if name:
        path: Path = getattr(home, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return home


def _services(place: Place, content: str | bytes) -> object:
    return read_record(_home(place, "services_file", content))


def _settings(place: Place, content: str | bytes) -> object:
    return read_settings(_home(place, "mlflow_settings", content))


def _allowed(place: Place, host: str) -> object:
    return keep_settings(_home(place), [host], None)


def _taken(place: Place) -> object:
    """Artifacts moved elsewhere while the old place holds some."""
    home = _home(place)
    home.artifacts.mkdir(parents=True)
    (home.artifacts / "1").touch()
    return keep_settings(home, [], place.base / "elsewhere")


ROWS: tuple[Row, ...] = (
    Row("services", "a record of nothing", lambda p: _services(p, b""), ClusterError, ("is not what `nnfleet up` wrote", "remove it")),
    Row("services", "a record of another kind", lambda p: _services(p, "[]"), ClusterError, ("is not what `nnfleet up` wrote",)),
    Row(
        "services",
        "a process of another host",
        lambda p: _services(p, f'{{"records": {{"ray": {RECORD}}}}}'),
        ClusterError,
        ("on host another-host", "NNFLEET_HOME"),
    ),
    Row("services", "settings of another kind", lambda p: _settings(p, '{"allowed_hosts": 7}'), ClusterError, ("is not what", "Remove it")),
    Row("services", "settings that are no text", lambda p: _settings(p, os.urandom(64)), ClusterError, ("is not what", "Remove it")),
    Row("services", "all hosts at once", lambda p: _allowed(p, "*"), ConfigError, ("--allow-host: '*' is not the name of a host",)),
    Row("services", "a host with an option", lambda p: _allowed(p, "h --workers 9"), ConfigError, ("is not the name of a host",)),
    Row("services", "an address for a host", lambda p: _allowed(p, "https://hub/x"), ConfigError, ("Write the one in the browser's",)),
    Row("services", "artifacts that would stay behind", _taken, ConfigError, ("holds the artifacts of earlier runs", "`mv ")),
    Row("cluster", "Ray Client", lambda p: server_of("ray://head:10001"), ConfigError, ("an address of Ray Client", "http://HOST:8265")),
    Row("cluster", "a file", lambda p: server_of("file:///etc/passwd"), ConfigError, ("is no address",)),
    Row("cluster", "a port that is none", lambda p: server_of("http://head:99999"), ConfigError, ("is no address",)),
    Row("cluster", "an escape", lambda p: server_of("http://\x1b[2J"), ConfigError, ("is no address",)),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)
