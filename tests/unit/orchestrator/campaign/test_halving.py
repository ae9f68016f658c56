"""Successive halving in the campaign's loop: a fake cluster that is driven by verbs, real run folders."""

import json
import math
import shutil
from pathlib import Path

import pytest

from orchestrator.campaign.bracket import Bracket, Member
from orchestrator.campaign.events import RungDecided
from orchestrator.campaign.halving import RETRY_S
from orchestrator.campaign.loop import Campaign
from orchestrator.campaign.pausing import set_turns
from orchestrator.errors import ConfigError
from orchestrator.experiment.halving import halving_sentences, with_comparisons
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.follow.next_step import is_trained
from orchestrator.follow.observe import Observer
from orchestrator.resume.stored import stored_below
from orchestrator.resume.unfinished import find_runs, verdict_on
from orchestrator.run.below import run_folders_below
from orchestrator.run.halving import HalvingRecord, overrule, read_halving, write_halving
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from tests.fake_campaign import Stage, finish_on_disk, look, states
from trainers.contract.commits import Committed, EpochRow
from trainers.contract.fencing import acquire_token
from trainers.contract.requests import PauseRequest, StopRequest, read_pause_request, read_stop_request, request_stop
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Halving, RunSpec, Schedule, WorkerSpec
from trainers.contract.states import RunState
from trainers.errors import StorageError
from trainers.storage.files import write_json_atomic

DA5 = "1/3d/nnUNetTrainerDA5"
USUAL = "1/3d/nnUNetTrainer"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path)
    made.cluster.gpus = 8
    return made


def four(stage: Stage, at: tuple[int, ...] = (2,)) -> list[RunSpec]:
    """Two folds of two trainers, compared at `at`."""
    runs = []
    for trainer in ("nnUNetTrainer", "nnUNetTrainerDA5"):
        folder = stage.base / "results" / "Dataset001_X" / f"{trainer}__nnUNetPlans__3d"
        changes = {"trainer": trainer, "model_folder": folder, "schedule": Schedule(epochs=6)}
        runs += [stage.run(n).model_copy(update=changes | {"run_key": f"{trainer}-{n}"}) for n in (0, 1)]
    return with_comparisons(runs, Halving(at=at))


def commit(run: RunSpec, *emas: float | None) -> None:
    """As many epochs, with these EMA pseudo-Dice."""
    rows = tuple(
        EpochRow(
            epoch=epoch,
            fencing_token=1,
            started_unix=0,
            ended_unix=1,
            train_loss=0,
            val_loss=0,
            pseudo_dice=(math.nan,),
            pseudo_dice_mean=math.nan,
            ema_pseudo_dice=ema,
            learning_rate=0.01,
            world_size=1,
            epoch_s=1,
            train_s=1,
            val_s=0,
            wait_data_s=0,
            save_s=0,
            samples_per_s=1,
            gpu_memory_gib=0,
        )
        for epoch, ema in enumerate(emas)
    )
    committed = Committed(run_key=run.run_key, epochs_done=len(emas), fencing_token=1, history=rows, state_sha256="0", state_size_bytes=1)
    write_json_atomic(RunFolder(run.run_folder).state / f"{committed.stem}.json", json.loads(committed.model_dump_json()))


def asked(run: RunSpec) -> StopRequest | None:
    return read_stop_request(RunFolder(run.run_folder))


def decisions(stage: Stage) -> list[str]:
    return [event.message for event in stage.events if isinstance(event, RungDecided)]


def begun(stage: Stage, runs: list[RunSpec]) -> None:
    for run in runs:
        stage.cluster.workers_begin(run)


def at_work(stage: Stage) -> tuple[list[RunSpec], Campaign]:
    """The four runs in training, and their campaign."""
    runs = four(stage)
    campaign = stage.campaign(*runs)
    look(campaign)
    begun(stage, runs)
    return runs, campaign


def three_gpus(stage: Stage) -> tuple[list[RunSpec], Campaign]:
    """The four runs, three of them in training, and their campaign."""
    runs = four(stage)
    stage.cluster.gpus = 3
    campaign = stage.campaign(*runs)
    look(campaign)
    begun(stage, runs[:3])
    return runs, campaign


