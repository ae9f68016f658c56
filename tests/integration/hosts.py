"""Hosts on one machine: each a set of Linux namespaces with a name, an address and processes of its own, all on one switch.

A host sees the same disk as the others and nothing else of them: what passes between two hosts passes through the switch, where a cable
can be pulled; and a host dies with everything on it when the first process of its process namespace is killed. Needs root.

    with Hosts(("head", "left", "right")) as hosts:
        hosts["left"].start([...])      a process there
        hosts["left"].cut(); .mend()    its cable
        hosts["left"].kill(); .boot()   power off and on
"""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
RAY_TEMP = "/tmp/nnf-ray"
"""Where Ray's daemons keep their sockets and logs: the same path on every host, a disk of its own on each."""
GCS_PORT = 6379
_FIRST_PROCESS = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"
"""Does nothing but bury the orphans of its process namespace, as every init does."""
_TRIED = "unshare --net --mount --uts --pid --fork --mount-proc --kill-child ip link add nnf0 type bridge"


def reason_against() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    try:
        tried = subprocess.run(_TRIED.split(), capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as err:
        return f"network namespaces are not available: {err}"
    return f"network namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One host on the switch; `boot` it before use."""

    def __init__(self, name: str, number: int, switch: int, folder: Path) -> None:
        self.name, self.address = name, f"10.77.0.{number}"
        self._port, self._switch, self._folder = f"port{number}", switch, folder
        self._init: psutil.Process | None = None

    def boot(self) -> None:
        """Bring the host up with its cable in; a host that was killed comes up anew."""
        self._init = _namespaces("--net", "--mount", "--uts", "--pid", "--mount-proc")
        _run("ip", "link", "add", self._port, "netns", str(self._switch), "type", "veth", "peer", "eth0", "netns", str(self.pid))
        _within(self._switch, "ip", "link", "set", self._port, "master", "switch", "up")
        names = self._folder / f"{self.name}.hosts"
        names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")  # as Debian and Ubuntu do; gloo would listen on 127.0.1.1
        for command in (
            ("hostname", self.name),
            ("mount", "--bind", str(names), "/etc/hosts"),
            ("mkdir", "-p", RAY_TEMP),
            ("mount", "-t", "tmpfs", "ray", RAY_TEMP),
            ("ip", "link", "set", "lo", "up"),
            ("ip", "address", "add", f"{self.address}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
        ):
            self.run(*command)

    @property
    def is_up(self) -> bool:
        """True from `boot` to `kill`."""
        return self._init is not None

    @property
    def pid(self) -> int:
        """The host's first process, as the machine outside counts."""
        assert self._init is not None, f"{self.name} is not up"
        return int(self._init.pid)

    def run(self, *command: str) -> str:
        """Run a short command on the host; its output."""
        return _run(*self.enter, *command)

    def start(self, command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> "subprocess.Popen[bytes]":
        """Start a process on the host, output appended to `log_file`. Ending the handle does not end the process: `kill` the host."""
        with log_file.open("ab") as stream:
            return subprocess.Popen([*self.enter, *command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=dict(environment))

    def cut(self) -> None:
        """Pull the cable: nothing goes in or out, and neither side is told."""
        _within(self._switch, "ip", "link", "set", self._port, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _within(self._switch, "ip", "link", "set", self._port, "up")

    def kill(self) -> None:
        """SIGKILL to everything on the host at once; its interface goes with it."""
        if self._init is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._init.kill()
                psutil.wait_procs([self._init], timeout=30)
        self._init = None

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The living processes of the host whose title begins with `title`."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == mine and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def has(self, pid_there: int, title: str) -> bool:
        """True if the process that the host itself calls `pid_there` lives on it, under that title."""
        return any(pid_there == _own_pid(process.pid) for process in self.processes(title))

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command begins with that runs on the host."""
        return ("nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--pid", "--")


class Hosts:
    """Hosts on a switch that nothing else is connected to; all of them end with the context."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._by_name: dict[str, Host] = {}

    def __enter__(self) -> "Hosts":
        self._folder = tempfile.TemporaryDirectory(prefix="nnf-hosts-")
        self._switch = _namespaces("--net", "--pid")
        _within(self._switch.pid, "ip", "link", "add", "switch", "type", "bridge")
        _within(self._switch.pid, "ip", "link", "set", "switch", "up")
        for number, name in enumerate(self._names, 1):
            self._by_name[name] = Host(name, number, self._switch.pid, Path(self._folder.name))
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._by_name.values():
            host.kill()
        self._switch.kill()
        self._folder.cleanup()

    def __getitem__(self, name: str) -> Host:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._by_name.values())

    def holder_of(self, pid_there: int, title: str) -> Host:
        """The host on which the process lives that calls itself `pid_there`."""
        (host,) = [host for host in self if host.is_up and host.has(pid_there, title)]
        return host


class RayHosts:
    """One Ray node on each host, the first being a head without CPUs; token authentication, and a driver on the head."""

    def __init__(self, hosts: Hosts, cpus: Mapping[str, int], log_folder: Path, head_environment: Mapping[str, str] | None = None) -> None:
        self.hosts, self._cpus, self._logs = hosts, dict(cpus), log_folder
        self.head = next(iter(hosts))
        token = log_folder / "token"
        token.touch(mode=0o600)
        token.write_text("0123456789abcdef" * 4)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GLOO_SOCKET_IFNAME": "eth0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        self._head_environment = dict(head_environment or {})

    def start(self, host: Host) -> None:
        """Boot a host and start its Ray node; the head first."""
        host.boot()
        self.start_ray(host)

    def start_ray(self, host: Host) -> None:
        """Start a host's Ray node; again after the cluster has given the old one up, as a service manager would."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={host.address}", f"--temp-dir={RAY_TEMP}", "--object-store-memory=200000000"]
        if host is self.head:
            command += ["--head", "--num-cpus=0", f"--port={GCS_PORT}", f"--dashboard-host={host.address}"]
        else:
            command += [f"--num-cpus={self._cpus[host.name]}", f"--address={self.head.address}:{GCS_PORT}"]
        environment = {**self._environment, **(self._head_environment if host is self.head else {})}
        host.start(command, environment, self._logs / f"{host.name}.log")

    def ask(self, code: str) -> str:
        """What `code` prints in a Python on the head."""
        command = [*self.head.enter, sys.executable, "-c", code]
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True, timeout=120).stdout.strip()

    def wait_for_cpus(self, count: int, timeout_s: float = 120.0) -> None:
        """Return once the living nodes have `count` CPUs together."""
        self.ask(_WAIT_FOR_CPUS.format(address=f"{self.head.address}:{GCS_PORT}", count=count, timeout_s=timeout_s))

    def train(self, run_folder: Path) -> "subprocess.Popen[bytes]":
        """Start the driver of a training on the head, without handing over to a validation."""
        environment = {**self._environment, "RAY_ADDRESS": f"{self.head.address}:{GCS_PORT}"}
        command = [sys.executable, "-m", "tests.integration.hosts", str(run_folder)]
        return self.head.start(command, environment, self._logs / "driver.log")


_WAIT_FOR_CPUS = """
import time
import ray
deadline = time.monotonic() + {timeout_s}
while True:
    try:
        ray.init(address="{address}", logging_level="error", log_to_driver=False)
        break
    except Exception:
        if time.monotonic() > deadline: raise
        time.sleep(0.5)
while sum(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]) != {count}:
    assert time.monotonic() < deadline, ray.nodes()
    time.sleep(0.2)
"""


def main() -> int:
    """The driver, on the head: train the run of a run folder."""
    import ray

    from orchestrator.cluster.jobs import JOB_ENVIRONMENT
    from orchestrator.training.driver import run_training
    from trainers.contract.run_folder import RunFolder

    os.environ.update({name: value for name, value in JOB_ENVIRONMENT.items() if name not in os.environ})
    ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}})
    outcome = run_training(RunFolder(Path(sys.argv[1])), hands_over=False)
    print(outcome.model_dump_json())
    return int(outcome.state != "TRAINED")


def _namespaces(*kinds: str) -> psutil.Process:
    """A process that holds new namespaces of these kinds open and ends with us; the first one inside them."""
    holder = subprocess.Popen(
        ["unshare", *kinds, "--fork", "--kill-child", sys.executable, "-S", "-E", "-c", _FIRST_PROCESS], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in psutil.Process(holder.pid).children():
            if child.name() != "unshare":  # it has become the first process
                return child
        time.sleep(0.02)
    raise RuntimeError("the first process of a host did not come up")


def _within(pid: int, *command: str) -> str:
    return _run("nsenter", "--target", str(pid), "--net", "--", *command)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _own_pid(pid: int) -> int | None:
    """The id that a process has in its own process namespace."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None


if __name__ == "__main__":
    sys.exit(main())
