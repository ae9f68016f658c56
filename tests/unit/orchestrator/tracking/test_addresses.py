"""No refused address is ever repeated, wherever it was written: it may hold a password."""

import json
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.campaign import job
from orchestrator.cluster.jobs import Jobs
from orchestrator.errors import ConfigError, DataError
from orchestrator.experiment.model import Tracking, parse_experiment
from orchestrator.export.mlflow_folds import folds_in_mlflow
from orchestrator.tracking.address import check_tracking_uri, is_path, masked
from orchestrator.tracking.client import Tracker
from tests.fake_run import FakeRun
from trainers.storage.files import write_json_atomic

WITH_PASSWORD = [
    "user:hunter2@host",
    "user:hunter2@host/mlflow/x",
    "user:hunter2@host:5000",
    "hunter2@host",
    "https:/u:hunter2@h/a/b",
    "https:///u:hunter2@h/a/b",
    "https:u:hunter2@h",
    "http://u:hunter2@host:5000",
    "http://u%3Ahunter2%40host",
    "ht tp://u:hunter2@host",
    "h\\nttp://u:hunter2@host",
    "http:\\\\\\\\u:hunter2@host",
    "http://host:5000/?token=hunter2",
    "http://host:5000/#u:hunter2@host",
    "mysql+pymysql://u:hunter2@host/db",
]
EXPERIMENT = 'dataset: 1\nconfigurations: [2d]\ntracking: {{uri: "{}"}}\n'


@pytest.mark.parametrize("address", WITH_PASSWORD)
def test_a_refused_address_is_never_repeated(address: str, tmp_path: Path) -> None:
    plain = address.encode().decode("unicode_escape")
    uses = (
        lambda: parse_experiment(EXPERIMENT.format(address)),
        lambda: check_tracking_uri(plain, "MLFLOW_TRACKING_URI"),
        lambda: Tracker(plain),
        lambda: folds_in_mlflow(plain, "run"),
        lambda: Jobs(plain),
    )
    for use in uses:
        with pytest.raises(ConfigError) as refusal:
            use()
        assert "hunter2" not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize(
    "tracking",
    [
        "[user:hunter2@host]",
        "{uri: [user:hunter2@host]}",
        "{uri: {user: hunter2}}",
        "user:hunter2@host",
        "{uri: 'http://u:hunter/2@host'}",
        "{url: 'http://u:hunter2@host'}",
        "{'http://u:hunter2@host': x}",
        "{'u:hunter2@host': x}",
        "{experiment: ['http://u:hunter2@host']}",
    ],
)
def test_a_misplaced_address_is_not_repeated_either(tracking: str) -> None:
    with pytest.raises(ConfigError, match="tracking") as refusal:
        parse_experiment(f"dataset: 1\nconfigurations: [2d]\ntracking: {tracking}\n")
    assert "hunter" not in "".join(traceback.format_exception(refusal.value))


def test_a_model_made_in_python_does_not_repeat_it() -> None:
    with pytest.raises(ValidationError) as refusal:
        Tracking(uri="user:hunter2@host")
    assert "hunter2" not in str(refusal.value)


def test_a_run_json_that_is_no_specification_does_not_show_its_address(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, tracking_uri="http://u:hunter2@host")
    content = json.loads(run.folder.spec_file.read_text())
    for broken in ({**content, "seed": -3}, {**content, "tracking_uri": ["u:hunter2@host"]}, {"tracking_uri": "u:hunter2@host"}):
        write_json_atomic(run.folder.spec_file, broken)
        with pytest.raises(DataError, match=r"run\.json") as refusal:
            run.folder.spec()
        assert "hunter2" not in "".join(traceback.format_exception(refusal.value))


def test_the_heads_variable_is_named_when_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment.yaml").write_text("dataset: 1\nconfigurations: [2d]\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "user:hunter2@host")
    assert job.main([str(tmp_path / "experiment.yaml")]) == ConfigError.exit_code
    printed = capsys.readouterr()
    assert "MLFLOW_TRACKING_URI: it holds a user" in printed.out
    assert "hunter2" not in printed.out + printed.err


@pytest.mark.parametrize("uri", ["http://host:5000", "https://host/mlflow", "https://host/@team/mlflow", "http://[::1]:5000"])
def test_an_at_sign_in_the_path_is_no_login(uri: str) -> None:
    assert check_tracking_uri(uri) == uri


@pytest.mark.parametrize("text", ["user:hunter2@host", "failed at u:hun/ter2@h: no", "https:/u:hunter2@h/a", "{'uri': 'u:hunter2@h'}"])
def test_logins_without_a_scheme_are_masked(text: str) -> None:
    assert "ter2" not in masked(text)


@pytest.mark.parametrize(
    ("location", "is_one"),
    [
        *((place, True) for place in ("/data/mlruns/3", "file:///data/3", "file://host/share", "./mlruns/0", "mlruns", "C:\\mlruns")),
        *(
            (place, False)
            for place in ("mlflow-artifacts:/3", "s3://bucket/3", "gs://b/x", "hdfs://n/x", "https://host/artifacts", "dbfs:/x")
        ),
    ],
)
def test_places_of_artifacts_that_only_the_sender_sees_are_known(location: str, is_one: bool) -> None:
    assert is_path(location) is is_one
