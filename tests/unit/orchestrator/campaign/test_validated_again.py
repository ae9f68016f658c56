"""A validation that is asked for while an earlier one of the run still ends, on a fake cluster."""

from pathlib import Path

import pytest

from orchestrator.run.outcome import read_outcome
from tests.fake_campaign import Stage, finish_on_disk, look, states
from trainers.contract.requests import request_stop
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def validating(stage: Stage) -> RunSpec:
    """A trained run whose validation job lives, followed by the campaign c1."""
    run = stage.run(0)
    look(stage.campaign(run))
    finish_on_disk(run)
    stage.cluster.training_ends(run)
    return run


def with_probabilities(run: RunSpec) -> RunSpec:
    return run.model_copy(update={"validation": run.validation.model_copy(update={"npz": True})})


@pytest.mark.parametrize("npz", [False, True])
def test_a_validation_by_hand_waits_for_one_that_only_delivers_and_is_a_job_of_its_own(stage: Stage, npz: bool) -> None:
    run = validating(stage)
    stage.cluster.validation_waits_for_the_server(run)
    again = stage.campaign(with_probabilities(run) if npz else run, name="c2", only_validate=True)
    look(again)
    assert states(again) == ["VALIDATING"]
    assert stage.cluster.live_jobs() == ["validate-key0-a1"]
    assert RunFolder(run.run_folder).spec().validation.npz == npz
    stage.cluster.ends("validate-key0-a1")
    look(again)
    assert states(again) == ["VALIDATING"], "the end of the earlier job is not its end"
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]
    stage.cluster.validation_ends(run)
    assert again.run(poll_s=0) == 0


@pytest.mark.parametrize("only_validate", [False, True], ids=["submit", "validate"])
def test_probabilities_asked_for_while_a_validation_works_are_made_by_the_next_one(stage: Stage, only_validate: bool) -> None:
    run = validating(stage)
    again = stage.campaign(with_probabilities(run), name="c2", only_validate=only_validate)
    look(again)
    assert stage.cluster.live_jobs() == ["validate-key0-a1"], "it is waited for"
    stage.cluster.validation_ends(run)
    look(again)
    assert states(again) == ["VALIDATING"]
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]
    outcome = read_outcome(RunFolder(run.run_folder))
    assert outcome is not None
    assert outcome.state == "TRAINED"
    stage.cluster.validation_ends(run)
    assert again.run(poll_s=0) == 0


def test_a_training_that_still_delivers_beside_the_validation_changes_nothing_in_that(stage: Stage) -> None:
    run = validating(stage)
    stage.cluster.jobs["train-key0-a1"] = stage.cluster.jobs["train-key0-a1"].model_copy(update={"state": "RUNNING"})
    again = stage.campaign(with_probabilities(run), name="c2")
    look(again)
    stage.cluster.validation_ends(run)
    stage.cluster.ends("train-key0-a1")
    look(again)
    assert stage.cluster.live_jobs() == ["validate-key0-a1-r1"]


def test_probabilities_asked_for_while_a_run_trains_are_made_by_its_validation(stage: Stage) -> None:
    run = stage.run(0)
    first = stage.campaign(run)
    look(first)
    stage.campaign(with_probabilities(run), name="c2")
    assert RunFolder(run.run_folder).spec().validation.npz
    look(first)
    assert first.runs["key0"].spec.validation.npz
    assert stage.cluster.live_jobs() == ["train-key0-a1"]


def test_a_validation_by_hand_of_what_is_being_validated_follows_that_one(stage: Stage) -> None:
    run = validating(stage)
    again = stage.campaign(run, name="c2", only_validate=True)
    look(again)
    stage.cluster.validation_ends(run)
    assert again.run(poll_s=0) == 0
    assert list(stage.cluster.jobs)[-1] == "campaign-c2", "no second validation"


def test_a_stop_request_ends_the_wait_for_the_second_validation(stage: Stage) -> None:
    run = validating(stage)
    again = stage.campaign(with_probabilities(run), name="c2", only_validate=True)
    look(again)
    request_stop(RunFolder(run.run_folder), is_now=False)
    stage.cluster.validation_ends(run, "STOPPED")
    look(again)
    assert states(again) == ["STOPPED"]
    assert stage.cluster.live_jobs() == []
