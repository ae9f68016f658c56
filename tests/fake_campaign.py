"""A campaign's surroundings without Ray: a cluster and a tracking server that tests drive by verbs, and real run folders."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrator.campaign.dispatch import ClusterJobs
from orchestrator.campaign.events import CampaignEvent, StatusChanged, Warned
from orchestrator.campaign.loop import Campaign
from orchestrator.errors import ClusterError, ConfigError, Superseded, TrackingError
from orchestrator.publishing.published import Published, published_tag
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Registry
from orchestrator.resume.orphan_workers import refuse_orphan_workers
from orchestrator.run.clock import Clock
from orchestrator.run.job_record import JobKind, JobRecord, JobState
from orchestrator.run.outcome import EndState, Outcome, write_outcome
from orchestrator.run.progress import checkpoints_due
from orchestrator.tracking.binding import TrackingServer
from orchestrator.tracking.failure import local_artifacts_text
from orchestrator.tracking.records import STATE_TAG, KnownRun, OpenRun, mlflow_status
from trainers.contract.commits import Committed, Manifest, newest_committed
from trainers.contract.early_end import EarlyEnd
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, Schedule, WorkerSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic


class FakeCluster(ClusterJobs):
    """One head node's worth of jobs; tests say what happens to them."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.jobs: dict[str, JobRecord] = {}
        self.stopped: list[str] = []
        self.controls: list[list[str]] = []
        """What small jobs were asked to do."""
        self.is_away = False
        self.refuses: set[str] = set()
        """Keys of runs of which it neither submits nor stops a job."""
        self.refusing_takes: Callable[[], None] = lambda: None
        self.most_gpus = 0
        self.tracking: FakeTracking | None = None
        """Where validations deliver."""
        self.ahead_s = 0.0
        """How far the clock is ahead by which it stamps the jobs that start."""
        self.on_submit: Callable[[JobRecord], None] = lambda job: None
        """Sees every job that is asked for, before it is there."""
        self._delivering: set[str] = set()
        self.texts: dict[str, str] = {}
        """What jobs printed; of the others nothing is known."""

    # what a campaign asks for

    def records(self) -> list[JobRecord]:
        if self.is_away:
            raise ClusterError("cluster: away")
        return list(self.jobs.values())

    def submit_training(self, folder: RunFolder, spec: RunSpec, job_number: int, *, campaign: str = "", mlflow_run_id: str = "") -> str:
        return self._add(f"train-{spec.run_key}-a{job_number}", "train", folder, spec, job_number, campaign)

    def submit_validation(
        self, folder: RunFolder, spec: RunSpec, fencing_token: int, retry: int = 0, *, campaign: str = "", mlflow_run_id: str = ""
    ) -> str:
        name = f"validate-{spec.run_key}-a{fencing_token}" + (f"-r{retry}" if retry else "")
        return self._add(name, "validate", folder, spec, fencing_token, campaign)

    def submit_preprocessing(self, name: str, order: str, place: Mapping[str, str], cpus: int, memory_gib: float | None) -> str:
        self._take_order(name)
        self.jobs.setdefault(name, JobRecord(submission_id=name, kind="preprocess", state="RUNNING", **place))
        return name

    def submit_control(self, name: str, arguments: list[str]) -> str:
        if self.is_away:
            raise ClusterError("cluster: away")
        self.controls.append(arguments)
        self.jobs[f"control-{name}"] = JobRecord(submission_id=f"control-{name}", kind="control", state="RUNNING")
        return f"control-{name}"

    def stop(self, submission_id: str) -> None:
        self._take_order(self.jobs[submission_id].run_key)
        self.stopped.append(submission_id)

    def nodes(self) -> list[NodeResources]:
        total = {"CPU": 64.0, "GPU": float(self.gpus)}
        return [NodeResources("head", total, {**total, "GPU": float(self.gpus - self.gpus_in_use)})]

    @property
    def gpus_in_use(self) -> int:
        at_work = [job for name, job in self.jobs.items() if job.is_live and name not in self._delivering]
        held = {job.run_key: job.reserved.count * job.reserved.gpus for job in at_work if job.reserved}
        return sum(held.values())

    def _add(self, name: str, kind: JobKind, folder: RunFolder, spec: RunSpec, job_number: int, campaign: str) -> str:
        self._take_order(spec.run_key)
        record = JobRecord(
            submission_id=name,
            kind=kind,
            state="RUNNING",
            run_key=spec.run_key,
            campaign=campaign,
            job_number=job_number,
            reserved=spec.workers,
            run_folder=str(folder.root),
            started_unix=time.time() + self.ahead_s,
        )
        self.on_submit(record)
        self.jobs.setdefault(name, record)
        self.most_gpus = max(self.most_gpus, self.gpus_in_use)
        return name

    def _take_order(self, run_key: str) -> None:
        if self.is_away or run_key in self.refuses:
            self.refusing_takes()
            raise ClusterError(f"cluster: takes no order for {run_key}")

    def logs(self, submission_id: str) -> str:
        if self.is_away:
            raise ClusterError("cluster: away")
        return self.texts.get(submission_id, "")

    # what happens to the jobs

    def add_campaign(self, campaign: str) -> None:
        self.jobs[f"campaign-{campaign}"] = JobRecord(
            submission_id=f"campaign-{campaign}", kind="campaign", state="RUNNING", campaign=campaign, started_unix=time.time()
        )

    def kill_campaign(self, campaign: str) -> None:
        self.kill(f"campaign-{campaign}")

    def workers_begin(self, run: RunSpec) -> None:
        fencing_token = acquire_token(RunFolder(run.run_folder), self.living(run))
        heartbeat = {"epoch": 0, "iteration": 1, "phase": "train", "unix": time.time(), "attempt": fencing_token}
        write_json_atomic(RunFolder(run.run_folder).progress_file, heartbeat)

    def training_ends(self, run: RunSpec, state: EndState = "TRAINED", *, hands_over: bool = True) -> None:
        name = self.living(run)
        fencing_token = self.jobs[name].job_number
        outcome = Outcome(job="training", state=state, fencing_token=fencing_token, message=f"training said {state}")
        write_outcome(RunFolder(run.run_folder), outcome)
        if state == "TRAINED" and hands_over:
            self.submit_validation(RunFolder(run.run_folder), run, fencing_token, campaign=self.jobs[name].campaign)
        self._end(name, "FAILED" if outcome.is_failure else "SUCCEEDED", int(outcome.is_failure))

    def validation_ends(self, run: RunSpec, state: EndState = "SUCCEEDED") -> None:
        name = self.living(run)
        outcome = Outcome(job="validation", state=state, fencing_token=self.jobs[name].job_number, message=f"validation said {state}")
        write_outcome(RunFolder(run.run_folder), outcome)
        if self.tracking is not None and state == "SUCCEEDED":
            self.tracking.take_scores(run)
        self._end(name, "FAILED" if outcome.is_failure else "SUCCEEDED", int(outcome.is_failure))

    def validation_waits_for_the_server(self, run: RunSpec) -> None:
        """It has stored its end, its workers are gone, and it waits to deliver."""
        name = self.living(run)
        outcome = Outcome(job="validation", state="SUCCEEDED", fencing_token=self.jobs[name].job_number, message="done")
        write_outcome(RunFolder(run.run_folder), outcome)
        self._delivering.add(name)

    def training_pauses_and_delivers(self, run: RunSpec) -> None:
        """It has stored that it pauses, its workers are gone, and it delivers yet."""
        name = self.living(run)
        outcome = Outcome(job="training", state="PAUSED", fencing_token=self.jobs[name].job_number, message="paused")
        write_outcome(RunFolder(run.run_folder), outcome)
        self._delivering.add(name)

    def kill_driver(self, run: RunSpec) -> None:
        self.kill(self.living(run))

    def gives_way(self, run: RunSpec) -> None:
        """The training job ends because another driver has claimed the run."""
        self._end(self.living(run), "FAILED", Superseded.exit_code)

    def living(self, run: RunSpec) -> str:
        return next(n for n, job in reversed(self.jobs.items()) if job.is_live and job.run_key == run.run_key)

    def live_jobs(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.is_live and job.kind in ("train", "validate")]

    def kill(self, name: str) -> None:
        """SIGKILL to a job of whatever kind."""
        self._end(name, "FAILED", 137)

    def ends(self, name: str) -> None:
        """A job of whatever folder has done its work."""
        self._end(name, "SUCCEEDED", 0)

    def fails(self, name: str) -> None:
        """A job ends with an error of its own."""
        self._end(name, "FAILED", 1)

    def _end(self, name: str, state: JobState, code: int) -> None:
        self.jobs[name] = self.jobs[name].model_copy(update={"state": state, "exit_code": code, "ended_unix": time.time()})


