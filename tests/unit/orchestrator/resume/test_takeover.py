"""Taking possession of runs: what is refused before anything starts, and what two campaigns or two clusters do to each other."""

import json
from pathlib import Path
from typing import cast

import pytest

from orchestrator.campaign.control_job import stop_all
from orchestrator.campaign.planning import queue_of
from orchestrator.campaign.validating import check_trained
from orchestrator.errors import ConfigError, DataError, StorageError, Superseded, TrackingError
from orchestrator.publishing.reconcile import mlflow_run_of
from orchestrator.queue.registry import Registry
from orchestrator.resume.takeover import acquire, reset
from orchestrator.run.activity import owner_of
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.progress import Action
from orchestrator.tracking.binding import noted_run_id
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.records import MARKER_METRIC
from tests.away import share_is_away
from tests.fake_campaign import FakeCluster, Stage, finish_on_disk, look, states
from tests.unit.trainers.storage.test_linkless import without_links
from trainers.contract.early_end import EarlyEnd
from trainers.contract.fencing import acquire_token, check_driver_fence, check_fence, newest_token
from trainers.contract.records import MlflowRun, write_mlflow_run
from trainers.contract.requests import PauseRequest, end_pause, last_pause, request_finish, request_pause
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WorkerSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


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


def test_a_folder_whose_share_is_away_is_not_taken_for_one_without_a_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage.run(0)
    acquire(run, [])
    share_is_away(monkeypatch, "run.json")
    with pytest.raises(StorageError, match=r"run\.json cannot be read: the file system is unavailable"):
        acquire(run.model_copy(update={"run_key": "other"}), [])
    monkeypatch.undo()
    assert RunFolder(run.run_folder).spec() == run


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


def test_other_workers_become_the_runs_unless_a_job_lives(stage: Stage) -> None:
    run = stage.run(0)
    wider = run.model_copy(update={"workers": WorkerSpec(count=2, gpus=1, cpus=1)})
    first = stage.campaign(run)
    assert stage.campaign(wider, name="c2").runs["key0"].spec == wider
    assert RunFolder(run.run_folder).spec() == wider
    stage.campaign(run, name="c3")
    look(first)
    assert stage.campaign(wider, name="c4").runs["key0"].spec == run


def change_plans(stage: Stage, content: str) -> None:
    (stage.data / "nnUNetPlans.json").write_text(content)


