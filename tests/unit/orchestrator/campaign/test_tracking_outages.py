"""What a campaign reports to MLflow, and what it does when MLflow is away, refuses, or has lost everything."""

import contextlib
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal

import pytest

from orchestrator.campaign.events import StatusChanged
from orchestrator.campaign.job import end_orphans
from orchestrator.campaign.loop import Campaign
from orchestrator.campaign.state_reporter import PATIENCE_S, REFRESH_S, RETRY_S
from orchestrator.errors import ClusterError, StorageError, TrackingError
from orchestrator.publishing.reconcile import end_orphaned_runs
from orchestrator.queue.registry import Registry
from orchestrator.run.undelivered import note_undelivered
from tests.fake_campaign import Stage, finish_on_disk, look, states
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, ValidationSpec
from trainers.contract.states import RunState


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def finish(stage: Stage, run: RunSpec, name: str = "c1") -> None:
    look(stage.campaign(run, name=name))
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)


def test_a_finished_run_that_mlflow_does_not_know_is_delivered_and_stays_finished(stage: Stage) -> None:
    """As another person sees it, with another MLflow or another cluster, while the first one's still looks at the folder."""
    run = stage.run(0)
    finish(stage, run)
    folder = RunFolder(run.run_folder)
    before = folder.outcome_file.read_bytes()
    stage.tracking.lose_everything()
    again = stage.campaign(run, name="c2")
    look(again)
    assert stage.cluster.live_jobs() == []
    assert stage.cluster.controls == [["sync", "key0", "--results", str(stage.base / "results")]]
    assert folder.outcome_file.read_bytes() == before
    assert again.runs["key0"].status().reason == "was finished before; a job sends its results to MLflow."
    stage.clock.after(5, lambda: stage.cluster.ends("control-sync-c2-0"))
    assert again.run(poll_s=1) == 0
    assert states(again) == ["SUCCEEDED"]
    assert again.runs["key0"].status().reason == "was finished before; a job has sent its results to MLflow."
    assert stage.tracking.states["id-key0"] == [RunState.SUCCEEDED]


def test_finished_runs_are_delivered_by_one_job_which_may_be_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.cluster.gpus, runs = 2, [stage.run(0), stage.run(1)]
    for number, run in enumerate(runs):
        finish(stage, run, f"c{number}")
    stage.tracking.lose_everything()
    stage.campaign(*runs, name="again")
    assert stage.cluster.controls == [["sync", "key0", "key1", "--results", str(stage.base / "results")]]

    def refuse(name: str, arguments: list[str]) -> str:
        raise ClusterError("cluster: takes no job.")

    monkeypatch.setattr(stage.cluster, "submit_control", refuse)
    assert stage.campaign(*runs, name="once more").run(poll_s=0) == 0
    assert "the results of key0, key1 are not sent to MLflow: cluster: takes no job. `nnfleet sync` sends them." in stage.warnings()


@pytest.mark.parametrize("says_why", [True, False])
def test_a_delivery_of_finished_runs_that_fails_is_said_by_the_runs_and_ends_with_the_campaign(stage: Stage, says_why: bool) -> None:
    stage.cluster.gpus, runs = 2, [stage.run(0), stage.run(1)]
    for number, run in enumerate(runs):
        finish(stage, run, f"c{number}")
    stage.tracking.lose_everything()
    again = stage.campaign(*runs, name="again")

    def fails() -> None:
        if says_why:
            note_undelivered(RunFolder(runs[1].run_folder), "results", 1e9, "the disk is full.")
        stage.cluster.fails("control-sync-again-0")

    stage.clock.after(5, fails)
    assert again.run(poll_s=1) == 0
    reasons = [run.status().reason for run in again.runs.values()]
    if says_why:
        assert reasons[0] == "was finished before; a job has sent its results to MLflow."
        assert reasons[1].startswith("was finished before. MLflow lacks results since 2001-09-09")
        assert reasons[1].endswith("the disk is full.")
        assert stage.warnings() == ["MLflow lacks results of key1: `nnfleet sync` sends them."]
    else:
        assert {"the job control-sync-again-0 that sends its results to MLflow failed" in reason for reason in reasons} == {True}
        assert stage.warnings() == ["MLflow lacks results of key0, key1: `nnfleet sync` sends them."]
    last = [event.status for event in stage.events if isinstance(event, StatusChanged)][-1]
    assert "a job sends" not in last["reason"]


