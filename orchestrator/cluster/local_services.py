"""The local services: a Ray head with job server and token authentication, and an MLflow server, both on loopback.

`up` is idempotent: it reuses what runs and starts what does not. `down` ends what `up` started and nothing else.
"""

import contextlib
import http.client
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.cluster import nodes
from orchestrator.cluster.capacity import Offer, Share
from orchestrator.cluster.home import Home
from orchestrator.cluster.mlflow_store import keep_settings, server_options, upgrade_database
from orchestrator.cluster.neighbours import crowding, leave_notice, neighbours, remove_notice
from orchestrator.cluster.processes import ProcessRecord, end, free_port, is_free, is_listening, kill_chosen, start_detached, wait_until_up
from orchestrator.cluster.service_environment import LOOPBACK, SUBMISSION_VARIABLE, service_environment
from orchestrator.cluster.service_records import Ports, Recorded, read_ports, read_record, write_ports, write_record
from orchestrator.queue.file_lock import locked
from trainers.errors import ClusterError, ConfigError
from trainers.storage.faults import storing

log = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
STARTS = 3
"""How often `up` starts a service that was dying when it was found, or that lost its port while it started."""
LOCK_TIMEOUT_S = (2 * STARTS + 1) * START_TIMEOUT_S
"""How long `up` and `down` wait for another one, which may start both services so often."""
SESSIONS_KEPT = 3
"""Folders of earlier Ray heads that stay, for their logs."""
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


def up(
    home: Home | None = None,
    *,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    memory_gib: float | None = None,
    allow_hosts: Sequence[str] = (),
    artifacts: Path | None = None,
) -> Services:
    """Start what does not run yet and wait until both services answer.

    The numbers bound what Ray gives out, until `down`; default: what the last `up` named, else what this process may use. `allow_hosts`:
    names by which browsers reach MLflow through a proxy; `artifacts`: where it keeps them. Both hold for later calls too, and a running
    MLflow server starts again with them. Raises ConfigError when a head runs with other numbers, ClusterError with the end of the log
    when a service does not come up.
    """
    home = home or Home.default()
    asked = Share(cpus=num_cpus, gpus=num_gpus, memory_gib=memory_gib)
    home.create()
    with locked(home.lock_file, "local services", LOCK_TIMEOUT_S), storing(home.root):
        ensure_token(home.token_file)
        if keep_settings(home, allow_hosts, artifacts):
            _end_mlflow(home)
        for _ in range(STARTS - 1):
            found = [record for record in read_record(home).records.values() if record.is_alive]
            try:
                return _brought_up(home, asked)
            except ClusterError as err:
                if not _may_start_again(found, list(read_record(home).records.values()), str(err)):
                    raise
        return _brought_up(home, asked)


def _may_start_again(found: list[ProcessRecord], now: list[ProcessRecord], error: str) -> bool:
    """True if a service was dying when it was found, or ended since another process took its port between our choice and its bind.

    Its log tells that too: the other process may be gone by now. What still lives did not end by it, whatever its log says.
    """
    ended = [record for record in now if not record.is_alive]
    lost_its_port = "address already in use" in error.lower() or not all(is_free(record.port) for record in ended)
    return not all(record.is_alive for record in found) or bool(ended and lost_its_port)


def _end_mlflow(home: Home) -> None:
    if (record := read_record(home).records.get("mlflow")) is not None:
        end(record)


def _brought_up(home: Home, asked: Share) -> Services:
    before = read_record(home)
    asked = asked.over(before.asked)
    ray, offer = _reused(before.records.get("ray")), before.offer
    if ray is None:
        ray, offer = _started_ray(home, asked)
    elif asked != before.asked and not (offer and offer.meets(asked)):
        runs_with = offer.words if offer else "what an earlier version gave it"
        raise ConfigError(f"up: the Ray head runs already, with {runs_with}. `nnfleet down` first; `nnfleet resume` continues its runs.")
    write_record(home, Recorded(records={**before.records, "ray": ray}, asked=asked, offer=offer))
    mlflow = _reused(before.records.get("mlflow")) or start_mlflow(home)
    write_record(home, Recorded(records={"ray": ray, "mlflow": mlflow}, asked=asked, offer=offer))
    token = read_token(home.token_file)  # not for a stranger who has taken the port
    wait_until_up(ray, lambda: is_listening(ray) and _ray_answers(ray.port, token), home.ray_log, START_TIMEOUT_S)
    wait_until_up(mlflow, lambda: is_listening(mlflow) and _mlflow_answers(mlflow.port), home.mlflow_log, START_TIMEOUT_S)
    write_ports(home, Ports(ray=ray.port, mlflow=mlflow.port))
    return Services(ray=ray, mlflow=mlflow, token_file=home.token_file)