class Refused(Exception):
    """As MLflow's own exception."""

    error_code = "INVALID_PARAMETER_VALUE"


class FakeTracking(TrackingServer):
    """Remembers the states of runs; can be away."""

    uri = "http://mlflow"

    def __init__(self) -> None:
        self.states: dict[str, list[RunState]] = {}
        self.statuses: dict[str, list[str]] = {}
        self.scores: dict[str, dict[str, float]] = {}
        self.folders: dict[str, dict[str, str]] = {}
        self.binned: set[str] = set()
        """Runs that somebody deleted in the server's pages."""
        self.lost: set[str] = set()
        """Runs that are gone for good."""
        self.writes_to_paths = False
        """Artifacts go to a path of whoever sends them."""
        self.unwanted: set[str] = set()
        self.is_away = False
        self.turned_away = 0
        self._answers_left: int | None = None

    def goes_away_after(self, answers: int) -> None:
        self._answers_left = answers

    def comes_back(self) -> None:
        self.is_away, self._answers_left = False, None

    def ping(self) -> None:
        self._answer()

    def ensure_experiment(self, name: str, *, local_artifacts: bool = True) -> str:
        if self.writes_to_paths and not local_artifacts:
            raise ConfigError(local_artifacts_text(name, self.uri, "file:///x"))
        return "7"

    def known_run(self, run_key: str) -> KnownRun | None:
        self._answer()
        active = [run_id for run_id in self._made(run_key) if run_id not in self.binned]
        return self.recorded_run(active[0]) if active else None

    def recorded_run(self, run_id: str) -> KnownRun | None:
        self._answer()
        if run_id not in self.folders:
            return None
        state = {STATE_TAG: told[-1].value} if (told := self.states.get(run_id)) else {}
        return KnownRun(run_id, self.folders[run_id] | state, self.metrics(run_id), run_id in self.binned)

    def get_or_create_run(self, experiment_id: str, spec: RunSpec, run_id: str = "") -> str:
        self._answer()
        if spec.run_key in self.unwanted:
            raise TrackingError("mlflow: no room")
        known = self.known_run(spec.run_key)
        number = len(self._made(spec.run_key))
        taken = run_id or (known.run_id if known else f"id-{spec.run_key}" + (f"+{number}" if number else ""))
        self.binned.discard(taken)
        self.folders.setdefault(taken, {})["nnfleet.run_folder"] = str(spec.run_folder)
        return taken

    def _made(self, run_key: str) -> list[str]:
        return [run_id for run_id in self.folders if run_id.split("+")[0] == f"id-{run_key}"]

    def metrics(self, run_id: str) -> dict[str, float]:
        self._answer()
        return dict(self.scores.get(run_id, {}))

    def set_state(self, run_id: str, state: RunState, *, is_waiting: bool = False) -> None:
        self._answer()
        if run_id in self.lost | self.binned:
            raise TrackingError("mlflow: could not set the state") from Refused("the run is deleted")
        if self.states.setdefault(run_id, [])[-1:] != [state]:
            self.states[run_id].append(state)
        self.statuses.setdefault(run_id, []).append(mlflow_status(state, is_waiting=is_waiting))

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self._answer()

    def tags(self, run_id: str) -> dict[str, str]:
        self._answer()
        return {STATE_TAG: self.states[run_id][-1].value}

    def restore_run(self, run_id: str) -> None:
        self._answer()
        self.binned.discard(run_id)

    def open_runs(self) -> list[OpenRun]:
        self._answer()
        shown = {run_id: states[-1] for run_id, states in self.states.items() if not states[-1].is_final and run_id not in self.binned}
        return [
            OpenRun(run_id, run_id.removeprefix("id-"), state.value, self.folders[run_id]["nnfleet.run_folder"])
            for run_id, state in shown.items()
        ]

    def run_url(self, run_id: str) -> str:
        return f"http://mlflow/#/{run_id}"

    def take_scores(self, run: RunSpec) -> None:
        """What a validation job delivers."""
        committed = newest_committed(RunFolder(run.run_folder))
        self.scores[f"id-{run.run_key}"] = {f"full/{name}/dice_mean": 0.5 for name in checkpoints_due(run, committed)}
        for manifest in (committed.best, committed.final) if committed is not None else ():
            if manifest is not None:
                record = Published(directory=f"checkpoints/{manifest.checkpoint}/e0-00000000", manifest=manifest)
                self.folders[f"id-{run.run_key}"][published_tag(manifest.checkpoint)] = record.model_dump_json()

    def lose_everything(self) -> None:
        """Its database is gone."""
        self.folders.clear()
        self.states.clear()
        self.scores.clear()

    def _answer(self) -> None:
        if self._answers_left is not None:
            self._answers_left -= 1
            self.is_away = self._answers_left < 0
        if self.is_away:
            self.turned_away += 1
            raise TrackingError("mlflow: away")


