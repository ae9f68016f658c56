"""The campaign's loop on a fake cluster that is driven by verbs; run folders are real. No Ray."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.board import Board
from orchestrator.campaign_log import CampaignLog
from orchestrator.campaign_loop import LEAST_TELL_S, Campaign, Event, is_news
from orchestrator.errors import ClusterError, ConfigError, TrackingError
from orchestrator.job_record import JobRecord
from orchestrator.outcome import EndState, Outcome, read_outcome, write_outcome
from orchestrator.resources import NodeResources
from orchestrator.run_status import RunStatus, match
from trainers.spec.attempts import claim_attempt
from trainers.spec.committed import Committed, Manifest
from trainers.spec.files import write_json_atomic
from trainers.spec.folder import RunFolder
from trainers.spec.run_spec import RunSpec, Schedule, WorkerSpec
from trainers.spec.states import RunState


class FakeCluster:
    """One head node's worth of jobs; tests say what happens to them."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.jobs: dict[str, JobRecord] = {}
        self.stopped: list[str] = []
        self.is_away = False
        self.most_gpus = 0

    # what a campaign asks for

    def records(self) -> list[JobRecord]:
        if self.is_away:
            raise ClusterError("cluster: away")
        return list(self.jobs.values())

    def submit_training(self, folder: RunFolder, spec: RunSpec, attempt: int, *, campaign: str = "", mlflow_run_id: str = "") -> str:
        return self._add(f"train-{spec.run_key}-a{attempt}", "train", folder, spec, attempt, campaign)

    def submit_validation(
        self, folder: RunFolder, spec: RunSpec, attempt: int, retry: int = 0, *, campaign: str = "", mlflow_run_id: str = ""
    ) -> str:
        name = f"validate-{spec.run_key}-a{attempt}" + (f"-r{retry}" if retry else "")
        return self._add(name, "validate", folder, spec, attempt, campaign)

    def stop(self, submission_id: str) -> None:
        self.stopped.append(submission_id)

    def nodes(self) -> list[NodeResources]:
        total = {"CPU": 64.0, "GPU": float(self.gpus)}
        return [NodeResources("head", total, {**total, "GPU": float(self.gpus - self.gpus_in_use)})]

    @property
    def gpus_in_use(self) -> int:
        held = {job.run_key: job.reserved.count * job.reserved.gpus for job in self.jobs.values() if job.is_live and job.reserved}
        return sum(held.values())

    def _add(self, name: str, kind: Any, folder: RunFolder, spec: RunSpec, attempt: int, campaign: str) -> str:
        record = JobRecord(
            submission_id=name,
            kind=kind,
            state="RUNNING",
            run_key=spec.run_key,
            campaign=campaign,
            attempt=attempt,
            reserved=spec.workers,
            run_folder=str(folder.root),
            started_unix=time.time(),
        )
        self.jobs.setdefault(name, record)
        self.most_gpus = max(self.most_gpus, self.gpus_in_use)
        return name

    # what happens to the jobs

    def add_campaign(self, campaign: str) -> None:
        self.jobs[f"campaign-{campaign}"] = JobRecord(
            submission_id=f"campaign-{campaign}", kind="campaign", state="RUNNING", campaign=campaign, started_unix=time.time()
        )

    def kill_campaign(self, campaign: str) -> None:
        self._end(f"campaign-{campaign}", "FAILED", 137)

    def workers_begin(self, run: RunSpec) -> None:
        attempt = claim_attempt(RunFolder(run.run_folder), "driver")
        beat = {"epoch": 0, "iteration": 1, "phase": "train", "unix": time.time(), "attempt": attempt}
        write_json_atomic(RunFolder(run.run_folder).progress_file, beat)

    def training_ends(self, run: RunSpec, state: EndState = "TRAINED", *, hands_over: bool = True) -> None:
        name = self.living(run)
        attempt = self.jobs[name].attempt
        outcome = Outcome(job="training", state=state, attempt=attempt, message=f"training said {state}")
        write_outcome(RunFolder(run.run_folder), outcome)
        if state == "TRAINED" and hands_over:
            self.submit_validation(RunFolder(run.run_folder), run, attempt, campaign=self.jobs[name].campaign)
        self._end(name, "FAILED" if outcome.is_failure else "SUCCEEDED", int(outcome.is_failure))

    def validation_ends(self, run: RunSpec, state: EndState = "SUCCEEDED") -> None:
        name = self.living(run)
        outcome = Outcome(job="validation", state=state, attempt=self.jobs[name].attempt, message=f"validation said {state}")
        write_outcome(RunFolder(run.run_folder), outcome)
        self._end(name, "FAILED" if outcome.is_failure else "SUCCEEDED", int(outcome.is_failure))

    def kill_driver(self, run: RunSpec) -> None:
        self._end(self.living(run), "FAILED", 137)

    def living(self, run: RunSpec) -> str:
        return next(n for n, job in reversed(self.jobs.items()) if job.is_live and job.run_key == run.run_key)

    def live_jobs(self) -> list[str]:
        return [name for name, job in self.jobs.items() if job.is_live and job.kind != "campaign"]

    def _end(self, name: str, state: Any, code: int | None) -> None:
        self.jobs[name] = self.jobs[name].model_copy(update={"state": state, "exit_code": code, "ended_unix": time.time()})