def _started_ray(home: Home, asked: Share) -> tuple[ProcessRecord, Offer]:
    """A new Ray head, and what it gives out: no GPU of another head's. Raises ConfigError."""
    for _ in range(STARTS):
        busy = nodes.busy_gpus(nodes.usable_gpus())
        offer = nodes.offer_of(asked, neighbours(home.root), busy)
        if shared := {gpu: pids for gpu, pids in busy.items() if gpu in offer.gpu_ids}:
            log.warning("%s", nodes.busy_words(shared))
        if crowded := crowding_of(home, offer):
            log.warning("%s", crowded)
        ray = start_ray(home, offer)
        leave_notice(home.root, ray, offer, nodes.gpu_uuids(offer.gpu_ids))
        if not any(nodes.shared_gpus(offer.gpu_ids, other) for other in neighbours(home.root)):
            return ray, offer
        # another head chose at the same moment; as each checks after it has left its notice, one at least learns of it, and chooses anew
        end(ray, grace_s=0.0)
        remove_notice(home.root)
    raise ConfigError("up: heads of other users that start at this moment choose the same GPUs. Run `nnfleet up` again.")


def down(home: Home | None = None) -> None:
    """End both services and everything they started; does nothing when they do not run. Raises ClusterError if a process survives."""
    home = home or Home.default()
    if not home.root.is_dir():
        return
    with locked(home.lock_file, "local services", LOCK_TIMEOUT_S):
        records = read_record(home).records
        if "ray" in records:
            _end_jobs(records["ray"])
        for record in records.values():
            end(record)
        remove_notice(home.root)
        home.services_file.unlink(missing_ok=True)


def _end_jobs(head: ProcessRecord) -> None:
    """End what judges: a campaign that outlives the head by seconds counts its runs' jobs as dead, and a driver its workers."""
    kill_chosen(head, lambda environment: environment.get(SUBMISSION_VARIABLE, "").startswith("campaign-"))
    kill_chosen(head, lambda environment: SUBMISSION_VARIABLE in environment)


def running(home: Home | None = None) -> Services | None:
    """The services if the Ray head runs, else None. Starts nothing; `up` mends an MLflow server that has died."""
    home = home or Home.default()
    records = read_record(home).records
    if {"ray", "mlflow"} <= records.keys() and records["ray"].is_alive:
        return Services(ray=records["ray"], mlflow=records["mlflow"], token_file=home.token_file)
    return None


def control_store(home: Home) -> str:
    """host:port of the local head's control store (GCS); empty when the head has not noted it."""
    try:
        return (home.ray_temp / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def offered(home: Home | None = None) -> Offer:
    """What the local head gives out, or would if it were started now."""
    recorded = read_record(home or Home.default())
    if recorded.offer and "ray" in recorded.records and recorded.records["ray"].is_alive:
        return recorded.offer
    return nodes.offer_of(recorded.asked, neighbours((home or Home.default()).root))


def crowding_of(home: Home, offer: Offer) -> str:
    """A sentence if this home and heads of other users give out more CPUs than this machine has; else nothing."""
    return crowding(offer, neighbours(home.root), os.cpu_count() or 1)


def tracking_answers(services: Services) -> bool:
    """True if the local MLflow server answers, whether or not the process that `up` started still watches it."""
    return services.mlflow.is_alive or _mlflow_answers(services.mlflow.port)


def read_token(path: Path) -> str:
    """The token in a file. Raises ClusterError when it cannot be read."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as err:
        raise ClusterError(f"token: {path} cannot be read: {err}. `nnfleet down`, then `nnfleet up` makes a new one.") from err


def start_ray(home: Home, offer: Offer) -> ProcessRecord:
    """Start a Ray head and return at once; `up` waits until it answers."""
    _prune_sessions(home.ray_temp)
    port = free_port(read_ports(home).ray)
    memory = int(offer.memory_gib * 2**30)
    store = _object_store_bytes(memory)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--port=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={port}", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={free_port()}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *(f"--temp-dir={home.ray_temp}", f"--object-store-memory={store}", f"--memory={max(memory - store, store)}"),
        f"--num-cpus={offer.cpus}",
    ]
    environment = {**service_environment(), **LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home.token_file)}
    if nodes.usable_gpus():  # else Ray looks for those of other makers
        command.append(f"--num-gpus={len(offer.gpu_ids)}")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(offer.gpu_ids)
    return start_detached("Ray head", command, environment, home.ray_log, port)


def _prune_sessions(ray_temp: Path) -> None:
    """Delete what heads of the past left (logs, code packages), except the newest few."""
    sessions = sorted(path for path in ray_temp.glob("session_*") if path.is_dir() and not path.is_symlink())
    for path in sessions[:-SESSIONS_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def start_mlflow(home: Home) -> ProcessRecord:
    """Start an MLflow server, on a database of its own version, and return at once; `up` waits until it answers."""
    upgrade_database(home, service_environment())
    port = free_port(read_ports(home).mlflow)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *server_options(home),
    ]
    return start_detached("MLflow server", command, service_environment(), home.mlflow_log, port)


def _object_store_bytes(memory: int) -> int:
    """A fifth of the memory, at most 8 GiB and at most four fifths of what shared memory has free."""
    shared = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else _OBJECT_STORE_MAX
    wanted = min(memory // 5, _OBJECT_STORE_MAX, shared * 4 // 5)
    return max(int(wanted), _OBJECT_STORE_MIN)


def _reused(record: ProcessRecord | None) -> ProcessRecord | None:
    """The record if its process runs. What a dead process left behind is ended, so that it cannot hold ports or files."""
    if record is None:
        return None
    if record.is_alive:
        return record
    end(record, grace_s=0.0)
    return None


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
