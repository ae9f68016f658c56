"""Bringing MLflow up to date without jobs: what is due, who counts as alive, and servers that answer nonsense."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError, TrackingError
from orchestrator.publishing.publisher import Publisher
from orchestrator.publishing.reconcile import Synced, called, is_alive, state_due, sync, sync_below
from orchestrator.queue.registry import Entry, Registry
from orchestrator.run.below import run_folders_below
from orchestrator.run.job_record import HandedRun, JobRecord
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.run.undelivered import undelivered_text
from orchestrator.tracking.address import masked
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.end_state import publish_end
from tests.away import BROKEN
from tests.fake_run import FakeRun
from tests.serving import serving
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

NONSENSE = {
    "/500/": (500, "text/plain", b"boom"),
    "/html/": (200, "text/html", b"<html><body>Sign in</body></html>"),
    "/half/": (200, "application/json", b'{"run": {"info": '),
    "/list/": (200, "application/json", b"[1, 2, 3]"),
    "/other/": (200, "application/json", b'{"run": {"info": {"run_id": 7}, "data": "x"}, "metrics": 5}'),
    "/404/": (404, "application/json", b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run with id=r not found"}'),
    "/empty/": (200, "application/json", b""),
}


class Hostile(BaseHTTPRequestHandler):
    """Answers every request with what the beginning of its path names."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        place = "/" + self.path.split("/")[1] + "/"
        if place == "/closes/":
            self.connection.close()
            return
        if place == "/redirect/":
            self.send_response(302)
            self.send_header("Location", "http://ann:secret@127.0.0.1:9/login?token=abcdef123456")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        code, kind, body = NONSENSE[place]
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ValueError):
            return


@pytest.fixture(scope="module")
def hostile() -> Iterator[str]:
    with serving(Hostile) as address:
        yield address


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")


