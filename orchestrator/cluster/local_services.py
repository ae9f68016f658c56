"""The local services: a Ray head with job server and token authentication, and an MLflow server, both on loopback.

`up` is idempotent: it reuses what runs and starts what does not. `down` ends what `up` started and nothing else.
"""

import contextlib
import http.client
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.cluster.home import Home
from orchestrator.cluster.mlflow_store import keep_settings, server_options, upgrade_database
from orchestrator.cluster.processes import ProcessRecord, end, free_port, is_free, is_listening, start_detached, wait_until_up
from orchestrator.queue.file_lock import locked
from trainers.contract.errors import ClusterError
from trainers.contract.files import write_atomic

START_TIMEOUT_S = 180.0
STARTS = 3
"""How often `up` starts a service that was dying when it was found, or that lost its port while it started."""
LOCK_TIMEOUT_S = (2 * STARTS + 1) * START_TIMEOUT_S
"""How long `up` and `down` wait for another one, which may start both services so often."""
SESSIONS_KEPT = 3
"""Folders of earlier Ray heads that stay, for their logs."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_enable_metrics_collection": "0",  # its thread reads the environment while others write it, which may kill a worker (ray#62028)
    "RAY_enable_open_telemetry": "0",  # each of the two switches alone leaves such a thread
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "true",
}
"""Nothing calls home, lines of different ranks are not folded into one, and no process of Ray exports metrics (to Prometheus)."""
LOGIN_VARIABLES = frozenset(
    f"MLFLOW_TRACKING_{name}"
    for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "INSECURE_TLS", "CLIENT_CERT_PATH", "SERVER_CERT_PATH")
)
"""Login and trusted certificates of MLflow's client; the jobs of the local head use it for an MLflow server of the user's own."""
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what Ray sets on macOS: the node's address is 127.0.0.1, and every server binds there only
    "AUTOSCALER_METRIC_PORT": "0",  # any free one: the fixed ports collide with another head on this machine
    "DASHBOARD_METRIC_PORT": "0",
}
_OBJECT_STORE_MAX = 8 << 30
_OBJECT_STORE_MIN = 128 << 20


class Services(BaseModel):
    """What runs on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ray: ProcessRecord
    mlflow: ProcessRecord
    token_file: Path

    @property
    def ray_address(self) -> str:
        """Dashboard and job server."""
        return f"http://127.0.0.1:{self.ray.port}"

    @property
    def mlflow_uri(self) -> str:
        """MLflow's API and UI."""
        return f"http://127.0.0.1:{self.mlflow.port}"

    @property
    def token(self) -> str:
        """What the job server asks for."""
        return read_token(self.token_file)


class _Ports(BaseModel):
    ray: int | None = None
    mlflow: int | None = None


def up(
    home: Home | None = None, *, num_cpus: int | None = None, allow_hosts: Sequence[str] = (), artifacts: Path | None = None
) -> Services:
    """Start what does not run yet and wait until both services answer. `num_cpus` bounds the CPUs that Ray gives out (default: all).

    `allow_hosts`: names by which browsers reach MLflow through a proxy; `artifacts`: where it keeps them. Both hold for later calls too,
    and a running MLflow server starts again with them. Raises ConfigError, and ClusterError with the end of the log when a service does not
    come up.
    """
    home = home or Home.default()
    home.create()
    with locked(home.lock_file, "local services", LOCK_TIMEOUT_S):
        ensure_token(home.token_file)
        if keep_settings(home, allow_hosts, artifacts):
            _end_mlflow(home)
        for _ in range(STARTS - 1):
            found = [record for record in _recorded(home).values() if record.is_alive]
            try:
                return _brought_up(home, num_cpus)
            except ClusterError as err:
                was_dying = not all(record.is_alive for record in found)
                lost_its_port = "address already in use" in str(err).lower()  # its log tells: the other process may be gone by now
                if not (was_dying or lost_its_port or any(_lost_its_port(record) for record in _recorded(home).values())):
                    raise
        return _brought_up(home, num_cpus)


def _end_mlflow(home: Home) -> None:
    if (record := _recorded(home).get("mlflow")) is not None:
        end(record)


def _lost_its_port(record: ProcessRecord) -> bool:
    """True if another process took the port between our choice and the bind of the service, seconds later, which ended it."""
    return not record.is_alive and not is_free(record.port)


def _brought_up(home: Home, num_cpus: int | None) -> Services:
    before = _recorded(home)
    ray = _reused(before.get("ray")) or start_ray(home, num_cpus)
    write_record(home, {**before, "ray": ray})
    mlflow = _reused(before.get("mlflow")) or start_mlflow(home)
    write_record(home, {"ray": ray, "mlflow": mlflow})
    token = read_token(home.token_file)  # not for a stranger who has taken the port
    wait_until_up(ray, lambda: is_listening(ray) and _ray_answers(ray.port, token), home.ray_log, START_TIMEOUT_S)
    wait_until_up(mlflow, lambda: is_listening(mlflow) and _mlflow_answers(mlflow.port), home.mlflow_log, START_TIMEOUT_S)
    _write_private(home.ports_file, _Ports(ray=ray.port, mlflow=mlflow.port).model_dump_json())
    return Services(ray=ray, mlflow=mlflow, token_file=home.token_file)


def down(home: Home | None = None) -> None:
    """End both services and everything they started; does nothing when they do not run. Raises ClusterError if a process survives."""
    home = home or Home.default()
    if not home.root.is_dir():
        return
    with locked(home.lock_file, "local services", LOCK_TIMEOUT_S):
        for record in _recorded(home).values():
            end(record)
        home.services_file.unlink(missing_ok=True)