@pytest.mark.parametrize("changes", [{"val_cases": ()}, {"validation": ValidationSpec(checkpoints=())}])
def test_a_finished_run_without_scores_is_delivered_to_another_mlflow_too(stage: Stage, changes: dict[str, object]) -> None:
    run = stage.run(0).model_copy(update=changes)
    finish(stage, run)
    look(stage.campaign(run, name="c2"))
    assert stage.cluster.controls == []
    stage.tracking.lose_everything()
    look(stage.campaign(run, name="c3"))
    assert stage.cluster.controls == [["sync", "key0", "--results", str(stage.base / "results")]]


def test_a_finished_run_is_delivered_when_mlflow_has_the_checkpoint_before_its_last(stage: Stage) -> None:
    run = stage.run(0)
    finish(stage, run)
    tags = stage.tracking.folders["id-key0"]
    tags["nnfleet.best"] = tags["nnfleet.best"].replace('"sha256":"0"', '"sha256":"1"')
    look(stage.campaign(run, name="c2"))
    assert len(stage.cluster.controls) == 1


@pytest.mark.parametrize("is_by_hand", [False, True])
def test_a_validation_whose_folder_was_moved_while_it_waited_trains_nothing(stage: Stage, is_by_hand: bool) -> None:
    run, other = stage.run(0), stage.run(1)
    finish(stage, run)
    stage.cluster.kill_campaign("c1")
    if not is_by_hand:
        for name in ("best", "final"):
            (RunFolder(run.run_folder).validation(name) / "summary.json").unlink()
    busy = stage.campaign(other, name="busy")
    look(busy)
    stage.cluster.add_campaign("c2")
    again = Campaign("c2", stage.cluster, stage.cluster.nodes, Registry(stage.base / "board"), stage.events.append, None, stage.clock.clock)
    again.open([run], only_validate=is_by_hand)
    look(again)
    assert states(again) == ["QUEUED"]
    moved = stage.base / "moved"
    run.run_folder.rename(moved)
    stage.cluster.training_ends(other)
    stage.cluster.validation_ends(other)
    look(busy)
    look(again)
    assert stage.cluster.live_jobs() == []
    assert not run.run_folder.exists()
    reasons = [event.status.get("reason", "") for event in stage.events if isinstance(event, StatusChanged)]
    assert "is not there, and the run was trained" in reasons[-1]
    moved.rename(run.run_folder)
    look(again)
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]


def test_the_mlflow_run_of_a_finished_run_is_ended(stage: Stage) -> None:
    run = stage.run(0)
    finish(stage, run)
    again = stage.campaign(run, name="c2")
    assert again.run(poll_s=0) == 0
    assert stage.tracking.states["id-key0"][-1] is RunState.SUCCEEDED


def test_a_run_is_scheduled_in_mlflow_while_it_waits_for_its_turn_and_again_for_its_next_job(stage: Stage) -> None:
    first, second = stage.run(0), stage.run(1)
    look(campaign := stage.campaign(first, second))
    assert stage.tracking.statuses == {"id-key0": ["RUNNING"], "id-key1": ["SCHEDULED"]}
    stage.cluster.workers_begin(first)
    stage.cluster.refuses = {"key0"}
    stage.cluster.kill_driver(first)
    look(campaign)
    assert states(campaign) == ["RECOVERING", "QUEUED"]
    assert stage.tracking.statuses["id-key0"] == ["RUNNING", "SCHEDULED"]
    stage.cluster.refuses = set()
    stage.clock.now_s += 3600
    look(campaign)
    look(campaign)
    assert stage.tracking.statuses == {"id-key0": ["RUNNING", "SCHEDULED", "RUNNING"], "id-key1": ["SCHEDULED"]}
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING, RunState.RECOVERING]


def test_a_run_that_mlflow_refuses_keeps_neither_the_others_nor_the_campaign(stage: Stage) -> None:
    stage.cluster.gpus = 2
    runs = [stage.run(0), stage.run(1)]
    campaign = stage.campaign(*runs)
    stage.tracking.lost = {"id-key0"}
    look(campaign)
    for run in runs:
        stage.cluster.training_ends(run)
        stage.cluster.validation_ends(run)
    assert campaign.run(poll_s=0) == 0
    assert stage.tracking.states["id-key1"][-1] is RunState.SUCCEEDED
    assert any("refuses" in warning for warning in stage.warnings())