class FakeClock:
    """Time that passes only while somebody sleeps; meanwhile things happen. Clocks may be set, as administrators and NTP do."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.ahead_s = 0.0
        self._pending: list[tuple[float, Callable[[], None]]] = []
        self.clock = Clock(self.unix, lambda: self.now_s, self.sleep)

    def unix(self) -> float:
        return time.time() + self.now_s - 1000.0 + self.ahead_s

    def jump(self, seconds: float) -> None:
        self.ahead_s += seconds

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """`what` happens when so much time has passed."""
        self._pending.append((self.now_s + seconds, what))

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        due = [what for at, what in self._pending if at <= self.now_s]
        self._pending = [item for item in self._pending if item[0] > self.now_s]
        for what in due:
            what()


class Stage:
    """A cluster, a tracking server, data, a clock, and campaigns."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.tracking = FakeTracking()
        self.cluster = FakeCluster()
        self.cluster.tracking = self.tracking
        self.clock = FakeClock()
        self.said: list[str] = []
        self.events: list[CampaignEvent] = []
        self.data = base / "preprocessed" / "Dataset001_X"
        self.data.mkdir(parents=True)
        (self.data / "nnUNetPlans.json").write_text('{"configurations": {"3d": {}}}')
        write_json_atomic(
            self.data / "dataset.json", {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
        )

    def run(self, fold: int, gpus: int = 1) -> RunSpec:
        return RunSpec(
            run_key=f"key{fold}",
            dataset="Dataset001_X",
            preprocessed_folder=self.data,
            model_folder=self.base / "results" / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__3d",
            plans="nnUNetPlans",
            configuration="3d",
            trainer="nnUNetTrainer",
            fold=fold,
            train_cases=("a",),
            val_cases=("b",),
            data_digest="0" * 64,
            schedule=Schedule(epochs=4),
            workers=WorkerSpec(count=gpus, gpus=1, cpus=1),
        )

    def campaign(self, *specs: RunSpec, name: str = "c1", replaces: bool = False, only_validate: bool = False) -> Campaign:
        self.cluster.add_campaign(name)
        refuse_orphan_workers(specs, self.cluster.records, self.clock.clock, self.said.append)
        made = Campaign(
            name, self.cluster, self.cluster.nodes, Registry(self.base / "board"), self.events.append, self.tracking, self.clock.clock
        )
        made.open(specs, replaces=replaces, only_validate=only_validate)
        return made

    def reported(self, run: RunSpec) -> list[str]:
        reported = [event.status for event in self.events if isinstance(event, StatusChanged) and event.status["run_key"] == run.run_key]
        return [status["state"] for status in reported if "state" in status]

    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]


def look(campaign: Campaign) -> None:
    campaign.tick()
    campaign.report()


def states(campaign: Campaign) -> list[str]:
    return [run.state.value for run in campaign.runs.values()]


def finish_on_disk(run: RunSpec, *, is_validated: bool = True, has_best: bool = True, early_end: EarlyEnd | None = None) -> None:
    """What a finished training, and validation, leave in the run folder; `has_best`: an epoch had foreground."""
    folder = RunFolder(run.run_folder)
    final = Manifest(checkpoint="final", file="x", epoch=3, fencing_token=1, ema_pseudo_dice=None, sha256="0", size_bytes=1)
    committed = Committed(
        run_key=run.run_key,
        epochs_done=4 if early_end is None else early_end.epochs,
        fencing_token=1,
        history=(),
        early_end=early_end,
        best=final.model_copy(update={"checkpoint": "best"}) if has_best else None,
        final=final,
        state_sha256="0",
        state_size_bytes=1,
    )
    write_json_atomic(folder.state / f"{committed.stem}.json", json.loads(committed.model_dump_json()))
    for name in checkpoints_due(run, committed) if is_validated else ():
        write_json_atomic(folder.validation(name) / "summary.json", {})
