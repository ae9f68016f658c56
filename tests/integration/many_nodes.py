"""A Ray cluster of several nodes on one machine: real daemons, token authentication, every node killable as a whole.

    with ManyNodes(folder, cpus=(1, 1, 1)) as cluster:
        cluster.nodes[0].kill()         SIGKILL to everything that the node has started, then and later
        cluster.start_node(1)           a new node
        cluster.head.kill(); cluster.start_head(); ...

Each node carries a mark of its own in its environment, inherited by whatever it starts: so nobody else's process is ever touched.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import requests
from ray._private.authentication_test_utils import reset_auth_token_state

from orchestrator.cluster.processes import ProcessRecord, family, free_port, start_detached, wait_until_up
from orchestrator.cluster.service_environment import LOOPBACK, service_environment
from tests.integration import on_demand
from tests.integration.cluster import SHORT
from trainers.errors import ClusterError

REPOSITORY = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 200 << 20
_START_LIMIT_S = 300.0


class Node:
    """One node of the cluster: a raylet with all that it has started; on the head the GCS and the job server too."""

    def __init__(self, record: ProcessRecord, cpus: int) -> None:
        self.record, self.cpus = record, cpus

    @property
    def is_alive(self) -> bool:
        """True while its first process runs."""
        return self.record.is_alive

    def processes(self) -> list[psutil.Process]:
        """Everything of the node that lives now."""
        return family(self.record)

    def kill(self) -> int:
        """Power off: SIGKILL to every process of the node until none is left; returns how many there were."""
        killed: set[int] = set()
        deadline = time.monotonic() + 20
        while left := [process for process in self.processes() if _lives(process)]:
            for process in left:
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                    killed.add(process.pid)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.record.name}: processes {[p.pid for p in left]} do not die")
            time.sleep(0.05)
        return len(killed)


class ManyNodes:
    """The cluster; `cpus` are the CPUs of its worker nodes, the head gives out none."""

    def __init__(self, folder: Path, cpus: tuple[int, ...], *, most_on_demand: int = 0) -> None:
        """`most_on_demand`: so many nodes of one CPU more are started by Ray's autoscaler when something asks for them."""
        self.folder, self._cpus, self._most_on_demand = folder, cpus, most_on_demand
        self.token_file = folder / "token"
        self.head: Node | None = None
        self.nodes: list[Node] = []
        self.gcs_port = self.dashboard_port = 0
        self._temporary: list[str] = []
        self._everyone: list[Node] = []
        self._started = 0

    def __enter__(self) -> "ManyNodes":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(secrets.token_hex(32))
        self._before = dict(os.environ)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)
        os.environ |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "NNFLEET_HOME": str(self.folder / "home"),
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }
        reset_auth_token_state()  # this process has imported ray before
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for _ in range(3):  # somebody who is impatient may interrupt this too
            with contextlib.suppress(KeyboardInterrupt):
                for node in self._everyone:
                    node.kill()
                break
        os.environ.clear()
        os.environ.update(self._before)
        reset_auth_token_state()
        for name in self._temporary:
            shutil.rmtree(name, ignore_errors=True)

    @property
    def address(self) -> str:
        """The job server's."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start(self, *, same_address: bool = False) -> None:
        """A head that knows nothing of the past, and all nodes, which join it."""
        self.start_head(same_address=same_address)
        self.nodes = []
        for cpus in self._cpus:  # one after the other: Ray tells nodes of one address apart by their order
            self.start_node(cpus)

    def start_head(self, *, same_address: bool = False) -> None:
        """Start a head at new ports or at those of the last one; returns when its job server answers."""
        if not same_address:
            self.gcs_port, self.dashboard_port = free_port(), free_port()
        command = [
            *self._ray("--head", f"--port={self.gcs_port}", "--num-cpus=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={self.dashboard_port}", f"--ray-client-server-port={free_port()}"),
        ]
        extra: dict[str, str] = {}
        if self._most_on_demand:
            command.append(f"--autoscaling-config={self._autoscaling()}")
            extra = on_demand.ENVIRONMENT
        self.head = self._launch("head", command, 0, extra)
        token = {"Authorization": f"Bearer {self.token_file.read_text()}"}

        def answers() -> bool:
            try:
                return requests.get(f"{self.address}/api/version", headers=token, timeout=10).status_code == 200
            except requests.RequestException:
                return False

        wait_until_up(self.head.record, answers, self._log(self.head), _START_LIMIT_S)

    def start_node(self, cpus: int) -> Node:
        """Start one more node; returns when it has joined.

        Ray gives a node 30 s for its start, which a busy machine may exceed: it is started again, as whoever runs a cluster does.
        """
        for is_last in (False, False, True):
            node = self._launch_node(cpus)
            self.nodes.append(node)
            try:
                self._await_joined(node)
                break
            except ClusterError:
                node.kill()
                self.nodes.remove(node)
                if is_last:
                    raise
        return node

    def kill_head(self) -> None:
        """The head with its GCS, job server, campaigns and drivers dies; nodes go on without it for a while."""
        assert self.head is not None
        self.head.kill()
        self.head = None

    def forget_nodes(self, *, kill: bool) -> None:
        """Before the cluster is made anew: the old nodes die, or are left to find out by themselves."""
        for node in self.nodes if kill else ():
            node.kill()
        self.nodes = []

    def replace(self, node: Node) -> Node:
        """A new node instead of one that has died."""
        self.nodes.remove(node)
        return self.start_node(node.cpus)

    def leftovers(self) -> list[psutil.Process]:
        """Processes of nodes that were killed or given up."""
        current = {id(node) for node in (self.head, *self.nodes)}
        return [process for node in self._everyone if id(node) not in current for process in node.processes()]

    def processes(self) -> Iterator[psutil.Process]:
        """Everything of all nodes, of those given up too."""
        for node in self._everyone:
            yield from node.processes()

    def node_of(self, pid: int) -> Node | None:
        """The worker node on which a process runs; None for the head's."""
        return next((node for node in self.nodes if any(p.pid == pid for p in node.processes())), None)

    def ray_node_id(self, node: Node) -> str:
        """Ray's id of a node, as its raylet was told."""
        for process in node.processes():
            with contextlib.suppress(psutil.Error):
                for part in process.cmdline():
                    if part.startswith(("--node-id=", "--node_id=")):
                        return str(part.split("=", 1)[1])
        raise RuntimeError(f"{node.record.name} has no raylet")

    def log_tails(self, lines: int = 15) -> str:
        """The end of every node's log."""
        return "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-80 * lines :]}" for path in sorted(self.folder.glob("node-*.log"))
        )

    def _launch_node(self, cpus: int) -> Node:
        return self._launch("worker", self._ray(f"--address=127.0.0.1:{self.gcs_port}", f"--num-cpus={cpus}"), cpus)

    def _ray(self, *options: str) -> list[str]:
        common = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--dashboard-agent-listen-port=0", "--num-gpus=0"]
        ports = ["--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={OBJECT_STORE_BYTES}"]
        return [sys.executable, "-m", "ray.scripts.scripts", "start", *common, *ports, *options]

    def _autoscaling(self) -> Path:
        """The configuration of the head's autoscaler."""
        self._temporary.append(tempfile.mkdtemp(prefix="nnf", dir=SHORT))
        path = self.folder / "autoscaling.yaml"
        found = on_demand.configuration(self.gcs_port, self._temporary[-1], self._most_on_demand, OBJECT_STORE_BYTES)
        path.write_text(json.dumps(found))
        return path

    def _launch(self, kind: str, command: list[str], cpus: int, extra: dict[str, str] | None = None) -> Node:
        self._started += 1
        self._temporary.append(tempfile.mkdtemp(prefix="nnf", dir=SHORT))
        command = [*command, f"--temp-dir={self._temporary[-1]}"]  # of its own: nodes would unpack code over each other's
        environment = {
            **service_environment(),
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": f"{_START_LIMIT_S:.0f}",
            "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": f"{_START_LIMIT_S:.0f}",
            **{name: value for name, value in LOOPBACK.items() if name.endswith("_PORT")},  # the rest forbids a second node
            **{
                name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "NNFLEET_HOME", "PYTHONPATH", "OMP_NUM_THREADS")
            },
            **(extra or {}),
        }
        name = f"node-{self._started:02d}-{kind}"
        node = Node(start_detached(name, command, environment, self.folder / f"{name}.log", self.gcs_port), cpus)
        self._everyone.append(node)
        return node

    def _log(self, node: Node) -> Path:
        return self.folder / f"{node.record.name}.log"

    def _await_joined(self, node: Node) -> None:
        wait_until_up(
            node.record, lambda: "Ray runtime started" in self._log(node).read_text(errors="replace"), self._log(node), _START_LIMIT_S
        )


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
