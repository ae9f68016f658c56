"""The only module that speaks MLflow.

Every call names its run; MLflow's active run is never used (it belongs to a thread). A server that is away is reported within
seconds as `TrackingError`; waiting and trying again is the caller's policy. Sending the same thing twice changes nothing.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default 7 with waits of 245 s in all
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # between two bytes, not for a whole upload

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking._tracking_service.utils import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from orchestrator.cluster.code_identity import code_tags
from orchestrator.errors import ConfigError, NnfleetError, TrackingError
from orchestrator.run.names import Names, resolve
from orchestrator.tracking.address import WHERE_CREDENTIALS_GO, holds_secret, is_path, masked, refuse_credentials
from orchestrator.tracking.binding import owners_last
from orchestrator.tracking.deleted import DELETED, restore_experiment, restore_run, withdraw_experiment
from orchestrator.tracking.failure import advice, advice_for, local_artifacts_text, reason
from orchestrator.tracking.login import prefer_over_netrc
from orchestrator.tracking.pages import pages
from orchestrator.tracking.records import (
    ADDRESS_TAG,
    DIGEST_LENGTH,
    EARLY_END_TAG,
    FOLDER_TAG,
    MARKER_METRIC,
    MODEL_KEY_TAG,
    NOTE_TAG,
    PARAM_LENGTH,
    RUN_KEY_TAG,
    STATE_TAG,
    KnownRun,
    ModelEntry,
    ModelRun,
    OpenRun,
    epoch_metrics,
    mlflow_status,
    note_of,
    params_of,
    run_name,
    tags_of,
    trained_s,
    validation_data,
)
from orchestrator.tracking.saved_views import run_url
from orchestrator.tracking.scores import score_metrics
from orchestrator.tracking.written_views import write_test_view, write_views
from trainers.contract.commits import EpochRow
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.contract.states import RunState

log = logging.getLogger(__name__)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # one line per retry; an outage is logged once, by the publisher

CONNECT_TIMEOUT_S = 5.0
METRICS_PER_REQUEST = 1000
"""MLflow's limit; a request is one transaction, so whole epochs that fit into one are there or not."""


