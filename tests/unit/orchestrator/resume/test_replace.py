"""`--replace`: the folder of another run is moved aside, and nothing of it is lost or continues."""

import logging
from pathlib import Path

import pytest

from orchestrator.campaign.planning import replacements
from orchestrator.errors import ConfigError, Superseded
from orchestrator.resume.takeover import make_way, refuse
from orchestrator.run.activity import owner_of
from orchestrator.run.crossvals import MARK
from orchestrator.tracking.records import MARKER_METRIC
from tests.fake_campaign import Stage, finish_on_disk, look, states
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import acquire_token, check_driver_fence, check_fence, count_drivers
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    stage = Stage(tmp_path)
    stage.cluster.gpus = 4
    return stage


def trained(stage: Stage, *runs: RunSpec) -> None:
    """Runs that were trained, validated and followed to their end."""
    look(campaign := stage.campaign(*runs))
    for run in runs:
        finish_on_disk(run)
        stage.cluster.training_ends(run)
        stage.cluster.validation_ends(run)
    campaign.run(poll_s=0)
    stage.cluster.ends("campaign-c1")


def changed(run: RunSpec) -> RunSpec:
    """The run that the same experiment makes with another learning rate."""
    return run.model_copy(update={"run_key": f"{run.run_key}-lowlr", "schedule": run.schedule.model_copy(update={"initial_lr": 0.001})})


def aside(run: RunSpec) -> list[Path]:
    return sorted(run.model_folder.glob(f"replaced-{run.run_folder.name}-*"))


def test_another_run_gets_the_folder_and_the_old_one_keeps_all_beside_it(stage: Stage) -> None:
    run = stage.run(0)
    trained(stage, run)
    write_json_atomic(run.model_folder / "crossval_results_folds_0_1" / MARK, {})
    kept = sorted(path.relative_to(run.run_folder) for path in run.run_folder.rglob("*") if path.is_file())
    look(again := stage.campaign(changed(run), name="c2", replaces=True))
    assert states(again) == ["RUNNING"]
    assert RunFolder(run.run_folder).spec() == changed(run)
    assert newest_committed(RunFolder(run.run_folder)) is None
    assert not list(run.model_folder.glob("crossval*")), "it holds the predictions of the old run"
    (old,) = aside(run)
    assert RunFolder(old).spec() == run
    assert {path.relative_to(old) for path in old.rglob("*") if path.is_file()} >= set(kept)
    assert newest_committed(RunFolder(old)) is not None


def test_without_the_request_the_folder_stays_and_the_refusal_names_both_cures(stage: Stage) -> None:
    run = stage.run(0)
    trained(stage, run)
    with pytest.raises(
        ConfigError, match=r"in initial_lr \(0.01, now 0.001\)\. To keep both: `variant: NAME` .* `nnfleet submit --replace`"
    ):
        stage.campaign(changed(run), name="c2")
    assert aside(run) == []


def test_the_same_run_is_continued_and_not_replaced(stage: Stage) -> None:
    run = stage.run(0)
    trained(stage, run)
    assert states(stage.campaign(run, name="c2", replaces=True)) == ["SUCCEEDED"]
    assert aside(run) == []


def test_submitted_once_more_it_continues_what_it_began(stage: Stage) -> None:
    run = stage.run(0)
    trained(stage, run)
    look(stage.campaign(changed(run), name="c2", replaces=True))
    look(stage.campaign(changed(run), name="c3", replaces=True))
    assert len(aside(run)) == 1


