"""What people see of the queue, and how they change it; the cluster is fake, the registry and the folders are real."""

import time
from pathlib import Path

import pytest

from orchestrator.campaign.control_job import main, place_all
from orchestrator.campaign.queue_view import QueueReport, queue_report
from orchestrator.queue.registry import Registry
from orchestrator.run.job_record import JobRecord
from tests.fake_campaign import Stage, look
from tests.fake_run import epoch_row
from trainers.contract.commits import Committed
from trainers.contract.requests import place_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.storage.files import write_json_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def of(run: RunSpec, user: str, priority: int = 50) -> RunSpec:
    return run.model_copy(update={"user": user, "priority": priority})


def epoch_ends(run: RunSpec, epoch_s: float) -> None:
    """The first epoch of a run is committed."""
    row = epoch_row(0).model_copy(update={"epoch_s": epoch_s, "world_size": 1, "gpu_memory_gib": 1.0})
    committed = Committed(run_key=run.run_key, epochs_done=1, fencing_token=1, history=(row,), state_sha256="0", state_size_bytes=1)
    write_json_atomic(RunFolder(run.run_folder).state / f"{committed.stem}.json", committed.model_dump(mode="json"))


def seen(stage: Stage) -> QueueReport:
    return queue_report(stage.cluster.records(), stage.cluster.nodes(), Registry(stage.base / "board"))


def test_the_queue_shows_who_waits_in_order_and_what_each_user_holds(stage: Stage) -> None:
    first = [of(stage.run(0), "ann"), of(stage.run(1), "ann"), of(stage.run(2), "ann", 10)]
    look(one := stage.campaign(*first))
    look(stage.campaign(of(stage.run(3), "bob", 30), name="c2"))
    look(one)
    report = seen(stage)
    assert [(row.run_key, row.user, row.priority) for row in report.rows] == [("key1", "ann", 50), ("key3", "bob", 30), ("key2", "ann", 10)]
    assert report.shares == {"ann": 1.0}
    assert [row.starts_unix for row in report.rows] == [None] * 3, "no epoch has ended"


def test_jobs_that_preprocess_are_counted_beside_the_queue_while_they_live(stage: Stage) -> None:
    assert seen(stage).num_preprocessing == 0
    record = JobRecord(submission_id="preprocess-a", kind="preprocess", state="RUNNING")
    stage.cluster.jobs["preprocess-a"] = record
    assert (seen(stage).rows, seen(stage).num_preprocessing) == ((), 1)
    stage.cluster.jobs["preprocess-a"] = record.model_copy(update={"state": "FAILED"})
    assert seen(stage).num_preprocessing == 0


def test_a_run_that_waits_says_whether_its_request_is_wrong_or_there_is_no_capacity(stage: Stage) -> None:
    large, small, behind = stage.run(0, gpus=9), stage.run(1), stage.run(2)
    campaign = stage.campaign(small, large, behind, stage.run(3))
    look(campaign)
    look(campaign)
    reasons = {key: run.reason for key, run in campaign.runs.items()}
    assert reasons["key0"].startswith("Wrong request: needs 9 workers x (1 GPU, 1 CPU); the cluster has 1 GPU in all.")
    assert reasons["key2"].startswith("No capacity: needs 1 worker x (1 GPU, 1 CPU); 0 GPUs")
    assert reasons["key2"].endswith("when is not known.")
    assert reasons["key3"] == (
        f"No capacity: queued behind {behind.address}. It starts after that one, or before it if that does not delay it."
    )


def test_the_first_in_line_shows_when_it_is_expected_to_start(stage: Stage) -> None:
    running, waiting = stage.run(0), stage.run(1)
    campaign = stage.campaign(running, waiting)
    look(campaign)
    epoch_ends(running, 900.0)
    look(campaign)
    look(campaign)
    assert "expected by 20" in campaign.runs["key1"].reason
    row = seen(stage).rows[0]
    assert row.starts_unix == pytest.approx(time.time() + 3 * 900.0, abs=60)


def test_a_run_that_waits_is_expected_to_take_what_another_fold_took_before(stage: Stage) -> None:
    before = stage.run(7)
    write_json_atomic(RunFolder(before.run_folder).spec_file, before.model_dump(mode="json"))
    epoch_ends(before, 900.0)
    look(stage.campaign(stage.run(0), stage.run(1)))
    (waiting,) = (run for run in Registry(stage.base / "board").entries(["c1"])["c1"].waiting if run.run_key == "key1")
    assert waiting.estimate_s == 4 * 900.0


def test_another_place_is_asked_for_in_the_folder_of_each_run(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [stage.run(fold) for fold in range(2)]
    stage.campaign(*runs)
    folders = [run.run_folder for run in runs]
    place_all(folders, [run.run_key for run in runs], priority=None, is_first=True)
    one, two = (place_request_seen(RunFolder(folder)) for folder in folders)
    assert one.first_unix > two.first_unix > time.time() - 60
    assert main(["place", str(folders[0]), "--run-key", "key0", "--priority", "7"]) == 0
    kept = place_request_seen(RunFolder(folders[0]))
    assert (kept.priority, kept.first_unix) == (7, one.first_unix)
    assert main(["place", str(folders[0]), "--run-key", "other", "--priority", "8"]) == 2
    assert "belongs to the run key0 now, not to other" in capsys.readouterr().out
    assert place_request_seen(RunFolder(folders[0])).priority == 7
