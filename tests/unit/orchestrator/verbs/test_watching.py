"""What the verbs ask of a cluster, and how often; what they show of runs that no campaign follows."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from ray._private.accelerators import NvidiaGPUAcceleratorManager

from orchestrator import api
from orchestrator.campaign.events import Failed, Waiting
from orchestrator.cluster import local_services, target
from orchestrator.cluster.capacity import Offer, Share
from orchestrator.cluster.home import Home
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.processes import ProcessRecord, end, start_detached
from orchestrator.cluster.service_records import Recorded, write_record
from orchestrator.errors import ClusterError, ConfigError, DataError, TrackingError
from orchestrator.experiment.model import single_training
from orchestrator.publishing.reconcile import Synced, SyncedEvent
from orchestrator.queue.registry import Entry, Registry
from orchestrator.resume.unfinished import choose, find_runs
from orchestrator.run.events import line_of
from orchestrator.run.job_record import JobRecord, JobState
from orchestrator.run.status import RunStatus
from tests.fake_campaign import Stage, look, states
from tests.fake_run import FakeRun
from tests.unit.orchestrator.campaign.test_follower import FakeJobs
from tests.unit.tiny_dataset import tiny_dataset
from trainers.contract.requests import StopRequest, read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState
from trainers.storage.files import write_atomic, write_json_atomic


class Machine:
    """This machine with local services and a job server; counts how often each is asked for."""

    def __init__(self, base: Path) -> None:
        alive = ProcessRecord(name="Ray head", pid=2**22 + 1, started_unix=0.0, mark="none", port=8265)
        token = base / "token"
        token.write_text("secret")
        self.services = Services(ray=alive, mlflow=alive, token_file=token)
        self.jobs = FakeJobs()
        self.connections: list[str] = []
        self.looks_for_services = 0
        self.health: int | None = 200

    def running(self) -> Services:
        self.looks_for_services += 1
        return self.services

    def connect(self, address: str, token: str | None = None) -> FakeJobs:
        self.connections.append(address)
        return self.jobs


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return machine_below(tmp_path, monkeypatch)


def machine_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine that verbs meet in place of this one."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NNFLEET_HOME", str(tmp_path / "nnfleet-home"))
    (tmp_path / "nnfleet-home").mkdir()
    here = Machine(tmp_path)
    monkeypatch.setattr(local_services, "running", here.running)
    monkeypatch.setattr(local_services, "_get", lambda port, path: here.health)
    monkeypatch.setattr("orchestrator.cluster.target.Jobs", here.connect)
    return here


def test_one_status_connects_and_lists_the_jobs_once(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    machine.jobs.campaign("c1", "RUNNING", RunState.RUNNING, 1)
    seen = api.snapshot()
    assert [item.run_key for item in (*seen.statuses, *seen.stored)] == ["r", run.run_key]
    assert machine.connections == ["http://127.0.0.1:8265"]
    assert machine.jobs.reads == ["list", "campaign-c1"]
    assert machine.looks_for_services == 1


def test_looking_again_keeps_the_connection_and_the_logs_of_ended_campaigns(machine: Machine) -> None:
    machine.jobs.campaign("ended", "SUCCEEDED", RunState.SUCCEEDED, 1)
    looks = api.looks()
    assert [len(next(looks).statuses) for _ in range(3)] == [1, 1, 1]
    assert len(machine.connections) == 1
    assert machine.jobs.reads.count("campaign-ended") == 1


def test_stored_runs_are_those_that_no_campaign_of_the_cluster_follows(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path)
    run, known = stage.run(0), stage.run(1)
    stage.campaign(run, known)
    machine.jobs.campaign("c", "RUNNING", RunState.RUNNING, 1, run_key=known.run_key)
    assert api.stored() == [], "no folder is known"
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (paused,) = api.stored()
    assert paused.run_key == run.run_key
    assert (paused.state, paused.reason) == (
        RunState.PAUSED,
        "no campaign of this cluster follows it (new); `nnfleet resume` continues it.",
    )
    assert api.stored("http://head:8265") == [], "of another machine"
    assert [item.run_key for item in api.stored("http://head:8265", tmp_path / "results")] == [run.run_key]
    assert [item.run_key for item in api.stored("http://127.0.0.1:8265/")] == [run.run_key], "this machine by its address"
    assert api.snapshot(campaign="c").stored == []


def test_a_results_folder_that_is_not_there_is_an_error_but_hides_no_run_of_the_cluster(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "typo"))
    for verb in (api.snapshot, lambda: api.logs("17/2d/nnUNetTrainer/0"), lambda: api.stop(["17"]), lambda: api.removable(["17"])):
        with pytest.raises(ConfigError, match=rf"nnUNet_results: this variable names {tmp_path}/typo, which is no folder here"):
            verb()
    machine.jobs.campaign("c", "RUNNING", RunState.RUNNING, 1)
    assert [run.run_key for run in api.snapshot().statuses] == ["r"]
    assert f"nnUNet_results: this variable names {tmp_path}/typo" in caplog.text


def test_a_run_that_was_removed_is_not_shown_but_one_whose_disk_is_away_is(machine: Machine, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    machine.jobs.campaign("c", "RUNNING", RunState.SUCCEEDED, 1, run_key=run.run_key, run_folder=run.run_folder)
    assert [item.run_key for item in api.snapshot().statuses] == [item.run_key for item in api.status()] == [run.run_key]
    dataset = run.run_folder.parents[1]
    dataset.rename(tmp_path / "away")
    assert [item.run_key for item in api.status()] == [run.run_key]
    (tmp_path / "away").rename(dataset)
    shutil.rmtree(run.run_folder.parent)
    assert api.snapshot().statuses == api.status() == []
    machine.jobs.campaign("c", "RUNNING", RunState.FAILED_CODE, 1, run_key=run.run_key, run_folder=run.run_folder)
    assert [item.reason[:30] for item in api.status()] == ["its run folder was removed sin"], "no failure is hidden"


def test_run_folders_that_were_moved_or_damaged_are_named_by_every_verb(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tmp_path)
    run, moved, damaged = (stage.run(fold) for fold in range(3))
    stage.campaign(run, moved, damaged)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr(local_services, "up", machine.running)
    monkeypatch.setattr("orchestrator.campaign.handover.send_revalidations", lambda *what, **how: [])
    moved.run_folder.rename(moved.run_folder.with_name("fold_7"))
    RunFolder(damaged.run_folder).spec_file.write_text("{")
    assert [item.run_key for item in api.snapshot().stored] == [run.run_key]
    assert len(api.snapshot().left) == 2
    why = (
        r"2 run folders are left out:\n- run folder: .*\n- results: .*fold_7/nnfleet/run.json is of a run in .*fold_1: the folder was moved"
    )
    name = run.address
    verbs: list[Callable[[], object]] = [
        api.stored,
        lambda: list(api.logs(name)),
        lambda: api.stop([name]),
        lambda: api.removable([name]),
        lambda: api.validate([name]),
    ]
    for verb in verbs:
        caplog.clear()
        verb()
        assert re.search(why, caplog.text), verb
    caplog.clear()
    api.removable([run.run_key])
    assert not caplog.text, "a run key means one run"
    for verb in (lambda: api.logs("1/3d/*/1"), lambda: api.stop(["key1"]), lambda: api.validate(["key1"]), lambda: api.removable(["key1"])):
        with pytest.raises(ConfigError, match=f"there is no run .*{why}"):
            verb()


def test_removing_asks_the_cluster_whether_a_run_has_ended(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    machine.jobs.campaign("c", "RUNNING", RunState.QUEUED, 1, run_key=run.run_key)
    with pytest.raises(ConfigError, match=r"\(key0\) is QUEUED in the campaign c"):
        api.remove(["1"])
    machine.jobs.campaign("c", "RUNNING", RunState.STOPPED, 2, run_key=run.run_key)
    assert [item.run_key for item in api.remove(["1"])] == ["key0"]
    assert not run.run_folder.exists()
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(ConfigError, match="--results"):
        api.removable(["1"])


def test_the_log_of_the_run_that_owns_the_folder_is_meant_by_its_address(machine: Machine) -> None:
    machine.jobs.campaign("first", "SUCCEEDED", RunState.FAILED_CONFIG, 5, run_key="old-1")
    machine.jobs.campaign("second", "RUNNING", RunState.RUNNING, 9, run_key="new-1")
    machine.jobs.add("train-old-1-a1", "train", "FAILED", "old\n", run_key="old-1")
    machine.jobs.add("train-new-1-a1", "train", "RUNNING", "new\n", run_key="new-1")
    found: list[RunStatus] = []
    assert "".join(api.logs("1/3d/t/0", on_found=found.append)) == "new\n"
    assert [item.run_key for item in found] == ["new-1"]
    assert "".join(api.logs("old-1")) == "old\n"


def test_this_machine_offers_what_ray_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NvidiaGPUAcceleratorManager, "get_current_node_num_accelerators", staticmethod(lambda: 4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert api.this_machine().total["GPU"] == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert api.this_machine().total["GPU"] == 0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert api.this_machine().total["GPU"] == 4


@pytest.mark.parametrize(("health", "outage"), [(200, ""), (None, "MLflow is down")])
def test_a_server_that_answers_is_not_called_down_though_its_supervisor_died(machine: Machine, health: int | None, outage: str) -> None:
    machine.health = health
    for told in (api.tracking_outage(), api.snapshot().outage):
        assert told.startswith(outage)
        assert bool(told) == bool(outage)
    assert api.tracking_outage("http://head:8265") == api.snapshot("http://head:8265").outage == ""


@pytest.mark.parametrize(
    ("address", "store", "is_local"),
    [
        ("auto", "127.0.0.1:6379", True),
        ("auto", "10.0.0.7:6379", False),
        ("http://127.0.0.1:8265", "", True),
        ("http://head:8265", "", False),
    ],
)
def test_an_address_that_is_the_local_head_means_this_machine(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, address: str, store: str, is_local: bool
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(target, "cluster_of_this_machine", lambda: store)
    monkeypatch.setattr(local_services, "control_store", lambda home: "127.0.0.1:6379")
    machine.health = None
    assert api.is_local() is is_local
    assert ("MLflow is down" in api.tracking_outage()) is is_local


def test_this_machine_is_what_the_local_head_gives_out_once_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFLEET_HOME", str(tmp_path))
    asked = Recorded(asked=Share(cpus=3, gpus=0))
    write_record(Home(tmp_path), asked)
    assert api.this_machine().total == {"CPU": 3, "GPU": 0}, "as the next head would be started"
    head = start_detached("Ray head", ["sleep", "60"], os.environ, tmp_path / "log", 1)
    try:
        offer = Offer(cpus=2, gpu_ids=("1",), memory_gib=4)
        write_record(Home(tmp_path), asked.model_copy(update={"records": {"ray": head}, "offer": offer}))
        assert api.this_machine().total == {"CPU": 2, "GPU": 1}
    finally:
        end(head, grace_s=0)


def test_a_stop_of_several_runs_is_one_request(machine: Machine) -> None:
    machine.jobs.campaign("c1", "RUNNING", RunState.RUNNING, 1, run_key="a")
    machine.jobs.campaign("c2", "RUNNING", RunState.RUNNING, 1, run_key="b")
    machine.jobs.campaign("c3", "SUCCEEDED", RunState.SUCCEEDED, 1, run_key="c")
    with pytest.raises(ConfigError, match="no run is named"):
        api.stop()
    assert machine.jobs.controls == []
    assert [status.run_key for status in api.stop(everything=True)] == ["a", "b"]
    assert [status.run_key for status in api.stop(campaign="c2", now=True)] == ["b"]
    assert [status.run_key for status in api.stop(["c"])] == ["c"]
    (first, second) = machine.jobs.controls
    assert first[0] == "stop"
    assert [first[i + 1] for i, word in enumerate(first) if word == "--run-key"] == ["a", "b"]
    assert second[-1] == "--now"


def test_an_early_end_is_asked_of_what_has_trained_and_still_trains(machine: Machine) -> None:
    for key, state, epochs in (
        ("a", RunState.RUNNING, 0),
        ("b", RunState.QUEUED, 2),
        ("c", RunState.QUEUED, 0),
        ("d", RunState.VALIDATING, 3),
    ):
        machine.jobs.campaign(key, "RUNNING", state, 1, run_key=key, epochs_done=epochs)
    machine.jobs.add("test-a-0", "test", "RUNNING", run_key="")
    assert [status.run_key for status in api.stop(everything=True, finish=True, anneal=5)] == ["a", "b", "c", "d"]
    (request,) = machine.jobs.controls
    assert [request[i + 1] for i, word in enumerate(request) if word == "--run-key"] == ["a", "b"]
    assert request[-3:] == ["--finish", "--anneal", "5"]
    assert machine.jobs.stopped == []
    with pytest.raises(ConfigError, match="add --finish to --anneal"):
        api.stop(everything=True, anneal=3)
    for wrong in ({"finish": True, "now": True}, {"now": True, "anneal": 3}, {"finish": True, "anneal": -1}):
        with pytest.raises(ConfigError, match="do not go together"):
            api.stop(everything=True, **wrong)
    with pytest.raises(ConfigError, match="is a test set"):
        api.stop(["test-a-0"], finish=True)


def test_folds_that_would_end_after_unlike_numbers_of_epochs_are_warned_of_before_they_are_asked(machine: Machine, tmp_path: Path) -> None:
    def fold(number: int, state: RunState, epochs_done: int) -> None:
        known: dict[str, Any] = {"address": f"17/2d/t/{number}", "run_folder": tmp_path / f"fold_{number}", "epochs": 9}
        machine.jobs.campaign(f"c{number}", "RUNNING", state, 1, run_key=f"r{number}", epochs_done=epochs_done, **known)

    warned: list[str] = []

    def warn(text: str) -> None:
        assert machine.jobs.controls == [], "it warns first"
        warned.append(text)

    fold(0, RunState.RUNNING, 0)
    fold(1, RunState.RUNNING, 2)
    api.stop(["17/2d/t"], finish=True, on_wait=warn)
    (warning,) = warned
    assert "folds of 17/2d/t end after unlike numbers of epochs (1 to 3)" in warning
    assert "neither be exported nor compared" in warning
    machine.jobs.controls.clear()
    fold(0, RunState.RUNNING, 2)
    api.stop(["17/2d/t"], finish=True, on_wait=warn)
    assert warned == [warning], "both end after 3 epochs"
    machine.jobs.controls.clear()
    fold(2, RunState.QUEUED, 0)  # is not asked, and trains the whole schedule
    api.stop(["17/2d/t"], finish=True, anneal=2, on_wait=warn)
    assert "(5 to 9)" in warned[-1]


@pytest.mark.parametrize("is_up", [False, True])
def test_a_paused_run_that_is_stopped_is_left_by_a_resume_of_all(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_up: bool
) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0), other := stage.run(1))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    if not is_up:
        monkeypatch.setattr(local_services, "running", lambda: None)
    api.stop([run.run_key], finish=True)
    assert [status.state for status in api.stop([run.run_key])] == [RunState.PAUSED]
    assert [status.state for status in api.snapshot().stored] == [RunState.STOPPED, RunState.PAUSED]
    found, _ = find_runs(tmp_path / "results")
    assert [taken.spec.run_key for taken in choose(found, [], [], tmp_path).taken] == [other.run_key]
    assert [taken.spec.run_key for taken in choose(found, [], [run.run_key], tmp_path).taken] == [run.run_key]
    look(again := stage.campaign(run, name="c2"))
    assert states(again) == ["RUNNING"]
    assert read_stop_request(RunFolder(run.run_folder)) is None


def test_a_stop_of_runs_whose_folders_are_seen_here_starts_no_job(machine: Machine, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    machine.jobs.campaign("c", "RUNNING", RunState.RUNNING, 1, run_key=run.run_key, run_folder=run.run_folder)
    machine.jobs.add("train-key0-a1", "train", "RUNNING", run_key=run.run_key)
    assert [status.run_key for status in api.stop([run.run_key])] == [run.run_key]
    assert read_stop_request(RunFolder(run.run_folder)) == StopRequest(is_now=False, campaigns=("c",))
    assert (machine.jobs.stopped, machine.jobs.controls) == ([], [])
    api.stop([run.run_key], now=True)
    assert machine.jobs.stopped == ["train-key0-a1"]
    assert machine.jobs.controls == []
    api.stop([run.run_key], cluster="http://head:8265")
    assert len(machine.jobs.controls) == 1, "what another machine sees is not known here"


def test_a_stop_asks_the_runs_of_other_campaigns_before_and_after_it_waits_for_one_that_begins_and_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, said = machine.jobs, list[str]()
    waits = Waiting(message="old workers may be at work")
    jobs.hand_over("fails", "RUNNING", waits)
    later = jobs.jobs["campaign-fails"].handed[0].model_copy(update={"run_key": "later", "address": "1/3d/t/1"})
    jobs.hand_over("begins", "RUNNING", handed=(later,))
    jobs.campaign("goes_on", "RUNNING", RunState.RUNNING, 1, run_key="a")
    asked_before: list[int] = []

    def turn(seconds: float) -> None:
        asked_before.append(len(jobs.controls))
        jobs.hand_over("fails", "FAILED", waits, Failed(error="TrackingError", message="mlflow: away"))
        jobs.campaign("begins", "RUNNING", RunState.RUNNING, 1, run_key="later")

    monkeypatch.setattr("orchestrator.campaign.follower.time.sleep", turn)
    with pytest.raises(TrackingError, match="mlflow: away"):
        api.stop(everything=True, now=True, on_wait=said.append)
    assert [request[request.index("--run-key") + 1 :] for request in jobs.controls] == [["a", "--now"], ["later", "--now"]]
    assert asked_before == [1]
    assert said[:2] == ["Campaign fails still begins: its runs are asked as soon as it owns them.", "old workers may be at work"]


def test_jobs_of_test_sets_are_seen_and_stopped_by_their_ids_or_with_all(machine: Machine) -> None:
    machine.jobs.campaign("c", "RUNNING", RunState.RUNNING, 1)
    for name, state in {"test-a-0": "RUNNING", "test-b-0": "PENDING", "test-c-0": "SUCCEEDED"}.items():
        machine.jobs.add(name, "test", cast("JobState", state), run_key="")
    told: list[JobRecord] = []
    assert [job.submission_id for job in api.snapshot().test_sets] == ["test-a-0", "test-b-0"]
    assert machine.jobs.reads.count("list") == 1
    assert api.snapshot(campaign="c").test_sets == []
    looks = api.looks()
    assert [job.submission_id for job in next(looks).test_sets] == ["test-a-0", "test-b-0"]
    machine.jobs.set_state("test-a-0", "FAILED")
    assert [job.state for job in next(looks).test_sets] == ["FAILED", "PENDING"], "whoever watched one sees its end"
    machine.jobs.set_state("test-a-0", "RUNNING")
    assert next(api.looks(campaign="c")).test_sets == []
    with pytest.raises(ConfigError, match="no job test-c-0 of a test set lives on this cluster"):
        api.stop(["r", "test-a-0", "test-c-0"])
    assert (machine.jobs.stopped, machine.jobs.controls) == ([], [])
    assert api.stop(["test-b-0"], on_test_set=told.append) == []
    assert machine.jobs.stopped == [job.submission_id for job in told] == ["test-b-0"]
    api.stop(campaign="c")
    api.stop(["r"])
    assert machine.jobs.stopped == ["test-b-0"]
    assert [status.run_key for status in api.stop(everything=True)] == ["r"]
    assert machine.jobs.stopped == ["test-b-0", "test-a-0", "test-b-0"]


def test_logs_show_the_training_log_before_what_ray_has(machine: Machine, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    machine.jobs.campaign("c", "RUNNING", RunState.VALIDATING, 1, run_key=run.run_key, run_folder=run.run_folder)
    now = time.time()
    machine.jobs.add("train-key0-a2", "train", "SUCCEEDED", "ray\n", run_key=run.run_key, started_unix=now - 60)
    machine.jobs.add("validate-key0-a2", "validate", "RUNNING", "cases\n", run_key=run.run_key, started_unix=now)
    assert "".join(api.logs(run.run_key)) == "ray\ncases\n", "no training log was begun"
    (run.run_folder / "training_log_2026_01_01_00_00_00.txt").write_text("epoch 0\n")
    write_atomic(RunFolder(run.run_folder).job_log("train-key0-a1"), b"of a head before\n")
    assert "".join(api.logs(run.run_key)) == "epoch 0\ncases\n"
    everything = "".join(api.logs(run.run_key, earlier=True))
    named = ["training_log_2026_01_01_00_00_00.txt", "train-key0-a1", "train-key0-a2", "validate-key0-a2"]
    assert [line.split()[1] for line in everything.splitlines() if line.startswith("--- ")] == named
    machine.jobs.add("train-key0-a3", "train", "FAILED", "no memory\n", run_key=run.run_key, started_unix=now + 60)
    assert "".join(api.logs(run.run_key)) == "no memory\n", "its workers have not begun"


def test_logs_leave_out_what_ray_prints_of_itself_unless_all_are_asked_for(machine: Machine, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    machine.jobs.campaign("c", "RUNNING", RunState.RUNNING, 1, run_key=run.run_key, run_folder=run.run_folder)
    machine.jobs.add("train-key0-a1", "train", "RUNNING", "(raylet) WARNING: 8 processes\n", run_key=run.run_key)
    assert "".join(api.logs(run.run_key)) == ""
    assert "(raylet)" in "".join(api.logs(run.run_key, earlier=True))
    machine.jobs.add("train-key0-a1", "train", "FAILED", "(raylet) WARNING: 8 processes\nno memory\n", run_key=run.run_key)
    machine.jobs.campaign("c", "FAILED", RunState.FAILED_CONFIG, 1, run_key=run.run_key, run_folder=run.run_folder)
    assert "".join(api.logs(run.run_key, follow=True)) == "no memory\n"


class Plans:
    """Keeps where plans were made: by a job, or here."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        monkeypatch.setattr(local_services, "control_store", lambda home: "127.0.0.1:6379")
        monkeypatch.setattr("orchestrator.cluster.list_nodes.nodes_of", lambda store, token: self.nodes())
        monkeypatch.setattr("orchestrator.campaign.handover.planned", self.plan_here)
        monkeypatch.setattr(machine.jobs, "submit_campaign", lambda *arguments, **options: self.made.append("job"), raising=False)
        monkeypatch.setattr("orchestrator.campaign.follower.Follower.first_plan", lambda *arguments: "plan")
        self.is_away = False

    def plan_here(self, sent: object, jobs: object, nodes: Callable[[], object], *more: object, replaces: bool) -> str:
        nodes()
        self.made.append("here")
        return "plan"

    def nodes(self) -> list[object]:
        if self.is_away:
            raise ClusterError("cluster: away")
        return []


