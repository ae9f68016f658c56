"""A run of a cascade's second stage waits for the runs that make what it sees, and ends with one that fails: pure, then in a campaign."""

from pathlib import Path

import pytest

from orchestrator.campaign.loop import Campaign
from orchestrator.follow.first_stage import FirstStageRun, after_first_stage, needed_of
from orchestrator.follow.next_step import End, Follow, Step, Train, Validate, Wait
from tests.fake_campaign import Stage, look, states
from trainers.contract.cascade import NextStageRecord, previous_predictions, record_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PreviousStage, RunSpec, ValidationSpec, made_by
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

QUEUED = RunState.QUEUED


def first(fold: int, state: RunState, reason: str = "") -> FirstStageRun:
    return FirstStageRun("17/3d_lowres/nnUNetTrainer", f"17/3d_lowres/nnUNetTrainer/{fold}", state, reason)


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING, RunState.RECOVERING, RunState.VALIDATING])
def test_it_waits_until_all_are_validated(state: RunState) -> None:
    needed = [first(0, RunState.SUCCEEDED), first(1, state), first(2, RunState.QUEUED)]
    text = "waits for the segmentations of 17/3d_lowres/nnUNetTrainer: 1 of 3 runs are validated."
    assert after_first_stage(Train(QUEUED), needed) == Wait(QUEUED, text)


def test_it_starts_when_all_are_validated_or_none_is_needed() -> None:
    assert after_first_stage(Train(QUEUED), [first(0, RunState.SUCCEEDED)] * 5) == Train(QUEUED)
    assert after_first_stage(Train(QUEUED), []) == Train(QUEUED)


@pytest.mark.parametrize("end", [RunState.STOPPED, RunState.FAILED_CONFIG, RunState.FAILED_CODE, RunState.FAILED_CLUSTER])
def test_it_ends_as_the_one_that_failed_which_is_named(end: RunState) -> None:
    needed = [first(0, RunState.RUNNING), first(1, end, "the disk is full."), first(2, RunState.FAILED_CODE)]
    expected = (
        f"needs the segmentations of 17/3d_lowres/nnUNetTrainer/1, which ended {end.value}: the disk is full. Once that is repaired, "
    )
    found = after_first_stage(Train(QUEUED), needed)
    assert isinstance(found, End)
    assert found.state is end
    assert found.reason.startswith(expected)


@pytest.mark.parametrize("step", [Follow(RunState.RUNNING), Validate(RunState.RUNNING, 1), End(RunState.STOPPED, "stopped on request.")])
def test_what_has_begun_or_ended_goes_on(step: Step) -> None:
    assert after_first_stage(step, [first(0, RunState.FAILED_CODE)]) == step


def first_stage_run(stage: Stage, fold: int) -> RunSpec:
    run = stage.run(fold)
    place = run.model_folder.with_name(f"{run.model_folder.name}_lowres")
    return run.model_copy(update={"configuration": "3d_lowres", "model_folder": place, "next_stages": ("3d_cascade_fullres",)})


def cascade(stage: Stage, folds: int = 2) -> tuple[RunSpec, list[RunSpec]]:
    """A run of the second stage, and those of the first that it needs."""
    (stage.data / "nnUNetPlans.json").write_text('{"configurations": {"3d": {}, "3d_lowres": {}}}')
    lowres = [first_stage_run(stage, fold) for fold in range(folds)]
    sources = {f"case_{number}": made_by(run.run_key) for number, run in enumerate(lowres)} | {"other": made_by("made-before")}
    previous = PreviousStage(configuration="3d_lowres", sources=sources)
    return stage.run(folds).model_copy(update={"previous_stage": previous}), lowres


def test_a_campaign_trains_the_second_stage_after_the_first(tmp_path: Path) -> None:
    """Whatever the order of the runs: what waits for others holds nobody back, and what was made before is not waited for."""
    stage = Stage(tmp_path)
    second, lowres = cascade(stage)
    campaign = stage.campaign(second, *lowres)
    look(campaign)
    assert states(campaign) == ["QUEUED", "RUNNING", "QUEUED"]
    for done, run in enumerate(lowres):
        look(campaign)
        assert f"{done} of 2 runs are validated." in campaign.runs[second.run_key].status().reason
        stage.cluster.training_ends(run)
        stage.cluster.validation_ends(run)
        look(campaign)
    look(campaign)
    assert states(campaign) == ["RUNNING", "SUCCEEDED", "SUCCEEDED"]
    assert campaign.runs[second.run_key].status().reason == ""


