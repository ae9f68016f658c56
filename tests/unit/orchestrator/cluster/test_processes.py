"""Long-lived processes: known from their first moment."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.processes import ProcessRecord, end, free_port, is_listening, start_detached, wait_until_up


def test_a_process_is_alive_from_its_first_moment(tmp_path: Path) -> None:
    """Its environment, by which it is known, cannot be read for some milliseconds: 7 of 100 were taken for dead."""
    started: list[ProcessRecord] = []
    try:
        for _ in range(60):
            started.append(
                start_detached(
                    "sleeper", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], dict(os.environ), tmp_path / "log", 1
                )
            )
            assert started[-1].is_alive
    finally:
        for record in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, 9)
        for record in started:
            end(record, grace_s=0)
    assert not started[0].is_alive


IGNORING = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
"""As a shell does for what it starts in the background."""


def test_a_service_that_is_started_in_the_background_hears_interrupts(tmp_path: Path) -> None:
    """Else no job of its head does, and a stop kills each after 20 s."""
    told, log_file = tmp_path / "told", tmp_path / "log"
    child = f"import signal; open({str(told)!r}, 'w').write(str(signal.getsignal(signal.SIGINT) is signal.default_int_handler))"
    code = IGNORING + (
        "import os, pathlib, sys\nfrom orchestrator.cluster.processes import start_detached\n"
        f"command, log_file = [sys.executable, '-S', '-c', {child!r}], pathlib.Path({str(log_file)!r})\n"
        "os.waitpid(start_detached('child', command, dict(os.environ), log_file, 1).pid, 0)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert told.read_text() == "True"


def test_a_job_hears_interrupts_on_a_head_that_was_started_in_the_background() -> None:
    code = IGNORING + "from orchestrator.run.interrupts import obey_interrupts\nobey_interrupts()\nsignal.raise_signal(signal.SIGINT)\n"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in ended.stderr


def test_the_port_of_a_process_that_is_just_ending_is_waited_for() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ending = threading.Timer(0.3, holder.close)
        ending.start()
        assert free_port(port) == port
        ending.join()


def unreadable(process: psutil.Process, kind: str = "") -> None:
    raise psutil.AccessDenied(process.pid)


def test_a_server_whose_sockets_cannot_be_read_listens_if_its_user_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `up` waits for three minutes for a server that answers, and calls it silent."""
    port = free_port()
    command = [sys.executable, "-S", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    record = start_detached("server", command, os.environ, tmp_path / "log", port)
    try:
        wait_until_up(record, lambda: is_listening(record), tmp_path / "log", 60)
        monkeypatch.setattr(psutil.Process, "net_connections", unreadable)
        assert is_listening(record)
        assert not is_listening(record.model_copy(update={"port": free_port()}))
        monkeypatch.setattr(os, "getuid", lambda: 4711)
        assert not is_listening(record)
    finally:
        monkeypatch.undo()
        end(record, grace_s=0)


def test_a_process_whose_environment_cannot_be_read_is_known_by_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = start_detached("sleeper", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], os.environ, tmp_path / "log", 1)
    try:
        monkeypatch.setattr(psutil.Process, "environ", unreadable)
        assert record.is_alive
        assert not record.model_copy(update={"started_unix": record.started_unix - 3600}).is_alive
    finally:
        monkeypatch.undo()
        end(record, grace_s=0)