def test_the_worse_model_is_stopped_with_all_its_folds_and_the_evidence(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    for run, values in zip(runs, ((0.1, 0.5), (0.9, 0.7, 0.1), (0.9, 0.6, 0.9)), strict=False):
        commit(run, *values)
    look(campaign)
    assert decisions(stage) == [], "the last fold has not reached epoch 2"
    commit(runs[3], 0.9, 0.4)
    look(campaign)
    look(campaign)
    (text,) = decisions(stage)
    assert text == (
        "successive halving at epoch 2, by the mean EMA pseudo-Dice of a model's runs: "
        f"go on: {USUAL} 0.6000 (2 runs); stopped: {DA5} 0.5000 (2 runs)."
    ), "each by its value at epoch 2, though one is at epoch 3"
    assert [asked(run) for run in runs[:2]] == [None, None]
    stop = asked(runs[2])
    assert stop is not None
    assert stop == asked(runs[3])
    assert not stop.is_now, "after the epoch in flight"
    assert stop.why.startswith(
        f"stopped by successive halving at epoch 2: {DA5} has the mean EMA pseudo-Dice 0.5000 over 2 runs and is 2 of 2 models; the last "
        f"that goes on, {USUAL}, has 0.6000. Decided by campaign c1, "
    )
    for run in runs[2:]:
        stage.cluster.training_ends(run, "STOPPED")
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING", "STOPPED", "STOPPED"]
    assert campaign.runs[runs[2].run_key].halved == "stopped at epoch 2"


def test_a_run_between_two_jobs_ends_at_once_with_the_reason(stage: Stage) -> None:
    runs = four(stage)
    stage.cluster.gpus = 3
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    campaign = stage.campaign(*runs)
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING", "STOPPED", "STOPPED"]
    assert stage.cluster.live_jobs() == [f"train-{run.run_key}-a1" for run in runs[:2]]
    outcome = read_outcome(RunFolder(runs[3].run_folder))
    assert outcome is not None
    assert outcome.message.startswith("stopped by successive halving at epoch 2: ")
    (stored,) = [one for one in stored_below(stage.base / "results", ())[0] if one.run_key == runs[3].run_key]
    assert stored.reason.startswith(f"it was stopped by successive halving at epoch 2: {DA5} has the mean")
    assert stored.reason.endswith(f". To continue it nevertheless: nnfleet resume {runs[3].run_key}")


def test_what_was_decided_holds_for_the_next_campaign_whatever_the_histories_say(stage: Stage) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    look(stage.campaign(*runs))
    assert "stopped by it before" in " ".join(halving_sentences(runs))
    stage.cluster.kill_campaign("c1")
    for run in runs[2:]:
        commit(run, 0.9, 0.9)
    again = stage.campaign(*runs, name="c2")
    look(again)
    assert states(again) == ["RUNNING", "RUNNING", "STOPPED", "STOPPED"]
    assert len(decisions(stage)) == 1, "nothing is decided anew"


def test_a_campaign_that_died_while_it_recorded_a_decision_is_completed(stage: Stage) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    look(stage.campaign(*runs))
    stage.cluster.kill_campaign("c1")
    for run in runs[1:]:
        RunFolder(run.run_folder).halving_file.unlink()
        commit(run, 0.9, 0.9)
    look(stage.campaign(*runs, name="c2"))
    records = [read_halving(RunFolder(run.run_folder)) for run in runs]
    assert records == [records[0]] * 4
    assert [model.value for model in records[0].decisions[0].judged] == pytest.approx([0.65, 0.15])


def test_a_run_that_a_person_resumes_goes_on_and_is_in_no_comparison(stage: Stage) -> None:
    runs = four(stage, at=(2, 3))
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    look(stage.campaign(*runs))
    stage.cluster.kill_campaign("c1")
    campaign = stage.campaign(runs[3], name="c2")
    overrule(runs[3])
    look(campaign)
    assert states(campaign) == ["RUNNING"]
    assert asked(runs[3]) is None
    assert campaign.runs[runs[3].run_key].halved == "stopped by successive halving, then continued by a person"
    stage.cluster.kill_campaign("c2")
    everything = stage.campaign(*runs, name="c3")
    look(everything)
    assert states(everything) == ["RUNNING", "RUNNING", "STOPPED", "RUNNING"], "nor does the whole experiment stop it again"


def test_the_models_that_ended_before_are_compared_with_those_that_a_campaign_continues(stage: Stage) -> None:
    runs = four(stage)
    look(stage.campaign(*runs))  # run.json is there
    stage.cluster.kill_campaign("c1")
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    campaign = stage.campaign(*runs[2:], name="c2")
    begun(stage, runs[2:])
    look(campaign)
    assert [asked(run) is not None for run in runs[2:]] == [True, True]


def test_what_another_campaign_still_trains_is_waited_for_and_decided_once(stage: Stage) -> None:
    runs = four(stage)
    first = stage.campaign(*runs)
    look(first)
    begun(stage, runs)
    stage.cluster.training_ends(runs[3], "FAILED_CODE")
    look(first)
    assert states(first)[3] == "FAILED_CODE"
    second = stage.campaign(runs[3], name="c2")  # a person continues it, beside the others
    commit(runs[3], 0.0, 0.9)
    for _ in range(2):
        look(second)
    assert decisions(stage) == [], "the others have not reached epoch 2"
    for run, value in zip(runs[:3], (0.6, 0.7, 0.9), strict=True):
        commit(run, 0.0, value)
    look(second)
    look(first)
    look(first)
    assert decisions(stage) == [decisions(stage)[0]] * 2, "in the log of each campaign"
    assert [asked(run) is not None for run in runs] == [True, True, False, False], "each by the campaign that follows it"
    assert {read_halving(RunFolder(run.run_folder)).decisions[0].campaign for run in runs} == {"c2"}


def test_a_fold_that_a_person_stopped_is_waited_for_until_it_is_resumed(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    request_stop(RunFolder(runs[2].run_folder), is_now=False)
    look(campaign)
    stage.cluster.training_ends(runs[2], "STOPPED")
    look(campaign)
    for run, value in zip((runs[0], runs[1], runs[3]), (0.6, 0.7, 0.1), strict=True):
        commit(run, 0.0, value)
    for _ in range(2):
        look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING", "STOPPED", "RUNNING"]
    assert decisions(stage) == []
    second = stage.campaign(runs[2], name="c2")
    commit(runs[2], 0.0, 0.2)
    look(second)
    assert f"go on: {USUAL} 0.6500 (2 runs); stopped: {DA5} 0.1500 (2 runs)." in decisions(stage)[0]


def test_a_model_of_which_a_fold_failed_is_out(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    stage.cluster.training_ends(runs[2], "FAILED_CODE")
    for run, value in zip((runs[0], runs[1], runs[3]), (0.6, 0.7, 0.1), strict=True):
        commit(run, 0.0, value)
    for _ in range(3):
        look(campaign)
    assert asked(runs[3]) is None
    assert decisions(stage)[0].endswith(f"stopped: none; not compared, as a run of each ended before: {DA5}.")


def test_a_person_who_stops_everything_leaves_the_rung_undecided(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    for run, values in zip(runs, ((0.5, 0.5), (0.5, 0.5), (0.6, 0.9), (0.9,)), strict=True):
        commit(run, *values)
    for run in runs:
        request_stop(RunFolder(run.run_folder), is_now=False)
        stage.cluster.training_ends(run, "STOPPED")
    for _ in range(3):
        look(campaign)
    assert (states(campaign), decisions(stage)) == (["STOPPED"] * 4, [])
    again = stage.campaign(*runs, name="c2")
    for _ in range(2):
        look(again)
    assert states(again) == ["RUNNING"] * 4


def test_each_rung_is_decided_among_those_that_are_left(stage: Stage) -> None:
    runs = four(stage, at=(1, 2))
    third = [
        run.model_copy(
            update={
                "variant": "low",
                "run_key": f"low-{run.fold}",
                "model_folder": run.model_folder.with_name("nnUNetTrainer__nnUNetPlans__3d__low"),
            }
        )
        for run in runs[:2]
    ]
    runs = with_comparisons([*runs, *third], Halving(at=(1, 2)))
    for run, value in zip(runs, (0.6, 0.6, 0.1, 0.1, 0.7, 0.7), strict=True):
        commit(run, value, value)
    campaign = stage.campaign(*runs)
    look(campaign)
    assert states(campaign) == ["STOPPED", "STOPPED", "STOPPED", "STOPPED", "RUNNING", "RUNNING"]
    assert [text.split(",")[0] for text in decisions(stage)] == ["successive halving at epoch 1", "successive halving at epoch 2"]
    assert DA5 not in decisions(stage)[1]


def test_a_run_that_is_trained_is_validated_all_the_same(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    commit(runs[2], 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    stage.cluster.training_ends(runs[2])
    look(campaign)
    for run in (runs[0], runs[1], runs[3]):
        commit(run, 0.0, 0.6 if run is not runs[3] else 0.1)
    for _ in range(2):
        look(campaign)
    assert asked(runs[2]) is None
    assert asked(runs[3]) is not None
    outcome = read_outcome(RunFolder(runs[2].run_folder))
    assert outcome is not None
    assert is_trained(outcome)


def test_while_a_record_cannot_be_read_nothing_is_decided_and_the_runs_go_on(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    runs, campaign = at_work(stage)
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    damaged = RunFolder(runs[0].run_folder).halving_file
    damaged.mkdir()  # no file that can be read
    for _ in range(2):
        look(campaign)
    assert states(campaign) == ["RUNNING"] * 4
    assert "successive halving decides nothing, and its runs start no training, until all folders can be read" in caplog.text
    damaged.rmdir()
    stage.clock.sleep(RETRY_S)
    look(campaign)
    assert len(decisions(stage)) == 1


def test_while_a_record_cannot_be_read_what_was_stopped_is_not_started_again(stage: Stage) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    look(stage.campaign(*runs))
    stage.cluster.kill_campaign("c1")
    campaign = stage.campaign(*runs, name="c2")
    record = RunFolder(runs[0].run_folder).halving_file
    record.rename(record.with_name("away"))
    record.mkdir()
    look(campaign)
    assert [run.run_key for run in runs[2:] if any(run.run_key in job for job in stage.cluster.live_jobs())] == []
    assert "it may have stopped this run" in campaign.runs[runs[2].run_key].reason
    record.rmdir()
    record.with_name("away").rename(record)
    stage.clock.sleep(RETRY_S)
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING", "STOPPED", "STOPPED"]


def test_without_the_key_nothing_is_read_and_nothing_is_stopped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run.model_copy(update={"halving": None}) for run in four(stage)]
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)

    def refused(*_: object) -> None:
        raise StorageError("read")

    monkeypatch.setattr("orchestrator.campaign.halving.read_halving", refused)
    campaign = stage.campaign(*runs)
    look(campaign)
    assert states(campaign) == ["RUNNING"] * 4
    assert "halving" not in RunFolder(runs[0].run_folder).spec_file.read_text()


def test_what_is_at_work_is_not_torn_into_another_comparison(stage: Stage) -> None:
    runs = four(stage)
    without = [run.model_copy(update={"halving": None}) for run in runs]
    stage.cluster.gpus = 2
    look(stage.campaign(without[0], without[2], without[1]))  # the last one waits for GPUs
    for asked_for in ([runs[0]], [runs[1]], with_comparisons(without[:3], Halving(at=(3,)))):
        with pytest.raises(ConfigError, match="is at work, and is compared with other models"):
            stage.campaign(*runs[3:], *asked_for, name="c2")
    assert not RunFolder(runs[3].run_folder).spec_file.exists(), "nothing is taken possession of"
    look(stage.campaign(*without, name="c3"))
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_campaign("c3")
    for run in (runs[0], runs[2]):
        stage.cluster.kill_driver(run)
    campaign = stage.campaign(*runs, name="c4")
    assert all(run.spec.halving == runs[0].halving for run in campaign.runs.values()), "once none is at work, all have it"


@pytest.mark.parametrize("is_there", [True, False])
def test_nothing_is_decided_among_only_some_of_the_runs_that_are_compared(
    is_there: bool, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.1, 0.9, 0.4, 0.4), strict=True):
        commit(run, 0.0, value)
    stage.campaign(*runs)
    stage.cluster.kill_campaign("c1")
    file = RunFolder(runs[1].run_folder).spec_file
    if is_there:
        file.write_text("{torn")
    else:
        file.unlink()
    campaign = stage.campaign(runs[0], *runs[2:], name="c2")
    for _ in range(2):
        look(campaign)
    assert decisions(stage) == []
    assert states(campaign) == ["RUNNING"] * 3
    assert caplog.text.count("of the runs that are compared only 3 were found") == 1
    assert (f"Not read: run folder: {file}" in caplog.text) is is_there


def test_a_copy_of_a_run_folder_is_no_run_that_is_compared(stage: Stage) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.1, 0.9, 0.45, 0.45), strict=True):
        commit(run, 0.0, value)
    stage.campaign(*runs)
    stage.cluster.kill_campaign("c1")
    shutil.copytree(runs[0].run_folder, runs[0].run_folder.with_name("fold_0_copy"))
    look(stage.campaign(*runs[1:], name="c2"))
    assert "go on: 1/3d/nnUNetTrainer 0.5000 (2 runs)" in decisions(stage)[0]


def test_a_run_that_another_campaign_tries_again_is_waited_for(stage: Stage) -> None:
    runs = four(stage)
    first, second = stage.campaign(*runs[1:]), stage.campaign(runs[0], name="c2")
    look(first)
    look(second)
    begun(stage, runs)
    for run, values in zip(runs, ((0.5,), (0.0, 0.9), (0.0, 0.2), (0.0, 0.1)), strict=True):
        commit(run, *values)
    outcome = Outcome(job="training", state="FAILED_CLUSTER", fencing_token=1, message="a node died")
    write_outcome(RunFolder(runs[0].run_folder), outcome)
    for _ in range(2):
        look(first)
    assert decisions(stage) == []
    stage.cluster.kill_campaign("c2")
    for _ in range(2):
        look(first)
    assert "not compared, as a run of each ended before" in decisions(stage)[0], "nobody tries it again"


def test_a_run_that_ended_here_and_goes_on_under_another_campaign_is_waited_for(stage: Stage) -> None:
    runs = four(stage)
    first = stage.campaign(*runs)
    look(first)
    begun(stage, runs)
    stage.cluster.training_ends(runs[0], "FAILED_CODE")
    look(first)
    second = stage.campaign(runs[0], name="c2")
    look(second)
    for run, value in zip(runs[1:], (0.9, 0.2, 0.1), strict=True):
        commit(run, 0.0, value)
    for _ in range(2):
        look(first)
    assert (states(first)[0], decisions(stage)) == ("FAILED_CODE", [])
    commit(runs[0], 0.0, 0.5)
    look(first)
    assert f"go on: {USUAL} 0.7000 (2 runs); stopped: {DA5} 0.1500 (2 runs)." in decisions(stage)[0]


def test_a_person_who_resumes_a_run_while_a_rung_is_recorded_is_heard(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = four(stage, at=(2, 3))
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    campaign = stage.campaign(*runs)
    look(campaign)

    def while_resumed(folder: RunFolder, record: HalvingRecord) -> None:
        if folder.root == runs[3].run_folder:
            overrule(runs[3])
        write_halving(folder, record)

    monkeypatch.setattr("orchestrator.campaign.halving.write_halving", while_resumed)
    for run in runs[:2]:
        commit(run, 0.0, 0.6, 0.6)
    for _ in range(2):
        look(campaign)
    assert len(decisions(stage)) == 2
    assert read_halving(RunFolder(runs[3].run_folder)).is_overruled
    assert len(read_halving(RunFolder(runs[3].run_folder)).decisions) == 2


def test_a_run_that_was_asked_to_stop_in_its_last_epoch_is_validated_all_the_same(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    for run, values in zip(runs, ((0.0, 0.5), (0.0, 0.5), (0.0, 0.1, 0.1, 0.1, 0.1), (0.0, 0.1)), strict=True):
        commit(run, *values)
    for _ in range(2):
        look(campaign)
    assert asked(runs[2]) is not None
    commit(runs[2], 0.0, 0.1, 0.1, 0.1, 0.1, 0.1)
    stage.cluster.training_ends(runs[2], hands_over=False)
    for _ in range(2):
        look(campaign)
    assert states(campaign)[2] == "VALIDATING"
    (found,) = [one for one in find_runs(stage.base / "results")[0] if one.spec.run_key == runs[2].run_key]
    assert verdict_on(found).is_taken, "and `resume` continues its validation"
    stage.cluster.kill(stage.cluster.living(runs[2]))
    look(campaign)
    assert stage.cluster.living(runs[2]).startswith("validate-"), "it is tried again"
    request_stop(RunFolder(runs[2].run_folder), is_now=True)
    look(campaign)
    assert stage.cluster.stopped == [stage.cluster.living(runs[2])], "a person may stop it"


def test_only_a_run_that_ended_stopped_is_tagged_as_stopped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    tags: dict[str, set[str]] = {}
    monkeypatch.setattr(
        stage.tracking, "set_tags", lambda run_id, sent: tags.setdefault(run_id, set()).add(sent.get("nnfleet.halving", ""))
    )
    runs, campaign = at_work(stage)
    for run, values in zip(runs, ((0.0, 0.5), (0.0, 0.5), (0.0, 0.1, 0.1, 0.1, 0.1), (0.0, 0.1)), strict=True):
        commit(run, *values)
    for _ in range(2):
        look(campaign)
    commit(runs[2], 0.0, 0.1, 0.1, 0.1, 0.1, 0.1)
    stage.cluster.training_ends(runs[2])
    stage.cluster.training_ends(runs[3], "STOPPED")
    look(campaign)
    finish_on_disk(runs[2])
    stage.cluster.validation_ends(runs[2])
    for _ in range(2):
        look(campaign)
    assert states(campaign)[2:] == ["SUCCEEDED", "STOPPED"]
    assert [tags[f"id-{run.run_key}"] for run in runs[2:]] == [{""}, {"", "stopped at epoch 2"}]
    assert campaign.runs[runs[2].run_key].halved == ""


@pytest.mark.parametrize("first", [0, 3])
def test_of_two_records_of_a_rung_the_earlier_holds_everywhere(first: int, stage: Stage) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    look(stage.campaign(*runs))
    stage.cluster.kill_campaign("c1")
    folders = [RunFolder(run.run_folder) for run in runs]
    (decision,) = read_halving(folders[0]).decisions
    best, last = decision.judged
    swapped = (last.model_copy(update={"is_kept": True}), best.model_copy(update={"is_kept": False}))
    earlier = decision.model_copy(update={"judged": swapped, "unix": decision.unix - 1, "campaign": "elsewhere"})
    write_halving(folders[first], HalvingRecord(decisions=(earlier,)))
    campaign = stage.campaign(*runs, name="c2")
    look(campaign)
    assert [read_halving(folder).decisions for folder in folders] == [(earlier,)] * 4
    assert [asked(run) is not None for run in runs] == [True, True, False, False]


def test_after_a_failure_folders_are_neither_searched_again_nor_read_at_every_look(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = four(stage)
    for run, value in zip(runs, (0.6, 0.7, 0.1, 0.2), strict=True):
        commit(run, 0.0, value)
    campaign = stage.campaign(*runs)
    calls = {"search": 0, "read": 0}

    def searched(folder: Path) -> list[RunFolder]:
        calls["search"] += 1
        return run_folders_below(folder)

    def read(folder: RunFolder) -> HalvingRecord:
        calls["read"] += 1
        raise StorageError("storage: away")

    monkeypatch.setattr("orchestrator.campaign.halving.run_folders_below", searched)
    monkeypatch.setattr("orchestrator.campaign.halving.read_halving", read)
    for _ in range(5):
        look(campaign)
    assert calls == {"search": 1, "read": 1}
    assert stage.cluster.live_jobs() == [], "and nothing starts meanwhile"
    monkeypatch.setattr("orchestrator.campaign.halving.read_halving", read_halving)
    stage.clock.sleep(RETRY_S)
    look(campaign)
    assert (calls["search"], len(decisions(stage))) == (1, 1)


def test_the_log_names_once_whom_a_rung_waits_for(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    runs = four(stage)
    campaign = stage.campaign(*runs)
    look(campaign)
    assert "waits for" not in caplog.text, "nobody has reached it"
    begun(stage, runs)
    for run in runs[:3]:
        commit(run, 0.0, 0.5)
    for _ in range(4):
        look(campaign)
    assert caplog.text.count(f"successive halving at epoch 2 waits for 1 of 4 runs: {DA5}/1") == 1


# ---- pauses: where there are workers for some of the runs only -------------------------------------------------------------------


def look_twice(campaign: Campaign) -> None:
    """What is reported after the first look is known in the second."""
    look(campaign)
    look(campaign)


def look_for(stage: Stage, campaign: Campaign, *, minutes: float) -> None:
    """Every second."""
    for _ in range(round(60 * minutes)):
        look(campaign)
        stage.clock.sleep(1.0)


def one_gpu(stage: Stage, at: tuple[int, ...] = (2,)) -> tuple[list[RunSpec], Campaign]:
    """Two folds of two trainers on one GPU; the first one trains."""
    runs = four(stage, at)
    stage.cluster.gpus = 1
    campaign = stage.campaign(*runs)
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    return runs, campaign


def reaches(stage: Stage, campaign: Campaign, run: RunSpec, value: float) -> None:
    """A run commits two epochs and is asked to pause; then a third one, and it pauses."""
    commit(run, 0.0, value)
    look_twice(campaign)
    assert asked_to_pause(run) is not None
    commit(run, 0.0, value, 0.9)
    stage.cluster.training_ends(run, "PAUSED")
    look(campaign)


def asked_to_pause(run: RunSpec) -> PauseRequest | None:
    return read_pause_request(RunFolder(run.run_folder))


def test_a_run_that_has_reached_the_rung_leaves_its_workers_to_those_that_wait_for_them(stage: Stage) -> None:
    """One GPU for two folds of two models: each trains to the rung, then the better ones go on, one after the other."""
    runs, campaign = one_gpu(stage, at=(2, 4))
    for place, (run, value) in enumerate(zip(runs[:3], (0.6, 0.7, 0.1), strict=True)):
        assert [state == "RUNNING" for state in states(campaign)] == [number == place for number in range(4)]
        reaches(stage, campaign, run, value)
        reason = campaign.runs[run.run_key].reason
        assert reason.startswith(
            f"paused: it had reached epoch 2 of successive halving; its workers were offered to {runs[place + 1].address}, which had not. "
            "It waits: No capacity: "
        )
        stage.cluster.workers_begin(runs[place + 1])
    assert decisions(stage) == []
    commit(runs[3], 0.0, 0.2)
    look_twice(campaign)
    assert len(decisions(stage)) == 1
    assert states(campaign) == ["QUEUED", "QUEUED", "STOPPED", "RUNNING"], "one that is paused ends where it stands"
    assert campaign.runs[runs[2].run_key].reason.startswith("stopped by successive halving at epoch 2: ")
    assert asked_to_pause(runs[3]) is None
    stage.cluster.training_ends(runs[3], "STOPPED")
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED", "STOPPED", "STOPPED"]
    assert campaign.runs[runs[0].run_key].reason == "", "it does not wait any more"
    assert stage.cluster.live_jobs() == [f"train-{runs[0].run_key}-a2"]
    assert stage.cluster.most_gpus == 1
    assert asked_to_pause(runs[0]) is None, "else it would pause again"
    look(campaign)
    assert states(campaign)[0] == "RUNNING", "it recovers from nothing"
    stage.cluster.workers_begin(runs[0])
    commit(runs[0], 0.0, 0.6, 0.9, 0.9)
    for _ in range(3):
        look(campaign)
    assert asked_to_pause(runs[0]) is None, "one model is left: nothing is decided at epoch 4 that would stop one"


def test_no_more_pause_than_wait_and_first_the_worst(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    runs, campaign = three_gpus(stage)
    for run, value in zip(runs, (0.6, 0.5, 0.7), strict=False):
        commit(run, 0.0, value)
    for _ in range(3):
        look(campaign)
    assert [asked_to_pause(run) is not None for run in runs] == [False, True, False, False]
    request = asked_to_pause(runs[1])
    assert request is not None
    assert (request.rung, request.value, request.workers_to, request.campaign) == (2, 0.5, runs[3].run_key, "c1")
    text = "with an EMA pseudo-Dice of 0.5000, the lowest of those that could pause; "
    assert f"{USUAL}/1 is asked to pause: it has reached epoch 2 of successive halving, {text}{DA5}/1 has not, and waits" in caplog.text
    assert caplog.text.count("is asked to pause") == 1
    assert states(campaign) == ["RUNNING", "RUNNING", "RUNNING", "QUEUED"]


def test_a_run_whose_workers_are_being_started_again_is_not_asked_to_pause(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    look(campaign)
    acquire_token(RunFolder(runs[0].run_folder), "another start of its workers")
    look_twice(campaign)
    assert states(campaign)[0] == "RECOVERING"
    assert asked_to_pause(runs[0]) is None, "it would pause without an epoch"
    write_json_atomic(RunFolder(runs[0].run_folder).progress_file, {"epoch": 2, "iteration": 1, "phase": "train", "attempt": 99})
    look_twice(campaign)
    assert asked_to_pause(runs[0]) is not None


def test_a_run_is_not_asked_any_more_once_the_other_one_has_workers(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    for _ in range(3):
        look(campaign)
    assert asked_to_pause(runs[0]) is not None, "the other one waits"
    stage.cluster.gpus = 2
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING", "QUEUED", "QUEUED"]
    assert f"{USUAL}/0 is not asked to pause any more" in caplog.text
    request = asked_to_pause(runs[0])
    assert request is not None
    assert request.workers_to == runs[2].run_key, "it was not paused, and may be for the next one"
    stage.cluster.workers_begin(runs[1])
    stage.cluster.gpus = 4
    look(campaign)
    assert states(campaign) == ["RUNNING"] * 4
    assert asked_to_pause(runs[0]) is None
    assert not RunFolder(runs[0].run_folder).paused_file.exists()


def test_once_the_rung_is_decided_no_run_pauses_for_it(stage: Stage) -> None:
    runs, campaign = three_gpus(stage)
    for run, value in zip(runs, (0.6, 0.5, 0.4), strict=False):
        commit(run, 0.0, value)
    look_twice(campaign)
    assert asked_to_pause(runs[2]) is not None
    commit(runs[3], 0.0, 0.9)  # before it had to wait
    look_twice(campaign)
    assert len(decisions(stage)) == 1
    assert [asked_to_pause(run) for run in runs] == [None] * 4


def test_a_run_that_had_seen_the_request_already_pauses_and_goes_on(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    stage.cluster.gpus = 4
    look(campaign)
    assert asked_to_pause(runs[0]) is None
    begun(stage, runs[1:])
    stage.cluster.training_ends(runs[0], "PAUSED")
    look(campaign)
    assert states(campaign) == ["RUNNING"] * 4


def test_where_nobody_waits_for_workers_nobody_pauses(stage: Stage) -> None:
    runs, campaign = at_work(stage)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    assert [asked_to_pause(run) for run in runs] == [None] * 4


def test_nobody_pauses_for_a_decision_that_stops_no_model(stage: Stage) -> None:
    runs = with_comparisons(four(stage), Halving(at=(2,), keep=0.9))
    stage.cluster.gpus = 1
    campaign = stage.campaign(*runs)
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    commit(runs[0], 0.0, 0.6)
    for _ in range(3):
        look(campaign)
    assert asked_to_pause(runs[0]) is None


def test_nobody_pauses_for_what_these_nodes_can_never_hold_or_the_cluster_refuses(stage: Stage) -> None:
    runs = four(stage)
    large = runs[1].model_copy(update={"workers": WorkerSpec(count=2, gpus=1, cpus=1)})
    stage.cluster.gpus = 1
    campaign = stage.campaign(runs[0], large, *runs[2:])
    stage.cluster.refuses |= {run.run_key for run in runs[2:]}
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    request = asked_to_pause(runs[0])
    assert request is not None
    assert request.workers_to == runs[2].run_key, "it was not refused yet, as it found no room"
    stage.cluster.training_ends(runs[0], "PAUSED")
    look_for(stage, campaign, minutes=3)
    assert states(campaign)[0] == "RUNNING", "it goes on where the others cannot"
    stage.cluster.workers_begin(runs[0])
    look_for(stage, campaign, minutes=3)
    assert asked_to_pause(runs[0]) is None, "and is paused once"


def test_a_refusal_that_does_not_last_does_not_use_up_a_pause(stage: Stage) -> None:
    runs = four(stage)[::2]
    runs = with_comparisons([run.model_copy(update={"halving": None}) for run in runs], Halving(at=(2,)))
    stage.cluster.gpus = 1
    campaign = stage.campaign(*runs)
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    stage.cluster.refuses = {runs[1].run_key}
    reaches(stage, campaign, runs[0], 0.6)
    look_for(stage, campaign, minutes=0.5)
    assert states(campaign) == ["QUEUED", "QUEUED"]
    stage.cluster.refuses = set()
    look_for(stage, campaign, minutes=0.5)
    assert states(campaign) == ["QUEUED", "RUNNING"]


def test_a_paused_run_and_the_one_that_it_gives_way_to_come_before_everything_new(stage: Stage) -> None:
    """Of an older campaign too, and of a higher priority."""
    runs = four(stage)[::2]
    runs = with_comparisons([run.model_copy(update={"halving": None}) for run in runs], Halving(at=(2,)))
    stage.cluster.gpus = 1
    other = stage.campaign(stage.run(7).model_copy(update={"priority": 90, "user": "somebody else"}), name="c0")
    campaign = stage.campaign(*runs)
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    look(other)
    reaches(stage, campaign, runs[0], 0.6)
    look(other)
    assert (states(campaign), states(other)) == (["QUEUED", "RUNNING"], ["QUEUED"])
    stage.cluster.workers_begin(runs[1])
    commit(runs[1], 0.0, 0.1)
    look_twice(campaign)
    stage.cluster.training_ends(runs[1], "STOPPED")
    look(other)
    look(campaign)
    assert (states(campaign), states(other)) == (["RUNNING", "STOPPED"], ["QUEUED"])


def test_workers_that_went_through_several_runs_are_owed_to_the_first_alone(stage: Stage) -> None:
    """Else a user with one GPU would come before everybody else with every fold."""
    runs, campaign = one_gpu(stage)
    new = stage.run(9).model_copy(update={"priority": 90, "user": "somebody else"})
    for place, value in enumerate((0.6, 0.7, 0.1)):
        reaches(stage, campaign, runs[place], value)
        stage.cluster.workers_begin(runs[place + 1])
    other = stage.campaign(new, name="c2")
    look(other)
    commit(runs[3], 0.0, 0.2)
    look_twice(campaign)
    assert [campaign.runs[run.run_key].turn for run in runs[:2]] == ["first", "next"]
    stage.cluster.training_ends(runs[3], "STOPPED")
    look(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED", "STOPPED", "STOPPED"]
    stage.cluster.workers_begin(runs[0])
    stage.cluster.gpus = 2
    look(campaign)
    look(other)
    assert (states(campaign)[1], states(other)) == ("QUEUED", ["RUNNING"])


def test_a_paused_run_whose_giver_was_stopped_is_owed_its_workers(stage: Stage) -> None:
    """Of three models on one GPU the second one goes on."""
    runs = four(stage)[::2]
    third = runs[0].model_copy(
        update={"variant": "low", "run_key": "low-0", "model_folder": runs[0].model_folder.with_name("nnUNetTrainer__nnUNetPlans__3d__low")}
    )
    runs = with_comparisons([*runs, third], Halving(at=(2,), keep=0.3))
    stage.cluster.gpus = 1
    campaign = stage.campaign(*runs)
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    for place, value in enumerate((0.1, 0.9)):
        reaches(stage, campaign, runs[place], value)
        stage.cluster.workers_begin(runs[place + 1])
    commit(runs[2], 0.0, 0.2)
    look_twice(campaign)
    look(campaign)
    assert [campaign.runs[run.run_key].turn for run in runs[1:2]] == ["first"]
    stage.cluster.training_ends(runs[2], "STOPPED")
    look(campaign)
    assert states(campaign) == ["STOPPED", "RUNNING", "STOPPED"]


def test_workers_that_were_left_at_an_earlier_rung_are_settled(stage: Stage) -> None:
    runs = four(stage, at=(2, 4))[:2]
    followed = [FollowedRun(Observer(run), "c1") for run in runs]
    giver, taker = (Member(run, one) for run, one in zip(runs, followed, strict=True))
    assert giver.spec.halving is not None
    taker.pause, followed[1].observer.is_paused = PauseRequest(rung=4), True
    for rung, turn in ((2, "first"), (4, "next")):
        giver.pause = PauseRequest(rung=rung, workers_to=taker.spec.run_key)
        set_turns(Bracket(giver.spec.halving, [giver, taker], {}))
        assert [one.turn for one in followed] == ["usual", turn]


def test_a_paused_run_goes_on_where_there_is_room_and_is_paused_once_at_a_rung(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    reaches(stage, campaign, runs[0], 0.6)
    assert states(campaign) == ["QUEUED", "RUNNING", "QUEUED", "QUEUED"]
    stage.cluster.workers_begin(runs[1])
    stage.cluster.gpus = 4
    look(campaign)
    assert states(campaign) == ["RUNNING"] * 4
    begun(stage, [runs[0], *runs[2:]])
    stage.cluster.gpus = 3
    stage.cluster.kill_driver(runs[3])
    for name in ("c1", "c2"):
        for _ in range(3):
            look(campaign)
        assert asked_to_pause(runs[0]) is None
        stage.cluster.kill_campaign(name)
        campaign = stage.campaign(*runs, name="c2" if name == "c1" else "c3")


def test_a_paused_run_whose_campaign_dies_was_cut_off_and_the_next_one_begins_with_those_that_are_late(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    reaches(stage, campaign, runs[0], 0.6)
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(runs[1])
    (paused,) = [one for one in stored_below(stage.base / "results", ())[0] if one.run_key == runs[0].run_key]
    assert (paused.state, "continues from epoch 3" in paused.reason) == (RunState.PAUSED, True)
    again = stage.campaign(*runs, name="c2")
    look(again)
    assert states(again) == ["QUEUED", "RUNNING", "QUEUED", "QUEUED"], "it would have to give way at once"


def test_a_campaign_that_dies_before_its_run_has_paused_leaves_that_to_the_next(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    stage.cluster.kill_campaign("c1")
    again = stage.campaign(*runs, name="c2")
    look(again)
    assert states(again) == ["RUNNING", "QUEUED", "QUEUED", "QUEUED"]
    assert asked_to_pause(runs[0]) is not None
    stage.cluster.training_ends(runs[0], "PAUSED")
    look(again)
    assert states(again) == ["QUEUED", "RUNNING", "QUEUED", "QUEUED"]


def test_of_two_campaigns_that_follow_a_run_each_knows_that_it_is_paused(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    second = stage.campaign(runs[0], name="c2")
    look(second)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    look(second)
    assert asked_to_pause(runs[0]) is not None, "it knows that the other one follows what is to get the workers"
    stage.cluster.training_ends(runs[0], "PAUSED")
    look(second)
    assert states(second) == ["QUEUED"], "it does not take the workers that were left to another one"
    look(campaign)
    assert states(campaign) == ["QUEUED", "RUNNING", "QUEUED", "QUEUED"]
    look(second)
    assert second.runs[runs[0].run_key].reason.startswith("paused: it had reached epoch 2 of successive halving")


@pytest.mark.parametrize("workers", [WorkerSpec(count=1, gpus=1, cpus=1), WorkerSpec(min=1, max=3, gpus=1, cpus=1)])
def test_a_paused_run_that_another_campaign_has_started_again_holds_its_workers(workers: WorkerSpec, stage: Stage) -> None:
    """Also where the other one that follows it has not read that yet."""
    runs = four(stage)
    runs[0] = runs[0].model_copy(update={"workers": workers})
    stage.cluster.gpus = 1
    campaign = stage.campaign(*runs)
    look(campaign)
    stage.cluster.workers_begin(runs[0])
    second = stage.campaign(runs[0], stage.run(7).model_copy(update={"priority": 1}), name="c2")
    look(second)
    reaches(stage, campaign, runs[0], 0.6)
    look(second)
    assert states(second)[0] == "QUEUED"
    stage.cluster.workers_begin(runs[1])
    stage.cluster.gpus = 4
    look(campaign)
    assert states(campaign) == ["RUNNING"] * 4
    begun(stage, runs[2:])
    acquire_token(RunFolder(runs[0].run_folder), "its new job, whose workers have not begun")
    look(campaign)
    stage.cluster.gpus = 5
    file = RunFolder(runs[0].run_folder).outcome_file
    file.rename(file.with_name("away"))
    file.mkdir()  # no file that can be read
    look(second)
    assert states(second) == ["QUEUED", "QUEUED"], "the GPU that Ray shows as free is taken"


@pytest.mark.parametrize("gpus", [1, 8])
def test_the_workers_are_free_while_a_paused_job_delivers(gpus: int, stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    stage.cluster.training_pauses_and_delivers(runs[0])
    look_twice(campaign)
    assert states(campaign) == ["QUEUED", "RUNNING", "QUEUED", "QUEUED"]
    assert campaign.runs[runs[0].run_key].reason.startswith("paused: it had reached epoch 2 of successive halving")
    assert asked_to_pause(runs[0]) is not None, "it has paused, once at this rung"
    stage.cluster.workers_begin(runs[1])
    stage.cluster.gpus = gpus
    look(campaign)
    assert states(campaign)[0] == "QUEUED", "not while its job lives"
    stage.cluster.ends("train-nnUNetTrainer-0-a1")
    look(campaign)
    assert states(campaign)[0] == ("RUNNING" if gpus > 1 else "QUEUED")


def test_a_run_that_dies_before_it_has_paused_is_paused(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    stage.cluster.kill_driver(runs[0])
    look(campaign)
    assert states(campaign) == ["QUEUED", "RUNNING", "QUEUED", "QUEUED"]


def test_a_run_that_was_asked_to_pause_in_its_last_epoch_is_trained_and_validated(stage: Stage) -> None:
    runs, campaign = one_gpu(stage, at=(5,))
    commit(runs[0], 0.0, 0.1, 0.2, 0.3, 0.4)
    look_twice(campaign)
    assert asked_to_pause(runs[0]) is not None
    commit(runs[0], 0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    stage.cluster.training_ends(runs[0])
    look(campaign)
    assert states(campaign) == ["VALIDATING", "QUEUED", "QUEUED", "QUEUED"]
    finish_on_disk(runs[0])
    stage.cluster.validation_ends(runs[0])
    look(campaign)
    assert states(campaign) == ["SUCCEEDED", "RUNNING", "QUEUED", "QUEUED"]


def test_a_paused_run_comes_back_when_its_model_is_not_compared_any_more(stage: Stage) -> None:
    """The other fold of its model fails before the rung."""
    runs, campaign = one_gpu(stage)
    reaches(stage, campaign, runs[0], 0.6)
    stage.cluster.training_ends(runs[1], "FAILED_CODE")
    look(campaign)
    assert states(campaign) == ["QUEUED", "FAILED_CODE", "RUNNING", "QUEUED"], "by its turn before that"
    stage.cluster.training_ends(runs[2], "FAILED_CODE")
    look(campaign)
    assert states(campaign) == ["RUNNING", "FAILED_CODE", "FAILED_CODE", "QUEUED"]
    assert decisions(stage) == []


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_person_may_stop_a_run_that_pauses(stage: Stage, is_paused: bool) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    look_twice(campaign)
    if is_paused:
        stage.cluster.training_ends(runs[0], "PAUSED")
        look(campaign)
    request_stop(RunFolder(runs[0].run_folder), is_now=False)
    if not is_paused:
        stage.cluster.training_ends(runs[0], "PAUSED")  # it saw the other request first
    look_twice(campaign)
    assert states(campaign) == ["STOPPED", "RUNNING", "QUEUED", "QUEUED"]
    assert asked(runs[0]) == StopRequest(is_now=False)
    (found,) = [one for one in find_runs(stage.base / "results")[0] if one.spec.run_key == runs[0].run_key]
    assert verdict_on(found).why.startswith("was stopped. ")


def test_one_that_a_person_stops_is_not_asked_to_pause(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)
    request_stop(RunFolder(runs[0].run_folder), is_now=False)
    look_twice(campaign)
    assert asked_to_pause(runs[0]) is None


def test_mlflow_shows_a_paused_run_as_scheduled(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    reaches(stage, campaign, runs[0], 0.6)
    assert stage.tracking.statuses[f"id-{runs[0].run_key}"] == ["RUNNING", "SCHEDULED"]


def test_a_disk_that_takes_no_request_pauses_nobody_and_ends_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs, campaign = one_gpu(stage)
    commit(runs[0], 0.0, 0.6)

    def full(*_: object) -> None:
        raise StorageError("storage: full")

    monkeypatch.setattr("orchestrator.campaign.pausing.request_pause", full)
    look_twice(campaign)
    assert states(campaign) == ["RUNNING", "QUEUED", "QUEUED", "QUEUED"]
    assert "no run is paused at a rung of successive halving" in caplog.text
    monkeypatch.undo()
    look(campaign)
    assert asked_to_pause(runs[0]) is not None


def test_a_paused_run_that_the_cluster_refuses_keeps_its_turn(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    for run, value in zip(runs[:3], (0.6, 0.7, 0.1), strict=True):
        reaches(stage, campaign, run, value)
        stage.cluster.workers_begin(runs[runs.index(run) + 1])
    stage.cluster.refuses.add(runs[0].run_key)
    commit(runs[3], 0.0, 0.2)
    look_twice(campaign)
    stage.cluster.training_ends(runs[3], "STOPPED")
    look_twice(campaign)
    assert states(campaign)[:2] == ["QUEUED", "RUNNING"], "the other one is not kept back by it"
    assert campaign.runs[runs[0].run_key].turn == "first"
    assert campaign.runs[runs[0].run_key].observer.pause is None


def test_a_paused_run_is_not_validated_by_hand_which_would_be_its_end(stage: Stage) -> None:
    runs, campaign = one_gpu(stage)
    reaches(stage, campaign, runs[0], 0.6)
    with pytest.raises(ConfigError, match="waits in a campaign to train on; its validation follows by itself"):
        stage.campaign(runs[0], name="c2", only_validate=True)
    assert (asked_to_pause(runs[0]) is not None, states(campaign)[0]) == (True, "QUEUED")
    stage.cluster.kill_campaign("c1")
    stage.campaign(runs[0], name="c3", only_validate=True)
    assert asked_to_pause(runs[0]) is None, "nobody continues it"
