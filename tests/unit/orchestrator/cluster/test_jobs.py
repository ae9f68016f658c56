"""What counts as a job that was submitted before: a server of our own speaks the job server's protocol."""

import base64
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from orchestrator.cluster.jobs import Jobs
from orchestrator.errors import ClusterError, StorageError
from tests.fake_run import FakeRun
from tests.serving import serving

NAME = "train-901-toy-0-a1"


class JobServer(BaseHTTPRequestHandler):
    """Refuses every submission with the text `refusal`; knows the jobs in `known`."""

    refusal: ClassVar[str] = ""
    known: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if name == "version":
            self._answer(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
        elif name in self.known:
            job = {"type": "SUBMISSION", "submission_id": name, "status": "RUNNING", "entrypoint": "x"}
            self._answer(200, {**job, "metadata": {"nnfleet_kind": "train"}})
        else:
            self._answer(404, f"Job {name} does not exist")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(400, self.refusal)

    def _answer(self, code: int, content: Any) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    with serving(JobServer) as address:
        yield Jobs(address, working_dir="gcs://code.zip")


@pytest.mark.parametrize(
    ("refusal", "known"),
    [
        ("ValueError: the file /mnt/results/train already exists", {NAME}),
        ("Job with submission_id another already exists. Please use a different submission_id.", {NAME}),
        (f"Job with submission_id {NAME} already exists. Please use a different submission_id.", set()),
    ],
)
def test_a_refusal_that_speaks_of_something_that_exists_is_an_error(
    refusal: str, known: set[str], jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobServer, "refusal", refusal)
    monkeypatch.setattr(JobServer, "known", known)
    run = FakeRun(tmp_path)
    with pytest.raises(ClusterError, match="already exists"):
        jobs.submit_training(run.folder, run.spec, 1)


def test_a_job_that_the_server_has_was_submitted_before(jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "refusal", f"ValueError: Job with submission_id {NAME} already exists. Please use a different one.")
    monkeypatch.setattr(JobServer, "known", {NAME})
    run = FakeRun(tmp_path)
    assert jobs.submit_training(run.folder, run.spec, 1) == NAME


def no_room(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/ray_pack")


@pytest.mark.parametrize(
    "full",
    [(tempfile, "mkdtemp"), (shutil, "copyfile"), (Jobs, "_client")],
    ids=["no folder", "no file", "no package"],
)
def test_a_full_temporary_folder_is_an_error_of_the_disk_in_one_sentence(full: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(JobServer) as address:
        jobs = Jobs(address)
        if full[0] is Jobs:
            monkeypatch.setattr(jobs._client, "submit_job", no_room)
        else:
            monkeypatch.setattr(*full, no_room)
        with pytest.raises(StorageError, match="storage: ") as refusal:
            jobs.submit_control("name", [])
    assert len(str(refusal.value)) < 400


class Guarded(JobServer):
    """Answers only to the token, or where none is sent, to the login of a proxy before it."""

    accepted: ClassVar[str] = "Bearer the-token"

    def do_GET(self) -> None:
        if self.headers.get("Authorization") == self.accepted:
            super().do_GET()
        else:
            self._answer(401, "Unauthorized: the token is missing")


def test_a_token_is_sent_though_netrc_has_a_login_for_the_host_and_that_one_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    with serving(Guarded) as address:
        Jobs(address, "the-token", working_dir="gcs://code.zip")
        with pytest.raises(ClusterError, match="refuses the token"):
            Jobs(address, "another", working_dir="gcs://code.zip")
        monkeypatch.setattr(Guarded, "accepted", "Basic " + base64.b64encode(b"ann:secret").decode())
        Jobs(address, working_dir="gcs://code.zip")
