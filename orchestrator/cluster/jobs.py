"""The jobs of a cluster: submits our kinds of them, lists them with what they carry, reads logs, stops them.

A submission id is unique on a cluster, so submitting one twice is the same as once. What a job is and holds stands in its
metadata; the list of jobs is therefore also the ledger of reservations.
"""

import contextlib
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from orchestrator.cluster.code_identity import CODE_VARIABLE, shipped_code
from orchestrator.cluster.code_package import code_kept, packed
from orchestrator.cluster.discovery import auth_headers, job_server_of, server_of
from orchestrator.cluster.home import Home
from orchestrator.cluster.job_server import JobServerClient, TokenRefused
from orchestrator.cluster.service_environment import QUIET, SUBMISSION_VARIABLE, without_proxy
from orchestrator.run.job_record import HANDED_KEY, KINDS_KEY, HandedRun, JobKind, JobRecord, handed_text, kinds_text, record_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WorkerSpec
from trainers.errors import ClusterError

log = logging.getLogger(__name__)

REACH_TIMEOUT_S = 5.0
STOP_GRACE_S = 20
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
    preprocessing: str = "orchestrator.preprocessing.job"


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

        `working_dir`: a package already on the cluster (`gcs://...zip`); by default our own code is packed and uploaded.
        `inherited`: metadata passed on to every job that is submitted here.
        """
        self.address = address
        self.working_dir = working_dir
        self._inherited = dict(inherited or {})
        self._modules = modules or Modules()
        self._server = self._connected(token)

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

    def submit_campaign(
        self, campaign: str, experiment_yaml: str, *, plan_only: bool = False, replaces: bool = False, handed: Sequence[HandedRun] = ()
    ) -> str:
        """Start the campaign job of an experiment; returns its submission id once the cluster has stored it.

        `replaces`: it moves folders of other runs aside. `handed`: the runs that it goes on with, where that is known already.
        """
        options = [*(["--plan-only"] if plan_only else []), *(["--replace"] if replaces else [])]
        arguments = ["experiment.yaml", "--campaign", campaign, *options]
        kind: JobKind = "control" if plan_only else "campaign"
        name = f"{'plan' if plan_only else 'campaign'}-{campaign}"
        files = {"experiment.yaml": experiment_yaml}
        return self._submit(name, kind, self._modules.campaign, arguments, {"campaign": campaign}, files, handed)

    def submit_resume(
        self,
        campaign: str,
        results: str,
        names: Sequence[str] = (),
        tracking_uri: str = "",
        handed: Sequence[HandedRun] = (),
        *,
        only_failed: bool = False,
        is_filter: bool = False,
    ) -> str:
        """Start a campaign of the unfinished (or the named) runs below a results folder, or of these what failed; returns its id.

        `results`: empty for the one that the head's environment names. `tracking_uri`: in the place of a local server that has moved.
        `is_filter`: the names are the run keys of a campaign, of which what cannot go on is left.
        """
        which = [*(f"--only={name}" for name in names), *(["--only-failed"] if only_failed else []), *(["--filter"] if is_filter else [])]
        arguments = [f"--resume={results}", "--campaign", campaign, f"--tracking-uri={tracking_uri}", *which]
        return self._submit(f"campaign-{campaign}", "campaign", self._modules.campaign, arguments, {"campaign": campaign}, handed=handed)

    def submit_revalidation(
        self, campaign: str, run_folder: Path, run_key: str, options: Sequence[str] = (), handed: Sequence[HandedRun] = ()
    ) -> str:
        """Start a campaign that only validates one trained run, again if need be; returns its submission id.

        `options`: `--npz`, `--best` of the campaign's job.
        """
        arguments = ["--validate", str(run_folder), "--run-key", run_key, "--campaign", campaign, *options]
        return self._submit(f"campaign-{campaign}", "campaign", self._modules.campaign, arguments, {"campaign": campaign}, handed=handed)

    def submit_training(self, folder: RunFolder, spec: RunSpec, job_number: int, *, campaign: str = "", mlflow_run_id: str = "") -> str:
        """Start the training job of a run; returns its submission id."""
        carried = _carried(folder, spec, job_number, campaign, mlflow_run_id) | {"reservation": spec.gang.on_any_gpu.model_dump_json()}
        return self._submit(
            f"train-{spec.run_key}-a{job_number}",
            "train",
            self._modules.training,
            [str(folder.root), "--job-number", str(job_number)],
            carried,
            asked={spec.run_key: spec.workers},
        )

    def submit_validation(
        self, folder: RunFolder, spec: RunSpec, fencing_token: int, retry: int = 0, *, campaign: str = "", mlflow_run_id: str = ""
    ) -> str:
        """Start the full-validation job of the training with this fencing token, the `retry`-th again; returns its submission id."""
        carried = _carried(folder, spec, fencing_token, campaign, mlflow_run_id)
        name = f"validate-{spec.run_key}-a{fencing_token}" + (f"-r{retry}" if retry else "")
        arguments = [str(folder.root), "--fencing-token", str(fencing_token)]
        return self._submit(name, "validate", self._modules.validation, arguments, carried, asked={spec.run_key: spec.workers})

    def submit_drill(self, drill: str, arguments: list[str]) -> str:
        """Start the job of a drill; returns its submission id."""
        return self._submit(f"drill-{drill}", "control", self._modules.drill, arguments, {})

    def submit_held_out(self, name: str, arguments: list[str]) -> str:
        """Start the job that predicts a held-out test set; returns its submission id."""
        return self._submit(f"test-{name}", "test", self._modules.held_out, arguments, {})

    def submit_preprocessing(self, name: str, order: str, place: Mapping[str, str], cpus: int, memory_gib: float | None) -> str:
        """Start the job of this id, which preprocesses a dataset on a node with so many CPU cores and so much memory; returns the id.

        `place`: what the job carries (`campaign`, `dataset_folder`). It is only to be asked for what fits now: Ray ends a job that waits.
        """
        held: dict[str, float] = {"entrypoint_num_cpus": cpus}
        if memory_gib is not None:
            held["entrypoint_memory"] = int(memory_gib * 2**30)
        return self._submit(name, "preprocess", self._modules.preprocessing, [order], place, held=held)

    def submit_control(self, name: str, arguments: list[str]) -> str:
        """Start a small job that acts where the run folders are; returns its submission id."""
        return self._submit(f"control-{name}", "control", self._modules.control, arguments, {})

    def records(self) -> list[JobRecord]:
        """All jobs of ours that the cluster knows, oldest first."""
        with self._speaking("list jobs"):
            details = self._server.list_jobs()
        return sorted((r for r in map(record_of, details) if r is not None), key=lambda r: r.started_unix)

    def find(self, submission_id: str) -> JobRecord:
        """One job. Raises ClusterError when the cluster does not know it."""
        with self._speaking(f"look up job {submission_id}"):
            record = record_of(self._server.get_job_info(submission_id))
        if record is None:
            raise ClusterError(f"jobs: {submission_id} at {self.address} was not submitted by nnfleet.")
        return record

    def logs(self, submission_id: str) -> str:
        """Everything that a job has printed so far."""
        with self._speaking(f"read the log of {submission_id}"):
            return str(self._server.get_job_logs(submission_id))

    def stop(self, submission_id: str) -> None:
        """Ask a job to end (SIGINT, after 20 s SIGKILL); a job that has ended is left alone."""
        with self._speaking(f"stop {submission_id}"):
            self._server.stop_job(submission_id)

    def _submit(
        self,
        submission_id: str,
        kind: JobKind,
        module: str,
        arguments: list[str],
        carried: Mapping[str, str],
        files: Mapping[str, str] | None = None,
        handed: Sequence[HandedRun] = (),
        held: Mapping[str, float] | None = None,
        asked: Mapping[str, WorkerSpec] | None = None,
    ) -> str:
        metadata = {**self._inherited, **{f"nnfleet_{key}": value for key, value in carried.items() if value}, "nnfleet_kind": kind}
        metadata["nnfleet_modules"] = json.dumps(vars(self._modules))
        metadata["nnfleet_code"] = code = shipped_code()
        if handed:
            metadata[HANDED_KEY] = handed_text(handed)
        if kinds := kinds_text({**{run.run_key: run.workers for run in handed}, **(asked or {})}):
            metadata[KINDS_KEY] = kinds
        command = shlex.join(["python", "-m", module, *arguments])
        package = packed({**code_kept(Home.default()), **(files or {})}) if self.working_dir is None or files else None
        with self._speaking(f"submit {submission_id}"):
            working_dir = self._server.store_package(package) if package is not None else self.working_dir
            own = {SUBMISSION_VARIABLE: submission_id, CODE_VARIABLE: code}
            if "://" not in self.address:  # a GCS address; Ray's helper actors would take any cluster of the machine
                own["RAY_ADDRESS"] = self.address
            runtime_env = {"working_dir": working_dir, "env_vars": {**JOB_ENVIRONMENT, **own}}
            try:
                self._server.submit_job(submission_id, command, runtime_env, metadata, held or {})
            except RuntimeError as err:
                if f"Job with submission_id {submission_id} already exists" not in str(err) or not self._knows(submission_id):
                    raise
                log.info("%s was submitted before", submission_id)
        return submission_id

    def _knows(self, submission_id: str) -> bool:
        """Whether the server has a job of this id: the text of its refusal alone may quote anything."""
        try:
            return record_of(self._server.get_job_info(submission_id)) is not None
        except RuntimeError:  # the server's "does not exist"
            return False

    def _connected(self, token: str | None) -> JobServerClient:
        """The job server at the address, once it has answered."""
        _reach(*server_of(self.address), self.address)
        try:
            place = self.address if "://" in self.address else job_server_of(self.address)
            return JobServerClient(place, {"Authorization": f"Bearer {token}"} if token else auth_headers())
        except Exception as err:
            if not (_is_of_the_server(err) or isinstance(err, ValueError)):
                raise
            raise _connection_error(self.address, err) from err

    @contextlib.contextmanager
    def _speaking(self, purpose: str) -> Iterator[None]:
        try:
            yield
        except Exception as err:
            if not _is_of_the_server(err):
                raise
            cause = " ".join(str(err).split())[:500]
            raise ClusterError(f"cluster: could not {purpose} at {self.address}: {cause}") from err


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


def _is_of_the_server(error: Exception) -> bool:
    """True for what a server, the way to it, or Ray's client says; Ray is not imported to tell."""
    rays = sys.modules.get("ray.exceptions")
    is_rays = rays is not None and isinstance(error, rays.RayError)
    return is_rays or isinstance(error, RuntimeError | OSError | requests.RequestException)