def test_a_failed_first_stage_ends_what_needs_it_alone(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    second, lowres = cascade(stage)
    other = stage.run(7)
    campaign = stage.campaign(*lowres, second, other)
    look(campaign)
    stage.cluster.training_ends(lowres[0], "FAILED_CODE")
    for _ in range(3):
        look(campaign)
    assert states(campaign) == ["FAILED_CODE", "RUNNING", "FAILED_CODE", "QUEUED"]
    reason = campaign.runs[second.run_key].status().reason
    assert reason.startswith(f"needs the segmentations of {lowres[0].address}, which ended FAILED_CODE: training said FAILED_CODE")


ALONE = {"next_stages": ()}
"""What differs in a run of the first stage that is planned while the second is not preprocessed, or that names the best weights alone."""


def is_training(stage: Stage, run: RunSpec) -> bool:
    return f"train-{run.run_key}-a1" in stage.cluster.live_jobs()


def end(stage: Stage, runs: list[RunSpec]) -> None:
    for run in runs:
        stage.cluster.training_ends(run)
        stage.cluster.validation_ends(run)


def leave_segmentations(second: RunSpec, cases: list[str]) -> None:
    assert second.previous_stage is not None
    place = previous_predictions(second, "3d_lowres")
    for case in cases:
        write_json_atomic(record_of(place, case), NextStageRecord(file=f"{case}.b2nd", size_bytes=0).model_dump())
        (place / f"{case}.b2nd").touch()


def test_a_first_stage_that_trains_leaves_segmentations_for_a_second_that_is_submitted_meanwhile(tmp_path: Path) -> None:
    """The first was submitted alone, when the second was not preprocessed; the next submission preprocessed it and has both."""
    stage = Stage(tmp_path)
    second, lowres = cascade(stage)
    stage.cluster.gpus = 16
    look(stage.campaign(*[run.model_copy(update=ALONE) for run in lowres]))
    both = stage.campaign(*lowres, second, name="c2")
    look(both)
    assert states(both) == ["RUNNING", "RUNNING", "QUEUED"]
    assert [RunFolder(run.run_folder).spec().next_stages for run in lowres] == [("3d_cascade_fullres",)] * 2
    end(stage, lowres)
    for _ in range(2):
        look(both)
    assert states(both) == ["SUCCEEDED", "SUCCEEDED", "RUNNING"]


@pytest.mark.parametrize("trains", [True, False])
def test_another_submission_of_a_first_stage_alone_takes_no_segmentations_from_the_second(tmp_path: Path, trains: bool) -> None:
    stage = Stage(tmp_path)
    second, lowres = cascade(stage)
    stage.cluster.gpus = 16 if trains else 0
    both = stage.campaign(*lowres, second)
    look(both)
    best = {**ALONE, "validation": ValidationSpec(checkpoints=("best",))}
    stage.campaign(*[run.model_copy(update=best) for run in lowres], name="c2")
    stage.cluster.gpus = 16
    look(both)
    assert states(both) == ["RUNNING", "RUNNING", "QUEUED"]
    spec = RunFolder(lowres[0].run_folder).spec()
    assert (spec.next_stages, spec.validation.checkpoints) == (("3d_cascade_fullres",), ("best", "final"))


def test_a_first_stage_that_nobody_else_works_on_is_validated_as_it_is_asked_for(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    _, lowres = cascade(stage)
    look(stage.campaign(*lowres))
    stage.cluster.training_ends(lowres[0], "STOPPED")
    stage.cluster.kill_campaign("c1")
    best = {**ALONE, "validation": ValidationSpec(checkpoints=("best",))}
    stage.campaign(lowres[0].model_copy(update=best), name="c2")
    spec = RunFolder(lowres[0].run_folder).spec()
    assert (spec.next_stages, spec.validation.checkpoints) == ((), ("best",))


def resumed(stage: Stage) -> tuple[RunSpec, list[RunSpec], list[Campaign]]:
    """Both stages in one campaign, and the second in another one too, as `nnfleet resume RUN` of it has it; both have looked."""
    second, lowres = cascade(stage)
    stage.cluster.gpus = 16
    campaigns = [stage.campaign(*lowres, second)]
    look(campaigns[0])
    campaigns.append(stage.campaign(second, name="c2"))
    look(campaigns[1])
    return second, lowres, campaigns


def test_a_second_stage_waits_for_a_first_that_another_campaign_trains(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    second, lowres, (both, alone) = resumed(stage)
    assert (states(alone), is_training(stage, second)) == (["QUEUED"], False)
    reason = alone.runs[second.run_key].status().reason
    assert reason == "waits for the segmentations of 1/3d_lowres/nnUNetTrainer: 0 of 2 runs are validated."
    end(stage, lowres)
    for campaign in (both, alone, both):
        look(campaign)
    assert states(both) == ["SUCCEEDED", "SUCCEEDED", "RUNNING"]
    assert states(alone) == ["RUNNING"]


def test_a_second_stage_waits_for_the_job_of_a_first_whose_campaign_died(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    second, lowres, (_, alone) = resumed(stage)
    stage.cluster.kill_campaign("c1")
    look(alone)
    assert (states(alone), is_training(stage, second)) == (["QUEUED"], False)
    for run in lowres:
        stage.cluster.training_ends(run)
        stage.cluster.validation_waits_for_the_server(run)
    look(alone)
    assert is_training(stage, second), "what only delivers has left its segmentations"


def test_a_first_stage_that_fails_in_another_campaign_ends_the_second_with_its_name(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    second, lowres, (both, alone) = resumed(stage)
    stage.cluster.training_ends(lowres[0], "FAILED_CODE")
    end(stage, lowres[1:])
    leave_segmentations(second, ["case_1", "other"])
    look(both)
    stage.cluster.kill_campaign("c1")
    look(alone)
    assert (states(alone), is_training(stage, second)) == (["FAILED_CODE"], False)
    reason = alone.runs[second.run_key].status().reason
    assert reason.startswith(f"needs the segmentations of {lowres[0].address}, which ended FAILED_CODE: training said FAILED_CODE")


def test_a_second_stage_whose_segmentations_are_there_outlives_the_end_of_a_first_elsewhere(tmp_path: Path) -> None:
    """The first was validated before, and submitted again for more."""
    stage = Stage(tmp_path)
    second, lowres = cascade(stage)
    stage.cluster.gpus = 16
    again = stage.campaign(*lowres)
    look(again)
    alone = stage.campaign(second, name="c2")
    look(alone)
    assert states(alone) == ["QUEUED"]
    leave_segmentations(second, ["case_0", "case_1", "other"])
    for run in lowres:
        stage.cluster.training_ends(run, "FAILED_CODE")
    look(again)
    look(alone)
    assert (states(again), states(alone)) == (["FAILED_CODE", "FAILED_CODE"], ["RUNNING"])


def test_a_second_stage_that_has_begun_waits_for_no_first_that_is_submitted_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    second, lowres = cascade(stage)
    stage.cluster.gpus = 16
    alone = stage.campaign(second)
    for _ in range(2):
        look(alone)
    assert states(alone) == ["RUNNING"]
    look(stage.campaign(*lowres, name="c2"))
    stage.cluster.kill_driver(second)
    look(alone)
    assert states(alone) == ["RECOVERING"]
    assert f"train-{second.run_key}-a2" in stage.cluster.live_jobs()


def test_those_elsewhere_count_as_not_validated(tmp_path: Path) -> None:
    second, (one, other) = cascade(Stage(tmp_path))
    own = {one.run_key: first(0, RunState.SUCCEEDED)}
    found = needed_of(second, own, {one.run_key, other.run_key})
    assert [run.state for run in found] == [RunState.SUCCEEDED, RunState.QUEUED]
