"""Which runs `resume` takes up from a results folder, and which it leaves and why."""

import json
import re
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.queue.registry import Registry
from orchestrator.resume import resume_check
from orchestrator.resume.stored import status_of_stored
from orchestrator.resume.unfinished import choose, find_runs, of_one_server
from orchestrator.run.below import results_folder
from orchestrator.run.outcome import EndState, Outcome, write_outcome
from tests.fake_campaign import Stage, finish_on_disk, look, states
from trainers.contract.early_end import EarlyEnd
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import OwnCode, OwnParts, RunSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def claimed(stage: Stage, fold: int, state: EndState | None = None, message: str = "said so") -> RunSpec:
    """A run that was begun, and ended so."""
    run = stage.run(fold)
    folder = RunFolder(run.run_folder)
    write_json_atomic(folder.spec_file, json.loads(run.model_dump_json()))
    if state is not None:
        fencing_token = acquire_token(folder, f"train-{run.run_key}")
        write_outcome(folder, Outcome(job="training", state=state, fencing_token=fencing_token, message=message))
    return run


def taken(stage: Stage, *names: str) -> list[str]:
    return [run.spec.run_key for run in choose(*find_runs(stage.base / "results"), names, stage.base).taken]


def test_what_did_not_come_to_an_end_of_its_own_is_taken_up(stage: Stage) -> None:
    claimed(stage, 0)
    claimed(stage, 1, "FAILED_CLUSTER")
    trained = claimed(stage, 2, "TRAINED")
    finish_on_disk(trained, is_validated=False)
    assert taken(stage) == ["key0", "key1", "key2"]


def test_what_a_person_or_an_error_ended_is_left_unless_it_is_named(stage: Stage) -> None:
    for fold, state in enumerate(("STOPPED", "FAILED_CONFIG", "FAILED_CODE")):
        claimed(stage, fold, state)  # type: ignore[arg-type]
    stopping = claimed(stage, 3)
    write_json_atomic(RunFolder(stopping.run_folder).stop_file, {"now": False})
    choice = choose(*find_runs(stage.base / "results"), (), stage.base)
    assert choice.taken == ()
    for text, why in zip(choice.left, ("was stopped", "(said so)", "error of the code (said so)", "was asked to stop"), strict=True):
        assert why in text
        assert "nnfleet resume key" in text
    assert taken(stage, "key0", "1/3d/nnUNetTrainer/1", "key3") == ["key0", "key1", "key3"]


def test_only_what_failed_is_taken_of_all_or_of_the_named_runs_and_nothing_that_was_stopped(stage: Stage) -> None:
    states: list[EndState | None] = ["FAILED_CONFIG", "FAILED_CODE", "FAILED_CLUSTER", "STOPPED", None, "FAILED_CODE"]
    for fold, state in enumerate(states):
        claimed(stage, fold, state)
    write_json_atomic(RunFolder(stage.run(5).run_folder).stop_file, {"now": False})
    finish_on_disk(claimed(stage, 6, "SUCCEEDED"))
    found = find_runs(stage.base / "results")
    choice = choose(*found, (), stage.base, only_failed=True)
    assert [run.spec.run_key for run in choice.taken] == ["key0", "key1", "key2"]
    assert [text.partition(") ")[2] for text in choice.left] == [
        *["did not fail."] * 2,
        "failed, and was asked to stop.",
        "did not fail.",
    ]
    named = choose(*found, ("key1", "key3"), stage.base, only_failed=True)
    assert [run.spec.run_key for run in named.taken] == ["key1"]


def test_a_finished_run_is_left_named_or_not(stage: Stage) -> None:
    run = claimed(stage, 0, "SUCCEEDED")
    finish_on_disk(run)
    assert taken(stage) == taken(stage, "key0") == []


def test_finished_runs_that_are_left_are_one_sentence(stage: Stage) -> None:
    for fold in (0, 2):
        finish_on_disk(claimed(stage, fold, "SUCCEEDED"))
    claimed(stage, 1, "STOPPED")
    finished, stopped = choose(*find_runs(stage.base / "results"), (), stage.base).left
    assert finished == "2 runs that are finished."
    assert stopped.startswith("1/3d/nnUNetTrainer/1 (key1) was stopped.")
    assert choose(*find_runs(stage.base / "results"), ("key2",), stage.base).left == ("1/3d/nnUNetTrainer/2 (key2) is finished.",)


def test_a_run_that_ended_early_as_asked_is_finished_and_is_left_with_its_terms(stage: Stage) -> None:
    """It has its final weights, validated and published; another training of it is another run (`replicate`), or follows `rm`."""
    run = claimed(stage, 0, "SUCCEEDED")
    finish_on_disk(run, early_end=EarlyEnd(epochs=run.schedule.epochs - 1))
    (found,), _ = find_runs(stage.base / "results")
    assert (found.progress.stage, found.progress.epochs_left) == ("finished", 0)
    why = f"is finished (ended early {found.progress.early_end})."
    assert choose([found], (), ("key0",), stage.base).left == (f"1/3d/nnUNetTrainer/0 (key0) {why}",)
    status = status_of_stored(found)
    assert (status.state, status.epochs) == (RunState.SUCCEEDED, run.schedule.epochs - 1)
    assert status.reason == f"Ended early, as asked: {found.progress.early_end}."


