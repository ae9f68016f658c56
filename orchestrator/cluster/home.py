"""Where nnfleet keeps its own files on this machine: one home folder, private to its user."""

import contextlib
import getpass
import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from trainers.contract.own_code import OWN_CODE
from trainers.errors import ClusterError, ConfigError
from trainers.storage.files import expanded
from trainers.storage.mounts import file_system_of

log = logging.getLogger(__name__)

LONGEST_RAY_TEMP = 40
"""Characters: a unix socket path holds 107, and Ray appends up to 66 (`/session_<date>_<pid>/sockets/plasma_store`)."""


RAY_TMPDIR = "RAY_TMPDIR"
"""Ray's own variable for where its session folders go."""


@dataclass(frozen=True)
class Home:
    """Paths below `root`: services, their data, token and logs. `root` is made with mode 0700 by `create()`."""

    root: Path

    @classmethod
    def default(cls) -> "Home":
        """The folder that NNFLEET_HOME names, else ~/.nnfleet."""
        try:
            return cls(expanded(Path(os.environ.get("NNFLEET_HOME") or "~/.nnfleet")))
        except ConfigError as err:
            raise ConfigError(f"home: {err} NNFLEET_HOME names another place for nnfleet's own files.") from err

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
    def submissions(self) -> Path:
        """What the head has taken and not reported yet, a file for each campaign."""
        return self.root / "submissions"

    @property
    def own_code(self) -> Path:
        """Files of the user's own networks, losses, recipes and trainers by their digest: each code package brings them to the jobs."""
        return self.root / OWN_CODE

    @property
    def lock_file(self) -> Path:
        """Held by `up` and `down`."""
        return self.root / "lock"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's sqlite store."""
        return self.root / "mlflow.db"

    @property
    def mlflow_settings(self) -> Path:
        """What `up` was told of the MLflow server."""
        return self.root / "mlflow.json"

    @property
    def artifacts(self) -> Path:
        """MLflow's artifacts, unless `up` was told another place."""
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
        """Ray's session folders: below RAY_TMPDIR if that is set, else below `root`, or in a temporary folder when that is too long.

        Raises ConfigError when the paths of unix sockets would be too long everywhere.
        """
        inside = self.root / "ray"
        if len(str(inside)) <= LONGEST_RAY_TEMP and not os.environ.get(RAY_TMPDIR):
            return inside
        below = f"nnf-{os.getuid()}-{hashlib.sha256(str(self.root).encode()).hexdigest()[:8]}/ray"
        short = [place / below for place in _temporary_places()]
        for folder in short:
            if len(str(folder)) <= LONGEST_RAY_TEMP:
                return folder
        raise ConfigError(
            f"home: {', '.join(str(folder) for folder in short)}: too long for Ray's unix sockets, or not writable. Set NNFLEET_HOME or "
            f"{RAY_TMPDIR} to a folder of this machine whose path has at most {LONGEST_RAY_TEMP - len(below) - 1} characters."
        )

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


def _temporary_places() -> list[Path]:
    """Where folders may be made that live as long as the head: the one that RAY_TMPDIR names, else the system's, short ones too."""
    if named := os.environ.get(RAY_TMPDIR):
        return [expanded(Path(named))]
    names = dict.fromkeys([os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"])  # below them everything is private
    return [Path(name) for name in names if name and os.access(name, os.W_OK | os.X_OK)]


def login_name() -> str:
    """Of the user of this process; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
