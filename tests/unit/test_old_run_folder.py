"""A run folder, a campaign's log and a cluster's jobs as the version before wrote them are read with the same values, and continued.

`old_run_folder/` was written by commit 66867e2 during a real run: its workers died once in the first epochs, it was to stop after its
second. `{root}` stands for the folder of its data and results. Its keys are older than the names in the code: `attempt`, `standing`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign.events import CampaignLog
from orchestrator.run.activity import cases_done, has_begun, newest_stamp, owner_of, report_cases, workers_now
from orchestrator.run.failure import Failure
from orchestrator.run.job_record import JobRecord, record_of
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.run.progress import progress_of
from orchestrator.run.status import CasesDone, RunStatus
from orchestrator.tracking.binding import bound_run, noted_run_id, track
from orchestrator.training.failures import read_failures
from tests.fake_campaign import FakeTracking, Stage, look
from tests.unit.old_folder import FILES, RUN_KEY, WRITTEN, old_run_folder
from trainers.contract.commits import Committed, Manifest, committed_states, newest_committed
from trainers.contract.fencing import acquire_token, check_driver_fence, count_drivers, fencing_tokens, newest_token, newest_token_of
from trainers.contract.records import MlflowRun, read_published_files
from trainers.contract.requests import StopRequest, read_stop_request, save_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen, RunSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

DRIVER = "vm-24863-7380216b"
JOB = f"train-{RUN_KEY}-a1"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return old_run_folder(tmp_path)


def text_of(name: str, root: Path) -> str:
    return (WRITTEN / name).read_text().replace("{root}", str(root))


def test_the_run_is_the_one_that_was_specified(folder: RunFolder) -> None:
    spec = folder.spec()
    assert (spec.run_key, spec.run_folder, spec.address) == (RUN_KEY, folder.root, "901/toy_3d/nnUNetTrainer/0")
    assert (spec.schedule.epochs, spec.schedule.train_iterations, spec.workers.count, spec.workers.gpus) == (12, 8, 1, 0)
    assert (spec.train_cases, spec.val_cases) == (("toy_001", "toy_002", "toy_004", "toy_005"), ("toy_000", "toy_003"))
    assert (spec.validation.checkpoints, spec.validation.attempts_per_case) == (("best", "final"), 3)


def test_tokens_go_on_from_those_that_were_acquired(folder: RunFolder) -> None:
    assert fencing_tokens(folder) == [1, 2, 3]
    assert (newest_token(folder), newest_token_of(folder, DRIVER), count_drivers(folder)) == (3, 3, 1)
    check_driver_fence(folder, 1)  # the later numbers are of its own workers
    owner = owner_of(folder)
    assert owner is not None
    assert (owner.fencing_token, owner.driver, owner.job, owner.cluster) == (3, DRIVER, JOB, "127.0.0.1:36907")
    assert acquire_token(folder, "new driver") == 4


def test_states_are_those_that_were_committed(folder: RunFolder) -> None:
    assert [(c.epochs_done, c.fencing_token, c.stem) for c in committed_states(folder)] == [
        (2, 3, "e00002_a0003"), (1, 2, "e00001_a0002"),
    ]  # fmt: skip
    newest = newest_committed(folder)
    assert newest is not None
    assert (newest.run_key, newest.position, newest.final) == (RUN_KEY, (2, 0), None)
    assert [(row.epoch, row.fencing_token, row.world_size) for row in newest.history] == [(0, 2, 1), (1, 3, 1)]
    assert newest.history[0].train_loss == 0.7886963933706284
    assert (newest.best_policy.best_epoch, newest.best_policy.score) == (1, 0.2722317305172177)
    assert newest.best == Manifest(
        checkpoint="best",
        file="nnfleet/best/e00002_a0003.pth",
        epoch=1,
        fencing_token=3,
        ema_pseudo_dice=0.2722317305172177,
        sha256="83d256b10802e65b2b99ad8bab956fe54d33f30c59fcf6e5cc4efce4872551bf",
        size_bytes=58255,
    )
    progress = progress_of(folder.spec())
    assert (progress.stage, progress.epochs_done) == ("continues", 2)


def test_its_end_its_failure_and_its_last_heartbeat_are_told(folder: RunFolder) -> None:
    assert read_outcome(folder) == Outcome(job="training", state="STOPPED", fencing_token=1, message="stopped after 2 epochs")
    (failure,) = read_failures(folder, DRIVER)
    assert (failure.fencing_token, failure.kind, failure.state, failure.position, failure.rank) == (
        2,
        "cluster",
        "FAILED_CLUSTER",
        (1, 0),
        0,
    )
    assert has_begun(folder)
    assert workers_now(folder) == 1
    assert newest_stamp(folder) == 1795881300.7702012
    assert cases_done(folder, 1) == CasesDone(checkpoint="best", done=1, cases=2)
    assert cases_done(folder, 2) is None


def test_requests_that_were_left_open_are_open(folder: RunFolder) -> None:
    assert read_stop_request(folder) == StopRequest(is_now=False)
    assert save_request_seen(folder) is not None


def test_it_keeps_its_mlflow_run(folder: RunFolder) -> None:
    assert noted_run_id(folder) == "6eb0a97947404fee801d4a103d8e42d1"
    bound = bound_run(folder, folder.spec())
    assert isinstance(bound, MlflowRun)
    assert (bound.tracking_uri, bound.run_id) == ("http://127.0.0.1:22837", "6eb0a97947404fee801d4a103d8e42d1")
    assert read_published_files(folder).run_id == bound.run_id


MODELS: dict[str, type[Frozen]] = {
    "run.json": RunSpec,
    "outcome.json": Outcome,
    "failures/0002.json": Failure,
    "state/e00001_a0002.json": Committed,
    "state/e00002_a0003.json": Committed,
}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_read_is_written_with_the_same_keys_and_values(folder: RunFolder, name: str) -> None:
    content = json.loads((folder.own / name).read_text())
    assert json.loads(MODELS[name].model_validate(content).model_dump_json()) == content


def keys_of(folder: RunFolder, name: str) -> list[str]:
    return list(json.loads((folder.own / name).read_text()))


def test_records_are_written_with_the_keys_that_they_had(folder: RunFolder, tmp_path: Path) -> None:
    """So that the version before, on another node of the cluster, reads them too."""
    new = RunFolder(tmp_path / "new" / "fold_0")
    new.own.mkdir(parents=True)
    shutil.copy(folder.spec_file, new.spec_file)
    driver = {"job": JOB, "cluster": "127.0.0.1:1", "role": "driver", "pid": 1, "node": "n"}
    acquire_token(new, DRIVER, driver)
    acquire_token(new, DRIVER, {"role": "workers", "pid": 1, "node": "n", "world_size": 1})
    report_cases(new, 1, CasesDone(checkpoint="best", done=1, cases=2))
    assert write_outcome(new, Outcome(job="training", state="STOPPED", fencing_token=1, message=""))
    track(folder.spec().model_copy(update={"model_folder": new.model_folder}), FakeTracking())
    for name in ("attempts/0001.json", "attempts/0002.json", "validating.json", "outcome.json", "mlflow.json"):
        assert keys_of(new, name) == keys_of(folder, name), name


def test_heartbeats_are_written_with_the_keys_that_they_had(folder: RunFolder, tmp_path: Path) -> None:
    from tests.unit.trainers.network.test_learner import ALONE
    from trainers.training.loop import Heartbeats

    new = RunFolder(tmp_path / "new" / "fold_0")
    new.own.mkdir(parents=True)
    Heartbeats(new, ALONE, 3).send("train", 1, 0)
    assert keys_of(new, "progress.json") == keys_of(folder, "progress.json")


def test_every_file_of_the_folder_is_in_this_table() -> None:
    """Whoever adds a file to the fixture adds what reads it."""
    states = {"state/e00001_a0002.json", "state/e00002_a0003.json"}
    claims = {f"attempts/{number:04d}.json" for number in (1, 2, 3)}
    single = {"run", "outcome", "progress", "validating", "mlflow", "published", "stop", "save"}
    assert set(FILES) == states | claims | {"failures/0002.json"} | {f"{name}.json" for name in single}


# ---- what the cluster and the campaign have said ------------------------------------------------------------------------


def jobs(root: Path) -> Iterator[JobRecord]:
    for listed in json.loads(text_of("jobs.json", root)):
        record = record_of(listed)
        assert record is not None
        yield record


def test_the_jobs_of_the_cluster_are_ours(tmp_path: Path) -> None:
    found = {job.kind: job for job in jobs(tmp_path)}
    assert set(found) == {"campaign", "train", "validate", "control"}
    train = found["train"]
    assert (train.submission_id, train.run_key, train.job_number, train.state, train.campaign) == (JOB, RUN_KEY, 1, "SUCCEEDED", "a093f81a")
    assert train.reserved is not None
    assert (train.reserved.count, train.reserved.gpus, train.reserved.cpus) == (1, 0, 1)
    assert (found["validate"].job_number, found["validate"].state) == (1, "STOPPED")
    assert not found["validate"].obeys_gentle_stop, "the version before ends such a job"


def test_a_status_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    """Its JSON is what scripts read."""
    content: dict[str, Any] = json.loads(text_of("status.json", tmp_path))
    status = RunStatus.model_validate(content)
    assert (status.run_key, status.state, status.num_drivers, status.epochs_done) == (RUN_KEY, RunState.RECOVERING, 1, 1)
    assert status.model_dump(mode="json") == content


def test_the_log_of_a_campaign_tells_plan_states_and_end(tmp_path: Path) -> None:
    """Its lines carry only what changed: each is laid over the ones before."""
    text = text_of("campaign.log", tmp_path)
    told = CampaignLog().update(text)
    assert told.plan is not None
    (row,) = told.plan.rows
    assert (row.run_key, row.progress.stage, row.fits) == (RUN_KEY, "new", "now")
    status = told.statuses[RUN_KEY]
    assert (status.state, status.num_drivers, status.epochs_done, status.best_ema_pseudo_dice) == (
        RunState.STOPPED,
        1,
        12,
        0.3474475507601432,
    )
    assert status.reason.startswith("trained; validation stopped")
    assert told.exit_code == 0
    recovering = CampaignLog().update(text[: text.index('"state": "RUNNING", "epochs_done": 2')])
    assert recovering.plan is not None


def test_a_campaign_goes_on_with_the_run_under_the_next_number(tmp_path: Path) -> None:
    """Neither the folder nor the jobs that the cluster still lists have had it, and the MLflow run stays the same."""
    stage, folder = Stage(tmp_path), old_run_folder(tmp_path)
    spec = folder.spec()
    write_json_atomic(spec.preprocessed_folder / "nnUNetPlans.json", {"configurations": {"toy_3d": {}}})
    shutil.copy(stage.data / "dataset.json", spec.preprocessed_folder / "dataset.json")
    stage.cluster.jobs = {job.submission_id: job for job in jobs(tmp_path) if job.kind in ("train", "validate")}
    campaign = stage.campaign(spec)
    look(campaign)
    assert stage.cluster.live_jobs() == [f"train-{RUN_KEY}-a4"]
    status = campaign.runs[RUN_KEY].status()
    assert (status.state, status.epochs_done, status.num_drivers) == (RunState.RUNNING, 2, 1)
    assert not folder.stop_file.exists()
    assert read_outcome(folder) is None