def test_a_run_with_a_living_job_is_not_replaced(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    finish_on_disk(run, is_validated=False)
    stage.cluster.kill_campaign("c1")
    with pytest.raises(ConfigError, match="belongs to the run key0, which has not ended. Stop it first") as refused:
        stage.campaign(changed(run), name="c2", replaces=True)
    assert "It differs from key0-lowlr in initial_lr (0.01, now 0.001)." in str(refused.value)
    assert (aside(run), RunFolder(run.run_folder).spec()) == ([], run)


def test_a_run_that_a_campaign_keeps_queued_is_not_replaced(stage: Stage) -> None:
    run = stage.run(0)
    stage.campaign(run)
    finish_on_disk(run, is_validated=False)
    with pytest.raises(ConfigError, match="which has not ended"):
        stage.campaign(changed(run), name="c2", replaces=True)
    assert aside(run) == []


def test_a_run_that_shows_work_of_another_cluster_is_not_replaced(stage: Stage) -> None:
    run = stage.run(0)
    trained(stage, run)
    folder = RunFolder(run.run_folder)
    folder.outcome_file.unlink()
    stage.cluster.jobs.clear()
    stage.campaign(stage.run(1), name="c2")
    acquire_token(folder, "train-key0-a9", {"job": "train-key0-a9"})
    with pytest.raises(ConfigError, match="which has not ended"):
        refuse(changed(run), [], leaving={run.run_folder})


def test_one_that_cannot_be_replaced_leaves_all_others_in_place(stage: Stage) -> None:
    runs = [stage.run(0), stage.run(1)]
    look(stage.campaign(*runs))
    for run in runs:
        finish_on_disk(run, is_validated=False)
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(runs[0])
    with pytest.raises(ConfigError, match="belongs to the run key1, which has not ended"):
        stage.campaign(*map(changed, runs), name="c2", replaces=True)
    assert [aside(run) for run in runs] == [[], []]


def test_nothing_of_the_old_run_is_committed_or_published_any_more(stage: Stage) -> None:
    """Its workers may live on, unseen, with files open in the folder that was moved, and paths that lead to the new one."""
    run, folder = stage.run(0), RunFolder(stage.run(0).run_folder)
    trained(stage, run)
    old = acquire_token(folder, "train-key0-a1")
    make_way(changed(run))
    for place in (folder, RunFolder(aside(run)[0])):
        with pytest.raises(Superseded):
            check_fence(place, old)
    with pytest.raises(Superseded):
        check_driver_fence(RunFolder(aside(run)[0]), old)
    assert (owner_of(folder), count_drivers(folder)) == (None, 0), "no driver has it yet"


def test_a_kill_after_the_move_leaves_a_folder_that_the_next_submission_takes(stage: Stage) -> None:
    run = stage.run(0)
    trained(stage, run)
    make_way(changed(run))
    look(again := stage.campaign(changed(run), name="c2"))
    assert states(again) == ["RUNNING"]


def test_a_run_that_died_unnoticed_is_ended_in_mlflow_when_it_is_replaced(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    finish_on_disk(run, is_validated=False)
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(run)
    stage.campaign(changed(run), name="c2", replaces=True)
    assert stage.tracking.states["id-key0"] == [RunState.RUNNING, RunState.STOPPED]


def test_a_run_whose_epochs_mlflow_has_is_not_begun_again_in_their_place(stage: Stage) -> None:
    """There and back again: the first settings would continue the curves of their first training."""
    run = stage.run(0)
    trained(stage, run)
    look(stage.campaign(changed(run), name="c2", replaces=True))
    finish_on_disk(changed(run))
    stage.cluster.training_ends(changed(run))
    stage.cluster.validation_ends(changed(run))
    stage.cluster.ends("campaign-c2")
    stage.tracking.scores["id-key0"][MARKER_METRIC] = 1.0
    with pytest.raises(ConfigError, match=r"key0 has epochs in MLflow, but .* holds none.*in its pages \(http://mlflow/#/id-key0\)"):
        stage.campaign(run, name="c3", replaces=True)
    assert len(aside(run)) == 1


def test_all_folds_of_other_plans_are_replaced_together_but_not_one_alone(stage: Stage) -> None:
    runs = [stage.run(0), stage.run(1)]
    trained(stage, *runs)
    (stage.data / "nnUNetPlans.json").write_text('{"configurations": {"3d": {"batch_size": 9}}}')
    with pytest.raises(ConfigError, match="must share one plan"):
        stage.campaign(changed(runs[0]), name="c2", replaces=True)
    assert aside(runs[0]) == []
    look(again := stage.campaign(*map(changed, runs), name="c3", replaces=True))
    assert states(again) == ["RUNNING", "RUNNING"]
    assert (runs[0].model_folder / "plans.json").read_bytes() == (stage.data / "nnUNetPlans.json").read_bytes()


def test_checkpoints_of_nnunet_itself_are_never_moved(stage: Stage) -> None:
    run = stage.run(0)
    run.run_folder.mkdir(parents=True)
    (run.run_folder / "checkpoint_final.pth").touch()
    with pytest.raises(ConfigError, match="was not made by nnfleet"):
        stage.campaign(run, replaces=True)
    assert (run.run_folder / "checkpoint_final.pth").exists()


def test_the_plan_and_the_log_tell_what_is_moved_and_where(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    run = stage.run(0)
    assert replacements([changed(run)]) == []
    trained(stage, run)
    (sentence,) = replacements([changed(run)])
    assert sentence == (
        f"results: 1 run folder of another run was moved aside, to `replaced-fold_0-<UTC time>` beside its place: {run.run_folder}."
    )
    with caplog.at_level(logging.WARNING):
        make_way(changed(run))
    assert f"{run.run_folder} of the run key0 is {aside(run)[0]} now" in caplog.text