@pytest.mark.parametrize("place", [*NONSENSE, "/closes/", "/redirect/"])
def test_a_server_that_answers_nonsense_keeps_back_the_delivery_and_nothing_else(
    place: str, hostile: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(tmp_path, tracking_uri=hostile + place)
    run.track(hostile + place.rstrip("/"), "r")
    run.epoch()
    publisher = Publisher(run.folder, run.fencing_token, interval_s=0.02)
    publisher.start()
    assert not publisher.flush(0.3)
    publisher.stop()
    write_outcome(run.folder, outcome := Outcome(job="training", state="FAILED_CODE", fencing_token=run.fencing_token, message="x"))
    publish_end(run.folder, outcome)  # raises nothing
    (done,) = sync([run.folder], [])
    assert done.lacking
    assert "secret" not in done.line + caplog.text
    assert "abcdef123456" not in done.line + caplog.text


def test_a_run_that_the_server_lost_says_what_to_do(hostile: str) -> None:
    with pytest.raises(TrackingError, match="`nnfleet sync` makes it anew"):
        Tracker(f"{hostile}/404").logged_epochs("r")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("failed: http://ann:hunter2@host:5000/api", "hunter2"),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        ("'Authorization': 'Basic YW5uOnNlY3JldA=='", "YW5uOnNlY3JldA"),
        ("https://bucket/x?X-Amz-Signature=deadbeef&b=1", "deadbeef"),
        ("https://host/x?token=deadbeef", "deadbeef"),
        ("the server said s3cret-value", "s3cret-value"),
    ],
)
def test_secrets_are_masked(text: str, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-value")
    assert secret not in masked(text)


def end(state: str, job: str = "training") -> Outcome:
    return Outcome.model_validate({"job": job, "state": state, "attempt": 1, "message": "m"})


@pytest.mark.parametrize(
    ("shown", "outcome", "due"),
    [
        ("RUNNING", None, RunState.STOPPED),
        ("QUEUED", None, RunState.STOPPED),
        ("QUEUED", end("PAUSED"), RunState.STOPPED),  # it goes on where somebody resumes it
        ("STOPPED", end("PAUSED"), None),
        ("VALIDATING", end("TRAINED"), RunState.STOPPED),
        ("RUNNING", end("FAILED_CODE"), RunState.FAILED_CODE),
        ("VALIDATING", end("SUCCEEDED", "validation"), RunState.SUCCEEDED),
        ("STOPPED", end("SUCCEEDED", "validation"), RunState.SUCCEEDED),
        ("SUCCEEDED", end("SUCCEEDED", "validation"), None),
        ("FAILED_CLUSTER", None, None),
        ("nonsense", None, RunState.STOPPED),
    ],
)
def test_the_state_that_is_due(shown: str, outcome: Outcome | None, due: RunState | None) -> None:
    assert state_due(shown, outcome) is due


def test_a_run_lives_by_its_job_or_by_fresh_signs_of_another_cluster(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    now = time.time() + 1000
    job = JobRecord(submission_id="t", kind="train", state="RUNNING", run_key=run.spec.run_key)
    assert is_alive(run.folder, run.spec, [job], now)
    assert not is_alive(run.folder, run.spec, [], now)
    write_json_atomic(run.folder.progress_file, {"unix": now - 5})
    assert is_alive(run.folder, run.spec, [], now)
    dead = job.model_copy(update={"state": "FAILED", "ended_unix": now - 1})
    assert not is_alive(run.folder, run.spec, [dead], now), "the sign is the dead job's own"
    write_json_atomic(run.folder.progress_file, {"unix": now + 1e6})
    assert not is_alive(run.folder, run.spec, [], now), "a clock that jumped is no life"


def test_a_run_that_waits_in_a_living_campaign_is_left_to_it(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, tracking_uri="http://127.0.0.1:9")
    for file in run.folder.tokens.glob("*.json"):  # its last job was lately killed
        file.write_text(json.dumps(json.loads(file.read_text()) | {"claimed_unix": 1.0}))
    campaign = JobRecord(submission_id="campaign-c", kind="campaign", campaign="c", state="RUNNING")
    ended = campaign.model_copy(update={"state": "FAILED"})
    registry = Registry(tmp_path / "registry")
    registry.post("c", Entry(runs=(run.spec.run_key,)))

    def synced(*jobs: JobRecord) -> Synced:
        return next(sync_below(tmp_path / "results", [], jobs, registry))

    assert synced(campaign).note == "a living campaign goes on with it; run `nnfleet sync` again after its end"
    assert not synced(campaign).lacking
    assert synced(ended).lacking, "nobody goes on with it: it is delivered, and its server is away"
    registry.withdraw("c")
    assert synced(campaign).lacking
    handed = HandedRun(run_key=run.spec.run_key, address="a", epochs=1, run_folder=run.folder.root, workers=run.spec.workers)
    assert not synced(campaign.model_copy(update={"handed": (handed,)})).lacking, "it begins, and has posted nothing yet"


def test_a_copy_of_a_run_folder_delivers_nothing_to_the_mlflow_run_of_the_original(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.track("http://127.0.0.1:9", "r")
    run.epoch()
    shutil.copytree(tmp_path / "results", tmp_path / "backup")
    (done,) = sync(
        run_folders_below(tmp_path / "backup"), [JobRecord(submission_id="t", kind="train", state="RUNNING", run_key=run.spec.run_key)]
    )
    assert f"is of a run in {run.folder.root}: the folder was moved or copied. Bring it back, or submit" in done.lacking
    (tmp_path / "linked").symlink_to(tmp_path / "results")
    (done,) = sync(run_folders_below(tmp_path / "linked"), [])
    assert "moved or copied" not in done.lacking, "the same folder by another path"


def test_a_disk_that_does_not_tell_who_works_on_a_run_keeps_back_no_other(tmp_path: Path) -> None:
    first, second = FakeRun(tmp_path), FakeRun(tmp_path, run_key="901-toy-1", fold=1)
    for run in (first, second):
        run.track("http://127.0.0.1:9", "r")
    first.folder.outcome_file.symlink_to(BROKEN)
    told = [done.lacking or done.note for done in sync([first.folder, second.folder], [])]
    assert "Input/output error" in told[0]
    assert len(told) == 2


def test_runs_are_found_below_a_results_folder_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FakeRun(tmp_path), FakeRun(tmp_path, run_key="901-toy-1", fold=1)
    folders = run_folders_below(tmp_path / "results")
    assert folders == [first.folder, second.folder]
    place = tmp_path / "results"
    assert called(["901-toy-1"], folders, place) == ([second.folder], {})
    assert called(["901/3d_fullres/default/0"], folders, place) == ([first.folder], {})
    for several in ("901", "901-toy", "901/*/default"):
        assert called([several], folders, place) == (folders, {}), several
    found, unknown = called(["901-toy-1", "x", " ", "901"], folders, place)
    assert found == [second.folder, first.folder], "each once"
    assert re.search(rf"no run 'x' below {place}[.] Known: 901/3d_fullres/nnUNetTrainer[.]", str(unknown["x"]))
    assert "empty" in str(unknown[" "])
    second.folder.spec_file.write_text("{")
    entries = [done.note or done.lacking for done in sync(folders, [])]
    assert entries[0] == "not tracked"
    assert "cannot be read" in entries[1]
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(ConfigError, match="nnUNet_results"):
        list(sync_below(None, [], []))


def test_a_name_that_means_no_run_keeps_back_none_of_the_others(tmp_path: Path) -> None:
    FakeRun(tmp_path)
    (known, unknown) = sync_below(tmp_path / "results", ["x", "901-toy-0"], [])
    assert known.note == "not tracked"
    assert "no run 'x'" in unknown.lacking
    with pytest.raises(ConfigError, match="no run 'x'"):
        list(sync_below(tmp_path / "results", ["x"], []))


@pytest.mark.parametrize("place", ["results", "results/Dataset901_Toy", "results/Dataset901_Toy/nnUNetTrainer__nnUNetPlans__3d_fullres"])
def test_sync_takes_every_folder_that_holds_runs_as_every_other_verb_does(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(tmp_path)
    monkeypatch.chdir(tmp_path / place)
    assert [done.run_folder for done in sync_below(Path(), [], [])] == [run.folder.root]


def test_what_a_sync_could_not_deliver_is_said_in_the_run_folder(tmp_path: Path, hostile: str) -> None:
    run = FakeRun(tmp_path, tracking_uri=hostile)
    run.track(hostile + "/500", "r")
    list(sync([run.folder], []))
    assert undelivered_text(run.folder) == "", "its driver may be alive"
    for file in run.folder.tokens.glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"claimed_unix": 1.0}))
    (done,) = sync([run.folder], [])
    assert done.lacking
    assert "MLflow lacks results" in undelivered_text(run.folder, has_ended=True)


def test_a_synced_run_in_one_line() -> None:
    done = Synced(run_key="k", run_folder=Path("/r"), delivered=("3 epochs",), lacking="away")
    assert done.line == "k: 3 epochs; LACKING: away"
