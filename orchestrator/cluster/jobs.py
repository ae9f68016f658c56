"""The only module that speaks the Ray Jobs API: submits our kinds of jobs, lists them with what they carry, reads logs, stops them.

A submission id is unique on a cluster, so submitting one twice is the same as once. What a job is and holds stands in its
metadata; the list of jobs is therefore also the ledger of reservations.
"""

import contextlib
import errno
import json
import logging
import os
import shlex
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.exceptions
import requests
from ray.job_submission import JobSubmissionClient

from orchestrator.cluster.code_identity import CODE_VARIABLE, shipped_code
from orchestrator.cluster.code_package import staged
from orchestrator.cluster.discovery import ADDRESS_VARIABLES, job_server_of, server_of
from orchestrator.cluster.service_environment import QUIET, without_proxy
from orchestrator.run.job_record import JobKind, JobRecord, record_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import ClusterError
from trainers.storage.faults import storage_error

log = logging.getLogger(__name__)

REACH_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 60.0
RETRY_PAUSES_S = (1.0, 3.0)
STOP_GRACE_S = 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the disk of this machine says, where Ray packs our code; other errors are those of a connection."""
JOB_ENVIRONMENT = {
    **QUIET,
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # a gang waits for its nodes in rounds; each counts anew how many fit
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment of every job. Shown in Ray's dashboard: no secret belongs here."""


@dataclass(frozen=True)
class Modules:
    """Entry points of the jobs, run as `python -m`."""

    campaign: str = "orchestrator.campaign.job"
    training: str = "orchestrator.training.driver"
    validation: str = "orchestrator.validation.job"
    control: str = "orchestrator.campaign.control_job"
    drill: str = "orchestrator.drill.job"
    held_out: str = "orchestrator.validation.held_out_job"


