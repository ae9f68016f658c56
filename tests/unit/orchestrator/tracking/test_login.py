"""How the tracking server is named and asked whether it is there: with the client's own login, never with one inside the address."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from orchestrator.cluster.service_environment import LOGIN_VARIABLES, service_environment
from orchestrator.errors import ConfigError, TrackingError
from orchestrator.experiment.model import parse_experiment
from orchestrator.tracking.client import Tracker
from tests.serving import serving

EXPERIMENT = "dataset: 1\nconfigurations: [2d]\ntracking: {{uri: '{}'}}\n"
LOGIN = "Basic " + base64.b64encode(b"ann:secret").decode()


class Guarded(BaseHTTPRequestHandler):
    """Answers a search for experiments, but only to somebody who is logged in; knows no /health."""

    login: ClassVar[str] = LOGIN

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers.get("Authorization") == self.login
        code = 404 if self.path != "/api/2.0/mlflow/experiments/search" else 200 if known else 401
        body = json.dumps({"experiments": []}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def guarded() -> Iterator[str]:
    with serving(Guarded) as address:
        yield address


def test_a_server_that_wants_a_login_gets_the_clients_own(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOGIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrackingError, match=r"refuses the login.*MLFLOW_TRACKING_USERNAME"):
        Tracker(guarded).ping()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    Tracker(guarded).ping()
    with pytest.raises(TrackingError, match="does not answer as an MLflow server"):
        Tracker(f"{guarded}/elsewhere").ping()


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"TOKEN": "abc"}, "Bearer abc"),
        ({"USERNAME": "ann", "PASSWORD": "secret"}, LOGIN),
        ({}, "Basic " + base64.b64encode(b"bob:other").decode()),
    ],
)
def test_netrc_replaces_no_login_that_is_named_and_serves_where_none_is(
    variables: dict[str, str], sent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOGIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login bob password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", "")  # put back after the test
    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(Guarded, "login", sent)
    with serving(Guarded) as address:
        Tracker(address).ping()


class HangsUp(Guarded):
    """Takes a question and closes the connection."""

    def do_POST(self) -> None:
        self.close_connection = True


def test_an_outage_is_told_in_the_words_of_the_system() -> None:
    with serving(HangsUp) as address, pytest.raises(TrackingError) as hung_up:
        Tracker(address).ping()
    assert f"at {address}: Remote end closed connection without response. Check" in str(hung_up.value)
    with pytest.raises(TrackingError) as refused:  # nobody listens there any more
        Tracker(address).ping()
    assert f"at {address}: Connection refused. Check" in str(refused.value)


def test_a_dead_proxy_is_not_taken_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HangsUp) as address:
        pass  # nobody listens there any more
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(TrackingError, match=r"at http://mlflow\.example:5000: the proxy: Connection refused"):
        Tracker("http://mlflow.example:5000").ping()


def test_a_file_that_cannot_be_uploaded_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(TrackingError, match=r"No such file or directory: '.*is_not_there'"),
        Tracker("http://127.0.0.1:9")._speaking("upload"),  # the file vanishes while MLflow's client reads it
    ):
        (tmp_path / "is_not_there").read_bytes()


def test_an_answer_of_the_server_is_not_taken_for_the_trouble_before_it(guarded: str) -> None:
    try:
        raise ConnectionResetError(104, "Connection reset by peer")
    except ConnectionResetError:
        with pytest.raises(TrackingError) as answered:
            Tracker(guarded).set_tags("some run", {"key": "value"})
    assert "reset by peer" not in str(answered.value)


def test_the_heads_environment_keeps_the_login_and_no_address_and_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_SERVER_CERT_PATH",
        "MLFLOW_TRACKING_URI",
        "nnUNet_results",
        "nnUNet_def_n_proc",
    ):
        monkeypatch.setenv(name, "x")
    environment = service_environment()
    assert {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_SERVER_CERT_PATH", "nnUNet_def_n_proc"} <= set(environment)
    assert {"MLFLOW_TRACKING_URI", "nnUNet_results"}.isdisjoint(environment)


@pytest.mark.parametrize("uri", ["http://ann:secret@host:5000", "https://token@host"])
def test_credentials_in_the_address_are_refused_and_not_repeated(uri: str) -> None:
    for use in (lambda: Tracker(uri), lambda: parse_experiment(EXPERIMENT.format(uri))):
        with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME") as refusal:
            use()
        assert "secret" not in str(refusal.value)
        assert "token@" not in str(refusal.value)


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "./mlruns", "file:///tmp/x", "databricks", "http://", "localhost:5000"])
def test_what_is_no_web_address_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri: .*http://HOST:PORT"):
        parse_experiment(EXPERIMENT.format(uri))


def test_web_addresses_and_none_are_accepted() -> None:
    for uri in ("", "http://host:5000", "https://host/mlflow"):
        assert parse_experiment(EXPERIMENT.format(uri)).tracking.uri == uri
