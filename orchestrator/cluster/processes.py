"""Long-lived child processes: started detached, known again by process id and start time, ended with all their descendants.

Every process of one service carries `NNFLEET_SERVICE=<random id>` in its environment, inherited by whatever it starts.
So its descendants are found even when their parent has died, and nobody else's process is ever touched.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from trainers.errors import ClusterError

MARK = "NNFLEET_SERVICE"
SERVICE_PORTS = range(20000, 32000)
"""Above Ray's default ports of workers, among which it refuses a dashboard; below the ports that most systems give to anybody who asks,
one of which could be taken between our choice and the server's start seconds later. A system may have a wider range of those: see
`local_services.up`."""
_LISTEN = "0A"
"""State of a listening socket in the kernel's table."""
PORT_S = 5.0
"""How long a port that is taken is tried again."""
EXEC_S = 1.0
"""Longest time in which a started process shows no environment yet: the kernel lays it out after it has reported success to the caller."""
START_TIME_S = 2.0
"""How far a process's start may be from the one that was noted, where that alone has to tell it."""
_CHILDREN: dict[int, "subprocess.Popen[bytes]"] = {}
"""Those that this process started: kept so that they can be reaped; they live on when it ends."""


class ProcessRecord(BaseModel):
    """A process that this user started: `pid` alone may be somebody else's by now, so the mark in its environment is kept too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pid: int
    started_unix: float
    mark: str
    """Value of NNFLEET_SERVICE in the environment of the process and of its descendants."""
    port: int
    host: str = ""
    boot_id: str = ""
    """Where and since which start of its kernel; empty in what earlier versions wrote."""

    @property
    def is_alive(self) -> bool:
        """True if this very process runs on this machine; a zombie does not."""
        if self.boot_id not in ("", boot_id()):
            return False
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and self._is_of(process)
        except (psutil.Error, OSError):
            return False

    def _is_of(self, process: psutil.Process) -> bool:
        try:
            return _environment_of(process).get(MARK) == self.mark
        except psutil.AccessDenied:  # not of a process of this user's, usually; its start time moves when the clock is set
            return bool(process.uids().real == os.getuid() and abs(process.create_time() - self.started_unix) < START_TIME_S)

    @property
    def is_elsewhere(self) -> bool:
        """True if it was started on another host, or in another container of this machine: whether it runs cannot be seen from here."""
        return self.host not in ("", socket.gethostname()) and not self.is_alive


def boot_id() -> str:
    """Differs for every start of a kernel; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _environment_of(process: psutil.Process) -> dict[str, str]:
    """A process's environment; one that is just being started has none to read for some milliseconds."""
    deadline = time.monotonic() + EXEC_S
    while not (found := process.environ()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return dict(found)


def start_detached(name: str, command: Sequence[str], environment: Mapping[str, str], log_file: Path, port: int) -> ProcessRecord:
    """Start `command` in a session of its own, output into `log_file`."""
    mark = secrets.token_hex(8)
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: mark},
            cwd=log_file.parent,
            start_new_session=True,
            preexec_fn=_default_interrupts,
        )
    _CHILDREN[process.pid] = process
    try:
        started = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        started = time.time()
    here = {"host": socket.gethostname(), "boot_id": boot_id()}
    return ProcessRecord(name=name, pid=process.pid, started_unix=started, mark=mark, port=port, **here)


def _default_interrupts() -> None:
    """Between fork and exec: a shell's background processes ignore SIGINT, and Ray's jobs, which are stopped by it, would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_up(record: ProcessRecord, answers: Callable[[], bool], log_file: Path, timeout_s: float) -> None:
    """Return when `answers()` is true. Raises ClusterError with the end of the log when the process dies or stays silent."""
    deadline = time.monotonic() + timeout_s
    while not answers():
        _reap(record.pid)
        if not record.is_alive:
            raise ClusterError(f"{record.name}: ended while starting. {log_tail(log_file)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{record.name}: no answer on port {record.port} within {timeout_s:.0f} s; `nnfleet down` ends it. {log_tail(log_file)}"
            )
        time.sleep(0.2)


def end(record: ProcessRecord, grace_s: float = 15.0) -> None:
    """End the process and all its descendants: SIGTERM to the first, SIGKILL to whatever is left after `grace_s`.

    Raises ClusterError when a process survives even that.
    """
    known = {process.pid: process for process in family(record)}
    if record.is_alive:
        _signal(record.pid, signal.SIGTERM)
    for process in _left(record, known, grace_s):
        _signal(process.pid, signal.SIGKILL)
    left = _left(record, known, 20.0)
    if left:
        listed = ", ".join(str(process.pid) for process in left)
        raise ClusterError(f"{record.name}: processes {listed} do not end. Inspect them with `ps`, then run `nnfleet down` again.")


def kill_chosen(record: ProcessRecord, is_chosen: Callable[[Mapping[str, str]], bool]) -> None:
    """SIGKILL the processes of a service whose environment is chosen; the others go on."""
    for process in family(record):
        with contextlib.suppress(psutil.Error, OSError):
            if is_chosen(process.environ()):
                process.kill()


def family(record: ProcessRecord) -> list[psutil.Process]:
    """The living processes of a service, without this process and its ancestors (`down` may run inside a job)."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())} - {record.pid}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid in own or process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get(MARK) == record.mark:
                found.append(process)
    return found


def free_port(wanted: int | None = None) -> int:
    """`wanted` if it is free on loopback, else a random free one of SERVICE_PORTS.

    A process that was killed may hold its port a moment longer than it is seen, so for PORT_S `wanted` is tried again: it is a server's
    address, which stands in run folders.
    """
    deadline = time.monotonic() + PORT_S
    while True:
        port = wanted if wanted and time.monotonic() < deadline else secrets.choice(SERVICE_PORTS)
        if is_free(port):
            return port
        time.sleep(0.05)


def is_free(port: int) -> bool:
    """True if a server could bind the port on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


def is_listening(record: ProcessRecord) -> bool:
    """True if a process of the service itself listens on its port, and no stranger; where its sockets are hidden, one of this user."""
    is_hidden = False
    for process in family(record):
        try:
            connections = process.net_connections(kind="tcp")
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == record.port for each in connections):
                return True
        except psutil.AccessDenied:
            is_hidden = True
        except (psutil.Error, OSError):
            continue
    return is_hidden and os.getuid() in _listening_users(record.port)


def _listening_users(port: int) -> set[int]:
    """The users whose sockets listen on a port, from the table that Linux shows to everybody."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            rows = [row.split() for row in table.read_text().splitlines()[1:]]
            found |= {int(row[7]) for row in rows if int(row[1].rsplit(":", 1)[1], 16) == port and row[3] == _LISTEN}
    return found


def log_tail(log_file: Path, lines: int = 20) -> str:
    """The end of a log as part of an error text, with the path of the whole."""
    try:
        text = log_file.read_text(errors="replace").splitlines()
    except OSError:
        return f"There is no log at {log_file}."
    return "\n".join([f"The end of {log_file}:", *text[-lines:]])


def _left(record: ProcessRecord, known: dict[int, psutil.Process], limit_s: float) -> list[psutil.Process]:
    """What still lives after `limit_s`. A dying process loses its environment before its ports: what was seen once is remembered."""
    deadline = time.monotonic() + limit_s
    while True:
        _reap(record.pid)
        known |= {process.pid: process for process in family(record)}
        left = [process for process in known.values() if _lives(process)]
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.2)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> None:
    if pid in _CHILDREN and _CHILDREN[pid].poll() is not None:
        del _CHILDREN[pid]