class Tracker:
    """One MLflow server. Methods raise TrackingError when it cannot be reached or refuses; none of them waits for it to come back."""

    def __init__(self, uri: str) -> None:
        """Raises ConfigError for a URI that holds credentials: they belong into MLflow's own environment variables."""
        refuse_credentials(uri)
        self.uri = uri.rstrip("/")
        with self._speaking("open the tracking server"):
            if self.uri.startswith("http"):
                prefer_over_netrc(get_default_host_creds(self.uri), self.uri)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    # ---- connection -------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Raise TrackingError within seconds unless the server answers and lets us read, with the client's own login and certificates."""
        with self._speaking("reach the tracking server"):
            if not self.uri.startswith("http"):
                self._client.search_experiments(max_results=1)
                return
            answer = http_request(
                get_default_host_creds(self.uri),
                "/api/2.0/mlflow/experiments/search",
                "POST",
                max_retries=0,
                timeout=CONNECT_TIMEOUT_S,
                raise_on_status=False,
                json={"max_results": 1},
            )
        if answer.status_code in (401, 403):
            raise TrackingError(f"mlflow: {self.uri} refuses the login (HTTP {answer.status_code}). {WHERE_CREDENTIALS_GO}.")
        if answer.status_code != 200:
            todo = advice_for(answer.status_code) or "Check the address."
            raise TrackingError(f"mlflow: {self.uri} does not answer as an MLflow server (HTTP {answer.status_code}). {todo}")

    @contextmanager
    def _speaking(self, purpose: str) -> Iterator[None]:
        try:
            yield
        except NnfleetError:
            raise
        except Exception as err:  # what is no MLflow answer (HTML, half of a JSON document) fails anywhere inside MLflow's client
            cause = masked(reason(err))[:500].rstrip(".")
            failure = TrackingError(f"mlflow: could not {purpose} at {self.uri}: {cause}. {advice(err)}")
            raise failure from (None if holds_secret(err) else err)  # a traceback prints the cause too

    # ---- experiments and runs ---------------------------------------------------------------------------------------

    def ensure_experiment(self, name: str, *, local_artifacts: bool = True) -> str:
        """Id of the experiment `name`, with nnfleet's saved views; made or restored if need be, by several callers at once too.

        Without `local_artifacts`, raises ConfigError where its artifacts would be written to a path of whichever machine sends them.
        """
        with self._speaking(f"open experiment {name!r}"):
            found, made = self._client.get_experiment_by_name(name), ""
            if found is None:
                with suppress(MlflowException):  # another caller was faster
                    made = self._client.create_experiment(name, tags={"mlflow.experimentKind": "custom_model_development"})
                found = self._client.get_experiment_by_name(name)
            if found is None:
                raise TrackingError(f"mlflow: experiment {name!r} could not be made at {self.uri}. See the server's log.")
            experiment_id = str(found.experiment_id)
            if not local_artifacts and self.uri.startswith("http") and is_path(found.artifact_location):
                if made == experiment_id:
                    withdraw_experiment(self._client, found)
                raise ConfigError(local_artifacts_text(name, self.uri, found.artifact_location))
            restore_experiment(self._client, found)
            write_views(self._client, experiment_id, found.tags)
        return experiment_id

    def show_test_sets(self, run_id: str) -> None:
        """Bring the saved view of test sets in the experiment of a run up to date, at best effort."""
        write_test_view(self._client, run_id)

    def get_or_create_run(self, experiment_id: str, spec: RunSpec, run_id: str = "") -> str:
        """Id of the MLflow run with this run key: `run_id` if named, restored if it was deleted; else the oldest of all experiments
        if there is any, else a new one in `experiment_id`.

        The caller owns the run folder; should two callers create a run at the same moment nevertheless, both end up with the older one.
        A run that was made in another experiment stays there: its curves and checkpoints cannot be moved.
        """
        with self._speaking(f"open run {spec.run_key}"):
            if run_id:
                restore_run(self._client, run_id)
                run, is_new = self._client.get_run(run_id), False
            else:
                run, is_new = self._get_or_create(experiment_id, RUN_KEY_TAG, spec.run_key, run_name(spec), RunState.QUEUED)
            if is_new:  # MLflow makes every run RUNNING
                self._client.update_run(run.info.run_id, status=mlflow_status(RunState.QUEUED))
            if run.info.experiment_id != experiment_id:
                name = self._client.get_experiment(run.info.experiment_id).name
                log.warning("run %s stays in MLflow's experiment %r, where it was made; another one is asked for now", spec.run_key, name)
            try:
                self._describe(run, spec)
            except MlflowException:  # two callers wrote the same tag for the first time; now it is there
                self._describe(self._client.get_run(run.info.run_id), spec)
            return str(run.info.run_id)

    def _get_or_create(self, experiment_id: str, key_tag: str, key: str, name: str, state: RunState) -> tuple[Any, bool]:
        """The oldest run with this key, and whether it was made now."""
        run = self._oldest_run(key, key_tag)
        if run is not None:
            return run, False
        first = {key_tag: key, STATE_TAG: state.value, "mlflow.source.name": "nnfleet", "mlflow.source.type": "JOB"}
        created = self._client.create_run(experiment_id, start_time=int(time.time() * 1000), tags=first, run_name=name)
        run = self._oldest_run(key, key_tag) or created
        is_new = run.info.run_id == created.info.run_id
        if not is_new:
            self._client.delete_run(created.info.run_id)
        return run, is_new

    def get_or_create_model_run(self, experiment_id: str, wanted: ModelRun, key_tag: str = MODEL_KEY_TAG) -> str:
        """Id of the MLflow run of a model's cross-validation, or with another `key_tag` of a comparison, as `get_or_create_run`; it has
        ended as soon as it is made.
        """
        with self._speaking(f"open the run {wanted.key}"):
            run, is_new = self._get_or_create(experiment_id, key_tag, wanted.key, wanted.name, RunState.SUCCEEDED)
            run_id = str(run.info.run_id)
            params = [Param(k, v[:PARAM_LENGTH]) for k, v in wanted.params.items() if k not in run.data.params]
            self._client.log_batch(run_id, params=params, tags=[RunTag(k, v) for k, v in wanted.tags.items()])
            if is_new:
                self._client.set_terminated(run_id, mlflow_status(RunState.SUCCEEDED))
        return run_id

    def known_run(self, run_key: str, key_tag: str = RUN_KEY_TAG) -> KnownRun | None:
        """The oldest MLflow run with this run key that is not deleted, if there is one; with MODEL_KEY_TAG that of a model."""
        with self._speaking(f"look up run {run_key}"):
            run = self._oldest_run(run_key, key_tag)
        return None if run is None else _known(run)

    def recorded_run(self, run_id: str) -> KnownRun | None:
        """The MLflow run with this id, deleted or not; None where the server does not know it."""
        with self._speaking(f"read run {run_id}"):
            try:
                return _known(self._client.get_run(run_id))
            except MlflowException as err:
                if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        return None

    def _oldest_run(self, key: str, key_tag: str) -> Any | None:
        experiments = [e.experiment_id for e in pages(self._client.search_experiments)]
        clause = f"tags.`{key_tag}` = '{key}'"
        runs = self._client.search_runs(experiments, clause, order_by=["attributes.start_time ASC", "attributes.run_id ASC"], max_results=1)
        return runs[0] if runs else None

    def _describe(self, run: Any, spec: RunSpec) -> None:
        wanted = {key: value[:PARAM_LENGTH] for key, value in params_of(spec).items()}
        known = dict(run.data.params)
        changed = {k: v for k, v in wanted.items() if k in known and known[k] != v}
        if changed:
            log.warning("run %s was recorded in MLflow with other values of %s; the first ones stay", spec.run_key, ", ".join(changed))
        missing = [Param(k, v) for k, v in wanted.items() if k not in known]
        all_tags = tags_of(spec) | code_tags()
        run_id = run.info.run_id
        if EARLY_END_TAG in run.data.tags:
            all_tags[EARLY_END_TAG] = ""  # of a run that was removed and begins anew; the metrics channel sets it where it holds
        if NOTE_TAG not in run.data.tags:
            all_tags[NOTE_TAG] = note_of(spec, run_id)
        for start in range(0, max(len(missing), len(all_tags)), 90):
            some_tags = [RunTag(k, str(v)) for k, v in list(all_tags.items())[start : start + 90]]
            self._client.log_batch(run_id, params=missing[start : start + 90], tags=some_tags)
        if not run.inputs or not run.inputs.dataset_inputs:
            self._client.log_inputs(run_id, datasets=_dataset_inputs(spec))

    def delete_run(self, run_id: str) -> None:
        """Put a run into MLflow's bin; nothing happens to one that is there, or is gone for good."""
        with self._speaking(f"delete run {run_id}"):
            try:
                is_there = self._client.get_run(run_id).info.lifecycle_stage != DELETED
            except MlflowException as err:
                if err.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                is_there = False
            if is_there:
                self._client.delete_run(run_id)

    def restore_run(self, run_id: str) -> None:
        """Take a run out of MLflow's bin if it is there; nothing can be recorded of it before."""
        with self._speaking(f"restore the deleted run {run_id}"):
            restore_run(self._client, run_id)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run (Ray job ids, fencing token, ...)."""
        with self._speaking(f"tag run {run_id}"):
            self._client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run."""
        with self._speaking(f"read run {run_id}"):
            return dict(self._client.get_run(run_id).data.tags)

    def params(self, run_id: str) -> dict[str, str]:
        """All parameters of a run."""
        with self._speaking(f"read run {run_id}"):
            return dict(self._client.get_run(run_id).data.params)

    def metrics(self, run_id: str) -> dict[str, float]:
        """The newest value of every metric of a run."""
        with self._speaking(f"read run {run_id}"):
            return dict(self._client.get_run(run_id).data.metrics)

    def metric_history(self, run_id: str, key: str) -> dict[int, float]:
        """Step -> value of one metric of a run, by rising step; empty where it has none."""
        with self._speaking(f"read {key} of run {run_id}"):
            return {point.step: point.value for point in sorted(self._client.get_metric_history(run_id, key), key=lambda p: p.step)}

    def set_state(self, run_id: str, state: RunState, *, is_waiting: bool = False) -> None:
        """Record the state as a tag and as MLflow's status, SCHEDULED for a run that waits in the queue (again, with `is_waiting`).

        MLflow never ends a dead run by itself, so this is the only end it gets. MLflow shows the time from the start to the end as the
        run's duration, and lets nobody change the start, which is the submission: the end is set so that the duration is the training's.
        """
        status = mlflow_status(state, is_waiting=is_waiting)
        with self._speaking(f"set the state of run {run_id}"):
            self._client.set_tag(run_id, STATE_TAG, state.value)
            if state.is_final:
                began_ms = self._client.get_run(run_id).info.start_time
                seconds = trained_s(self._client.get_metric_history(run_id, MARKER_METRIC))
                self._client.set_terminated(run_id, status, end_time=began_ms + int(1000 * seconds))
            else:
                self._client.update_run(run_id, status=status)

    # ---- metrics ----------------------------------------------------------------------------------------------------

    def logged_epochs(self, run_id: str) -> frozenset[int]:
        """Epochs whose metrics MLflow has. Each epoch is there as a whole or not at all."""
        with self._speaking(f"read the metrics of run {run_id}"):
            return frozenset(int(point.step) for point in self._client.get_metric_history(run_id, MARKER_METRIC))

    def log_epochs(
        self, run_id: str, history: Sequence[EpochRow], class_names: Sequence[str], logged: Collection[int] | None = None
    ) -> frozenset[int]:
        """Send the epochs of a whole committed history that MLflow lacks; returns all epochs that it has then.

        `logged`: what `logged_epochs` returned, if known. The first version of an epoch stays: a point cannot be deleted in MLflow.
        """
        present = set(self.logged_epochs(run_id) if logged is None else logged)
        batch: list[Metric] = []
        waiting: set[int] = set()
        for record in epoch_metrics(history, class_names):
            if record.epoch in present:
                continue
            if len(batch) + len(record.values) > METRICS_PER_REQUEST:
                self._send(run_id, batch)
                present |= waiting
                batch, waiting = [], set()
            batch += [Metric(key, value, record.timestamp_ms, record.epoch) for key, value in record.values.items()]
            waiting.add(record.epoch)
        self._send(run_id, batch)
        return frozenset(present | waiting)

    def _send(self, run_id: str, metrics: Sequence[Metric]) -> None:
        with self._speaking(f"send metrics of run {run_id}"):
            for start in range(0, len(metrics), METRICS_PER_REQUEST):
                self._client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])

    def log_validation(
        self,
        run_id: str,
        name: CheckpointName,
        metrics: Mapping[str, float],
        table: Sequence[Mapping[str, Any]],
        summary: Path,
        unix: float,
    ) -> None:
        """Record a full validation: nnU-Net's summary.json, the per-case table, and at last, as the commit, `full/<name>/<metric>`.

        The table lies at one fixed path, so MLflow shows it across runs; it is replaced as a whole, never appended to.
        """
        directory = f"fullval/{name}"
        self.upload_file(run_id, summary, directory)
        self.log_table(run_id, f"{directory}/per_case.json", table)
        self.log_scores(run_id, score_metrics(name, metrics), unix)

    def log_table(self, run_id: str, path: str, table: Sequence[Mapping[str, Any]]) -> None:
        """Replace the table at an artifact path."""
        columns = list(dict.fromkeys(key for row in table for key in row))
        rows = [[_json_number(row.get(column)) for column in columns] for row in table]
        self.upload_bytes(run_id, json.dumps({"columns": columns, "data": rows}).encode(), path)
        self._declare_table(run_id, path)

    def log_scores(self, run_id: str, values: Mapping[str, float], unix: float) -> None:
        """Send scores at step 0, where MLflow draws them as bars. The same values with the same time may be sent again."""
        self._send(run_id, [Metric(key, value, int(unix * 1000), 0) for key, value in values.items()])

    def _declare_table(self, run_id: str, path: str) -> None:
        entry = {"path": path, "type": "table"}
        declared = json.loads(self.tags(run_id).get("mlflow.loggedArtifacts", "[]"))
        if entry not in declared:
            self.set_tags(run_id, {"mlflow.loggedArtifacts": json.dumps([*declared, entry])})

    # ---- artifacts --------------------------------------------------------------------------------------------------

    def upload_file(self, run_id: str, local: Path, directory: str = "", name: str | None = None) -> None:
        """Upload one file into an artifact directory, under another name if one is given. Replaces a file of that name as a whole."""
        with tempfile.TemporaryDirectory(prefix="nnfleet-upload-") as folder:
            link = Path(folder) / (name or local.name)  # MLflow names an artifact after the file
            link.symlink_to(local.resolve(strict=True))
            with self._speaking(f"upload {link.name} ({local.stat().st_size / 1e6:.1f} MB) to run {run_id}"):
                self._client.log_artifact(run_id, str(link), directory or None)

    def upload_bytes(self, run_id: str, content: bytes, path: str) -> None:
        """Upload `content` as the artifact `path`."""
        directory, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="nnfleet-upload-") as folder:
            local = Path(folder) / name
            local.write_bytes(content)
            self.upload_file(run_id, local, directory)

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        """Artifact paths in a directory with their sizes in bytes; None for a directory."""
        with self._speaking(f"list artifacts of run {run_id}"):
            found = self._client.list_artifacts(run_id, directory or None)
        return {item.path: None if item.is_dir else int(item.file_size) for item in found}

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """Download one artifact file below `folder` and return where it is."""
        with self._speaking(f"download {path} of run {run_id}"):
            local = Path(self._client.download_artifacts(run_id, path, str(folder)))
        if not local.resolve().is_relative_to(folder.resolve()) or local.is_symlink() or not local.is_file():
            raise TrackingError(f"mlflow: {path} of run {run_id} at {self.uri} did not arrive as a file below {folder}. It is not used.")
        return local

    def delete_directory(self, run_id: str, directory: str) -> None:
        """Delete an artifact directory with everything in it."""
        with self._speaking(f"delete {directory} of run {run_id}"):
            uri = self._client.get_run(run_id).info.artifact_uri
            get_artifact_repository(uri, tracking_uri=self.uri).delete_artifacts(directory)

    def record_model(self, run_id: str, entry: ModelEntry) -> str:
        """Make one READY model of a run, unless it is there already, and return its id. What a killed job left PENDING is removed."""
        with self._speaking(f"record the model of run {run_id}"):
            experiment_id = self._client.get_run(run_id).info.experiment_id
            for model in self._client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
                if str(model.status) != "READY":
                    self._client.delete_logged_model(model.model_id)
                elif model.tags.get("nnfleet.sha256") == entry.sha256:
                    return str(model.model_id)
            tags = {"nnfleet.sha256": entry.sha256}
            made = self._client.create_logged_model(experiment_id, entry.name, run_id, tags, dict(entry.params), "nnunet")
            with tempfile.TemporaryDirectory(prefix="nnfleet-model-") as folder:
                _lay_out_model(Path(folder), made.model_id, run_id, entry)
                self._client.log_model_artifacts(made.model_id, folder)
            scores = [Metric(k, v, int(entry.unix * 1000), 0, made.model_id, *entry.data) for k, v in entry.scores.items()]
            self._client.log_batch(run_id, metrics=scores)
            self._client.log_outputs(run_id, [LoggedModelOutput(made.model_id, 0)])
            self._client.finalize_logged_model(made.model_id, "READY")
            return str(made.model_id)

    # ---- lookup and links -------------------------------------------------------------------------------------------

    def find_runs(self, text: str) -> list[str]:
        """Ids of the runs called `text`, at least one (see `orchestrator/run/names.py`). Raises ConfigError with what is known."""
        names = owners_last(self.run_names())
        return [names[place].mlflow_run_id for place in resolve(text, names, f"in MLflow at {self.uri}")]

    def run_names(self) -> list[Names]:
        """Names of all runs of nnfleet on the server, the one that was started last at the end."""
        with self._speaking("list runs"):
            experiments = [e.experiment_id for e in pages(self._client.search_experiments)]
            runs = pages(self._client.search_runs, experiments, f"tags.`{RUN_KEY_TAG}` != ''")
            named = [(r.info.run_id, r.data.tags) for r in sorted(runs, key=lambda r: r.info.start_time or 0)]
            return [Names(tags[RUN_KEY_TAG], tags.get(ADDRESS_TAG, ""), run_id, tags.get(FOLDER_TAG, "")) for run_id, tags in named]

    def models_in(self, model_folder: str) -> list[str]:
        """Ids of the runs of cross-validations of the models that were trained in a folder."""
        with self._speaking("list models"):
            experiments = [e.experiment_id for e in pages(self._client.search_experiments)]
            found = pages(self._client.search_runs, experiments, f"tags.`{MODEL_KEY_TAG}` != ''")
            return [str(run.info.run_id) for run in found if run.data.tags.get(FOLDER_TAG) == model_folder]

    def open_runs(self) -> list[OpenRun]:
        """All runs of nnfleet that the server shows as not ended."""
        with self._speaking("list runs"):
            experiments = [e.experiment_id for e in pages(self._client.search_experiments)]
            not_ended = " AND ".join(f"attributes.status != '{status}'" for status in ("FINISHED", "FAILED", "KILLED"))
            clause = f"tags.`{RUN_KEY_TAG}` != '' AND {not_ended}"
            return [
                OpenRun(r.info.run_id, r.data.tags[RUN_KEY_TAG], r.data.tags.get(STATE_TAG, ""), r.data.tags.get(FOLDER_TAG, ""))
                for r in pages(self._client.search_runs, experiments, clause)
            ]

    def delete_experiment(self, name: str) -> None:
        """Put an experiment with its runs into MLflow's bin; nothing happens if there is none."""
        with self._speaking(f"delete the experiment {name}"):
            found = self._client.get_experiment_by_name(name)
            if found is not None and found.lifecycle_stage == "active":
                self._client.delete_experiment(found.experiment_id)

    def run_url(self, run_id: str) -> str:
        """Link to a run's page; empty where the tracking URI is no web address."""
        with self._speaking(f"read run {run_id}"):
            experiment_id = self._client.get_run(run_id).info.experiment_id
        return run_url(self.uri, str(experiment_id), run_id) if self.uri.startswith("http") else ""