def running(home: Home | None = None) -> Services | None:
    """The services if the Ray head runs, else None. Starts nothing; `up` mends an MLflow server that has died."""
    home = home or Home.default()
    records = _recorded(home)
    if {"ray", "mlflow"} <= records.keys() and records["ray"].is_alive:
        return Services(ray=records["ray"], mlflow=records["mlflow"], token_file=home.token_file)
    return None


def tracking_answers(services: Services) -> bool:
    """True if the local MLflow server answers, whether or not the process that `up` started still watches it."""
    return services.mlflow.is_alive or _mlflow_answers(services.mlflow.port)


def read_token(path: Path) -> str:
    """The token in a file. Raises ClusterError when it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as err:
        raise ClusterError(f"token: {path} cannot be read: {err}. `nnfleet down`, then `nnfleet up` makes a new one.") from err


def start_ray(home: Home, num_cpus: int | None) -> ProcessRecord:
    """Start a Ray head and return at once; `up` waits until it answers."""
    _prune_sessions(home.ray_temp)
    port = free_port(_last_ports(home).ray)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--port=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={port}", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *(f"--temp-dir={home.ray_temp}", f"--object-store-memory={_object_store_bytes()}"),
        *([] if num_cpus is None else [f"--num-cpus={num_cpus}"]),
    ]
    environment = {**service_environment(), **LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home.token_file)}
    return start_detached("Ray head", command, environment, home.ray_log, port)


def _prune_sessions(ray_temp: Path) -> None:
    """Delete what heads of the past left (logs, code packages), except the newest few."""
    sessions = sorted(path for path in ray_temp.glob("session_*") if path.is_dir() and not path.is_symlink())
    for path in sessions[:-SESSIONS_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def start_mlflow(home: Home) -> ProcessRecord:
    """Start an MLflow server, on a database of its own version, and return at once; `up` waits until it answers."""
    upgrade_database(home, service_environment())
    port = free_port(_last_ports(home).mlflow)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *server_options(home),
    ]
    return start_detached("MLflow server", command, service_environment(), home.mlflow_log, port)


def service_environment() -> dict[str, str]:
    """This process's environment with our interpreter first on PATH, quiet, and without the address of any other cluster.

    A login to an MLflow server of the user's own stays (MLFLOW_TRACKING_USERNAME and so on). nnU-Net's folders go: each submission
    brings its own, and those of the shell that happened to call `up` must not stand in for them.
    """
    strange = {"OMP_NUM_THREADS", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"}
    kept = {k: v for k, v in os.environ.items() if k in LOGIN_VARIABLES or not (k in strange or k.startswith(("RAY_", "MLFLOW_")))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return {**kept, **QUIET, **without_proxy(kept), "PATH": path}


def without_proxy(environment: dict[str, str]) -> dict[str, str]:
    """NO_PROXY extended by loopback: a hospital's proxy cannot reach our services."""
    before = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [name for name in before.split(",") if name]
    value = ",".join([*names, *(host for host in ("127.0.0.1", "localhost") if host not in names)])
    return {"NO_PROXY": value, "no_proxy": value}


def _object_store_bytes() -> int:
    """A fifth of the memory, at most 8 GiB and at most four fifths of what shared memory has free."""
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else _OBJECT_STORE_MAX
    wanted = min(psutil.virtual_memory().total // 5, _OBJECT_STORE_MAX, shared * 4 // 5)
    return max(int(wanted), _OBJECT_STORE_MIN)


def _reused(record: ProcessRecord | None) -> ProcessRecord | None:
    """The record if its process runs. What a dead process left behind is ended, so that it cannot hold ports or files."""
    if record is None:
        return None
    if record.is_alive:
        return record
    end(record, grace_s=0.0)
    return None


def _recorded(home: Home) -> dict[str, ProcessRecord]:
    try:
        content = home.services_file.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        return _Recorded.model_validate_json(content).records
    except ValidationError as err:
        raise ClusterError(f"services: {home.services_file} is not what `nnfleet up` wrote: {err}. End the processes, remove it.") from err


class _Recorded(BaseModel):
    records: dict[str, ProcessRecord]


def write_record(home: Home, records: dict[str, ProcessRecord]) -> None:
    """Note which processes are the services, by `ray` and `mlflow`: what `running`, `up` and `down` go by."""
    _write_private(home.services_file, _Recorded(records=records).model_dump_json(indent=1))


def _write_private(path: Path, content: str) -> None:
    write_atomic(path, content.encode())  # made 0644 inside a folder of mode 0700, then narrowed
    path.chmod(0o600)


def _last_ports(home: Home) -> _Ports:
    try:
        return _Ports.model_validate_json(home.ports_file.read_bytes())
    except (OSError, ValidationError):
        return _Ports()


def ensure_token(path: Path) -> None:
    """Make the token file with mode 0600 from the start; never widen one that exists, nor replace it unless it is empty.

    An empty one is what a crash or a full disk leaves; with it Ray would demand nothing.
    """
    if path.is_file() and not path.is_symlink() and not path.read_text(encoding="ascii", errors="replace").strip():
        path.unlink()
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _ray_answers(port: int, token: str) -> bool:
    return _get(port, "/api/version", {"Authorization": f"Bearer {token}"}) == 200


def _mlflow_answers(port: int) -> bool:
    return _get(port, "/health") == 200


def _get(port: int, path: str, headers: dict[str, str] | None = None) -> int | None:
    """HTTP status of a request to loopback, past any proxy; None when nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
