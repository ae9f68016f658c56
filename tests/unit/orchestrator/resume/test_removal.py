"""Removing runs: what is listed, what is refused, what is gone afterwards and what is not."""

import json
import os
from pathlib import Path
from typing import ClassVar

import pytest

from orchestrator.errors import ConfigError, DataError, TrackingError
from orchestrator.resume.removal import Removable, removable, remove, size_on_disk
from orchestrator.run.crossvals import MARK
from orchestrator.run.names import UNPLANNED
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.run.status import RunStatus
from orchestrator.tracking import client
from tests.fake_campaign import Stage, finish_on_disk, look
from trainers.contract.fencing import acquire_token
from trainers.contract.records import MlflowRun, write_mlflow_run
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PreviousStage, RunSpec, made_by
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def finished(stage: Stage, fold: int, variant: str = "") -> RunSpec:
    """A run that was trained and validated, and its model folder's shared files."""
    run = stage.run(fold)
    if variant:
        place = run.model_folder.with_name(f"{run.model_folder.name}__{variant}")
        run = run.model_copy(update={"variant": variant, "run_key": f"{run.run_key}-{variant}", "model_folder": place})
    folder = RunFolder(run.run_folder)
    write_json_atomic(folder.spec_file, json.loads(run.model_dump_json()))
    for name in ("plans.json", "dataset.json"):
        (run.model_folder / name).write_text("{}")
    finish_on_disk(run)
    write_outcome(folder, Outcome(job="validation", state="SUCCEEDED", fencing_token=acquire_token(folder, "d"), message="done"))
    return run


def listed(stage: Stage, *names: str) -> list[Removable]:
    return removable(names, stage.base / "results")[0]


def test_runs_are_listed_with_their_state_and_size(stage: Stage) -> None:
    run = finished(stage, 0)
    (run.run_folder / "checkpoint_final.pth").write_bytes(os.urandom(1 << 20))
    (found,) = listed(stage, "1/3d/nnUNetTrainer/0")
    assert (found.run_key, found.address, found.state) == (run.run_key, run.address, RunState.SUCCEEDED)
    assert (found.epochs_done, found.epochs, found.run_folder) == (4, 4, run.run_folder)
    assert 1 << 20 <= found.size_bytes < 3 << 19
    assert Removable.model_validate_json(found.model_dump_json()) == found


def test_of_a_first_stage_the_models_that_need_its_weights_are_named_unless_they_go_too(stage: Stage) -> None:
    first, second = finished(stage, 0), finished(stage, 1, "second")
    sources = {"a": made_by(first.run_key), "b": "0" * 16}
    after = second.model_copy(update={"previous_stage": PreviousStage(configuration="3d_lowres", sources=sources)})
    write_json_atomic(RunFolder(second.run_folder).spec_file, json.loads(after.model_dump_json()))
    assert [run.second_stages for run in listed(stage, first.run_key)] == [(second.model,)]
    assert [run.second_stages for run in listed(stage, first.run_key, second.run_key)] == [(), ()]


def test_a_file_with_two_names_counts_once_and_a_link_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "best" / "e1.pth").write_bytes(os.urandom(1 << 20))
    (tmp_path / "other").write_bytes(os.urandom(1 << 20))
    alone = size_on_disk(tmp_path / "run")
    os.link(tmp_path / "run" / "best" / "e1.pth", tmp_path / "run" / "checkpoint_best.pth")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "other")
    assert size_on_disk(tmp_path / "run") == alone >= 1 << 20


def test_only_the_runs_that_were_named_are_gone(stage: Stage) -> None:
    first, second, other = finished(stage, 0), finished(stage, 1), finished(stage, 0, "lowlr")
    remove(listed(stage, "1/3d/nnUNetTrainer/0"), mlflow=False)
    assert not first.run_folder.exists()
    assert RunFolder(second.run_folder).spec() == second
    assert RunFolder(other.run_folder).spec() == other
    assert sorted(path.name for path in first.model_folder.iterdir()) == ["dataset.json", "fold_1", "plans.json"]


def crossval(run: RunSpec, folds: str, mark: str = MARK) -> Path:
    """A cross-validation over these folds beside a run."""
    folder = run.model_folder / f"crossval_results_folds_{folds}"
    write_json_atomic(folder / mark, {})
    return folder


