"""A proxy that takes no large file, one that does not wait, and a server whose disk is full: told as that, kept, and tried again."""

import json
import re
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from orchestrator.errors import ConfigError, TrackingError
from orchestrator.publishing.publisher import Publisher
from orchestrator.run.undelivered import note_undelivered, undelivered_text
from orchestrator.tracking.client import Tracker
from tests.fake_run import FakeRun
from tests.serving import serving

RUN = {"info": {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "lifecycle_stage": "active", "status": "RUNNING"}, "data": {}}
BINNED = {"experiment_id": "1", "name": "x", "lifecycle_stage": "deleted", "artifact_location": "file:///srv/mlruns/1"}

NGINX = (
    "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>\r\n<center><h1>413 Request Entity Too Large</h1></center>"
    "\r\n<hr><center>nginx/1.22.1</center>\r\n</body>\r\n</html>\r\n"
)
"""The page that nginx answers with."""


class Behind(BaseHTTPRequestHandler):
    """An MLflow server that takes measurements, and answers uploads with `answer`."""

    answer: ClassVar[tuple[int, str]] = (200, "")
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path.split("?")[0])
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        run_id = (re.search(r"run_id=(\w+)", self.path) or ["", "r"])[1]
        info = RUN["info"] | {"run_id": run_id, "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts"}
        answers = {"runs/get": {"run": RUN | {"info": info}}, "experiments/get-by-name": {"experiment": BINNED}}
        self._say(200, json.dumps(next((found for path, found in answers.items() if path in self.path), {})))

    do_POST = do_GET

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._say(*self.answer)

    def _say(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(Behind, "asked", [])
    with serving(Behind) as address:
        yield address


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (413, "<h1>413 Request Entity Too Large</h1><hr>nginx/1.22.1", "nginx/1.22.1.* takes no file of this size.*client_max_body_size"),
        (413, NGINX, r"[^<>]*413 Request Entity Too Large[^<>]*takes no file of this size"),
        (504, "<h1>504 Gateway Time-out</h1>", "did not wait.*proxy_read_timeout"),
        (502, "", "did not wait"),
        (500, "Internal Server Error", "see its log; most often a disk is full.*--artifacts"),  # all that MLflow says of that
        (400, "[Errno 122] Disk quota exceeded", "a quota is used up, where the server"),
        (507, "Insufficient Storage", "The disk is full"),
    ],
)
def test_why_an_upload_is_refused_is_told_with_its_size_and_what_to_do(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, text: str, told: str
) -> None:
    monkeypatch.setattr(Behind, "answer", (code, text))
    file = tmp_path / "weights.pth"
    file.write_bytes(b"x" * 2_500_000)
    with pytest.raises(TrackingError, match=rf"upload weights\.pth \(2\.5 MB\).*{server}.*{told}"):
        Tracker(server).upload_file(f"r{code}{len(text)}", file)


def test_what_is_refused_is_shown_and_never_counts_as_published(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path, tracking_uri=server)
    run.track(server, "refused")
    run.epoch()
    note_undelivered(run.folder, "metrics", 1.0, "left by a publisher that was killed.")
    monkeypatch.setattr(Behind, "answer", (413, "too large"))
    publisher = Publisher(run.folder, run.fencing_token, interval_s=0.02)
    publisher.start()
    try:
        deadline = time.monotonic() + 60
        while "checkpoints" not in (shown := undelivered_text(run.folder)) or "no metrics" in shown:
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        assert re.search(r"MLflow gets no checkpoints and files since \d\d:\d\d and is tried again: .*takes no file of this size", shown)
    finally:
        publisher.stop()
    assert not run.folder.published_file.exists()


def test_scores_are_not_sent_before_the_files_that_they_vouch_for(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.json"
    summary.write_text("{}")
    monkeypatch.setattr(Behind, "answer", (413, "too large"))
    with pytest.raises(TrackingError, match="upload summary"):
        Tracker(server).log_validation("scores", "best", {"dice_mean": 0.5}, [], summary, 1.0)
    assert not [path for path in Behind.asked if "log-batch" in path]
    monkeypatch.setattr(Behind, "answer", (200, ""))
    Tracker(server).log_validation("scores", "best", {"dice_mean": 0.5}, [], summary, 1.0)
    assert Behind.asked[-1].endswith("runs/log-batch")


def test_an_experiment_that_may_not_be_used_is_not_restored_before_it_is_refused(server: str) -> None:
    with pytest.raises(ConfigError, match="count as published"):
        Tracker(server).ensure_experiment("x", local_artifacts=False)
    assert [path.rsplit("/", 1)[1] for path in Behind.asked] == ["get-by-name"]
    Tracker(server).ensure_experiment("x", local_artifacts=True)
    assert [path for path in Behind.asked if path.endswith("experiments/restore")]
