"""At the end of a campaign its models are compared in MLflow, by a job whose failure changes no run's end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign.comparisons import PATIENCE_S, models_to_compare
from orchestrator.campaign.events import CampaignLog, ComparisonMade, Done
from orchestrator.campaign.loop import Campaign
from orchestrator.errors import ClusterError
from orchestrator.run.events import line_of
from tests.fake_campaign import Stage, finish_on_disk, look
from trainers.contract.run_spec import RunSpec, ValidationSpec

URI = "http://mlflow"
JOB = "control-compare-c1-0"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    found = Stage(tmp_path)
    found.cluster.gpus = 4
    return found


def of_model(stage: Stage, name: str, fold: int = 0, **changes: Any) -> RunSpec:
    run = stage.run(fold)
    what = {"trainer": name, "run_key": f"{name}{fold}", "model_folder": run.model_folder.with_name(name), "tracking_uri": URI}
    return run.model_copy(update={**what, **changes})


def validated(stage: Stage, *runs: RunSpec, name: str = "c1") -> Campaign:
    """A campaign whose runs have been trained and validated."""
    campaign = stage.campaign(*runs, name=name)
    look(campaign)
    for run in runs:
        finish_on_disk(run)
        stage.cluster.training_ends(run)
        stage.cluster.validation_ends(run)
    return campaign


def ends_with(stage: Stage, made: ComparisonMade | None, job: str = JOB) -> Callable[[], None]:
    def end() -> None:
        if made is None:
            stage.cluster.fails(job)
            failed = stage.cluster.jobs[job]
            stage.cluster.jobs[job] = failed.model_copy(update={"message": "Error: mlflow: away.\n"})
        else:
            stage.cluster.texts[job] = f"{line_of(made)}\n"
            stage.cluster.ends(job)

    return end


MADE = ComparisonMade(models=("1/3d/A", "1/3d/B"), verdict="A is better than B.", link="http://mlflow/#/1")


def test_the_models_of_a_campaign_are_compared_once_all_its_runs_have_ended(stage: Stage) -> None:
    campaign = validated(stage, of_model(stage, "A"), of_model(stage, "A", 1), of_model(stage, "B"))
    assert stage.cluster.controls == []
    stage.clock.after(5, ends_with(stage, MADE))
    assert campaign.run(poll_s=1) == 0
    wanted = ["compare", "1/3d/A", "1/3d/B", "--results", str(stage.base / "results"), "--tracking-uri", URI]
    assert stage.cluster.controls == [wanted]
    assert stage.events[-2:] == [MADE, Done(exit_code=0)]
    assert stage.warnings() == []
    log = CampaignLog().update("".join(f"{line_of(event)}\n" for event in stage.events))
    assert [made.text for made in log.comparisons] == ["A is better than B. Report in MLflow: http://mlflow/#/1"]


def test_the_next_campaign_of_the_models_brings_it_up_to_date_unless_nothing_was_left_to_do(stage: Stage) -> None:
    runs = of_model(stage, "A"), of_model(stage, "B")
    campaign = validated(stage, *runs)
    stage.clock.after(5, ends_with(stage, MADE))
    campaign.run(poll_s=1)
    assert stage.campaign(*runs, name="c2").run(poll_s=1) == 0
    assert len(stage.cluster.controls) == 1
    again = stage.campaign(*runs, of_model(stage, "A", 1), name="c3")
    look(again)
    finish_on_disk(of_model(stage, "A", 1))
    stage.cluster.training_ends(of_model(stage, "A", 1))
    stage.cluster.validation_ends(of_model(stage, "A", 1))
    stage.clock.after(5, ends_with(stage, MADE, "control-compare-c3-0"))
    again.run(poll_s=1)
    assert stage.cluster.controls[1] == stage.cluster.controls[0]


def test_models_that_cannot_be_compared_are_named_in_the_log_alone(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    campaign = validated(stage, of_model(stage, "A"), of_model(stage, "B"))
    stage.clock.after(5, ends_with(stage, ComparisonMade(models=MADE.models, why_not="the splits differ.")))
    assert campaign.run(poll_s=1) == 0
    assert "1/3d/A, 1/3d/B are not compared in MLflow: the splits differ." in caplog.text
    assert not [event for event in stage.events if isinstance(event, ComparisonMade)]
    assert stage.warnings() == []


@pytest.mark.parametrize("how", ["refused", "failed", "hangs"])
def test_a_comparison_that_fails_is_a_warning(stage: Stage, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    campaign = validated(stage, of_model(stage, "A"), of_model(stage, "B"))

    def refuse(name: str, arguments: list[str]) -> str:
        raise ClusterError("cluster: takes no job.")

    if how == "refused":
        monkeypatch.setattr(stage.cluster, "submit_control", refuse)
    elif how == "failed":
        stage.clock.after(5, ends_with(stage, None))
    why = {
        "refused": "cluster: takes no job.",
        "failed": f"the job {JOB} failed (mlflow: away).",
        "hangs": f"the job {JOB} has not ended within {PATIENCE_S / 60:.0f} minutes.",
    }[how]
    assert campaign.run(poll_s=10) == 0
    assert stage.warnings() == [
        f"the comparison of 1/3d/A, 1/3d/B is not in MLflow: {why} `nnfleet compare 1/3d/A 1/3d/B --mlflow` sends it."
    ]


def test_what_is_not_compared_has_no_job(stage: Stage) -> None:
    one, other = of_model(stage, "A"), of_model(stage, "B")
    assert len(models_to_compare([one, other])) == 1
    assert models_to_compare([one, of_model(stage, "A", 1)]) == [], "one model"
    assert models_to_compare([one, other.model_copy(update={"dataset": "Dataset002_Y"})]) == [], "two datasets"
    assert models_to_compare([one, other.model_copy(update={"fold": "all"})]) == [], "trained on every case that it validates"
    assert models_to_compare([one, other.model_copy(update={"validation": ValidationSpec(checkpoints=("best",))})]) == []
    untracked = [run.model_copy(update={"tracking_uri": ""}) for run in (one, other)]
    assert models_to_compare(untracked) == []