def test_the_cross_validation_that_holds_a_removed_fold_goes_with_it(stage: Stage) -> None:
    run = finished(stage, 0)
    finished(stage, 1)
    with_it, without_it = crossval(run, "0_1"), crossval(run, "1_10")
    (found,) = listed(stage, "key0")
    assert found.crossvals == (with_it,)
    assert remove([found], mlflow=False) == [found]
    assert not with_it.exists()
    assert without_it.exists()


def test_a_cross_validation_that_nnunet_made_stays(stage: Stage) -> None:
    run = finished(stage, 0)
    theirs = crossval(run, "0_1", "summary.json")
    remove(listed(stage, "key0"), mlflow=False)
    assert [path.name for path in theirs.iterdir()] == ["summary.json"]


def test_a_cross_validation_with_files_of_others_is_not_reported_as_removed(stage: Stage) -> None:
    with_it = crossval(finished(stage, 0), "0_1")
    (with_it / "postprocessing.json").write_text("theirs")
    (removed,) = remove(listed(stage, "key0"), mlflow=False)
    assert removed.crossvals == ()
    (kept,) = with_it.parent.glob(f"kept-{with_it.name}-*")
    assert (kept / "postprocessing.json").read_text() == "theirs"


def test_a_run_that_cannot_be_removed_keeps_its_cross_validation(stage: Stage) -> None:
    run = finished(stage, 0)
    with_it, found = crossval(run, "0_1"), listed(stage, "key0")
    run.run_folder.rename(run.run_folder.with_name("gone"))
    with pytest.raises(DataError, match="cannot be removed"):
        remove(found, mlflow=False)
    assert (with_it / MARK).is_file()


def test_a_model_folder_goes_with_its_last_fold_and_other_plans_may_come(stage: Stage) -> None:
    run = finished(stage, 0)
    finished(stage, 1)
    crossval(run, "0_1")
    remove(listed(stage, "1/3d/nnUNetTrainer"), mlflow=False)
    assert not run.model_folder.exists()
    assert run.model_folder.parent.exists()
    (stage.data / "nnUNetPlans.json").write_text('{"configurations": {"3d": {"batch_size": 9}}}')
    look(stage.campaign(run))
    assert stage.cluster.live_jobs() == ["train-key0-a1"]


def test_a_model_folder_with_something_of_somebody_stays(stage: Stage) -> None:
    run = finished(stage, 0)
    (run.model_folder / "postprocessing.pkl").write_text("mine")
    remove(listed(stage, "key0"), mlflow=False)
    assert sorted(path.name for path in run.model_folder.iterdir()) == ["dataset.json", "plans.json", "postprocessing.pkl"]


def test_a_name_that_means_no_run_removes_nothing(stage: Stage) -> None:
    finished(stage, 0)
    with pytest.raises(ConfigError, match="there is no run '1/2d' below .*results. Known: 1/3d/nnUNetTrainer[.]"):
        listed(stage, "key0", "1/2d")


def test_a_run_that_was_cut_off_may_be_removed_and_is_called_paused(stage: Stage) -> None:
    run = stage.run(0)
    write_json_atomic(RunFolder(run.run_folder).spec_file, json.loads(run.model_dump_json()))
    (found,) = listed(stage, "key0")
    assert found.state is RunState.PAUSED


def test_a_run_that_a_campaign_awaits_while_it_preprocesses_is_refused(stage: Stage) -> None:
    """It has no run key there yet: the folder says which it is."""
    run = finished(stage, 0)
    stage.cluster.add_campaign("c2")
    status = RunStatus(
        run_key=f"{UNPLANNED}0", address=run.address, campaign="c2", state=RunState.QUEUED, epochs=4, run_folder=run.run_folder
    )
    with pytest.raises(ConfigError, match="1 of 1 runs have not ended: .* is QUEUED in the campaign c2"):
        removable([run.run_key], stage.base / "results", [status], stage.cluster.records())


