"""What is asked of the job server, and what counts as a job that was submitted before: a server of our own speaks its protocol."""

import base64
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ray._private.runtime_env.packaging import unzip_package
from ray.dashboard.modules.job.common import JobSubmitRequest, http_uri_components_to_uri
from ray.runtime_env import RuntimeEnv

from orchestrator.cluster import jobs as jobs_module
from orchestrator.cluster.jobs import Jobs
from orchestrator.errors import ClusterError
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


class Counted(JobServer):
    """Keeps what it was asked for, packages and jobs."""

    asked: ClassVar[list[str]] = []
    stored: ClassVar[dict[str, int]] = {}
    """Bytes of each package."""
    packages: ClassVar[list[bytes]] = []
    ordered: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self._note()
        if self.path == "/api/jobs/":
            self._answer(200, [])
        elif self.path.endswith("/logs"):
            self._answer(200, {"logs": "printed\n"})
        elif self.path.startswith("/api/packages/"):
            self._answer(200 if self.path in self.stored else 404, "")
        else:
            super().do_GET()

    def do_PUT(self) -> None:
        self._note()
        self.packages.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.stored[self.path] = len(self.packages[-1])
        self._answer(200, "")

    def do_POST(self) -> None:
        self._note()
        self.ordered.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(200, {"submission_id": self.ordered[-1]["submission_id"]})

    def _note(self) -> None:
        self.asked.append(f"{self.command} {self.path}")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Counted, "asked", [])
    monkeypatch.setattr(Counted, "stored", {})
    monkeypatch.setattr(Counted, "packages", [])
    monkeypatch.setattr(Counted, "ordered", [])
    with serving(Counted) as address:
        yield address


def test_a_connection_and_each_question_cost_one_request_each(counted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JobServer, "known", {NAME})
    jobs = Jobs(counted, "token")
    assert jobs.records() == []
    assert jobs.logs(NAME) == "printed\n"
    assert (jobs.find(NAME).submission_id, jobs.find(NAME).state) == (NAME, "RUNNING")
    paths = ["/api/version", "/api/jobs/", f"/api/jobs/{NAME}/logs", *[f"/api/jobs/{NAME}"] * 2]
    assert Counted.asked == [f"GET {path}" for path in paths]


def test_a_job_names_a_package_that_is_sent_once(counted: str) -> None:
    jobs = Jobs(counted, "token")
    jobs.submit_control("one", ["stop"])
    jobs.submit_control("two", ["stop"])
    (place,) = Counted.stored
    assert re.fullmatch("/api/packages/gcs/_ray_pkg_[0-9a-f]{40}.zip", place)
    assert 100_000 < Counted.stored[place] < 1_000_000
    assert Counted.asked == ["GET /api/version", f"GET {place}", f"PUT {place}", "POST /api/jobs/", f"GET {place}", "POST /api/jobs/"]
    (first, _) = Counted.ordered
    assert first["submission_id"] == "control-one"
    assert first["entrypoint"] == "python -m orchestrator.campaign.control_job stop"
    assert first["runtime_env"]["working_dir"] == "gcs://" + place.rpartition("/")[2]
    assert first["runtime_env"]["env_vars"]["NNFLEET_SUBMISSION_ID"] == "control-one"
    assert first["metadata"]["nnfleet_kind"] == "control"


def test_rays_own_server_reads_what_is_sent(counted: str, tmp_path: Path) -> None:
    """The server's own classes take the order, name the package as the order does, and unpack it."""
    Jobs(counted).submit_campaign("c", "dataset: 1")
    ((place,), (order,), (package,)) = (Counted.stored, Counted.ordered, Counted.packages)
    server: Any = (JobSubmitRequest, http_uri_components_to_uri, unzip_package)
    request, uri, unzip = server
    assert request(**order).runtime_env == order["runtime_env"] == RuntimeEnv(**order["runtime_env"]).to_dict()
    assert uri("gcs", place.rpartition("/")[2]) == order["runtime_env"]["working_dir"]
    (tmp_path / "package.zip").write_bytes(package)
    unzip(str(tmp_path / "package.zip"), str(tmp_path / "code"), remove_top_level_directory=False, unlink_zip=True)
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == ["experiment.yaml", "orchestrator", "trainers"]
    assert (tmp_path / "code/orchestrator/cluster/jobs.py").read_bytes() == Path(jobs_module.__file__).read_bytes()


def test_submitting_takes_no_room_on_the_disk_of_the_sender(counted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    monkeypatch.setattr(tempfile, "mkdtemp", no_room)
    assert Jobs(counted).submit_campaign("c", "dataset: 1") == "campaign-c"


class Old(JobServer):
    """A server of a Ray that is too old, or none of Ray at all."""

    version: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        self._answer(200, self.version)


@pytest.mark.parametrize("version", [{"ray_version": "1.13.0"}, {}, {"ray_version": "nightly"}])
def test_what_is_no_job_server_of_a_ray_that_is_understood_is_refused(version: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Old, "version", version)
    with serving(Old) as address, pytest.raises(ClusterError, match="does not answer as a Ray job server: its version of Ray is"):
        Jobs(address)


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
