"""Long-lived processes: known from their first moment."""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

from orchestrator.cluster.processes import ProcessRecord, end, free_port, start_detached


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


def test_the_port_of_a_process_that_is_just_ending_is_waited_for() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ending = threading.Timer(0.3, holder.close)
        ending.start()
        assert free_port(port) == port
        ending.join()