def test_plans_that_gained_a_configuration_stop_no_run(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.kill_driver(run)
    change_plans(stage, '{"configurations": {"3d": {}, "2d": {}}}')
    again = stage.campaign(run, stage.run(1), name="c2")
    look(again)
    assert states(again)[0] == "RUNNING"


def test_a_fold_that_was_claimed_before_is_not_compared_again(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    finish_on_disk(run, is_validated=False)
    stage.cluster.kill_driver(run)
    change_plans(stage, '{"configurations": {"3d": {"batch_size": 9}}}')
    look(again := stage.campaign(run, name="c2"))
    assert states(again) == ["VALIDATING"]


def test_another_dataset_json_in_the_model_folder_is_refused(stage: Stage) -> None:
    stage.campaign(stage.run(0))
    content = {"labels": {"background": 0, "b": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    write_json_atomic(stage.data / "dataset.json", content)
    with pytest.raises(ConfigError, match="in foreground of '3d'"):
        stage.campaign(stage.run(1), name="c2")


def test_one_refused_run_leaves_all_others_untouched(stage: Stage) -> None:
    stage.campaign(stage.run(1))
    other = stage.run(1).model_copy(update={"run_key": "other"})
    with pytest.raises(ConfigError, match="belongs to the run key1"):
        stage.campaign(stage.run(0), other, name="c2")
    assert not RunFolder(stage.run(0).run_folder).spec_file.exists()
    assert "id-key0" not in stage.tracking.folders


def test_mlflow_runs_of_a_submission_that_failed_half_way_are_ended(stage: Stage) -> None:
    stage.tracking.unwanted = {"key1"}
    with pytest.raises(TrackingError, match="no room"):
        stage.campaign(stage.run(0), stage.run(1))
    assert stage.tracking.states == {"id-key0": [RunState.STOPPED]}


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(stage: Stage) -> None:
    run = stage.run(0)
    run.model_folder.parent.mkdir(parents=True)
    run.model_folder.write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot be used for 1/.*/0: .*let it write there, or name another nnUNet_results"):
        stage.campaign(run)


def test_a_waiting_run_whose_workers_another_submission_changed_reserves_what_it_will_take(stage: Stage) -> None:
    stage.cluster.gpus = 2
    run, other = stage.run(0), stage.run(1)
    first = stage.campaign(run, other)
    stage.campaign(run.model_copy(update={"workers": WorkerSpec(count=2, gpus=1, cpus=1)}), name="c2")
    look(first)
    (job,) = (stage.cluster.jobs[name] for name in stage.cluster.live_jobs())
    assert job.reserved == WorkerSpec(count=2, gpus=1, cpus=1)
    assert states(first) == ["RUNNING", "QUEUED"]


# ---- a folder in which nothing was kept ----------------------------------------------------------------------------------


def failed_before_its_first_epoch(stage: Stage, run: RunSpec) -> None:
    """Its plans were at fault: its driver acquired a fencing token and ended."""
    look(campaign := stage.campaign(run))
    stage.cluster.workers_begin(run)
    stage.cluster.training_ends(run, "FAILED_CONFIG")
    look(campaign)
    assert states(campaign) == ["FAILED_CONFIG"]


def mended(stage: Stage, run: RunSpec) -> RunSpec:
    """The run that the same experiment makes of other plans."""
    change_plans(stage, '{"configurations": {"3d": {"batch_size": 9}}}')
    return run.model_copy(update={"run_key": f"{run.run_key}-mended", "data_digest": "1" * 64})


def test_the_folder_of_a_run_that_failed_before_its_first_epoch_is_the_next_ones(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    failed_before_its_first_epoch(stage, run)
    next_run = mended(stage, run)
    look(campaign := stage.campaign(next_run, name="c2"))
    assert states(campaign) == ["RUNNING"]
    assert campaign.runs[next_run.run_key].status().num_drivers == 0, "the old run's driver is not its own"
    assert folder.spec() == next_run
    assert RunSpec.model_validate_json((folder.own / "run.key0.json").read_bytes()) == run
    assert "FAILED_CONFIG" in (folder.own / "outcome.key0.json").read_text()
    assert (run.model_folder / "plans.json").read_bytes() == (stage.data / "nnUNetPlans.json").read_bytes()
    assert stage.cluster.live_jobs() == ["train-key0-mended-a3"], "above every fencing token of the old one and that of the takeover"
    assert json.loads(folder.mlflow_file.read_text())["run_id"] == "id-key0-mended"
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING, RunState.FAILED_CONFIG], "its MLflow run stays as it ended"
    stage.cluster.training_ends(next_run)
    stage.cluster.validation_ends(next_run)
    assert campaign.run(poll_s=0) == 0


def test_what_was_asked_and_expected_of_the_run_before_goes_with_it(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    failed_before_its_first_epoch(stage, run)
    request_finish(folder, run.run_key, anneal_epochs=0)
    write_json_atomic(folder.expected_file, {"epoch_s": 20.0, "unix": 1.0})
    request_pause(folder, PauseRequest(rung=1))
    end_pause(folder)
    request_pause(folder, PauseRequest(rung=2))
    acquire(mended(stage, run), stage.cluster.records())
    assert last_pause(folder) is None
    assert not folder.finish_file.exists()
    assert not folder.expected_file.exists()


@pytest.mark.parametrize("early_end", [None, EarlyEnd(epochs=2)])
def test_an_early_end_that_has_had_no_effect_is_withdrawn_when_the_run_is_submitted_again(stage: Stage, early_end: EarlyEnd | None) -> None:
    run = stage.run(0)
    folder = RunFolder(run.run_folder)
    acquire(run, [])
    finish_on_disk(run, is_validated=False, early_end=early_end)
    request_finish(folder, run.run_key, anneal_epochs=0)
    reset(folder, Action.TRAIN)
    assert folder.finish_file.exists() == (early_end is not None)


def test_a_folder_on_a_file_system_without_links_gets_no_retired_run_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the campaign that made run.json was killed before it had removed what it was made of, as older versions did."""
    without_links(monkeypatch)
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    failed_before_its_first_epoch(stage, run)
    left = folder.own / ".run.json.claim" / "content"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(folder.spec_file.read_bytes())
    next_run = mended(stage, run)
    acquire(next_run, stage.cluster.records())
    assert folder.spec() == next_run
    assert (run.model_folder / "plans.json").read_bytes() == (stage.data / "nnUNetPlans.json").read_bytes()
    last = mended(stage, next_run)
    acquire(last, stage.cluster.records())
    assert folder.spec() == last


def test_nothing_of_the_old_run_is_committed_once_its_folder_is_another_runs(stage: Stage) -> None:
    """Its workers may live on, unseen: a queued run has no driver yet that would fence them off."""
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    failed_before_its_first_epoch(stage, run)
    old = newest_token(folder)
    acquire(mended(stage, run), stage.cluster.records())
    with pytest.raises(Superseded):
        check_fence(folder, old)
    with pytest.raises(Superseded):
        check_driver_fence(folder, old)
    assert owner_of(folder) is None, "no driver has it yet"


def test_all_folds_of_plans_that_were_at_fault_are_submitted_again(stage: Stage) -> None:
    stage.cluster.gpus = 2
    runs = [stage.run(0), stage.run(1)]
    look(campaign := stage.campaign(*runs))
    for run in runs:
        stage.cluster.training_ends(run, "FAILED_CONFIG")
    look(campaign)
    look(again := stage.campaign(*(mended(stage, run) for run in runs), name="c2"))
    assert states(again) == ["RUNNING", "RUNNING"]


def test_a_run_that_died_unnoticed_is_ended_in_mlflow_when_its_folder_is_another_ones(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(run)
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING]
    stage.campaign(mended(stage, run), name="c2")
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING, RunState.STOPPED]


def test_an_untracked_run_takes_no_mlflow_run_over_with_the_folder(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    failed_before_its_first_epoch(stage, run)
    acquire(mended(stage, run), stage.cluster.records())
    assert not folder.mlflow_file.exists()


def test_a_folder_in_which_another_run_has_kept_an_epoch_is_refused(stage: Stage) -> None:
    run = stage.run(0)
    failed_before_its_first_epoch(stage, run)
    finish_on_disk(run, is_validated=False)
    with pytest.raises(ConfigError, match="belongs to the run key0, which differs from key0-mended in labels, plans or dataset.json"):
        stage.campaign(mended(stage, run), name="c2")
    assert RunFolder(run.run_folder).spec() == run


@pytest.mark.parametrize("has_started", [True, False])
def test_a_folder_of_a_run_that_has_not_ended_is_refused(stage: Stage, has_started: bool) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    if has_started:
        look(campaign)
        stage.cluster.kill_campaign("c1")
    with pytest.raises(ConfigError, match="belongs to the run key0, which has not ended. Stop it first"):
        stage.campaign(mended(stage, run), name="c2")


def test_plans_by_which_another_fold_has_kept_an_epoch_are_not_replaced(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    stage.cluster.gpus = 2
    look(campaign := stage.campaign(run, other))
    for each in (run, other):
        stage.cluster.training_ends(each, "FAILED_CONFIG")
    finish_on_disk(other, is_validated=False)
    look(campaign)
    with pytest.raises(ConfigError, match="must share one plan"):
        stage.campaign(mended(stage, run), name="c2")
    assert RunFolder(run.run_folder).spec() == run


def test_plans_by_which_another_fold_may_train_on_another_cluster_are_not_replaced(stage: Stage) -> None:
    """Its driver has a token, and nothing says that it has ended."""
    run, other = stage.run(0), stage.run(1)
    stage.cluster.gpus = 2
    look(campaign := stage.campaign(run, other))
    stage.cluster.workers_begin(other)
    stage.cluster.training_ends(run, "FAILED_CONFIG")
    look(campaign)
    stage.cluster.jobs.clear()  # of this cluster: nothing
    with pytest.raises(ConfigError, match=r"share one plan. key1 may be at work by them, here or on another cluster: stop it there first"):
        stage.campaign(mended(stage, run), name="c2")
    assert RunFolder(run.run_folder).spec() == run


def test_a_fold_that_died_in_its_first_epoch_does_not_hold_the_plans(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    stage.cluster.gpus = 2
    look(campaign := stage.campaign(run, other))
    stage.cluster.workers_begin(other)
    stage.cluster.training_ends(run, "FAILED_CONFIG")
    look(campaign)
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(other)
    look(again := stage.campaign(mended(stage, run), name="c2"))
    assert states(again) == ["RUNNING"]


def test_folds_of_two_plans_never_come_into_one_model_folder(stage: Stage) -> None:
    """Fold 1 failed by the old plans, fold 0 trains by the mended ones; then the old plans are brought back, and fold 1 submitted again."""
    stage.cluster.gpus = 2
    runs = [stage.run(0), stage.run(1)]
    old_plans = (stage.data / "nnUNetPlans.json").read_text()
    look(campaign := stage.campaign(*runs))
    for run in runs:
        stage.cluster.training_ends(run, "FAILED_CONFIG")
    look(campaign)
    look(stage.campaign(mended(stage, runs[0]), name="c2"))
    change_plans(stage, old_plans)
    with pytest.raises(ConfigError, match="must share one plan"):
        stage.campaign(runs[1], name="c3")


def test_a_run_whose_folder_is_another_ones_may_start_in_another_results_folder(stage: Stage) -> None:
    run = stage.run(0)
    failed_before_its_first_epoch(stage, run)
    next_run = mended(stage, run)
    stage.campaign(next_run, name="c2")
    finish_on_disk(next_run)
    look(third := stage.campaign(run.model_copy(update={"model_folder": stage.base / "elsewhere"}), name="c3"))
    assert third.runs["key0"].state in (RunState.QUEUED, RunState.RUNNING)


# ---- two clusters that share nnUNet_results -----------------------------------------------------------------------------


def test_a_run_that_another_cluster_trains_now_is_refused(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    stage.cluster = FakeCluster()
    for second in range(2, 400, 2):
        stage.clock.after(second, lambda: heartbeat(run, stage.clock.unix()))
    with pytest.raises(ConfigError, match=r"workers of train-key0-a1 \(fencing token 1\) .* send heartbeats"):
        stage.campaign(run, name="elsewhere")
    assert "Waiting until they have sent no heartbeat for 60 s" in stage.said[0]


def test_workers_that_a_dead_head_left_behind_are_waited_for(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    stage.cluster = FakeCluster()
    for second in range(2, 58, 2):
        stage.clock.after(second, lambda: heartbeat(run, stage.clock.unix()))
    began_s = stage.clock.now_s
    look(again := stage.campaign(run, name="elsewhere"))
    assert states(again) == ["RUNNING"]
    assert stage.clock.now_s - began_s > 56 + 60 - 2


@pytest.mark.parametrize(("ahead_s", "longest_s"), [(3600, 61), (-3600, 8), (-30, 61), (0, 61)])
def test_a_clock_that_is_wrong_locks_no_run_out(stage: Stage, ahead_s: float, longest_s: float) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    heartbeat(run, stage.clock.unix() + ahead_s)  # the last one
    claim = RunFolder(run.run_folder).tokens / "0001.json"
    write_json_atomic(claim, {**json.loads(claim.read_text()), "claimed_unix": 0})
    stage.cluster = FakeCluster()
    began_s = stage.clock.now_s
    look(again := stage.campaign(run, name="elsewhere"))
    assert states(again) == ["RUNNING"]
    assert stage.clock.now_s - began_s <= longest_s


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_a_clock_that_is_wrong_hides_no_living_worker(stage: Stage, ahead_s: float) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    heartbeat(run, stage.clock.unix() + ahead_s)
    stage.cluster = FakeCluster()
    for second in range(2, 400, 2):
        stage.clock.after(second, lambda: heartbeat(run, stage.clock.unix() + ahead_s))
    with pytest.raises(ConfigError, match="send heartbeats"):
        stage.campaign(run, name="elsewhere")


def heartbeat(run: RunSpec, unix: float) -> None:
    """Its workers give a sign of life, by a clock of their own."""
    write_json_atomic(RunFolder(run.run_folder).progress_file, {"epoch": 0, "iteration": 1, "phase": "train", "unix": unix, "attempt": 1})


def test_a_superseded_run_ends_here_and_keeps_the_winners_outcome(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    look(campaign := stage.campaign(run))
    stage.cluster.workers_begin(run)
    look(campaign)
    acquire_token(folder, "winner")
    write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=2, message="by the winner"))
    stage.cluster.gives_way(run)
    assert campaign.run(poll_s=0) == 0
    assert campaign.runs["key0"].reason == "superseded by winner (fencing token 2): it goes on there."
    outcome = read_outcome(folder)
    assert outcome is not None
    assert outcome.message == "by the winner"
    assert RunState.STOPPED not in stage.tracking.states["id-key0"]
    assert not stage.cluster.live_jobs()


def test_the_end_of_a_superseded_attempt_is_not_recorded(stage: Stage) -> None:
    run = stage.run(0)
    folder = RunFolder(run.run_folder)
    write_json_atomic(folder.spec_file, run.model_dump(mode="json"))
    first, _ = acquire_token(folder, "loser"), acquire_token(folder, "winner")
    assert not write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=first, message="late"))
    assert not write_outcome(folder, Outcome(job="training", state="STOPPED", fencing_token=0, message="of nobody"))
    assert read_outcome(folder) is None
    acquire_token(folder, "winner")  # its workers
    assert write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=2, message="won"))


# ---- one MLflow run, one training ---------------------------------------------------------------------------------------


def test_the_same_run_in_a_second_results_folder_is_refused_after_its_end_too(stage: Stage) -> None:
    run = stage.run(0)
    look(first := stage.campaign(run))
    finish_on_disk(run)
    stage.cluster.training_ends(run, "STOPPED")
    look(first)
    elsewhere = run.model_copy(update={"model_folder": stage.base / "elsewhere"})
    with pytest.raises(ConfigError, match="one MLflow run cannot hold both. Name the nnUNet_results of that folder"):
        stage.campaign(elsewhere, name="c2")
    run.model_folder.rename(elsewhere.model_folder)
    look(moved := stage.campaign(elsewhere, name="c2"))
    assert states(moved) == ["VALIDATING"], "a folder that was moved is the same training"


def test_a_replicate_is_another_run_of_the_same_server_with_nnunets_folder_names(stage: Stage) -> None:
    run = stage.run(0)
    look(first := stage.campaign(run))
    finish_on_disk(run)
    stage.cluster.training_ends(run, "STOPPED")
    look(first)
    elsewhere = run.model_copy(update={"model_folder": stage.base / "elsewhere" / run.model_folder.name})
    with pytest.raises(ConfigError, match="write `replicate: NAME` into the experiment file, to train the same once more here"):
        stage.campaign(elsewhere, name="c2")
    again = elsewhere.model_copy(update={"replicate": "second", "run_key": "key0-second"})
    look(second := stage.campaign(again, name="c3"))
    assert states(second) == ["RUNNING"]
    assert set(stage.tracking.folders) == {"id-key0", "id-key0-second"}
    finish_on_disk(again)
    stage.cluster.training_ends(again, "STOPPED")
    look(second)
    here = again.model_copy(update={"model_folder": run.model_folder, "run_key": "key0-third", "replicate": "third"})
    with pytest.raises(ConfigError, match=r"differs from key0-third in replicate \(none, now third\).*name another nnUNet_results"):
        stage.campaign(here, name="c4")


def test_a_run_that_failed_before_its_first_epoch_may_start_in_another_results_folder(stage: Stage) -> None:
    run = stage.run(0)
    elsewhere = run.model_copy(update={"model_folder": stage.base / "elsewhere"})
    look(first := stage.campaign(run))
    stage.cluster.training_ends(run, "FAILED_CONFIG")
    look(first)
    assert states(first) == ["FAILED_CONFIG"]
    look(second := stage.campaign(elsewhere, name="c2"))
    assert states(second) == ["RUNNING"]
    assert stage.tracking.folders["id-key0"]["nnfleet.run_folder"] == str(elsewhere.run_folder)
    with pytest.raises(ConfigError, match="one MLflow run cannot hold both"):  # a sync of the first folder tells nothing of it any more
        mlflow_run_of(RunFolder(run.run_folder), run, cast(Tracker, stage.tracking))


def test_a_server_whose_artifacts_would_stay_on_the_head_is_refused_unless_asked_for_or_known(stage: Stage) -> None:
    run = stage.run(0)
    stage.tracking.writes_to_paths = True
    with pytest.raises(ConfigError, match="count as published"):
        stage.campaign(run)
    assert not run.run_folder.exists()
    asking = run.model_copy(update={"local_artifacts": True})
    with pytest.raises(ConfigError, match="count as published"):
        stage.campaign(asking, stage.run(1))
    look(first := stage.campaign(asking))
    stage.cluster.training_ends(run, "STOPPED")
    look(first)
    look(again := stage.campaign(run, name="c2"))
    assert states(again) == ["RUNNING"], "a run that was recorded there goes on"


def test_a_run_that_waits_for_its_turn_keeps_its_mlflow_run(stage: Stage) -> None:
    run = stage.run(0)
    stage.campaign(run)
    with pytest.raises(ConfigError, match="one MLflow run cannot hold both"):
        stage.campaign(run.model_copy(update={"model_folder": stage.base / "elsewhere"}), name="c2")


def test_a_run_that_starts_anew_does_not_continue_the_old_epochs_in_mlflow(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.training_ends(run, "STOPPED")
    stage.tracking.scores["id-key0"] = {MARKER_METRIC: 1.0}
    with pytest.raises(ConfigError, match="its epochs would be mixed with the old ones. .* delete the MLflow run id-key0"):
        stage.campaign(run, name="c2")
    finish_on_disk(run, is_validated=False)
    look(again := stage.campaign(run, name="c2"))
    assert states(again) == ["VALIDATING"]


def test_a_run_deleted_in_mlflow_and_submitted_again_is_restored_and_no_second_one_is_made(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.tracking.binned = {"id-key0"}
    again = stage.campaign(run, name="c2")
    assert again.runs["key0"].tracked.run_id == "id-key0"
    assert list(stage.tracking.folders) == ["id-key0"]
    assert stage.tracking.binned == set()


def test_a_run_that_was_deleted_to_start_anew_is_not_restored(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.training_ends(run, "STOPPED")
    stage.tracking.scores["id-key0"] = {MARKER_METRIC: 1.0}
    stage.tracking.binned = {"id-key0"}  # as the refusal of mixed epochs asks for
    again = stage.campaign(run, name="c2")
    assert again.runs["key0"].tracked.run_id == noted_run_id(RunFolder(run.run_folder)) == "id-key0+1"
    assert stage.tracking.binned == {"id-key0"}
    stage.tracking.binned.clear()  # with its experiment: the folder's own run is meant, though it is not the oldest
    assert stage.campaign(run, name="c3").runs["key0"].tracked.run_id == "id-key0+1"


def test_a_run_folder_that_names_the_run_of_another_server_takes_the_one_of_its_own(stage: Stage) -> None:
    run = stage.run(0)
    stage.campaign(run)
    folder = RunFolder(run.run_folder)
    write_mlflow_run(folder, MlflowRun(run_id="id-key0", experiment_id="7", tracking_uri="http://elsewhere"))
    stage.tracking.binned = {"id-key0"}
    assert stage.campaign(run, name="c2").runs["key0"].tracked.run_id == "id-key0+1"


# ---- submitted again while it stops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_now", [False, True])
def test_a_run_submitted_again_while_it_stops_continues_after_its_end(stage: Stage, is_now: bool) -> None:
    run = stage.run(0)
    first = stage.campaign(run)
    look(first)
    stage.cluster.workers_begin(run)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": is_now})
    look(again := stage.campaign(run, name="c2"))
    stage.cluster.training_ends(run, "STOPPED")
    look(first)
    look(again)
    assert states(first) == ["STOPPED"]
    assert stage.cluster.live_jobs() == ["train-key0-a2"]
    assert states(again) == ["RECOVERING"]


@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize("is_now", [False, True])
def test_a_campaign_that_still_began_when_a_run_was_stopped_leaves_it_stopped(stage: Stage, is_now: bool, has_ended: bool) -> None:
    run = stage.run(0)
    look(first := stage.campaign(run))
    stage.cluster.workers_begin(run)
    stage.cluster.add_campaign("c2")
    stop_all([run.run_folder], [run.run_key], stage.cluster, is_now=is_now)
    if has_ended:
        stage.cluster.training_ends(run, "STOPPED")
        look(first)
    second = stage.campaign(run, name="c2")
    if not has_ended:
        look(second)
        stage.cluster.training_ends(run, "STOPPED")
    look(second)
    assert (states(second), stage.cluster.live_jobs()) == (["STOPPED"], [])
    look(later := stage.campaign(run, name="c3"))
    assert (states(later), stage.cluster.live_jobs()) == (["RUNNING"], ["train-key0-a2"])
    assert not RunFolder(run.run_folder).stop_file.exists()


def test_a_waiting_run_that_is_stopped_starts_by_no_campaign_that_still_began(stage: Stage) -> None:
    busy, run = stage.run(0), stage.run(1)
    look(stage.campaign(busy, run))
    stage.cluster.add_campaign("c2")
    stop_all([run.run_folder], [run.run_key], stage.cluster, is_now=False)
    second = stage.campaign(run, name="c2")
    stage.cluster.training_ends(busy)
    look(second)
    assert states(second) == ["STOPPED"]


def test_a_stop_while_a_campaign_begins_is_withdrawn_by_a_submission_after_it(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    stage.cluster.add_campaign("c2")
    stop_all([run.run_folder], [run.run_key], stage.cluster, is_now=False)
    look(later := stage.campaign(run, name="c3"))
    second = stage.campaign(run, name="c2")
    stage.cluster.training_ends(run, "STOPPED")
    look(later)
    assert states(later) == ["RECOVERING"]
    assert stage.cluster.live_jobs() == ["train-key0-a2"]
    look(second)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]


def test_a_run_that_is_stopped_once_more_stays_stopped(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    for name in ("c2", "c3"):
        write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
        again = stage.campaign(run, name=name)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
    look(again)
    stage.cluster.training_ends(run, "STOPPED")
    look(again)
    assert states(again) == ["STOPPED"]


# ---- validated by hand --------------------------------------------------------------------------------------------------


def test_only_a_run_trained_to_its_end_with_its_checkpoints_is_validated_by_hand(stage: Stage) -> None:
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    look(stage.campaign(run))
    with pytest.raises(ConfigError, match="is being trained"):
        check_trained(folder, run, stage.cluster.records())
    stage.cluster.kill_driver(run)
    with pytest.raises(ConfigError, match="is not trained to its end: no epoch is done"):
        check_trained(folder, run, stage.cluster.records())
    finish_on_disk(run, has_best=False)
    with pytest.raises(ConfigError, match=r"checkpoint_final.pth does not exist; 4 of 4 epochs are done"):
        check_trained(folder, run, stage.cluster.records())
    folder.checkpoint("final").touch()
    check_trained(folder, run, stage.cluster.records())  # no epoch had foreground, so there is no best one


def test_a_plan_sees_what_other_campaigns_hold_and_wait_for(stage: Stage) -> None:
    run, other = stage.run(0), stage.run(1)
    look(stage.campaign(run, other))
    queue = queue_of(stage.cluster.records(), Registry(stage.base / "board"))
    assert [held.run_key for held in queue.reserved] == ["key0"]
    assert [waiting.run_key for waiting in queue.waiting] == ["key1"]
    assert queue.living == {"key0"}


def test_a_stop_that_comes_while_a_campaign_opens_is_kept(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    folder = RunFolder(run.run_folder)
    write_json_atomic(folder.stop_file, {"now": False})
    real = stage.tracking.get_or_create_run

    def slow(experiment_id: str, spec: RunSpec, run_id: str = "") -> str:
        write_json_atomic(folder.stop_file, {"now": True})
        return real(experiment_id, spec, run_id)

    monkeypatch.setattr(stage.tracking, "get_or_create_run", slow)
    stage.campaign(run, name="c2")
    assert folder.stop_file.exists()


def test_a_submission_that_cannot_open_withdraws_no_stop_request(stage: Stage) -> None:
    run = stage.run(0)
    look(campaign := stage.campaign(run))
    stage.cluster.workers_begin(run)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
    stage.tracking.unwanted = {"key1"}
    with pytest.raises(TrackingError, match="no room"):
        stage.campaign(run, stage.run(1), name="c2")
    assert RunFolder(run.run_folder).stop_file.exists()
    look(campaign)
    assert states(campaign) == ["RUNNING"], "until its epoch has ended"
