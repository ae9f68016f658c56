"""A run of a cascade's second stage waits for the runs that make what it sees, and ends with one that fails: pure, then in a campaign."""

from pathlib import Path

import pytest

from orchestrator.follow.first_stage import FirstStageRun, after_first_stage
from orchestrator.follow.next_step import End, Follow, Step, Train, Validate, Wait
from tests.fake_campaign import Stage, look, states
from trainers.contract.run_spec import PreviousStage, RunSpec, made_by
from trainers.contract.states import RunState

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


def cascade(stage: Stage, folds: int = 2) -> tuple[RunSpec, list[RunSpec]]:
    """A run of the second stage, and those of the first that it needs."""
    lowres = [stage.run(fold).model_copy(update={"next_stages": ("3d_cascade_fullres",)}) for fold in range(folds)]
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
