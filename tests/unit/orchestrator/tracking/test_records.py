"""What MLflow is told of a run: parameters that the run key fixes, tags for the rest, and which job and code it was."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.cluster import code_identity
from orchestrator.cluster.code_identity import CODE_VARIABLE, code_tags, shipped_code
from orchestrator.publishing.shared_files import shared_files
from orchestrator.run.job_record import record_of
from orchestrator.tracking.records import job_tags, params_of, tags_of, trained_s
from tests.fake_run import FakeRun


def test_what_the_run_key_does_not_fix_is_a_tag(tmp_path: Path) -> None:
    spec = FakeRun(tmp_path).spec
    changed = spec.model_copy(
        update={
            "deterministic": True,
            "compile": False,
            "pseudonyms": True,
            "validation": spec.validation.model_copy(update={"surface_tolerance_mm": 2.0}),
        }
    )
    assert params_of(spec) == params_of(changed)
    expected = {"nnfleet.deterministic": "True", "nnfleet.compile": "False", "nnfleet.pseudonyms": "True"}
    assert (expected | {"nnfleet.validation.surface_tolerance_mm": "2.0"}).items() <= tags_of(changed).items()
    assert tags_of(spec)["nnfleet.validation.checkpoints"] == "['best', 'final']"


def test_a_run_names_its_jobs_and_its_attempt() -> None:
    assert job_tags("train-d017-a2", 3) == {"nnfleet.attempt": "3", "nnfleet.ray_job.training": "train-d017-a2"}
    assert job_tags("validate-d017-a2-r1", 3) == {"nnfleet.attempt": "3", "nnfleet.ray_job.validation": "validate-d017-a2-r1"}
    assert job_tags("", 1) == {"nnfleet.attempt": "1"}


def test_the_code_of_a_job_is_what_its_submitter_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CODE_VARIABLE, raising=False)
    package = tmp_path / "orchestrator"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(code_identity, "__file__", str(package / "cluster" / "code_identity.py"))
    assert " " not in shipped_code(), "no checkout, no commit"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    version, commit = shipped_code().split(" ")
    assert len(commit) == 40
    (package / "a.py").write_text("x = 2\n")
    assert shipped_code() == f"{version} {commit}-dirty"
    monkeypatch.setenv(CODE_VARIABLE, "0.9 abc")
    assert shipped_code() == "0.9 abc", "a job passes on what it was shipped"
    assert code_tags() == {"nnfleet.version.nnfleet": "0.9", "mlflow.source.git.commit": "abc"}
    assert code_tags({CODE_VARIABLE: "0.9"}) == {"nnfleet.version.nnfleet": "0.9"}


def test_a_job_record_says_which_code_the_job_runs() -> None:
    carried = {"nnfleet_kind": "campaign", "nnfleet_code": "0.9 abc", "nnfleet_modules": "{}"}
    record = record_of({"submission_id": "campaign-c", "metadata": carried, "status": "RUNNING", "message": None, "end_time": None})
    assert record is not None
    assert record.code == "0.9 abc"


def test_the_logs_of_a_training_are_sent_at_the_end_but_not_with_pseudonyms(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    (run.folder.root / "training_log_2026_11_24_12_00_00.txt").write_text("hello")
    assert "logs/training_log_2026_11_24_12_00_00.txt" in shared_files(run.folder, run.spec, closing=True)
    assert not any(name.startswith("logs/") for name in shared_files(run.folder, run.spec, closing=False))
    secret = run.spec.model_copy(update={"pseudonyms": True})
    assert not any(name.startswith("logs/") for name in shared_files(run.folder, secret, closing=True))


def test_the_duration_of_a_run_is_the_time_of_its_epochs_each_once() -> None:
    points = [SimpleNamespace(step=0, value=2.0), SimpleNamespace(step=1, value=3.0), SimpleNamespace(step=1, value=3.5)]
    assert trained_s(points) == 5.5
    assert trained_s([]) == 0.0
