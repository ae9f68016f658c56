"""Long-lived processes: known from their first moment."""

import contextlib
import os
import sys
from pathlib import Path

from orchestrator.processes import ProcessRecord, end, start_detached


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
    end(started[0], grace_s=0)
    assert not started[0].is_alive
