"""What the local MLflow server keeps and whom it answers: settings of `up` that stay in the home, and the upgrade of an older database."""

import contextlib
import logging
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from orchestrator.cluster.home import Home
from trainers.errors import ClusterError, ConfigError
from trainers.storage.files import write_atomic

log = logging.getLogger(__name__)

_REVISION, _BEFORE = r"^revision = ['\"](\w+)['\"]", r"^down_revision = ['\"](\w+)['\"]"
UPGRADE_S = 1800.0
"""Longest upgrade of a database: `up` holds the home's lock meanwhile."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?")


class MlflowSettings(BaseModel):
    """What `up` was told of the MLflow server; it holds for later ones too."""

    model_config = ConfigDict(frozen=True)

    allowed_hosts: tuple[str, ...] = ()
    """Names by which browsers reach it through a proxy (JupyterHub, code-server, Open OnDemand)."""
    artifacts: Path | None = None
    """Where artifacts lie; by default in the home."""


def read_settings(home: Home) -> MlflowSettings:
    """What was kept; the defaults while there is nothing. Raises ClusterError for a file that is not ours."""
    try:
        return MlflowSettings.model_validate_json(home.mlflow_settings.read_bytes())
    except FileNotFoundError:
        return MlflowSettings()
    except (OSError, ValidationError) as err:
        raise ClusterError(f"services: {home.mlflow_settings} is not what `nnfleet up` wrote: {err}. Remove it.") from err


def keep_settings(home: Home, allowed_hosts: Sequence[str], artifacts: Path | None) -> bool:
    """Keep names that are new and another place of artifacts; True if something has changed. Raises ConfigError, ClusterError."""
    before = read_settings(home)
    for host in allowed_hosts:
        if not _HOST.fullmatch(host):
            raise ConfigError(
                f"--allow-host: {host!r} is not the name of a host. Write the one in the browser's address bar (hub.clinic.example), "
                "with :PORT if it shows one; *.clinic.example stands for all hosts there."
            )
    place = before.artifacts if artifacts is None else artifacts.expanduser().absolute()
    hosts = tuple(dict.fromkeys([*before.allowed_hosts, *allowed_hosts]))
    after = MlflowSettings(allowed_hosts=hosts, artifacts=None if place == home.artifacts else place)
    if after == before:
        return False
    if after.artifacts != before.artifacts:
        _check_place(before.artifacts or home.artifacts, after.artifacts or home.artifacts)
    write_atomic(home.mlflow_settings, after.model_dump_json(indent=1).encode())
    return True


def _check_place(old: Path, new: Path) -> None:
    """MLflow notes artifacts relative to this place, so what lies in the old one has to move with it."""
    if old.is_dir() and any(old.iterdir()):
        raise ConfigError(
            f"--artifacts: {old} holds the artifacts of earlier runs, which MLflow would not find any more. Take them along: "
            f"`nnfleet down`, `mv {old} {new}`, then `nnfleet up --artifacts {new}`."
        )
    try:
        new.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"--artifacts: {new} cannot be made: {err}. Name a folder that you may write.") from err
    if not os.access(new, os.W_OK | os.X_OK):
        raise ConfigError(f"--artifacts: {new} cannot be written. Name a folder that you may write.")


def server_options(home: Home) -> list[str]:
    """Options of `mlflow server`: what it keeps where, and the names that it answers to. Raises ClusterError."""
    settings = read_settings(home)
    options = ["--backend-store-uri", f"sqlite:///{home.mlflow_db}", "--serve-artifacts"]
    options += ["--artifacts-destination", str(settings.artifacts or home.artifacts)]
    options += ["--allowed-hosts", ",".join(with_ports([*LOOPBACK_HOSTS, *settings.allowed_hosts]))]
    if settings.allowed_hosts:  # its own pages send their origin with every search
        origins = [f"{scheme}://{host}" for host in with_ports(settings.allowed_hosts) for scheme in ("https", "http")]
        options += ["--cors-allowed-origins", ",".join(origins)]
    return options


def with_ports(hosts: Sequence[str]) -> list[str]:
    """Each name with and without a port, as MLflow compares both literally. Pure."""
    return [name for host in hosts for name in ([host] if ":" in host else [host, f"{host}:*"])]


def upgrade_database(home: Home, environment: Mapping[str, str]) -> Path | None:
    """Bring the database of an older MLflow to this version's schema; returns the copy of it as it was, or None where nothing is due.

    The upgrade is done on another copy, which takes the database's place once it is complete. No server may run. Raises ClusterError,
    and leaves the database as it was, when it is a newer MLflow's or the disk does not take the copies.
    """
    found, known = _schema_of(home.mlflow_db), known_schemas()
    newest = known.keys() - known.values()
    if not found or len(newest) != 1 or found in newest:
        return None
    kept = _unused(home.mlflow_db.with_name(f"{home.mlflow_db.name}.before-{version('mlflow')}"))
    new = home.mlflow_db.with_name(f"{home.mlflow_db.name}.upgrading")
    try:
        if found not in known:
            raise OSError(f"its schema {found} is not known to it")
        new.unlink(missing_ok=True)
        _copy(home.mlflow_db, new)
        _upgrade(new, environment)
        _copy(home.mlflow_db, kept)
        os.replace(new, home.mlflow_db)
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as err:
        new.unlink(missing_ok=True)
        said = " ".join((getattr(err, "stderr", "") or str(err)).strip().splitlines()[-1:])
        raise ClusterError(
            f"MLflow server: {home.mlflow_db} was made by another version of MLflow than {version('mlflow')} and could not be upgraded: "
            f"{said}. It is as it was. A newer version made it: install that one again. Else free disk space and repeat this, or by hand: "
            f"`cp {home.mlflow_db} {kept}`, then `mlflow db upgrade sqlite:///{home.mlflow_db}`."
        ) from err
    log.warning("MLflow's database was made by an older version and has been upgraded; as it was, it is kept in %s", kept)
    return kept


def _upgrade(database: Path, environment: Mapping[str, str]) -> None:
    """Raises CalledProcessError where MLflow refuses it, OSError where it does not end."""
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    try:
        subprocess.run(command, env=dict(environment), check=True, capture_output=True, text=True, timeout=UPGRADE_S)
    except subprocess.TimeoutExpired as err:
        raise OSError(f"it took more than {UPGRADE_S:g} s") from err


def known_schemas() -> dict[str, str]:
    """Each schema that the installed MLflow knows, with the one before it; read from its migrations, since importing it takes seconds."""
    spec = find_spec("mlflow")
    places = [Path(place) for place in (spec.submodule_search_locations if spec else None) or ()]
    texts = [path.read_text(encoding="utf-8") for place in places for path in place.glob("store/db_migrations/versions/*.py")]
    pairs = [(re.search(_REVISION, text, re.MULTILINE), re.search(_BEFORE, text, re.MULTILINE)) for text in texts]
    return {own[1]: before[1] if before else "" for own, before in pairs if own}


def _schema_of(database: Path) -> str:
    """The schema that a database has; empty for none."""
    if not database.is_file():
        return ""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as opened:
        row = opened.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else ""
    return ""


def _copy(database: Path, target: Path) -> None:
    """Also of a database whose last changes are still in its journal."""
    with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    target.chmod(0o600)


def _unused(path: Path) -> Path:
    return path if not path.exists() else path.with_name(f"{path.name}-{time.time_ns()}")