def test_a_run_with_a_job_or_in_the_queue_of_a_living_campaign_is_refused(stage: Stage) -> None:
    running, queued = stage.run(0), stage.run(1)
    look(campaign := stage.campaign(running, queued))
    statuses = [run.status() for run in campaign.runs.values()]
    with pytest.raises(ConfigError) as caught:
        removable(["1"], stage.base / "results", statuses, stage.cluster.records())
    assert str(caught.value).startswith("rm: 2 of 2 runs have not ended: ")
    assert "1/3d/nnUNetTrainer/0 (key0) has the job train-key0-a1" in str(caught.value)
    assert "1/3d/nnUNetTrainer/1 (key1) is QUEUED in the campaign c1" in str(caught.value)
    assert "Nothing was removed. Stop them first (nnfleet stop)" in str(caught.value)
    stage.cluster.kill_campaign("c1")
    stage.cluster.kill_driver(running)
    assert len(removable(["1"], stage.base / "results", statuses, stage.cluster.records())[0]) == 2, "nobody follows them any more"


def test_a_run_that_another_cluster_works_on_is_refused(stage: Stage) -> None:
    run = stage.run(0)
    folder = RunFolder(run.run_folder)
    write_json_atomic(folder.spec_file, json.loads(run.model_dump_json()))
    acquire_token(folder, "train-key0-a1", {"job": "train-key0-a1", "cluster": "http://head:8265"})
    with pytest.raises(ConfigError, match=r"1/3d/nnUNetTrainer/0 \(key0\) shows recent activity in its folder"):
        listed(stage, "key0")


class Server:
    """An MLflow server's bin."""

    binned: ClassVar[list[str]] = []
    models: ClassVar[dict[str, tuple[str, str]]] = {}
    """Id of a cross-validation -> its model folder and its folds."""
    is_away = False

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def ping(self) -> None:
        if Server.is_away:
            raise TrackingError("mlflow: away")

    def models_in(self, model_folder: str) -> list[str]:
        return [run_id for run_id, (folder, _) in Server.models.items() if folder == model_folder]

    def tags(self, run_id: str) -> dict[str, str]:
        return {"nnfleet.folds": Server.models[run_id][1]}

    def delete_run(self, run_id: str) -> None:
        Server.models.pop(run_id, None)
        Server.binned.append(f"{self.uri} {run_id}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    monkeypatch.setattr(client, "Tracker", Server)
    monkeypatch.setattr(Server, "binned", [])
    monkeypatch.setattr(Server, "models", {})
    monkeypatch.setattr(Server, "is_away", False)
    return Server


def tracked(stage: Stage, fold: int) -> RunSpec:
    run = finished(stage, fold)
    write_mlflow_run(RunFolder(run.run_folder), MlflowRun(run_id=f"id{fold}", experiment_id="7", tracking_uri="http://mlflow"))
    return run


def test_mlflow_runs_go_into_the_bin_only_when_asked_for(stage: Stage, server: type[Server]) -> None:
    tracked(stage, 0)
    tracked(stage, 1)
    finished(stage, 2)
    remove(listed(stage, "key0"), mlflow=False)
    assert server.binned == []
    remove(listed(stage, "1"), mlflow=True)
    assert server.binned == ["http://mlflow id1"]


def test_the_cross_validation_in_mlflow_that_holds_a_removed_fold_goes_into_the_bin_too(stage: Stage, server: type[Server]) -> None:
    folder = str(tracked(stage, 0).model_folder)
    tracked(stage, 1)
    server.models.update({"cv": (folder, "1, 10"), "earlier": (folder, "2, 10"), "other": ("/elsewhere", "0, 1")})
    remove(listed(stage, "key0"), mlflow=True)
    assert server.binned == ["http://mlflow id0"], "neither holds it"
    remove(listed(stage, "key1"), mlflow=True)
    assert server.binned[1:] == ["http://mlflow cv", "http://mlflow id1"]


def test_nothing_is_removed_while_the_server_is_away(stage: Stage, server: type[Server]) -> None:
    run = tracked(stage, 0)
    server.is_away = True
    with pytest.raises(TrackingError, match="away"):
        remove(listed(stage, "key0"), mlflow=True)
    assert RunFolder(run.run_folder).spec() == run


def test_a_folder_that_may_not_be_removed_is_named_with_what_to_do(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(stage, 0)
    found = listed(stage, "key0")
    run.run_folder.rename(run.run_folder.with_name("gone"))
    with pytest.raises(DataError, match=r"rm: .*fold_0 of \S+/0 cannot be removed: No such file or directory .* Let this user write there"):
        remove(found, mlflow=False)
