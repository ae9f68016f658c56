"""The campaign's loop on a fake cluster that is driven by verbs; run folders are real. No Ray."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.campaign.dispatch import FIRST_PAUSE_S, LONGEST_PAUSE_S, STOP_AGAIN_S
from orchestrator.campaign.events import CampaignLog, Done, StatusChanged
from orchestrator.campaign.loop import Campaign
from orchestrator.errors import ClusterError
from orchestrator.follow import observe
from orchestrator.follow.next_step import REMOVED_ENDS_S
from orchestrator.follow.render import MIN_REPORT_INTERVAL_S, Reading, is_news
from orchestrator.follow.reserved import reservations
from orchestrator.queue.registry import GROWTH_LIMITS_FRESH_S, Registry
from orchestrator.run.activity import report_cases
from orchestrator.run.events import line_of
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.progress import progress_of
from orchestrator.run.status import CasesDone
from orchestrator.run.undelivered import forget_undelivered, note_undelivered
from tests.away import Away
from tests.fake_campaign import Stage, finish_on_disk, look, states
from trainers.contract.fencing import acquire_token, newest_token
from trainers.contract.requests import request_place
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WorkerSpec
from trainers.contract.states import RunState
from trainers.errors import StorageError
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


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
    assert stage.reported(first) == ["RUNNING", "VALIDATING", "SUCCEEDED"]
    assert stage.reported(second)[0] == "QUEUED"
    assert stage.events[-1] == Done(exit_code=0)
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING, RunState.VALIDATING, RunState.SUCCEEDED]


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
    assert stage.reported(run) == ["RUNNING", "RECOVERING", "RUNNING"]


def test_a_run_that_keeps_dying_is_ended(stage: Stage) -> None:
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
    stage.cluster.workers_begin(running)
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


def test_a_stop_that_the_cluster_refuses_is_tried_again(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": True})
    stage.cluster.refuses = {"key0"}
    look(campaign)
    assert campaign.runs["key0"].status().reason == "stops on request. Refused, and tried again: cluster: takes no order for key0"
    stage.cluster.refuses.clear()
    look(campaign)
    assert stage.cluster.stopped == [], "not yet"
    stage.clock.sleep(FIRST_PAUSE_S)
    look(campaign)
    look(campaign)
    assert stage.cluster.stopped == ["train-key0-a1"]


def test_a_job_that_lives_on_after_its_stop_is_asked_again(stage: Stage) -> None:
    """A job server that ends with its node answers a stop that it then forgets."""
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": True})
    look(campaign)
    look(campaign)
    assert stage.cluster.stopped == ["train-key0-a1"]
    stage.clock.sleep(STOP_AGAIN_S)
    look(campaign)
    assert stage.cluster.stopped == ["train-key0-a1", "train-key0-a1"]


def test_a_validation_that_waits_for_the_tracking_server_delays_no_run(stage: Stage) -> None:
    first, second = stage.run(0), stage.run(1)
    campaign = stage.campaign(first, second)
    look(campaign)
    stage.cluster.training_ends(first)
    look(campaign)
    assert states(campaign) == ["VALIDATING", "QUEUED"]
    stage.cluster.validation_waits_for_the_server(first)
    look(campaign)
    assert states(campaign) == ["SUCCEEDED", "RUNNING"]
    assert stage.cluster.live_jobs() == ["validate-key0-a1", "train-key1-a1"]


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


def test_a_run_whose_job_the_cluster_refuses_keeps_no_other_back(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    refused, second, third = stage.run(0), stage.run(1), stage.run(2)
    campaign = stage.campaign(refused, second, third)
    stage.cluster.refuses = {"key0"}
    look(campaign)
    assert states(campaign) == ["QUEUED", "QUEUED", "QUEUED"], "a server that hangs is not asked for all of them in one look"
    look(campaign)
    assert states(campaign) == ["QUEUED", "RUNNING", "QUEUED"], "the only GPU goes to the next"
    assert campaign.runs["key0"].status().reason == "Refused, and tried again: cluster: takes no order for key0"
    assert caplog.text.count("key0: refused") == 1
    stage.cluster.refuses.clear()
    stage.clock.sleep(FIRST_PAUSE_S)
    stage.cluster.training_ends(second)
    stage.cluster.validation_ends(second)
    look(campaign)
    assert states(campaign) == ["RUNNING", "SUCCEEDED", "QUEUED"], "and it is the first to be tried again"


def test_what_is_refused_again_and_again_is_asked_ever_less_often(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.cluster.refuses = {"key0"}
    asked: list[float] = []
    for _ in range(300):
        before = campaign.runs["key0"].refusal
        campaign.tick()
        if campaign.runs["key0"].refusal is not before:
            asked.append(stage.clock.now_s)
        stage.clock.sleep(1)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses[:6] == [2, 4, 8, 16, 32, 60]
    assert set(pauses[6:]) == {60}
    assert "Refused 9 times" in campaign.runs["key0"].status().reason


def test_a_validation_that_the_cluster_refuses_waits_and_keeps_its_place(stage: Stage) -> None:
    refused, other = stage.run(0), stage.run(1)
    campaign = stage.campaign(refused, other)
    look(campaign)
    stage.cluster.training_ends(refused, hands_over=False)
    stage.cluster.refuses = {"key0"}
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED"]
    assert "takes no order" in campaign.runs["key0"].status().reason
    stage.cluster.refuses.clear()
    stage.clock.sleep(FIRST_PAUSE_S)
    look(campaign)
    look(campaign)
    assert states(campaign) == ["VALIDATING", "QUEUED"]


def test_a_refused_stop_delays_no_other_run(stage: Stage) -> None:
    stopping, other = stage.run(0), stage.run(1)
    campaign = stage.campaign(stopping, other)
    look(campaign)
    write_json_atomic(RunFolder(stopping.run_folder).stop_file, {"now": True})
    stage.cluster.refuses = {"key0"}
    stage.cluster.gpus = 3
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING"]
    assert "Refused" in campaign.runs["key0"].status().reason


def test_other_campaigns_do_not_queue_behind_a_run_that_is_refused(stage: Stage) -> None:
    first, second = stage.campaign(stage.run(0)), stage.campaign(stage.run(1), name="c2")
    stage.cluster.refuses = {"key0"}
    for _ in range(2):
        look(first)
        look(second)
    assert states(second) == ["RUNNING"]


def test_refusals_that_last_longer_than_their_pause_keep_nobody_back(stage: Stage) -> None:
    stage.cluster.gpus = 8
    campaign = stage.campaign(*(stage.run(fold) for fold in range(4)))
    stage.cluster.refuses = {"key0", "key1", "key2"}
    stage.cluster.refusing_takes = lambda: stage.clock.sleep(2 * LONGEST_PAUSE_S)
    for _ in range(5):
        look(campaign)
    assert states(campaign) == ["QUEUED", "QUEUED", "QUEUED", "RUNNING"]


def test_a_refused_run_that_two_campaigns_want_keeps_nobody_back(stage: Stage) -> None:
    stage.cluster.gpus = 2
    run, other = stage.run(0), stage.run(1)
    first, second = stage.campaign(run, other), stage.campaign(run, name="c2")
    stage.cluster.refuses = {"key0"}
    look(second)  # its entry stays: it is blocked from here on
    for _ in range(3):
        look(first)
    refusal = first.runs["key0"].refusal
    assert refusal is not None
    assert refusal.count == 1, "its pause has not passed"
    assert states(first) == ["QUEUED", "RUNNING"]


def test_a_refused_stop_does_not_delay_the_next_start(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": True})
    stage.cluster.refuses = {"key0"}
    look(campaign)
    stage.cluster.refuses.clear()
    RunFolder(run.run_folder).stop_file.unlink()
    stage.cluster.kill_driver(run)
    look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]


def test_stops_that_are_refused_hold_the_lock_of_admission_once_a_look(stage: Stage) -> None:
    stage.cluster.gpus = 8
    runs = [stage.run(fold) for fold in range(4)]
    campaign = stage.campaign(*runs)
    look(campaign)
    for run in runs:
        write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": True})
    stage.cluster.refuses = {"key0", "key1", "key2"}
    refusals: list[str] = []

    def hang() -> None:
        refusals.append("one")
        stage.clock.sleep(2 * LONGEST_PAUSE_S)

    stage.cluster.refusing_takes = hang
    look(campaign)
    assert len(refusals) == 1
    for _ in range(3):
        look(campaign)
    assert stage.cluster.stopped == ["train-key3-a1"], "whoever was refused before keeps nobody back"


def test_an_elastic_training_that_only_delivers_ends_no_campaign(stage: Stage) -> None:
    elastic = stage.run(0).model_copy(update={"workers": WorkerSpec(min=1, max=3, gpus=1, cpus=1)})
    first, second = stage.campaign(elastic), stage.campaign(stage.run(1), name="c2")
    look(first)
    stage.cluster.workers_begin(elastic)
    folder = RunFolder(elastic.run_folder)
    write_outcome(folder, Outcome(job="training", state="STOPPED", fencing_token=newest_token(folder), message="stopped"))
    look(first)
    look(second)
    assert states(first) == ["STOPPED"]


def test_a_month_of_refusals_ends_no_campaign(stage: Stage) -> None:
    campaign = stage.campaign(stage.run(0))
    stage.cluster.refuses = {"key0"}
    for _ in range(2500):
        campaign.tick()
        stage.clock.sleep(LONGEST_PAUSE_S)
    assert "Refused 1250 times" in campaign.runs["key0"].status().reason


def test_a_run_that_ends_is_not_said_to_be_tried_again(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.cluster.refuses = {"key0"}
    look(campaign)
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": False})
    look(campaign)
    assert campaign.runs["key0"].status().reason == "stopped on request."


def test_a_stop_does_not_wait_for_the_pause_of_a_refused_submission(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    stage.cluster.refuses = {"key0"}
    look(campaign)
    stage.cluster.refuses.clear()
    stage.cluster.submit_training(RunFolder(run.run_folder), run, 1, campaign="c1")  # it was taken all the same
    write_json_atomic(RunFolder(run.run_folder).stop_file, {"now": True})
    look(campaign)
    assert stage.cluster.stopped == ["train-key0-a1"]


def test_nobody_grows_into_the_place_of_a_run_that_is_refused(stage: Stage) -> None:
    stage.cluster.gpus = 3
    elastic = stage.run(0).model_copy(update={"workers": WorkerSpec(min=1, max=3, gpus=1, cpus=1)})
    campaign = stage.campaign(elastic, stage.run(1, gpus=2))
    stage.cluster.refuses = {"key1"}
    look(campaign)
    stage.cluster.workers_begin(elastic)
    for _ in range(3):
        look(campaign)
    assert Registry(stage.base / "board").room(stage.clock.unix()).get("key0", 1) == 1
    stage.cluster.refuses.clear()
    stage.clock.sleep(FIRST_PAUSE_S)
    look(campaign)
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING"]


def test_a_run_that_was_refused_once_has_its_place_in_the_queue_again(stage: Stage) -> None:
    stage.cluster.gpus = 2
    large, small = stage.run(0, gpus=2), stage.run(1)
    first, second = stage.campaign(large), stage.campaign(small, stage.run(2), name="c2")
    stage.cluster.refuses = {"key0"}
    look(first)
    look(second)  # sees that it waits
    look(first)
    stage.cluster.gpus = 1
    look(second)
    assert states(second) == ["RUNNING", "QUEUED"]
    stage.cluster.workers_begin(small)
    stage.cluster.refuses.clear()
    stage.cluster.gpus = 2
    stage.clock.sleep(FIRST_PAUSE_S)
    look(first)
    assert first.runs["key0"].status().reason.startswith("No capacity: needs 2")
    look(second)
    assert states(second) == ["RUNNING", "QUEUED"], "the small run does not overtake it"


def test_a_cluster_that_goes_away_while_jobs_are_submitted_is_one_trouble_for_all(stage: Stage) -> None:
    stage.cluster.gpus = 2
    campaign = stage.campaign(stage.run(0), stage.run(1))
    orders: list[str] = []

    def goes_away(folder: RunFolder, *_: object, **__: object) -> str:
        orders.append(folder.root.name)
        stage.cluster.is_away = True
        raise ClusterError("cluster: the connection broke off")

    stage.cluster.submit_training = goes_away  # type: ignore[method-assign]
    with pytest.raises(ClusterError, match="away"):
        campaign.tick()
    assert orders == ["fold_0"], "nobody else is tried"
    assert states(campaign) == ["QUEUED", "QUEUED"]


def test_a_folder_that_fails_while_its_job_is_submitted_keeps_no_other_back(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = stage.campaign(stage.run(0), stage.run(1))
    real = observe.Observer.next_job_number

    def away(observer: observe.Observer, jobs: list[JobRecord]) -> int:
        if observer.spec.run_key == "key0":
            raise StorageError("storage: away.")
        return real(observer, jobs)

    monkeypatch.setattr(observe.Observer, "next_job_number", away)
    look(campaign)
    look(campaign)
    assert states(campaign) == ["QUEUED", "RUNNING"]


def finished(stage: Stage) -> tuple[RunSpec, Campaign]:
    """A run whose jobs have all ended well, and its campaign, which has not looked since."""
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    return run, campaign


def test_a_finished_run_is_not_repeated(stage: Stage) -> None:
    run, _ = finished(stage)
    again = stage.campaign(run, name="c2")
    assert again.run(poll_s=0) == 0
    assert states(again) == ["SUCCEEDED"]
    assert [name for name in stage.cluster.jobs if name.startswith("train")] == ["train-key0-a1"]


def test_a_run_without_foreground_has_no_best_checkpoint_and_is_finished_all_the_same(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    finish_on_disk(run, has_best=False)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    assert campaign.run(poll_s=0) == 0
    again = stage.campaign(run, name="c2")
    look(again)
    assert states(again) == ["SUCCEEDED"]
    assert stage.cluster.live_jobs() == []
    assert progress_of(run).stage == "finished"


def test_a_fold_without_validation_cases_is_finished_once_it_is_trained(stage: Stage) -> None:
    run = stage.run(0).model_copy(update={"val_cases": ()})
    campaign = stage.campaign(run)
    look(campaign)
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    look(campaign)
    look(again := stage.campaign(run, name="c2"))
    assert states(again) == ["SUCCEEDED"]
    assert stage.cluster.live_jobs() == []


def test_scores_that_are_all_nan_are_not_delivered_again_and_again(stage: Stage) -> None:
    run, _ = finished(stage)
    for name in ("best", "final"):
        write_json_atomic(RunFolder(run.run_folder).own / f"validation_{name}.json", {"dice_mean": float("nan")})
    stage.tracking.scores.clear()
    look(again := stage.campaign(run, name="c2"))
    assert states(again) == ["SUCCEEDED"]
    assert stage.cluster.live_jobs() == []
    assert stage.cluster.controls == []


def test_a_validation_gets_a_name_that_no_other_folder_of_the_same_run_has_taken(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    elsewhere = run.model_copy(update={"model_folder": run.model_folder.parent / "elsewhere"})
    name = stage.cluster.submit_validation(RunFolder(elsewhere.run_folder), elsewhere, 1)
    stage.cluster.ends(name)
    finish_on_disk(run, is_validated=False)
    stage.cluster.training_ends(run, hands_over=False)
    look(campaign)
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]
    stage.cluster.validation_ends(run)
    assert campaign.run(poll_s=0) == 0


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


def test_a_campaign_publishes_whose_its_runs_are_and_their_priorities(stage: Stage) -> None:
    mine = stage.run(0).model_copy(update={"user": "ann", "priority": 70})
    other = stage.run(1).model_copy(update={"user": "ann"})
    look(campaign := stage.campaign(mine, other))
    entry = Registry(stage.base / "board").entries(["c1"])["c1"]
    assert [(run.run_key, run.user, run.priority) for run in entry.waiting] == [("key0", "ann", 70), ("key1", "ann", 50)]
    look(campaign)
    entry = Registry(stage.base / "board").entries(["c1"])["c1"]
    assert [(run.run_key, run.user) for run in entry.holding] == [("key0", "ann")]


def test_another_place_that_was_asked_for_holds_until_the_run_is_submitted_with_another_priority(stage: Stage) -> None:
    stage.cluster.gpus = 0
    runs = [stage.run(fold) for fold in range(3)]
    look(stage.campaign(*runs))
    request_place(RunFolder(runs[2].run_folder), priority=80, first_unix=0.0)
    request_place(RunFolder(runs[1].run_folder), priority=None, first_unix=5.0)
    look(again := stage.campaign(*runs, name="c2"))
    waiting = {run.run_key: run for run in Registry(stage.base / "board").entries(["c2"])["c2"].waiting}
    assert [waiting[run.run_key].priority for run in runs] == [50, 50, 80]
    assert waiting["key1"].first_unix == 5.0
    stage.cluster.gpus = 1
    look(again)
    assert stage.cluster.live_jobs() == ["train-key1-a1"]
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_campaign("c2")
    look(stage.campaign(runs[2].model_copy(update={"priority": 10}), name="c3"))
    assert [run.priority for run in Registry(stage.base / "board").entries(["c3"])["c3"].waiting] == [10]


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


def test_a_share_that_is_away_is_waited_for(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    run, campaign = finished(stage)
    (committed,) = RunFolder(run.run_folder).state.glob("*.json")
    away, real, looks = Away(committed), stage.cluster.records, []

    def back_after_three() -> list[JobRecord]:
        looks.append("")
        if len(looks) == 4:
            away.come_back()
        return real()

    stage.cluster.records = back_after_three  # type: ignore[method-assign]
    assert campaign.run(poll_s=0) == 0
    assert caplog.text.count("left as it is until its folder can be read: key0") == 1
    assert "Bring back the disk" in caplog.text
    assert stage.reported(run) == ["RUNNING", "SUCCEEDED"]


def test_one_folder_that_cannot_be_read_delays_no_other_run(stage: Stage) -> None:
    first, second = stage.run(0), stage.run(1)
    campaign = stage.campaign(first, second)
    look(campaign)
    stage.cluster.training_ends(first, "FAILED_CONFIG")
    away = Away(RunFolder(first.run_folder).outcome_file)
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED"], "what the first one holds is not known, so its room is kept"
    stage.cluster.gpus = 2
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING"]
    away.come_back()
    look(campaign)
    assert states(campaign) == ["FAILED_CONFIG", "RUNNING"]


def test_a_campaign_does_not_end_before_it_has_reported_the_end_of_every_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run, campaign = finished(stage)
    real, failures = observe.Observer.reading, iter(range(3))

    def away_at_first(observer: observe.Observer, state: RunState) -> Reading:
        if next(failures, None) is not None:
            raise StorageError("storage: away.")
        return real(observer, state)

    monkeypatch.setattr(observe.Observer, "reading", away_at_first)
    assert campaign.run(poll_s=0) == 0
    reported = [event.status for event in stage.events if isinstance(event, StatusChanged)]
    assert [status["reason"] for status in reported if "reason" in status][-2:] == ["its folder cannot be read: storage: away.", ""]
    assert stage.reported(run)[-1] == "SUCCEEDED"


def test_a_waiting_run_whose_folder_was_given_to_another_one_is_left(stage: Stage) -> None:
    first, second = stage.run(0), stage.run(1)
    campaign = stage.campaign(first, second)
    look(campaign)
    second.run_folder.rename(second.run_folder.with_name("moved_away"))
    other = second.model_copy(update={"run_key": "other"})
    beside = stage.campaign(other, name="c2")
    look(campaign)
    look(beside)
    assert states(campaign) == ["RUNNING", "STOPPED"]
    assert campaign.runs["key1"].reason.startswith("its folder belongs to the run other now.")
    assert stage.tracking.states["id-key1"][-1] is RunState.STOPPED, "its own MLflow run ends"
    assert read_outcome(RunFolder(other.run_folder)) is None, "the other one's folder is not touched"
    assert states(beside) == ["QUEUED"]


def test_a_running_run_whose_folder_was_reassigned_says_why_it_stops(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    run.run_folder.rename(run.run_folder.with_name("moved_away"))
    stage.campaign(run.model_copy(update={"run_key": "other"}), name="c2")
    look(campaign)
    assert stage.cluster.stopped == ["train-key0-a1"]
    assert campaign.runs["key0"].status().reason == "stops: its folder belongs to the run other now."


def removed_in_its_validation(stage: Stage) -> tuple[RunSpec, Campaign]:
    """A run whose folder was removed while it was validated, and one that waits."""
    run, other = stage.run(0), stage.run(1)
    campaign = stage.campaign(run, other)
    look(campaign)
    stage.cluster.training_ends(run)
    look(campaign)
    run.run_folder.rename(stage.base / "moved")
    stage.cluster.fails("validate-key0-a1")
    return run, campaign


def test_a_trained_run_whose_folder_was_removed_leaves_its_workers_to_others_and_ends(stage: Stage) -> None:
    run, campaign = removed_in_its_validation(stage)
    look(campaign)
    assert stage.cluster.live_jobs() == ["train-key1-a1"]
    assert states(campaign) == ["VALIDATING", "RUNNING"]
    reasons = [event.status.get("reason", "") for event in stage.events if isinstance(event, StatusChanged)]
    assert reasons[-2].endswith("Bring the folder back, within an hour of its removal; after that the run ends.")
    stage.clock.sleep(REMOVED_ENDS_S - 1)
    look(campaign)
    assert states(campaign) == ["VALIDATING", "RUNNING"]
    stage.clock.sleep(1)
    stage.cluster.training_ends(campaign.runs["key1"].spec)
    stage.cluster.validation_ends(campaign.runs["key1"].spec)
    assert campaign.run(poll_s=0) == 1
    assert states(campaign) == ["FAILED_CONFIG", "SUCCEEDED"]
    assert campaign.runs["key0"].status().reason.startswith("its folder was removed after its training")
    assert stage.tracking.states["id-key0"][-1] is RunState.FAILED_CONFIG
    assert not run.run_folder.exists()


def test_a_trained_run_whose_folder_is_back_within_the_hour_is_validated(stage: Stage) -> None:
    run, campaign = removed_in_its_validation(stage)
    look(campaign)
    stage.clock.sleep(REMOVED_ENDS_S / 2)
    (stage.base / "moved").rename(run.run_folder)
    stage.cluster.training_ends(other := campaign.runs["key1"].spec)
    stage.cluster.validation_ends(other)
    look(campaign)
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]


@pytest.mark.parametrize("is_link", [False, True])
def test_a_trained_run_whose_disk_is_away_keeps_its_workers_and_is_waited_for(stage: Stage, is_link: bool) -> None:
    run, campaign = removed_in_its_validation(stage)
    if is_link:
        run.run_folder.symlink_to(stage.base / "unmounted")
    else:
        run.run_folder.parents[1].rename(stage.base / "unmounted")
    for _ in range(3):
        stage.clock.sleep(REMOVED_ENDS_S)
        look(campaign)
    assert states(campaign)[0] == "VALIDATING"
    assert stage.cluster.live_jobs() == []


def test_what_has_ended_is_not_read_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, campaign = finished(stage)
    look(campaign)
    assert states(campaign) == ["SUCCEEDED"]
    before = campaign.runs["key0"].status()
    monkeypatch.setattr(observe, "full_dice", lambda *_: pytest.fail("read again"))
    assert campaign.runs["key0"].status() == before


def test_a_run_that_has_ended_is_not_said_to_be_tried_again_for_ever(stage: Stage) -> None:
    run, campaign = finished(stage)
    folder = RunFolder(run.run_folder)
    look(campaign)
    note_undelivered(folder, "metrics", 1e9, "it is away.")
    look(again := stage.campaign(run, name="c2"))
    assert (shown := again.runs["key0"].status()).state == "SUCCEEDED"
    assert "MLflow lacks metrics since 2001" in shown.reason
    assert "`nnfleet sync`" in shown.reason
    assert "tried again" not in shown.reason
    forget_undelivered(folder, "metrics")  # its last job has delivered after all
    assert "MLflow lacks" not in again.runs["key0"].status().reason


def test_cases_that_are_done_anew_are_progress(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    results = [RunFolder(run.run_folder).cases("best") / f"case_{n}.json" for n in range(3)]
    for result in results:
        write_json_atomic(result, {})
    look(campaign)
    stage.cluster.training_ends(run)
    for _ in range(5):
        look(campaign)
        write_json_atomic(results[0], {})
        stage.cluster.kill_driver(run)
    look(campaign)
    assert states(campaign) == ["VALIDATING"]


def test_an_entry_of_a_newer_version_is_read_as_far_as_it_is_known(stage: Stage) -> None:
    campaign = stage.campaign(stage.run(0), stage.run(1))
    look(campaign)
    look(campaign)
    registry = Registry(stage.base / "board")
    known = registry.entries(["c1"])["c1"]
    entry = json.loads(known.model_dump_json()) | {"of tomorrow": 1}
    for part in ("waiting", "holding"):
        entry[part][0]["of tomorrow"] = 2
    write_json_atomic(registry.folder / "c1.json", entry)
    assert registry.entries(["c1"]) == {"c1": known}


def test_the_log_gives_back_what_the_campaign_emitted(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run)
    look(campaign)
    last = stage.events[-1]
    assert isinstance(last, StatusChanged)
    assert "address" not in last.status, "only what is new is emitted again"
    lines = "".join(f"{line_of(event)}\nsomething else\n" for event in stage.events)
    log = CampaignLog().update(lines + 'NNFLEET {"event": "err')
    assert log.statuses["key0"] == campaign.runs["key0"].status()
    log.update(lines + 'NNFLEET {"event": "error", "error": "DataError", "message": "m"}\n')
    assert type(log.error).__name__ == "DataError"


def test_a_run_is_in_the_status_before_the_first_look(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    campaign.announce()
    assert stage.reported(run) == ["QUEUED"]
    look(campaign)
    assert stage.reported(run) == ["QUEUED", "RUNNING"]


def test_a_validation_shows_how_far_it_is_while_it_runs(stage: Stage) -> None:
    run = stage.run(0)
    campaign = stage.campaign(run)
    look(campaign)
    stage.cluster.training_ends(run)
    look(campaign)
    folder, at = RunFolder(run.run_folder), CasesDone(checkpoint="best", done=3, cases=20)
    assert campaign.runs["key0"].status().validation is None
    report_cases(folder, 1, at)
    assert campaign.runs["key0"].status().validation == at
    report_cases(folder, 2, at)
    assert campaign.runs["key0"].status().validation is None, "that is of another attempt"
    report_cases(folder, 1, at)
    stage.cluster.validation_ends(run)
    look(campaign)
    assert campaign.runs["key0"].status().validation is None


def test_progress_within_an_epoch_is_emitted_at_most_every_few_seconds(stage: Stage) -> None:
    campaign = stage.campaign(stage.run(0))
    before = campaign.runs["key0"].status()
    further = before.model_copy(update={"fraction_of_epoch": 0.5})
    assert not is_news(before, before, 1e9)
    assert not is_news(before, further, MIN_REPORT_INTERVAL_S / 2)
    assert is_news(before, further, MIN_REPORT_INTERVAL_S)
    assert is_news(before, before.model_copy(update={"epochs_done": 1}), 0.0)


def test_the_campaign_and_the_jobs_import_no_torch() -> None:
    code = (
        "import sys, orchestrator.campaign.job, orchestrator.campaign.loop, orchestrator.cluster.jobs, orchestrator.api\n"
        "import orchestrator.tracking.client, orchestrator.experiment.plan, orchestrator.campaign.control_job\n"
        "print(sorted({'torch', 'nnunetv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_elastic_run_may_grow_only_while_nobody_waits(stage: Stage) -> None:
    stage.cluster.gpus = 3
    elastic = stage.run(0).model_copy(update={"workers": WorkerSpec(min=1, max=3, gpus=1, cpus=1)})
    first = stage.campaign(elastic)
    look(first)
    stage.cluster.workers_begin(elastic)
    look(first)
    registry = Registry(stage.base / "board")
    assert registry.room(time.time()) == {"key0": 3}
    large = stage.campaign(stage.run(1, gpus=2), stage.run(2, gpus=2), name="c2")
    look(large)
    assert registry.room(time.time()) == {"key0": 1}, "its growth limit is taken back"
    look(large)
    assert states(large) == ["RUNNING", "QUEUED"]
    assert registry.room(time.time()) == {"key0": 1}
    assert registry.room(time.time() + 2 * GROWTH_LIMITS_FRESH_S) == {}, "no campaign lives that could set it"


def test_an_elastic_run_holds_what_its_workers_have(stage: Stage) -> None:
    elastic = stage.run(0).model_copy(update={"workers": WorkerSpec(min=1, max=3, gpus=1, cpus=1)})
    campaign = stage.campaign(elastic)
    look(campaign)
    assert [r.bundles for r in reservations(stage.cluster.records())] == [1]
    acquire_token(RunFolder(elastic.run_folder), "driver", {"role": "workers", "world_size": 2})
    assert [r.bundles for r in reservations(stage.cluster.records())] == [2]
    assert [r.bundles for r in reservations(stage.cluster.records(), (), {"key0": 3})] == [3]
