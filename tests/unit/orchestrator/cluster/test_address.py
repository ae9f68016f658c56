"""Which host and port an address means."""

import socket
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.address import host_and_port
from orchestrator.resume.resume_check import with_reachable_server
from orchestrator.resume.unfinished import Found
from tests.fake_run import FakeRun


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://host", ("host", 80)),
        ("https://host", ("host", 443)),
        ("https://host/mlflow", ("host", 443)),
        ("https://host:8443", ("host", 8443)),
        ("http://[::1]:5000/x", ("::1", 5000)),
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
    ],
)
def test_the_port_is_that_of_the_scheme_unless_it_is_named(address: str, expected: tuple[str, int]) -> None:
    assert host_and_port(address) == expected


@pytest.mark.parametrize(
    "address", ["host", "http://", "http://host:0", "http://host:x", "http://[::1", "", "gcs://host", "http://h:99999"]
)
def test_what_names_no_host_and_port_is_an_error_that_does_not_repeat_it(address: str) -> None:
    with pytest.raises(ValueError, match="no host, or no port") as refusal:
        host_and_port(address)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_a_server_behind_https_is_asked_at_its_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def connect(place: tuple[str, int], **options: Any) -> socket.socket:
        asked.append(place)
        if place[1] != 443:
            raise ConnectionRefusedError
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    run = FakeRun(tmp_path, tracking_uri="https://localhost")
    progress: Any = None
    found = with_reachable_server(Found(run.spec, progress), "http://127.0.0.1:5000")
    assert found.spec.tracking_uri == "https://localhost", "it lives, so it is not replaced"
    assert asked == [("localhost", 443)]
