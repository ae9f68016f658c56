"""A real MLflow server for tests: one uvicorn worker, sqlite and artifacts in a folder, ended by its process id."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient

from orchestrator.cluster.service_environment import QUIET
from orchestrator.tracking.client import Tracker


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client_of(tracker: Tracker) -> MlflowClient:
    """MLflow's own client of the same server: what it holds, seen past our code."""
    return MlflowClient(tracker.uri)


class MlflowServer:
    """Start, kill, freeze and restart one server; its store and its port outlive it."""

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        """`options`: in the place of those that say where artifacts are kept."""
        self.folder = folder
        self.options = options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> Path:
        """Where the server keeps artifact files."""
        return self.folder / "artifacts"

    def start(self) -> "MlflowServer":
        """Start the server and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | QUIET
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += self.options or ["--artifacts-destination", str(self.artifacts)]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server did not start: {(self.folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.1)
        return self

    def kill(self) -> None:
        """End the server and its worker at once, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the server's processes: connections are accepted, nothing is answered."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