def _connection_error(address: str, error: Exception) -> ClusterError:
    """Why there is no connection, and what to do; errors of Ray go by their names."""
    if isinstance(error, ClusterError):
        return error
    if isinstance(error, TokenRefused) or type(error).__name__ == "AuthenticationError":
        return ClusterError(
            f"cluster: {address} refuses the token. Ray finds yours by RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, "
            "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; ask who runs the cluster for it."
        )
    cause = " ".join(str(error).split())[:500]
    if type(error).__name__ == "RpcError":
        return ClusterError(
            f"cluster: {address} does not answer as the control store (GCS) of a Ray cluster: {cause} "
            f"If it is a dashboard, write http://{address}."
        )
    return ClusterError(f"cluster: {address} does not answer as a Ray job server: {cause}")


def _carried(folder: RunFolder, spec: RunSpec, job_number: int, campaign: str, mlflow_run_id: str) -> dict[str, str]:
    return {
        "run_key": spec.run_key,
        "attempt": str(job_number),
        "campaign": campaign,
        "mlflow_run_id": mlflow_run_id,
        "run_folder": str(folder.root),
        "reservation": spec.workers.on_any_gpu.model_dump_json(),
    }


def _modules_of(own: Mapping[str, Any]) -> Modules:
    named = own.get("metadata", {}).get("nnfleet_modules")
    return Modules(**json.loads(named)) if named else Modules()