def _known(run: Any) -> KnownRun:
    is_deleted = bool(run.info.lifecycle_stage == DELETED)
    return KnownRun(str(run.info.run_id), dict(run.data.tags), dict(run.data.metrics), is_deleted)


def _lay_out_model(folder: Path, model_id: str, run_id: str, entry: ModelEntry) -> None:
    from mlflow.models import Model  # seconds of imports, needed once per run

    for name, path in entry.files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path.resolve(strict=True))
    Model(model_uuid=model_id, model_id=model_id, run_id=run_id, flavors={"nnunet": {"sha256": entry.sha256}}).save(str(folder / "MLmodel"))


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def _dataset_inputs(spec: RunSpec) -> list[DatasetInput]:
    """The data of the run with a digest each: runs that share a digest were trained, or validated, on the same data."""
    parts = (
        (spec.dataset, spec.data_digest, "training", len(spec.train_cases)),
        (f"{spec.dataset} fold {spec.fold}", validation_data(spec), "validation", len(spec.val_cases)),
    )
    source = json.dumps({"folder": str(spec.preprocessed_folder), "plans": spec.plans})
    return [
        DatasetInput(
            dataset=Dataset(name, digest[:DIGEST_LENGTH], "nnunet_preprocessed", source, profile=json.dumps({"num_cases": count})),
            tags=[InputTag("mlflow.data.context", context)],
        )
        for name, digest, context, count in parts
    ]