def test_a_plan_for_this_machine_starts_no_job_where_all_that_it_needs_is_seen_here(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plans = Plans(machine, monkeypatch)
    api.plan(single_training(17, "2d", 0))
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    experiment = single_training(17, "2d", 0, **folders)
    api.plan(experiment)
    api.plan(experiment, "http://head:8265")
    plans.is_away = True
    api.plan(experiment)
    plans.is_away = False
    machine.jobs.campaign("c", "RUNNING", RunState.RUNNING, 1)
    api.plan(experiment)
    Registry.of_cluster("127.0.0.1:6379").post("c", Entry())
    api.plan(experiment)
    assert plans.made == ["job", "here", "job", "job", "job", "here"]
    assert machine.jobs.controls == []


def test_a_sync_that_leaves_something_out_says_what_and_one_whose_job_dies_is_an_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Synced(run_key="k", run_folder=Path("/r"), lacking="the disk is full.")
    lines = {"lacking": line_of(SyncedEvent(synced=done)), "dead": "Traceback"}

    def submit(name: str, arguments: list[str]) -> str:
        job = "dead" if "dead" in arguments else "lacking"
        machine.jobs.add(job, "control", "FAILED", lines[job])
        return job

    monkeypatch.setattr(machine.jobs, "submit_control", submit)
    assert api.sync("x", cluster="http://head:8265") == [done]
    with pytest.raises(ClusterError, match="dead failed"):
        api.sync("dead", cluster="http://head:8265")


def test_a_sync_of_this_machine_leaves_runs_that_wait_to_their_campaign(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(tmp_path, tracking_uri="http://127.0.0.1:9")
    for file in run.folder.tokens.glob("*.json"):  # of a job that was killed
        file.unlink()
    monkeypatch.setattr(local_services, "control_store", lambda home: "127.0.0.1:6379")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    machine.jobs.campaign("c", "RUNNING", RunState.QUEUED, 1, run_key=run.spec.run_key)
    Registry.of_cluster("127.0.0.1:6379").post("c", Entry(runs=(run.spec.run_key,)))
    (done,) = api.sync(results=tmp_path / "results")
    assert done.note.startswith("a living campaign goes on with it")


def test_runs_of_earlier_heads_have_logs_and_names(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(tmp_path)
    stage.campaign(run := stage.run(0))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (run.run_folder / "training_log_2026_01_01_00_00_00.txt").write_text("epoch 0\n")
    assert list(api.logs(run.address)) == ["epoch 0\n"]
    assert [status.state for status in api.stop([run.address])] == [RunState.PAUSED]


def test_an_experiment_whose_folders_or_dataset_are_not_there_starts_no_services(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.setattr(local_services, "up", lambda: pytest.fail("services were started"))
    with pytest.raises(ConfigError, match="nnUNet_preprocessed and nnUNet_results: neither in the experiment file nor in the environment"):
        api.submit(single_training(17, "2d", 0))
    with pytest.raises(ConfigError, match="dataset: 17 is not in"):
        api.submit(single_training(17, "2d", 0, nnUNet_preprocessed=str(tmp_path), nnUNet_results=str(tmp_path / "results")))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"fold": 7}, r"folds: fold 7 does not exist"),
        ({"configuration": "4d"}, r"configurations?: '4d'"),
        ({"plans": "nnUNetXLPlans"}, r"nnUNetXLPlans"),
        ({"dataset": 18}, r"dataset: 18 is not in"),
        ({"pretrained_weights": "/nowhere.pth"}, r"nowhere\.pth"),
    ],
)
def test_what_the_dataset_has_not_is_refused_before_services_start(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(local_services, "up", lambda: pytest.fail("services were started"))
    tiny = tiny_dataset(tmp_path)
    with pytest.raises((ConfigError, DataError), match=told):
        api.submit(single_training(**{"dataset": 17, "configuration": "2d", "fold": 0, **tiny.folders, **named}))


def test_names_that_mean_no_run_and_images_that_are_not_there_are_refused_before_services_start(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_services, "up", lambda: pytest.fail("services were started"))
    monkeypatch.setattr(local_services, "running", lambda: None)
    run = FakeRun(tmp_path)
    monkeypatch.setenv("nnUNet_results", str(run.folder.model_folder.parents[1]))
    for verb in (api.validate, api.resume):
        with pytest.raises(ConfigError, match="there is no run '17/2d'"):
            verb(["17/2d"])
    with pytest.raises(ConfigError, match="there is no run '17/2d'"):
        api.evaluate("17/2d", tmp_path)
    with pytest.raises(ConfigError, match="has no checkpoint yet"):
        api.evaluate("901", tmp_path)
    run.epoch()
    write_json_atomic(run.folder.model_folder / "dataset.json", json.loads((run.spec.preprocessed_folder / "dataset.json").read_text()))
    with pytest.raises(ConfigError, match=r"images: .*nowhere is no folder"):
        api.evaluate("901", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="'heads' is nothing that a drill kills"):
        api.drill(["heads"])


def test_a_dataset_that_is_raw_only_is_told_to_be_preprocessed(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_services, "up", lambda: pytest.fail("services were started"))
    (tmp_path / "raw" / "Dataset017_X").mkdir(parents=True)
    (tmp_path / "preprocessed").mkdir()
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    with pytest.raises(ConfigError, match="Dataset017_X is raw but not preprocessed"):
        api.submit(single_training(17, "2d", 0, **folders))
