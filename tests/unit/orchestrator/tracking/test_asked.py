"""Whether a server knows a run, asked without MLflow's client: only a clear answer counts."""

import base64
import datetime
import ipaddress
import json
import logging
import os
import ssl
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from orchestrator.cluster.service_environment import LOGIN_VARIABLES
from orchestrator.tracking.asked import MOST_RUNS, lacks_runs
from orchestrator.tracking.client import Tracker
from tests.serving import serving

NONE: dict[str, Any] = {}
ONE = {"experiments": [{"experiment_id": "7"}]}


class Server(BaseHTTPRequestHandler):
    """Answers as `experiments` and `runs` say: with a status and JSON, or with bytes."""

    experiments: ClassVar[Any] = ONE
    runs: ClassVar[Any] = NONE
    status: ClassVar[int] = 200
    asked: ClassVar[list[dict[str, Any]]] = []
    logins: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.logins.append(self.headers.get("Authorization"))
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        content = self.runs if self.path == "/api/2.0/mlflow/runs/search" else self.experiments
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("answers", "lacks"),
    [
        ({}, True),
        ({"experiments": NONE}, True),
        ({"runs": {"runs": [{"info": {"run_id": "x"}}]}}, False),
        ({"experiments": {**ONE, "next_page_token": "more"}}, False),
        ({"status": 401}, False),
        ({"status": 500}, False),
        ({"experiments": b"<html>"}, False),
        ({"experiments": [1]}, False),
        ({"experiments": {"experiments": [3]}}, False),
        ({"experiments": {"experiments": 3}}, False),
        ({"experiments": b"[" * 100_000}, False),
        ({"runs": None}, False),
    ],
)
def test_only_a_server_that_says_so_has_no_such_run(answers: dict[str, Any], lacks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"asked": [], **answers}.items():
        monkeypatch.setattr(Server, name, value)
    with serving(Server) as address:
        assert lacks_runs(f"{address}/", ["k"]) is lacks
    if lacks and "experiments" not in answers:
        wanted = {"experiment_ids": ["7"], "filter": "tags.`nnfleet.run_key` = 'k'", "max_results": 1}
        assert Server.asked[1:] == [wanted]


@pytest.mark.parametrize(("uri", "count"), [("sqlite:////tmp/x.db", 1), ("http://127.0.0.1:1", 1), ("http://127.0.0.1:1", MOST_RUNS + 1)])
def test_what_is_not_asked_is_not_learnt(uri: str, count: int) -> None:
    assert lacks_runs(uri, [f"k{n}" for n in range(count)]) is False


def basic(login: str) -> str:
    return "Basic " + base64.b64encode(login.encode()).decode()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder whose netrc has a login for the server, in an environment without any of MLflow's."""
    for name in LOGIN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login bob password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", "")  # put back after the test: MLflow's client may set it
    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(Server, "logins", [])
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "credentials", "sent"),
    [
        ({}, "", basic("bob:other")),
        ({"USERNAME": "ann", "PASSWORD": "sécret"}, "", basic("ann:sécret")),
        ({"TOKEN": "abc"}, "", "Bearer abc"),
        ({"USERNAME": "ann", "PASSWORD": "secret", "TOKEN": "abc"}, "", basic("ann:secret")),
        ({"USERNAME": "ann", "TOKEN": "abc"}, "", "Bearer abc"),
        ({}, "mlflow_tracking_username = eve\nmlflow_tracking_password = kept", basic("eve:kept")),
        ({"USERNAME": "ann"}, "mlflow_tracking_username = eve\nmlflow_tracking_password = kept", basic("ann:kept")),
    ],
)
def test_it_is_asked_with_the_login_that_mlflows_client_uses(
    variables: dict[str, str], credentials: str, sent: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    if credentials:
        (home / ".mlflow").mkdir()
        (home / ".mlflow" / "credentials").write_text(f"[mlflow]\n{credentials}\n", encoding="utf-8")
    with serving(Server) as address:
        assert lacks_runs(address, ["k"])
        assert Server.logins == [sent, sent]
        Tracker(address).ping()
    assert Server.logins[2:] == [sent], "MLflow's own"


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_SIGV4": "true"},
        {"AUTH": "some-plugin"},
        {"INSECURE_TLS": "perhaps"},
        {"INSECURE_TLS": "true", "SERVER_CERT_PATH": "/ca.pem"},
    ],
)
def test_what_only_mlflows_client_can_do_is_left_to_it(variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with serving(Server) as address:
        assert not lacks_runs(address, ["k"])
    assert Server.logins == []


@pytest.mark.parametrize(
    ("variables", "credentials"),
    [({"TOKEN": "hunter2\nX-More: 1"}, ""), ({}, "[mlflow]\nhunter2"), ({}, "[mlflow]\nmlflow_tracking_password = hunter2%")],
)
def test_a_login_that_cannot_be_used_is_not_shown(
    variables: dict[str, str], credentials: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    (home / ".mlflow").mkdir()
    (home / ".mlflow" / "credentials").write_text(credentials)
    with serving(Server) as address, caplog.at_level(logging.DEBUG):
        assert not lacks_runs(address, ["k"])
    assert "was not asked for runs" in caplog.text
    assert "hunter2" not in caplog.text


def self_signed(folder: Path) -> Path:
    """Key and certificate of a server on loopback that nobody has signed but itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1))
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = made.add_extension(here, critical=False).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "server.pem"
    file.write_bytes(private + made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # urllib3's own, of what the variable asks for
@pytest.mark.parametrize(
    ("variable", "is_asked"), [("", False), ("SERVER_CERT_PATH", True), ("INSECURE_TLS", True), ("CLIENT_CERT_PATH", False)]
)
def test_its_certificate_is_trusted_as_mlflows_client_trusts_it(
    variable: str, is_asked: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = self_signed(home)
    if variable:
        monkeypatch.setenv(f"MLFLOW_TRACKING_{variable}", "true" if variable == "INSECURE_TLS" else str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with serving(Server, context) as address:
        assert lacks_runs(address, ["k"]) is is_asked


def test_a_client_shows_its_certificate(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = self_signed(home)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.load_verify_locations(file)
    context.verify_mode = ssl.CERT_REQUIRED
    with serving(Server, context) as address:
        assert not lacks_runs(address, ["k"])
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(file))
        assert lacks_runs(address, ["k"])


def test_certificates_that_are_not_there_are_no_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", os.devnull + "/ca.pem")
    assert not lacks_runs("https://127.0.0.1:9", ["k"])
