"""Where nnfleet keeps its own files on this machine: one home folder, private to its user."""

import contextlib
import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from trainers.contract.errors import ClusterError
from trainers.contract.mounts import file_system_of

log = logging.getLogger(__name__)

LONGEST_RAY_TEMP = 40
"""Characters: a unix socket path holds 107, and Ray appends up to 66 (`/session_<date>_<pid>/sockets/plasma_store`)."""


@dataclass(frozen=True)
class Home:
    """Paths below `root`: services, their data, token and logs. `root` is made with mode 0700 by `create()`."""

    root: Path

    @classmethod
    def default(cls) -> "Home":
        """The folder that NNFLEET_HOME names, else ~/.nnfleet."""
        return cls(Path(os.environ.get("NNFLEET_HOME") or "~/.nnfleet").expanduser().absolute())

    @property
    def token_file(self) -> Path:
        """The token of the local cluster, mode 0600."""
        return self.root / "token"

    @property
    def services_file(self) -> Path:
        """What `up` started: process ids, their start times, ports."""
        return self.root / "services.json"

    @property
    def ports_file(self) -> Path:
        """The ports of the last `up`; kept after `down` so that links stay valid."""
        return self.root / "ports.json"

    @property
    def lock_file(self) -> Path:
        """Held by `up` and `down`."""
        return self.root / "lock"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's sqlite store."""
        return self.root / "mlflow.db"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts."""
        return self.root / "artifacts"

    @property
    def logs(self) -> Path:
        """Logs of the services."""
        return self.root / "logs"

    @property
    def ray_log(self) -> Path:
        """Output of the Ray head's main process."""
        return self.logs / "ray.log"

    @property
    def mlflow_log(self) -> Path:
        """Output of the MLflow server."""
        return self.logs / "mlflow.log"

    @property
    def ray_temp(self) -> Path:
        """Ray's session folders; under the system's temporary folder when `root` is too long for unix sockets."""
        inside = self.root / "ray"
        return inside if len(str(inside)) <= LONGEST_RAY_TEMP else self._short_temp / "ray"

    @property
    def _short_temp(self) -> Path:
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"nnf-{os.getuid()}-{digest}"

    def create(self) -> None:
        """Make the folders, readable by their owner alone. Raises ClusterError when one cannot be made or belongs to somebody else."""
        for folder in (self.root, self.ray_temp.parent, self.ray_temp, self.artifacts, self.logs):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                owner = folder.lstat().st_uid
            except OSError as err:
                raise ClusterError(f"home: {folder} cannot be made: {err}. Set NNFLEET_HOME to a folder that you may write.") from err
            if owner != os.getuid() or folder.is_symlink():
                raise ClusterError(f"home: {folder} is a link or owned by user {owner}, not you. Set NNFLEET_HOME to a folder of your own.")
            if folder in (self.root, self.ray_temp.parent) and folder.stat().st_mode & 0o077:  # what lies below is behind it
                log.info("%s was open to others; it holds tokens, models and logs, so it is narrowed to its owner (mode 0700)", folder)
                _narrow(folder)


def _narrow(folder: Path) -> None:
    """Take everybody else's rights on a folder away. Raises ClusterError where its file system keeps none."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    if folder.stat().st_mode & 0o077:
        raise ClusterError(
            f"home: {folder} stays open to others, since its file system ({file_system_of(folder) or 'unknown'}) does not keep "
            "permissions, and it holds tokens. Set NNFLEET_HOME to a folder on a disk that keeps them."
        )