class FakeTracking:
    """Remembers the states of runs; can be away."""

    uri = "http://mlflow"

    def __init__(self) -> None:
        self.states: dict[str, list[RunState]] = {}
        self.is_away = False

    def ping(self) -> None:
        self._answer()

    def ensure_experiment(self, name: str) -> str:
        return "7"

    def claim_run(self, experiment_id: str, spec: RunSpec) -> str:
        self._answer()
        return f"id-{spec.run_key}"

    def set_state(self, run_id: str, state: RunState) -> None:
        self._answer()
        self.states.setdefault(run_id, []).append(state)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self._answer()

    def run_url(self, run_id: str) -> str:
        return f"http://mlflow/#/{run_id}"

    def _answer(self) -> None:
        if self.is_away:
            raise TrackingError("mlflow: away")


class Stage:
    """A cluster, a tracking server, data, and campaigns."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.cluster = FakeCluster()
        self.tracking = FakeTracking()
        self.events: list[Event] = []
        self.data = base / "preprocessed" / "Dataset001_X"
        self.data.mkdir(parents=True)
        (self.data / "nnUNetPlans.json").write_text('{"configurations": {"3d": {}}}')
        (self.data / "dataset.json").write_text('{"labels": {"background": 0, "a": 1}}')

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

    def campaign(self, *specs: RunSpec, name: str = "c1") -> Campaign:
        self.cluster.add_campaign(name)
        made = Campaign(name, self.cluster, self.cluster.nodes, Board(self.base / "board"), self.events.append, self.tracking)
        made.open(specs)
        return made

    def told(self, run: RunSpec) -> list[str]:
        told = [e["status"] for e in self.events if e["event"] == "status" and e["status"]["run_key"] == run.run_key]
        return [status["state"] for status in told if "state" in status]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def look(campaign: Campaign) -> None:
    campaign.tick()
    campaign.tell()


def states(campaign: Campaign) -> list[str]:
    return [run.state.value for run in campaign.runs.values()]


def test_runs_go_one_after_the_other_through_training_and_validation(stage: Stage) -> None:
    first, second = stage.run(0), stage.run(1)
    campaign = stage.campaign(first, second)
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED"]
    assert stage.cluster.live_jobs() == ["train-key0-a1"]
    stage.cluster.training_ends(first)
    look(campaign)
    assert states(campaign) == ["VALIDATING", "QUEUED"], "the reservation is held until the validation has ended"
    stage.cluster.validation_ends(first)
    look(campaign)
    assert states(campaign) == ["SUCCEEDED", "RUNNING"]
    stage.cluster.training_ends(second)
    stage.cluster.validation_ends(second)
    assert campaign.run(poll_s=0) == 0
    assert stage.told(first) == ["RUNNING", "VALIDATING", "SUCCEEDED"]
    assert stage.told(second)[0] == "QUEUED"
    assert stage.events[-1] == {"event": "done", "exit_code": 0}
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING, RunState.VALIDATING, RunState.SUCCEEDED]


def test_the_folder_is_claimed_with_nnunets_files_and_the_mlflow_run(stage: Stage) -> None:
    run = stage.run(0)
    stage.campaign(run)
    folder = RunFolder(run.run_folder)
    assert folder.spec() == run
    assert json.loads(folder.mlflow_file.read_text()) == {"run_id": "id-key0", "experiment_id": "7", "tracking_uri": "http://mlflow"}
    assert sorted(p.name for p in run.model_folder.glob("*.json")) == ["dataset.json", "plans.json"]
    assert (run.model_folder / "plans.json").read_bytes() == (stage.data / "nnUNetPlans.json").read_bytes()


def test_a_folder_of_another_run_is_refused(stage: Stage) -> None:
    stage.campaign(stage.run(0))
    with pytest.raises(ConfigError, match="belongs to the run key0"):
        stage.campaign(stage.run(0).model_copy(update={"run_key": "other"}), name="c2")


def test_a_run_that_lives_in_another_results_folder_is_refused(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    with pytest.raises(ConfigError, match="is running in"):
        stage.campaign(run.model_copy(update={"model_folder": stage.base / "elsewhere"}), name="c2")


def test_other_plans_in_the_model_folder_are_refused(stage: Stage) -> None:
    stage.campaign(stage.run(0))
    (stage.data / "nnUNetPlans.json").write_text('{"configurations": {"3d": {"batch_size": 9}}}')
    with pytest.raises(ConfigError, match="must share one plan"):
        stage.campaign(stage.run(1), name="c2")


def test_other_workers_are_taken_over_unless_a_job_lives(stage: Stage) -> None:
    run = stage.run(0)
    wider = run.model_copy(update={"workers": WorkerSpec(count=2, gpus=1, cpus=1)})
    first = stage.campaign(run)
    assert stage.campaign(wider, name="c2").runs["key0"].spec == wider
    assert RunFolder(run.run_folder).spec() == wider
    stage.campaign(run, name="c3")
    look(first)
    assert stage.campaign(wider, name="c4").runs["key0"].spec == run


def test_an_unreachable_tracking_server_is_refused_before_anything_starts(stage: Stage) -> None:
    stage.tracking.is_away = True
    with pytest.raises(TrackingError):
        stage.campaign(stage.run(0))
    assert not stage.cluster.live_jobs()


def test_a_tracking_server_that_goes_away_later_only_delays_the_states(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.campaign_loop.TRACKING_RETRY_S", 0.0)
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.tracking.is_away = True
    look(campaign)
    assert states(campaign) == ["RUNNING"]
    stage.tracking.is_away = False
    look(campaign)
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING]


def test_a_validation_that_a_dead_driver_left_out_is_submitted(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run, hands_over=False)
    look(campaign)
    assert stage.cluster.live_jobs() == ["validate-key0-a1"]
    assert states(campaign) == ["VALIDATING"]


def test_a_killed_driver_is_replaced_and_its_place_kept(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    campaign = stage.campaign(run, other)
    look(campaign)
    stage.cluster.workers_begin(run)
    look(campaign)
    stage.cluster.kill_driver(run)
    look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a2"], "after the attempt that the dead driver claimed, before the waiting run"
    look(campaign)
    assert states(campaign) == ["RECOVERING", "QUEUED"]
    stage.cluster.workers_begin(run)
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED"]
    assert stage.told(run) == ["RUNNING", "RECOVERING", "RUNNING"]


def test_a_run_that_keeps_dying_is_given_up(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    for _ in range(3):
        look(campaign)
        stage.cluster.kill_driver(run)
    assert campaign.run(poll_s=0) == 1
    assert states(campaign) == ["FAILED_CLUSTER"]
    outcome = read_outcome(RunFolder(run.run_folder))
    assert outcome is not None
    assert outcome.state == "FAILED_CLUSTER"
    assert "signal 9" in outcome.message


def test_an_error_of_the_user_is_not_tried_again_and_frees_the_place(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    campaign = stage.campaign(run, other)
    look(campaign)
    stage.cluster.training_ends(run, "FAILED_CODE")
    look(campaign)
    assert states(campaign) == ["FAILED_CODE", "RUNNING"]
    assert campaign.runs["key0"].reason == "training said FAILED_CODE"


def test_stop_of_a_waiting_run_and_of_a_running_one(stage: Stage) -> None:
    running, waiting = stage.run(0), stage.run(1)
    campaign = stage.campaign(running, waiting)
    look(campaign)
    for run in (running, waiting):
        write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
    look(campaign)
    assert states(campaign) == ["RUNNING", "STOPPED"]
    stage.cluster.training_ends(running, "STOPPED")
    look(campaign)
    assert states(campaign) == ["STOPPED", "STOPPED"]
    assert campaign.run(poll_s=0) == 0
    assert not stage.cluster.stopped


def test_stop_at_once_ends_the_job(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": True})
    look(campaign)
    look(campaign)
    assert stage.cluster.stopped == ["train-key0-a1"]
    stage.cluster.kill_driver(run)
    look(campaign)
    assert states(campaign) == ["STOPPED"]


def test_a_stopped_run_that_is_submitted_again_continues(stage: Stage) -> None:
    run = stage.run(0)
    test_stop_at_once_ends_the_job(stage)
    again = stage.campaign(run, name="c2")
    look(again)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]
    assert states(again) == ["RUNNING"]
    assert not RunFolder(run.run_folder).stop_file.exists()


def test_a_restarted_campaign_takes_up_the_running_jobs(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    look(stage.campaign(run, other))
    stage.cluster.kill_campaign("c1")
    campaign = stage.campaign(run, other, name="c2")
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED"]
    assert stage.cluster.live_jobs() == ["train-key0-a1"]
    stage.cluster.training_ends(run, hands_over=False)
    look(campaign)
    assert stage.cluster.live_jobs() == ["validate-key0-a1"]


def test_a_finished_run_is_not_repeated(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    again = stage.campaign(run, name="c2")
    assert again.run(poll_s=0) == 0
    assert states(again) == ["SUCCEEDED"]
    assert [name for name in stage.cluster.jobs if name.startswith("train")] == ["train-key0-a1"]


def test_a_trained_run_whose_validation_failed_is_only_validated_again(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    finish_on_disk(run, is_validated=False)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run, "FAILED_CODE")
    assert campaign.run(poll_s=0) == 1
    again = stage.campaign(run, name="c2")
    look(again)
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]
    stage.cluster.validation_ends(run)
    assert again.run(poll_s=0) == 0


def test_two_campaigns_of_different_runs_never_take_more_than_there_is(stage: Stage) -> None:
    stage.cluster.gpus = 2
    specs = [stage.run(fold, gpus=1 + fold % 2) for fold in range(6)]
    campaigns = [stage.campaign(*specs[:3], name="c1"), stage.campaign(*specs[3:], name="c2")]
    for _ in range(60):
        for campaign in campaigns:
            look(campaign)
        for run in specs:
            if any(job.is_live and job.run_key == run.run_key for job in stage.cluster.jobs.values()):
                name = stage.cluster.living(run)
                stage.cluster.training_ends(run) if name.startswith("train") else stage.cluster.validation_ends(run)
                break
    assert {state for campaign in campaigns for state in states(campaign)} == {"SUCCEEDED"}
    assert stage.cluster.most_gpus <= 2


def test_a_large_run_is_not_starved_by_small_runs_of_another_campaign(stage: Stage) -> None:
    stage.cluster.gpus = 2
    small = [stage.run(fold) for fold in range(4)]
    busy = stage.campaign(small[0], name="c1")
    look(busy)
    large = stage.run(9, gpus=2)
    look(big := stage.campaign(large, name="c2"))
    look(late := stage.campaign(*small[1:], name="c3"))
    assert states(late) == ["QUEUED"] * 3
    assert large.address in late.runs["key1"].reason
    stage.cluster.training_ends(small[0])
    stage.cluster.validation_ends(small[0])
    look(busy)
    look(late)
    look(big)
    assert states(big) == ["RUNNING"]
    assert states(late) == ["QUEUED"] * 3


def test_a_second_campaign_of_the_same_runs_follows_the_first(stage: Stage) -> None:
    run = stage.run(0)
    first, second = stage.campaign(run), stage.campaign(run, name="c2")
    for campaign in (first, second, first, second):
        look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a1"]
    stage.cluster.kill_driver(run)
    for campaign in (second, first):
        look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    assert first.run(poll_s=0) == second.run(poll_s=0) == 0


def test_a_cluster_that_does_not_answer_is_waited_for(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    stage.cluster.is_away = True
    real = stage.cluster.records

    def back_after_three(calls: list[int] = [0]) -> list[JobRecord]:  # noqa: B006
        calls[0] += 1
        stage.cluster.is_away = calls[0] <= 3
        return real()

    stage.cluster.records = back_after_three  # type: ignore[method-assign]
    assert campaign.run(poll_s=0) == 0
    assert caplog.text.count("cannot go on") == 1


def test_the_log_gives_back_what_the_campaign_told(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run)
    look(campaign)
    assert "address" not in stage.events[-1]["status"], "only what is new is said again"
    lines = "".join(f"NNFLEET {json.dumps(event)}\nsomething else\n" for event in stage.events)
    told = CampaignLog().update(lines + 'NNFLEET {"event": "err')
    assert told.statuses["key0"] == campaign.runs["key0"].status()
    told.update(lines + 'NNFLEET {"event": "error", "error": "DataError", "message": "m"}\n')
    assert type(told.error).__name__ == "DataError"


def test_progress_within_an_epoch_is_told_at_most_every_few_seconds(stage: Stage) -> None:
    campaign = stage.campaign(stage.run(0))
    before = campaign.runs["key0"].status()
    further = before.model_copy(update={"fraction_of_epoch": 0.5})
    assert not is_news(before, before, 1e9)
    assert not is_news(before, further, LEAST_TELL_S / 2)
    assert is_news(before, further, LEAST_TELL_S)
    assert is_news(before, before.model_copy(update={"epochs_done": 1}), 0.0)


@pytest.mark.parametrize("wanted", ["aa-1", "aa", "1/3d/t/0", "mlflow-id"])
def test_a_run_is_found_by_any_of_its_names(wanted: str) -> None:
    assert match(wanted, [named("aa-1", "1/3d/t/0", "mlflow-id"), named("bb-1", "1/3d/t/1")]).run_key == "aa-1"


@pytest.mark.parametrize("wanted", ["b", "1/3d/t/0", "zz"])
def test_an_ambiguous_or_unknown_name_lists_the_candidates(wanted: str) -> None:
    with pytest.raises(ConfigError, match="b-1"):
        match(wanted, [named("b-1", "1/3d/t/0"), named("b-2", "1/3d/t/0")])


def test_the_campaign_and_the_jobs_import_no_torch() -> None:
    code = (
        "import sys, orchestrator.campaign, orchestrator.campaign_loop, orchestrator.jobs, orchestrator.api, orchestrator.tracking\n"
        "import orchestrator.plan, orchestrator.control\n"
        "print(sorted({'torch', 'nnunetv2'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def named(key: str, address: str, mlflow_run_id: str = "") -> RunStatus:
    return RunStatus(run_key=key, address=address, campaign="c", epochs=1, mlflow_run_id=mlflow_run_id, run_folder=Path("/r"))


def finish_on_disk(run: RunSpec, *, is_validated: bool = True) -> None:
    """What a finished training, and validation, leave in the run folder."""
    folder = RunFolder(run.run_folder)
    final = Manifest(checkpoint="final", file="x", epoch=3, attempt=1, ema_pseudo_dice=None, sha256="0", size_bytes=1)
    committed = Committed(run_key=run.run_key, epochs_done=4, attempt=1, history=(), final=final, state_sha256="0", state_size_bytes=1)
    write_json_atomic(folder.state / f"{committed.stem}.json", json.loads(committed.model_dump_json()))
    for name in run.validation.checkpoints if is_validated else ():
        write_json_atomic(folder.validation(name) / "summary.json", {})
