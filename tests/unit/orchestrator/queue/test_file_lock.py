"""Whoever waits for a lock says for whom, and not for ever."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import ClusterError, StorageError
from orchestrator.queue import file_lock
from orchestrator.queue.file_lock import locked
from orchestrator.queue.registry import Registry

ROOT = Path(__file__).parents[4]
HOLDS = (
    "import sys, time; from pathlib import Path; from orchestrator.queue.file_lock import locked\n"
    "with locked(Path(sys.argv[1]), 'test', 10.0):\n    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "NOTICE_S", 0.05)


def test_a_wait_is_logged_once_and_ends_as_an_error_that_names_the_holder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "admission.lock"
    environment = {"NNFLEET_SUBMISSION_ID": "campaign-7"}
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, env=environment, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        holder = f"job campaign-7, process {other.pid} on "
        expected = rf"admission\.lock has been locked for 0 s, by {holder}"
        with pytest.raises(ClusterError, match=expected), locked(path, "campaign: admission", 0.3):
            pass
        other.kill()
    [waiting] = caplog.messages
    assert "campaign: admission has waited for" in waiting
    assert f"it is held by {holder}" in waiting
    assert "when that process releases the lock or ends" in waiting
    with locked(path, "campaign: admission", 0.3):  # the lock of a process that was killed is free
        assert len(caplog.messages) == 1


def test_campaigns_of_the_version_before_are_waited_for_too(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    with (registry.folder / "admission.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        nameless = pytest.raises(ClusterError, match="a process that has not left its name")
        with nameless, locked(registry.folder / "admission.lock", "campaign: admission", 0.2):
            pass
    with registry.locked("admission"), registry.locked("opening"):
        assert {path.name for path in registry.folder.glob("*.lock")} == {"admission.lock", "opening.lock"}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (errno.ENOLCK, r"local services: .*lock cannot be locked: No locks available\. .*NNFLEET_HOME"),
        (errno.EOPNOTSUPP, r"local services: .*lock cannot be locked: .*on a local disk"),
        (errno.ENOSPC, r"storage: .*lock cannot be written: the file system is full"),
    ],
)
def test_a_file_system_that_takes_no_lock_is_named(fault: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(descriptor: int, operation: int) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(StorageError, match=told), locked(tmp_path / "lock", "local services", 1.0):
        pass
