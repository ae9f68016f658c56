"""What `up` has started, as files of the home folder: the processes, and what their head was asked to give out and gives out."""

import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.cluster.capacity import Offer, Share
from orchestrator.cluster.home import Home
from orchestrator.cluster.processes import ProcessRecord
from trainers.errors import ClusterError
from trainers.storage.files import write_atomic


class Recorded(BaseModel):
    """The processes by `ray` and `mlflow`: what `running`, `up` and `down` go by."""

    model_config = ConfigDict(frozen=True)

    records: dict[str, ProcessRecord] = {}
    asked: Share = Share()
    """Holds until `down`, also for a head that is started again."""
    offer: Offer | None = None
    """None: of a head that an earlier version started."""


class Ports(BaseModel):
    """Ports of the last `up`."""

    ray: int | None = None
    mlflow: int | None = None


def read_record(home: Home) -> Recorded:
    """What `up` has noted; empty when nothing was started. Raises ClusterError for what it has not written, and for
    processes of another host, which nothing here may take for dead."""
    try:
        content = home.services_file.read_bytes()
    except FileNotFoundError:
        return Recorded()
    try:
        recorded = Recorded.model_validate_json(content)
    except ValidationError as err:
        raise ClusterError(f"services: {home.services_file} is not what `nnfleet up` wrote: {err}. End the processes, remove it.") from err
    hosts = {record.host for record in recorded.records.values() if record.is_elsewhere}
    if hosts:
        raise ClusterError(
            f"services: {home.root} is the home of services on host {', '.join(sorted(hosts))}, and this is {socket.gethostname()}, which "
            "cannot see whether they run. Run `nnfleet` there, or give this host a home of its own: NNFLEET_HOME=/a/local/folder. If "
            f"that is an old name of this machine, or it is gone for good, remove {home.services_file}."
        )
    return recorded


def write_record(home: Home, recorded: Recorded) -> None:
    """Replace what `up` has noted."""
    _write_private(home.services_file, recorded)


def read_ports(home: Home) -> Ports:
    """The ports that are tried first; none when they are not known."""
    try:
        return Ports.model_validate_json(home.ports_file.read_bytes())
    except (OSError, ValidationError):
        return Ports()


def write_ports(home: Home, ports: Ports) -> None:
    """Note the ports for the next `up`."""
    _write_private(home.ports_file, ports)


def _write_private(path: Path, content: BaseModel) -> None:
    write_atomic(path, content.model_dump_json(indent=1).encode())  # made 0644 inside a folder of mode 0700, then narrowed
    path.chmod(0o600)
