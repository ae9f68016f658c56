"""What `up` keeps of the MLflow server's settings, and the database of another version of MLflow."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.cluster import mlflow_store
from orchestrator.cluster.home import Home
from orchestrator.cluster.mlflow_store import keep_settings, known_schemas, read_settings, server_options, upgrade_database
from trainers.errors import ClusterError, ConfigError


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.create()
    return home


def test_hosts_and_the_place_of_artifacts_hold_for_later_calls(home: Home, tmp_path: Path) -> None:
    assert "--cors-allowed-origins" not in server_options(home)
    assert server_options(home)[-1] == "localhost,localhost:*,127.0.0.1,127.0.0.1:*"
    assert keep_settings(home, ["hub.clinic.example", "*.lab.example:8443"], tmp_path / "big")
    assert not keep_settings(home, ["hub.clinic.example"], None), "nothing is new"
    options = server_options(home)
    assert "hub.clinic.example,hub.clinic.example:*,*.lab.example:8443" in options[options.index("--allowed-hosts") + 1]
    assert "https://hub.clinic.example" in options[-1].split(",")
    assert options[options.index("--artifacts-destination") + 1] == str(tmp_path / "big")


@pytest.mark.parametrize("host", ["*", "", "https://hub", "a,b", "hub/x", "a b"])
def test_what_is_no_host_is_refused_and_not_kept(home: Home, host: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a host"):
        keep_settings(home, [host], None)
    assert read_settings(home).allowed_hosts == ()


def test_artifacts_move_only_with_what_is_there(home: Home, tmp_path: Path) -> None:
    (home.artifacts / "1").mkdir()
    with pytest.raises(ConfigError, match=f"mv {home.artifacts} {tmp_path}/new"):
        keep_settings(home, [], tmp_path / "new")
    home.artifacts.rename(tmp_path / "new")
    assert keep_settings(home, [], tmp_path / "new")
    (tmp_path / "file").write_text("")
    (tmp_path / "new" / "1").rmdir()
    with pytest.raises(ConfigError, match="cannot be made"):
        keep_settings(home, [], tmp_path / "file" / "below")


def test_settings_that_are_damaged_are_an_error_and_not_dropped(home: Home) -> None:
    home.mlflow_settings.write_text("[]")
    with pytest.raises(ClusterError, match="Remove it"):
        read_settings(home)


def test_the_database_of_a_newer_mlflow_is_left_as_it_is(home: Home) -> None:
    with closing(sqlite3.connect(home.mlflow_db)) as made, made:
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.execute("INSERT INTO alembic_version VALUES ('fffffffffffe')")
    before = home.mlflow_db.read_bytes()
    with pytest.raises(ClusterError, match="fffffffffffe is not known to it.*install that one again"):
        upgrade_database(home, os.environ)
    assert home.mlflow_db.read_bytes() == before
    assert [path.name for path in home.root.glob("mlflow.db*")] == ["mlflow.db"]


def test_an_upgrade_that_does_not_end_is_ended_and_the_database_left_as_it_is(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """`up` holds the home's lock meanwhile."""
    monkeypatch.setattr(mlflow_store, "UPGRADE_S", 0.05)
    older = next(schema for schema in known_schemas().values() if schema)
    with closing(sqlite3.connect(home.mlflow_db)) as made, made:
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.execute("INSERT INTO alembic_version VALUES (?)", (older,))
    before = home.mlflow_db.read_bytes()
    with pytest.raises(ClusterError, match="could not be upgraded: it took more than 0.05 s.*or by hand"):
        upgrade_database(home, os.environ)
    assert home.mlflow_db.read_bytes() == before
    assert [path.name for path in home.root.glob("mlflow.db*")] == ["mlflow.db"]