def test_damaged_and_moved_runs_are_told_and_stop_no_other(stage: Stage) -> None:
    claimed(stage, 0)
    broken, moved = claimed(stage, 1), claimed(stage, 2)
    RunFolder(broken.run_folder).spec_file.write_text('{"run_key": "x"')
    elsewhere = moved.run_folder.parents[1] / "other"
    elsewhere.mkdir()
    moved.run_folder.rename(elsewhere / "fold_2")
    choice = choose(*find_runs(stage.base / "results"), (), stage.base)
    assert [run.spec.run_key for run in choice.taken] == ["key0"]
    assert len(choice.left) == 2
    assert any("cannot be read as JSON" in text for text in choice.left)
    assert any("was moved or copied" in text for text in choice.left)


def test_a_name_means_all_runs_that_match_and_one_that_means_none_is_an_error(stage: Stage) -> None:
    for fold in range(3):
        claimed(stage, fold, "STOPPED")
    assert taken(stage, "1", "key2") == taken(stage, "1/3d/*/?") == taken(stage, "key") == ["key0", "key1", "key2"]
    assert taken(stage, "1/*/default/[01]") == ["key0", "key1"]
    with pytest.raises(ConfigError, match=r"there is no run 'nonsense' below .* Known: 1/3d/nnUNetTrainer[.]"):
        taken(stage, "nonsense")


def test_a_folder_below_nnunet_results_will_do(stage: Stage) -> None:
    run = claimed(stage, 0)
    for place in (run.model_folder.parents[1], run.model_folder.parent, run.model_folder, run.run_folder):
        assert [found.spec.run_key for found in find_runs(place)[0]] == ["key0"], place


def test_the_folder_is_the_named_one_else_the_one_of_the_environment(tmp_path: Path) -> None:
    assert results_folder(None, {"nnUNet_results": str(tmp_path)}) == results_folder(tmp_path, {}) == tmp_path
    with pytest.raises(ConfigError, match=r"Set it \(export nnUNet_results"):
        results_folder(None, {})
    with pytest.raises(ConfigError, match="is no folder"):
        results_folder(tmp_path / "none", {})
    wrong = f"nnUNet_results: this variable names {tmp_path}/typo, which is no folder here. Correct it (export nnUNet_results=...)"
    with pytest.raises(ConfigError, match=re.escape(wrong)):
        results_folder(None, {"nnUNet_results": str(tmp_path / "typo")})


def test_runs_of_another_tracking_server_are_continued_apart(stage: Stage) -> None:
    for fold, uri in enumerate(("http://a:1", "http://a:1", "http://b:1")):
        run = claimed(stage, fold).model_copy(update={"tracking_uri": uri})
        write_json_atomic(RunFolder(run.run_folder).spec_file, json.loads(run.model_dump_json()))
    choice = of_one_server(choose(*find_runs(stage.base / "results"), (), stage.base))
    assert [run.spec.run_key for run in choice.taken] == ["key0", "key1"]
    assert "continue it apart: nnfleet resume key2" in choice.left[0]


def test_a_campaign_of_what_was_found_continues_it(stage: Stage) -> None:
    run = stage.run(0)
    look(stage.campaign(run))
    stage.cluster.workers_begin(run)
    stage.cluster.jobs.clear()  # the head is new
    (found,) = choose(*find_runs(stage.base / "results"), (), stage.base).taken
    assert status_of_stored(found).state is RunState.PAUSED
    assert "`nnfleet resume` continues it" in status_of_stored(found).reason
    look(again := stage.campaign(found.spec, name="c2"))
    assert states(again) == ["RUNNING"]
    assert stage.cluster.live_jobs() == ["train-key0-a2"]


def test_runs_whose_own_code_is_not_here_are_left_before_anything_is_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume_check, "problems_of", lambda spec: [])
    own = OwnParts(loss=OwnCode(name="mine:make", sha256="0" * 64))
    plain, lacking, trained = (claimed(stage, fold, state) for fold, state in enumerate((None, None, "TRAINED")))  # type: ignore[arg-type]
    specs = [plain, *(run.model_copy(update={"own": own}) for run in (lacking, trained))]
    registry = Registry(stage.base / "board")
    kept, left = resume_check.sound(specs, stage.cluster.records, registry, stage.clock.clock, stage.said.append, raises=False)
    assert [run.run_key for run in kept] == ["key0", "key2"], "what has been trained needs no loss"
    assert re.fullmatch(r".* \(key1\) cannot continue: loss: the files of mine:make .* are not in the code package.*", left[0])
    assert not RunFolder(lacking.run_folder).outcome_file.exists()
    with pytest.raises(ConfigError, match="loss: the files of mine:make"):
        resume_check.sound(specs, stage.cluster.records, registry, stage.clock.clock, stage.said.append, raises=True)