def test_a_run_that_somebody_deleted_in_mlflow_while_it_trains_is_restored_and_gets_its_end(stage: Stage) -> None:
    run = stage.run(0)
    look(campaign := stage.campaign(run))
    stage.tracking.binned = {"id-key0"}
    stage.clock.now_s += REFRESH_S
    look(campaign)
    assert stage.tracking.open_runs(), "as soon as the campaign looks for what MLflow does not show"
    stage.tracking.binned = {"id-key0"}
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    assert campaign.run(poll_s=0) == 0
    assert (stage.tracking.states["id-key0"][-1], stage.warnings()) == (RunState.SUCCEEDED, [])


def test_a_campaign_ends_without_a_server_that_stays_away(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.tracking.is_away = True
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    began_s = stage.clock.now_s
    assert campaign.run(poll_s=10) == 0
    assert PATIENCE_S <= stage.clock.now_s - began_s <= PATIENCE_S + 20
    (warning,) = stage.warnings()
    assert "key0 (SUCCEEDED). `nnfleet sync` delivers it." in warning


def test_an_unreachable_tracking_server_is_refused_before_anything_starts(stage: Stage) -> None:
    stage.tracking.is_away = True
    with pytest.raises(TrackingError):
        stage.campaign(stage.run(0))
    assert not stage.cluster.live_jobs()


def test_a_tracking_server_that_goes_away_later_only_delays_the_states(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.tracking.is_away = True
    look(campaign)
    assert states(campaign) == ["RUNNING"]
    stage.tracking.is_away = False
    look(campaign)
    assert "id-key0" not in stage.tracking.states, "it is asked again after a while"
    stage.clock.sleep(RETRY_S)
    look(campaign)
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING]


def test_a_tracking_server_that_hangs_is_not_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its port is open and nobody answers: a ping gives up within seconds, every other call after minutes, in the campaign's loop."""
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.clock.sleep(REFRESH_S)
    pings: list[float] = []

    def gives_up() -> None:
        pings.append(time.monotonic())
        raise TrackingError("mlflow: no answer within 5 s")

    def hangs(*_: object) -> None:
        pytest.fail("the campaign hangs")

    for call, answer in (("ping", gives_up), ("set_state", hangs), ("open_runs", hangs)):
        monkeypatch.setattr(stage.tracking, call, answer)
    for _ in range(3):
        look(campaign)
    assert states(campaign) == ["RUNNING"]
    assert len(pings) == 1, "and the next one waits for its time, whoever asked"


def test_a_run_lives_in_mlflow_as_long_as_a_campaign_has_it(stage: Stage) -> None:
    """Another campaign opens at the moment in which the run has no job: it waits for its next one, or for its first."""
    stage.cluster.gpus = 1
    lost, queued = stage.run(0), stage.run(1)
    campaign = stage.campaign(lost, queued)
    registry = Registry(stage.base / "board")
    assert end_orphaned_runs(stage.tracking, stage.cluster.records(), registry) == []
    look(campaign)
    stage.cluster.kill_driver(lost)
    assert stage.tracking.states == {"id-key0": [RunState.RUNNING], "id-key1": [RunState.QUEUED]}
    assert end_orphaned_runs(stage.tracking, stage.cluster.records(), registry) == []
    stage.cluster.kill_campaign("c1")
    assert end_orphaned_runs(stage.tracking, stage.cluster.records(), registry) == ["key0", "key1"]
    assert {states[-1] for states in stage.tracking.states.values()} == {RunState.STOPPED}


class NoDisk(Registry):
    """Its disk takes no lock."""

    @contextlib.contextmanager
    def locked(self, what: Literal["admission", "opening"] = "admission") -> Iterator[None]:
        raise StorageError(f"storage: {what}.lock cannot be written: the file system is full")
        yield


def test_a_campaign_opens_though_a_full_disk_keeps_it_from_ending_orphaned_runs(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    end_orphans(stage.tracking, stage.cluster.records, NoDisk(stage.base / "board"))
    assert "orphaned runs were not ended in MLflow: storage: opening.lock cannot be written" in caplog.text


def test_a_run_that_another_cluster_has_taken_for_dead_is_reported_again(stage: Stage) -> None:
    """It knows neither the campaign's registry nor its jobs."""
    runs = [stage.run(0), stage.run(1), stage.run(2)]
    campaign = stage.campaign(*runs)
    look(campaign)
    elsewhere = Registry(stage.base / "board of another head")
    end_orphaned_runs(stage.tracking, [], elsewhere)
    look(campaign)
    assert stage.tracking.states["id-key1"] == [RunState.QUEUED, RunState.STOPPED]
    stage.tracking.lost = {"id-key2"}
    for _ in range(3):
        stage.clock.sleep(REFRESH_S)
        look(campaign)
    assert stage.tracking.states["id-key1"] == [RunState.QUEUED, RunState.STOPPED, RunState.QUEUED]
    assert len(stage.warnings()) == 1, "what is refused is not sent again"
    stage.tracking.is_away = True
    look(campaign)


def test_a_server_that_goes_away_is_asked_for_one_run_and_one_that_refuses_for_all(stage: Stage) -> None:
    look(stage.campaign(stage.run(0), stage.run(1), stage.run(2)))
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(stage.run(0))
    tracking, registry = stage.tracking, Registry(stage.base / "board")
    tracking.goes_away_after(1)
    assert end_orphaned_runs(tracking, stage.cluster.records(), registry) == []
    assert tracking.turned_away == 1
    tracking.comes_back()
    tracking.lost = {"id-key0"}
    assert end_orphaned_runs(tracking, stage.cluster.records(), registry) == ["key1", "key2"]


def test_a_campaign_says_which_runs_it_has_before_another_can_open(stage: Stage) -> None:
    runs = [stage.run(0), stage.run(1)]
    campaign = stage.campaign(*runs)
    assert Registry(stage.base / "board").entries(["c1"])["c1"].runs == ("key0", "key1")
    look(campaign)
    stage.cluster.training_ends(runs[0])
    stage.cluster.validation_ends(runs[0])
    look(campaign)
    look(campaign)
    assert Registry(stage.base / "board").entries(["c1"])["c1"].runs == ("key1",)


def test_a_run_whose_opening_fails_after_its_mlflow_run_was_made_does_not_wait_there_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stage.tracking.get_or_create_run

    def made_and_not_described(experiment_id: str, spec: RunSpec, run_id: str = "") -> str:
        made = real(experiment_id, spec, run_id)
        stage.tracking.set_state(made, RunState.QUEUED)
        if spec.fold == 1:
            raise TrackingError("mlflow: takes no parameters")
        return made

    monkeypatch.setattr(stage.tracking, "get_or_create_run", made_and_not_described)
    with pytest.raises(TrackingError, match="takes no parameters"):
        stage.campaign(stage.run(0), stage.run(1), stage.run(2))
    assert {run_id: told[-1] for run_id, told in stage.tracking.states.items()} == {
        "id-key0": RunState.STOPPED,
        "id-key1": RunState.STOPPED,
    }


@pytest.mark.parametrize("is_away", [False, True])
def test_a_campaign_that_is_interrupted_leaves_no_run_that_waits_in_mlflow(stage: Stage, is_away: bool) -> None:
    campaign = stage.campaign(stage.run(0), stage.run(1))

    def interrupt() -> None:
        stage.tracking.is_away = is_away
        raise KeyboardInterrupt

    stage.clock.after(2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        campaign.run(poll_s=1)
    shown = {run_id: told[-1] for run_id, told in stage.tracking.states.items()}
    assert shown == {"id-key0": RunState.RUNNING, "id-key1": RunState.QUEUED if is_away else RunState.STOPPED}


@pytest.mark.parametrize("error", [ClusterError("campaign: admission: locked for 600 s"), KeyboardInterrupt()])
def test_a_campaign_that_cannot_open_leaves_no_run_that_waits_in_mlflow(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Its runs are in MLflow already when another campaign holds the lock for too long, or its job is stopped."""
    real, admissions = Registry.locked, count()

    @contextlib.contextmanager
    def held_by_another(registry: Registry, what: Literal["admission", "opening"] = "admission") -> Iterator[None]:
        if what == "admission" and next(admissions) == 1:
            raise error
        with real(registry, what):
            yield

    monkeypatch.setattr(Registry, "locked", held_by_another)
    with pytest.raises(type(error)):
        stage.campaign(stage.run(0), stage.run(1))
    assert {run_id: told[-1] for run_id, told in stage.tracking.states.items()} == {
        "id-key0": RunState.STOPPED,
        "id-key1": RunState.STOPPED,
    }