class Jobs:
    """The jobs of one cluster. Every method raises ClusterError when the cluster cannot be reached or refuses."""

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        working_dir: str | None = None,
        inherited: Mapping[str, str] | None = None,
        modules: Modules | None = None,
    ) -> None:
        """`address`: http(s)://host:port of the dashboard, or a cluster's GCS address. `token`: default what Ray itself finds.

        `working_dir`: a package already on the cluster (`gcs://...zip`); by default our own code is staged and uploaded.
        `inherited`: metadata passed on to every job that is submitted here.
        """
        self.address = address
        self.working_dir = working_dir
        self._inherited = dict(inherited or {})
        self._modules = modules or Modules()
        self._client = _connect(address, token)

    @classmethod
    def inside_job(cls, modules: Modules | None = None) -> "Jobs":
        """The jobs of the cluster that this process is a job's entry point of; what it submits runs the same code package."""
        own = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        address = os.environ.get("RAY_ADDRESS")
        working_dir = own.get("runtime_env", {}).get("working_dir")
        if not address or not working_dir:
            raise ClusterError("jobs: this process is no entry point of a Ray job: RAY_ADDRESS or its working_dir is missing.")
        metadata = own.get("metadata", {})
        carried = {key: str(metadata[key]) for key in ("nnfleet_campaign", "nnfleet_mlflow_run_id") if metadata.get(key)}
        return cls(address, working_dir=working_dir, inherited=carried, modules=modules or _modules_of(own))

    def submit_campaign(self, campaign: str, experiment_yaml: str, *, plan_only: bool = False, replaces: bool = False) -> str:
        """Start the campaign job of an experiment; returns its submission id. `replaces`: it moves folders of other runs aside."""
        options = [*(["--plan-only"] if plan_only else []), *(["--replace"] if replaces else [])]
        arguments = ["experiment.yaml", "--campaign", campaign, *options]
        kind: JobKind = "control" if plan_only else "campaign"
        name = f"{'plan' if plan_only else 'campaign'}-{campaign}"
        return self._submit(name, kind, self._modules.campaign, arguments, {"campaign": campaign}, {"experiment.yaml": experiment_yaml})

    def submit_resume(self, campaign: str, results: str, names: Sequence[str] = (), tracking_uri: str = "") -> str:
        """Start a campaign of the unfinished (or the named) runs below a results folder; returns its submission id.

        `results`: empty for the one that the head's environment names. `tracking_uri`: in the place of a local server that has moved.
        """
        arguments = [f"--resume={results}", "--campaign", campaign, f"--tracking-uri={tracking_uri}", *(f"--only={name}" for name in names)]
        return self._submit(f"campaign-{campaign}", "campaign", self._modules.campaign, arguments, {"campaign": campaign})

    def submit_revalidation(self, campaign: str, run_folder: Path, run_key: str, options: Sequence[str] = ()) -> str:
        """Start a campaign that only validates one trained run, again if need be; returns its submission id.

        `options`: `--npz`, `--best` of the campaign's job.
        """
        arguments = ["--validate", str(run_folder), "--run-key", run_key, "--campaign", campaign, *options]
        return self._submit(f"campaign-{campaign}", "campaign", self._modules.campaign, arguments, {"campaign": campaign})

    def submit_training(self, folder: RunFolder, spec: RunSpec, job_number: int, *, campaign: str = "", mlflow_run_id: str = "") -> str:
        """Start the training job of a run; returns its submission id."""
        carried = _carried(folder, spec, job_number, campaign, mlflow_run_id)
        return self._submit(
            f"train-{spec.run_key}-a{job_number}",
            "train",
            self._modules.training,
            [str(folder.root), "--job-number", str(job_number)],
            carried,
        )

    def submit_validation(
        self, folder: RunFolder, spec: RunSpec, fencing_token: int, retry: int = 0, *, campaign: str = "", mlflow_run_id: str = ""
    ) -> str:
        """Start the full-validation job of the training with this fencing token, the `retry`-th again; returns its submission id."""
        carried = _carried(folder, spec, fencing_token, campaign, mlflow_run_id)
        name = f"validate-{spec.run_key}-a{fencing_token}" + (f"-r{retry}" if retry else "")
        arguments = [str(folder.root), "--fencing-token", str(fencing_token)]
        return self._submit(name, "validate", self._modules.validation, arguments, carried)

    def submit_drill(self, drill: str, arguments: list[str]) -> str:
        """Start the job of a drill; returns its submission id."""
        return self._submit(f"drill-{drill}", "control", self._modules.drill, arguments, {})

    def submit_held_out(self, name: str, arguments: list[str]) -> str:
        """Start the job that predicts a held-out test set; returns its submission id."""
        return self._submit(f"test-{name}", "control", self._modules.held_out, arguments, {})

    def submit_control(self, name: str, arguments: list[str]) -> str:
        """Start a small job that acts where the run folders are; returns its submission id."""
        return self._submit(f"control-{name}", "control", self._modules.control, arguments, {})

    def records(self) -> list[JobRecord]:
        """All jobs of ours that the cluster knows, oldest first."""
        with self._speaking("list jobs"):
            details = self._client.list_jobs()
        return sorted((r for r in map(record_of, details) if r is not None), key=lambda r: r.started_unix)

    def find(self, submission_id: str) -> JobRecord:
        """One job. Raises ClusterError when the cluster does not know it."""
        with self._speaking(f"look up job {submission_id}"):
            record = record_of(self._client.get_job_info(submission_id))
        if record is None:
            raise ClusterError(f"jobs: {submission_id} at {self.address} was not submitted by nnfleet.")
        return record

    def logs(self, submission_id: str) -> str:
        """Everything that a job has printed so far."""
        with self._speaking(f"read the log of {submission_id}"):
            return str(self._client.get_job_logs(submission_id))

    def stop(self, submission_id: str) -> None:
        """Ask a job to end (SIGINT, after 20 s SIGKILL); a job that has ended is left alone."""
        with self._speaking(f"stop {submission_id}"):
            self._client.stop_job(submission_id)

    def _submit(
        self,
        submission_id: str,
        kind: JobKind,
        module: str,
        arguments: list[str],
        carried: Mapping[str, str],
        files: Mapping[str, str] | None = None,
    ) -> str:
        metadata = {**self._inherited, **{f"nnfleet_{key}": value for key, value in carried.items() if value}, "nnfleet_kind": kind}
        metadata["nnfleet_modules"] = json.dumps(vars(self._modules))
        metadata["nnfleet_code"] = code = shipped_code()
        command = shlex.join(["python", "-m", module, *arguments])
        with self._code(files or {}) as working_dir, self._speaking(f"submit {submission_id}"):
            own = {"NNFLEET_SUBMISSION_ID": submission_id, CODE_VARIABLE: code}
            if "://" not in self.address:  # a GCS address; Ray's helper actors would take any cluster of the machine
                own["RAY_ADDRESS"] = self.address
            runtime_env = {"working_dir": working_dir, "env_vars": {**JOB_ENVIRONMENT, **own}}
            try:
                self._client.submit_job(entrypoint=command, submission_id=submission_id, runtime_env=runtime_env, metadata=metadata)
            except RuntimeError as err:
                if f"Job with submission_id {submission_id} already exists" not in str(err) or not self._knows(submission_id):
                    raise
                log.info("%s was submitted before", submission_id)
        return submission_id

    def _knows(self, submission_id: str) -> bool:
        """Whether the server has a job of this id: the text of its refusal alone may quote anything."""
        try:
            return record_of(self._client.get_job_info(submission_id)) is not None
        except RuntimeError:  # the server's "does not exist"
            return False

    @contextlib.contextmanager
    def _code(self, files: Mapping[str, str]) -> Iterator[str]:
        if self.working_dir is not None and not files:
            yield self.working_dir
        else:
            with staged(files) as folder:
                yield str(folder)

    @contextlib.contextmanager
    def _speaking(self, purpose: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, OSError, ray.exceptions.RayError, requests.RequestException) as err:
            if isinstance(err, OSError) and err.errno in FULL:
                raise storage_error(err, Path(err.filename or tempfile.gettempdir())) from err
            cause = " ".join(str(err).split())[:500]
            raise ClusterError(f"cluster: could not {purpose} at {self.address}: {cause}") from err


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An `auth` of requests that adds nothing: without any, it replaces a token by what ~/.netrc has for the host (psf/requests#3929)."""
    return request


class _Client(JobSubmissionClient):
    """Ray's client with a limit on every request (without one a silent host blocks the caller for ever) and retries for a busy server.

    Every request of ours may be repeated: packages are stored by content, and a submission id is taken once.
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        options.setdefault("timeout", REQUEST_TIMEOUT_S)
        if any(name.lower() == "authorization" for name in self._headers):
            options.setdefault("auth", _as_it_is)
        for pause_s in RETRY_PAUSES_S:
            try:
                return super()._do_request(method, endpoint, **options)
            except requests.ConnectionError as err:
                log.info("%s %s broke off (%s); asked again in %.0f s", method, endpoint, err, pause_s)
                time.sleep(pause_s)
        return super()._do_request(method, endpoint, **options)


_ENVIRONMENT_LOCK = threading.Lock()
for _chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_chatty).setLevel(logging.WARNING)  # they print every upload onto the user's terminal


def _connect(address: str, token: str | None) -> JobSubmissionClient:
    """A client of exactly this address: Ray lets its environment variables override what a caller names, so they are hidden from it."""
    _reach(*server_of(address), address)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _ENVIRONMENT_LOCK, _hidden(*ADDRESS_VARIABLES):
        try:
            return _Client(address if "://" in address else job_server_of(address), headers=headers)
        except ray.exceptions.AuthenticationError as err:
            raise ClusterError(
                f"cluster: {address} refuses the token. Ray finds yours by RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, "
                "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; ask who runs the cluster for it."
            ) from err
        except ray.exceptions.RpcError as err:
            raise ClusterError(
                f"cluster: {address} does not answer as the control store (GCS) of a Ray cluster: {' '.join(str(err).split())[:500]} "
                f"If it is a dashboard, write http://{address}."
            ) from err
        except (OSError, RuntimeError, ValueError, requests.RequestException) as err:
            raise ClusterError(f"cluster: {address} does not answer as a Ray job server: {' '.join(str(err).split())[:500]}") from err


def _reach(host: str, port: int, address: str) -> None:
    if host in ("127.0.0.1", "localhost"):
        os.environ.update(without_proxy(dict(os.environ)))
    try:
        socket.create_connection((host, port), timeout=REACH_TIMEOUT_S).close()
    except OSError as err:
        raise ClusterError(
            f"cluster: nothing answers at {address} ({err}). Check the address, a tunnel to it, and that the head runs "
            "(`nnfleet up` starts a local one)."
        ) from err


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _carried(folder: RunFolder, spec: RunSpec, job_number: int, campaign: str, mlflow_run_id: str) -> dict[str, str]:
    return {
        "run_key": spec.run_key,
        "attempt": str(job_number),
        "campaign": campaign,
        "mlflow_run_id": mlflow_run_id,
        "run_folder": str(folder.root),
        "reservation": spec.workers.model_dump_json(),
    }


def _modules_of(own: Mapping[str, Any]) -> Modules:
    named = own.get("metadata", {}).get("nnfleet_modules")
    return Modules(**json.loads(named)) if named else Modules()
