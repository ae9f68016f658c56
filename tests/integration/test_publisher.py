"""Delivery to a real MLflow server over HTTP: replay, outages, killed uploads, retention."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.compare.model_run import publish_cross_validation
from orchestrator.errors import CheckpointError, ConfigError, Superseded, TrackingError
from orchestrator.export.mlflow_folds import folds_in_mlflow
from orchestrator.export.model import export_model
from orchestrator.publishing import checkpoint_store
from orchestrator.publishing.checkpoint_store import directory_of, download_checkpoint, publish_checkpoint, published
from orchestrator.publishing.publisher import Publisher, deliver_run
from orchestrator.publishing.reconcile import end_orphaned_runs, sync
from orchestrator.queue.registry import Registry
from orchestrator.resume.removal import Removable, remove
from orchestrator.run.outcome import Outcome
from orchestrator.tracking.binding import track
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.end_state import publish_end
from tests.fake_run import CLASSES, FakeRun
from tests.integration.mlflow_server import MlflowServer, client_of
from tests.validated_model import validated_model
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import check_driver_fence
from trainers.contract.states import RunState

REPOSITORY = Path(__file__).parents[2]
DELIVER = "import sys; from pathlib import Path; from orchestrator.publishing.publisher import deliver_run; "
DELIVER += "from trainers.contract.run_folder import RunFolder; deliver_run(RunFolder(Path(sys.argv[1])), 1, 60.0)"
BIG = 40_000_000
"""Bytes of a checkpoint whose upload can be hit in the middle."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for all tests of this file; a test that kills it starts it again."""
    started = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield started
    started.kill()


@pytest.fixture
def tracker(server: MlflowServer) -> Tracker:
    return Tracker(server.uri)


@pytest.fixture
def run(server: MlflowServer, tracker: Tracker, tmp_path: Path, request: pytest.FixtureRequest) -> FakeRun:
    """A claimed run with an MLflow run of its own."""
    fake = FakeRun(tmp_path, run_key=f"901-{request.node.name}", tracking_uri=server.uri)
    fake.track(server.uri, tracker.get_or_create_run(tracker.ensure_experiment("Dataset901_Toy"), fake.spec))
    return fake


def run_id(run: FakeRun) -> str:
    return str(json.loads(run.folder.mlflow_file.read_text())["run_id"])


def points(tracker: Tracker, run: FakeRun, key: str) -> list[tuple[int, float]]:
    """Every stored point of a metric, by step."""
    return sorted((p.step, p.value) for p in client_of(tracker).get_metric_history(run_id(run), key))


def assert_history_is_exact(tracker: Tracker, run: FakeRun) -> None:
    """Each committed epoch is in MLflow once, with its value."""
    assert points(tracker, run, "train/loss") == [(row.epoch, row.train_loss) for row in run.rows]
    assert points(tracker, run, f"val/pseudo_dice/{CLASSES[0]}") == [(row.epoch, 0.5) for row in run.rows]


def assert_published_is_committed_best(tracker: Tracker, run: FakeRun, target: Path) -> None:
    record = download_checkpoint(tracker, run_id(run), "best", target)
    assert record.manifest == run.best
    assert run.best is not None
    assert sha256(target.read_bytes()).hexdigest() == run.best.sha256


# ---- runs ---------------------------------------------------------------------------------------------------------


def test_claiming_a_run_twice_gives_the_same_run_even_with_other_workers(tracker: Tracker, run: FakeRun) -> None:
    experiment = tracker.ensure_experiment("Dataset901_Toy")
    moved = run.spec.model_copy(update={"workers": run.spec.workers.model_copy(update={"count": 4})})
    again = tracker.get_or_create_run(experiment, moved)
    assert again == run_id(run)
    record = client_of(tracker).get_run(again)
    assert record.data.tags["nnfleet.workers.count"] == "4"
    grouping = {"dataset": "Dataset901_Toy", "configuration": "3d_fullres", "trainer": "nnUNetTrainer", "plans": "nnUNetPlans"}
    expected = grouping | {"fold": "0", "seed": "0", "patch_size": "32 x 48 x 64", "spacing_mm": "3 x 1 x 1", "batch_size": "2"}
    assert expected.items() <= record.data.params.items()
    assert record.inputs.dataset_inputs[0].dataset.digest == run.spec.data_digest[:36]
    assert tracker.find_runs(run.spec.run_key) == [again]


def test_a_run_that_another_experiment_has_is_taken_up_there(tracker: Tracker, run: FakeRun, caplog: pytest.LogCaptureFixture) -> None:
    other = tracker.ensure_experiment("renamed")
    assert tracker.get_or_create_run(other, run.spec) == run_id(run)
    assert [n.mlflow_run_id for n in tracker.run_names() if n.run_key == run.spec.run_key] == [run_id(run)]
    assert [m for m in caplog.messages if "stays in MLflow's experiment 'Dataset901_Toy'" in m]


def test_of_two_runs_at_one_address_the_one_that_owns_the_folder_is_meant(tracker: Tracker, run: FakeRun) -> None:
    failed = run.spec.model_copy(update={"run_key": f"{run.spec.run_key}-failed", "fold": 7})
    owner = failed.model_copy(update={"run_key": f"{run.spec.run_key}-owner"})
    experiment = tracker.ensure_experiment("Dataset901_Toy")
    ids = [tracker.get_or_create_run(experiment, spec) for spec in (failed, owner)]
    assert [tracker.find_runs(name) for name in (failed.run_key, owner.address)] == [[found] for found in ids]


def test_callers_at_the_same_moment_end_up_with_one_run(server: MlflowServer, tmp_path: Path) -> None:
    spec = FakeRun(tmp_path, run_key="901-race").spec
    found: list[str] = []

    def claim() -> None:
        mine = Tracker(server.uri)
        found.append(mine.get_or_create_run(mine.ensure_experiment("race"), spec))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker = Tracker(server.uri)
    assert tracker.get_or_create_run(tracker.ensure_experiment("race"), spec) in found
    assert len([n for n in tracker.run_names() if n.run_key == "901-race"]) == 1


def test_state_is_a_tag_and_the_status(tracker: Tracker, run: FakeRun) -> None:
    shown = [client_of(tracker).get_run(run_id(run)).info.status]
    for state in (RunState.RUNNING, RunState.STOPPED, RunState.QUEUED, RunState.FAILED_CODE, RunState.RUNNING, RunState.SUCCEEDED):
        tracker.set_state(run_id(run), state)
        record = client_of(tracker).get_run(run_id(run))
        is_open = run.spec.run_key in {each.run_key for each in tracker.open_runs()}
        shown.append((record.data.tags["nnfleet.state"], record.info.status, is_open))
    assert shown == [
        "SCHEDULED",
        ("RUNNING", "RUNNING", True),
        ("STOPPED", "KILLED", False),
        ("QUEUED", "SCHEDULED", True),
        ("FAILED_CODE", "FAILED", False),
        ("RUNNING", "RUNNING", True),
        ("SUCCEEDED", "FINISHED", False),
    ]
    tracker.set_state(run_id(run), RunState.RECOVERING, is_waiting=True)
    assert client_of(tracker).get_run(run_id(run)).info.status == "SCHEDULED"


def test_server_that_is_away_or_hangs_is_an_error_that_says_what_to_do(tmp_path: Path, server: MlflowServer) -> None:
    with pytest.raises(TrackingError, match=r"could not reach .*`nnfleet up`"):
        Tracker("http://127.0.0.1:9").ping()
    server.freeze()
    try:
        with pytest.raises(TrackingError, match="timed out"):
            Tracker(server.uri).ping()
    finally:
        server.thaw()


def test_a_server_that_lets_clients_write_artifacts_to_a_path_is_refused_and_leaves_no_experiment(tmp_path: Path) -> None:
    place = str(tmp_path / "artifacts")
    server = MlflowServer(tmp_path / "server", ["--no-serve-artifacts", "--default-artifact-root", place]).start()
    try:
        tracker = Tracker(server.uri)
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"has its artifacts in .*artifacts.*`tracking: {local_artifacts: true}`"):
                tracker.ensure_experiment("toy", local_artifacts=False)
            assert client_of(tracker).get_experiment_by_name("toy") is None
        tracker.ensure_experiment("toy", local_artifacts=True)
        with pytest.raises(ConfigError, match="an experiment keeps its place"):
            tracker.ensure_experiment("toy", local_artifacts=False)
        assert client_of(tracker).get_experiment_by_name("toy") is not None
    finally:
        server.kill()


# ---- metrics ------------------------------------------------------------------------------------------------------


def test_replay_of_a_whole_history_changes_nothing(tracker: Tracker, run: FakeRun) -> None:
    for _ in range(70):  # more than one request of metrics
        run.epoch(size_bytes=10)
    tracker.log_epochs(run_id(run), run.rows[:30], CLASSES)
    tracker.log_epochs(run_id(run), run.rows, CLASSES, logged=())  # as if nothing were known of the first time
    tracker.log_epochs(run_id(run), run.rows, CLASSES)
    assert tracker.logged_epochs(run_id(run)) == set(range(70))
    assert_history_is_exact(tracker, run)
    assert points(tracker, run, "best/ema_pseudo_dice") == [(row.epoch, row.ema_pseudo_dice) for row in run.rows]


def test_epoch_that_was_trained_again_keeps_its_first_point(tracker: Tracker, run: FakeRun) -> None:
    run.epoch()
    tracker.log_epochs(run_id(run), run.rows, CLASSES)
    redone = run.rows[0].model_copy(update={"train_loss": 7.0, "ended_unix": 1.8e9})
    tracker.log_epochs(run_id(run), [redone], CLASSES)
    assert_history_is_exact(tracker, run)


def test_server_killed_and_restarted_loses_and_doubles_nothing(
    server: MlflowServer, tracker: Tracker, run: FakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(run.folder, run.fencing_token, interval_s=0.02)
    publisher.start()
    try:
        for number in range(30):
            if number == 10:
                server.kill()
            if number == 20:
                server.start()
            run.epoch()
            time.sleep(0.02)
        assert publisher.flush(60)
    finally:
        publisher.stop()
    assert_history_is_exact(tracker, run)
    assert_published_is_committed_best(tracker, run, tmp_path / "best.pth")
    told = [m for m in caplog.messages if "MLflow gets no metrics since" in m]
    assert len(told) == 1


def test_what_a_dead_driver_left_is_delivered_by_the_next_one(
    server: MlflowServer, tracker: Tracker, run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNFLEET_SUBMISSION_ID", "train-x-a2")
    made = run_id(run)
    run.track("http://127.0.0.1:9", made)  # nothing listens there
    run.epoch()
    first = Publisher(run.folder, run.fencing_token, interval_s=0.02)
    first.start()
    assert not first.flush(0.5)
    first.stop()
    run.track(server.uri, made)
    run.resume()
    run.epoch()
    run.finish()
    assert deliver_run(run.folder, run.fencing_token, 60)
    assert_history_is_exact(tracker, run)
    assert_published_is_committed_best(tracker, run, tmp_path / "best.pth")
    told = {"nnfleet.attempt": str(run.fencing_token), "nnfleet.ray_job.training": "train-x-a2"}
    assert told.items() <= tracker.tags(made).items()


def test_superseded_driver_publishes_nothing(tracker: Tracker, run: FakeRun) -> None:
    run.epoch()
    old = run.fencing_token
    run.resume()
    publisher = Publisher(run.folder, old, interval_s=0.02)
    publisher.start()
    assert not publisher.flush(30)
    publisher.stop()
    assert points(tracker, run, "train/loss") == []
    assert published(tracker, run_id(run), "best") is None


def test_with_pseudonyms_no_file_that_names_cases_is_sent(server: MlflowServer, tracker: Tracker, tmp_path: Path) -> None:
    run = FakeRun(tmp_path, run_key="901-pseudonyms", tracking_uri=server.uri, pseudonyms=True)
    described = run.spec.preprocessed_folder / "dataset.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"training": [{"image": "case_0"}]}))
    (run.folder.root / "training_log_2026_11_24_12_00_00.txt").write_text("case_0")
    run.track(server.uri, tracker.get_or_create_run(tracker.ensure_experiment("Dataset901_Toy"), run.spec))
    run.epoch()
    assert deliver_run(run.folder, run.fencing_token, 60)
    sent = tracker.list_files(run_id(run))
    assert set(sent) == {"plans.json", "dataset.json", "progress.png", "checkpoints"}
    for name in ("plans.json", "dataset.json"):
        assert "case_" not in tracker.download(run_id(run), name, tmp_path).read_text()
    record = client_of(tracker).get_run(run_id(run)).to_dictionary()
    assert "case_" not in json.dumps(record)


def test_untracked_run_is_delivered_at_once_and_gets_its_picture(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    assert deliver_run(run.folder, run.fencing_token, 30)
    assert (run.folder.root / "progress.png").read_bytes().startswith(b"\x89PNG")


# ---- checkpoints --------------------------------------------------------------------------------------------------


def test_two_newest_published_checkpoints_are_kept(tracker: Tracker, run: FakeRun) -> None:
    manifests = []
    for _ in range(4):
        best = run.epoch().best
        assert best is not None
        publish_checkpoint(tracker, run_id(run), best, run.folder.root / best.file)
        manifests.append(best)
    assert set(tracker.list_files(run_id(run), "checkpoints/best")) == {directory_of(m) for m in manifests[-2:]}
    newest = directory_of(manifests[-1])
    assert set(tracker.list_files(run_id(run), newest)) == {f"{newest}/checkpoint_best.pth", f"{newest}/manifest.json"}


def test_what_a_publisher_left_that_was_killed_after_its_commit_goes_with_the_next_one(
    tracker: Tracker, run: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    with monkeypatch.context() as killed:
        killed.setattr(checkpoint_store, "_delete_others", lambda *_args: None)
        for _ in range(3):
            best = run.epoch().best
            assert best is not None
            publish_checkpoint(tracker, run_id(run), best, run.folder.root / best.file)
            manifests.append(best)
    assert len(tracker.list_files(run_id(run), "checkpoints/best")) == 3
    assert deliver_run(run.folder, run.fencing_token, 60)
    assert set(tracker.list_files(run_id(run), "checkpoints/best")) == {directory_of(m) for m in manifests[-2:]}


def test_fence_before_the_commit_leaves_the_published_best(tracker: Tracker, run: FakeRun) -> None:
    first = run.epoch().best
    assert first is not None
    publish_checkpoint(tracker, run_id(run), first, run.folder.root / first.file)
    second = run.epoch().best
    assert second is not None
    old = run.fencing_token
    run.resume()
    with pytest.raises(Superseded):
        publish_checkpoint(
            tracker, run_id(run), second, run.folder.root / second.file, before_commit=lambda: check_driver_fence(run.folder, old)
        )
    record = published(tracker, run_id(run), "best")
    assert record is not None
    assert record.manifest == first


def test_damaged_file_is_neither_published_nor_handed_out(server: MlflowServer, tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    best = run.epoch().best
    assert best is not None
    file = run.folder.root / best.file
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="9999 bytes"):
        publish_checkpoint(tracker, run_id(run), best, file)
    assert published(tracker, run_id(run), "best") is None
    file.write_bytes(content)
    publish_checkpoint(tracker, run_id(run), best, file)
    [stored] = server.artifacts.glob(f"**/{run_id(run)}/**/checkpoint_best.pth")
    stored.write_bytes(content[:-1] + b"x")
    with pytest.raises(CheckpointError, match="not the file of its manifest"):
        download_checkpoint(tracker, run_id(run), "best", tmp_path / "best.pth")
    assert not (tmp_path / "best.pth").exists()


def test_newest_best_wins_while_uploads_are_held_up(server: MlflowServer, tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    run.epoch(BIG)
    publisher = Publisher(run.folder, run.fencing_token, interval_s=0.02)
    publisher.start()
    try:
        uploads = server.artifacts / "*" / run_id(run) / "artifacts" / "checkpoints" / "best" / "*"
        _wait_for(lambda: list(server.artifacts.glob(str(uploads.relative_to(server.artifacts)))))
        server.freeze()  # in the middle of the first upload
        for _ in range(5):
            run.epoch(BIG // 10)
        server.thaw()
        assert publisher.flush(60)
    finally:
        publisher.stop()
    assert_published_is_committed_best(tracker, run, tmp_path / "best.pth")
    sent = {path.name for path in server.artifacts.glob(f"*/{run_id(run)}/artifacts/checkpoints/best/*")}
    assert run.best is not None
    assert {int(name[1:6]) for name in sent} == {0, 5}  # the bests between were never sent
    assert_history_is_exact(tracker, run)


@pytest.mark.parametrize("moment", ["file arrives", "file there", "manifest there"])
def test_upload_killed_at_any_moment_leaves_the_previous_best_and_the_next_publisher_catches_up(
    moment: str, server: MlflowServer, tracker: Tracker, run: FakeRun, tmp_path: Path
) -> None:
    first = run.epoch().best
    assert deliver_run(run.folder, run.fencing_token, 60)
    second = run.epoch(BIG).best
    assert first is not None
    assert second is not None
    directory = (
        server.artifacts / client_of(tracker).get_run(run_id(run)).info.experiment_id / run_id(run) / "artifacts" / directory_of(second)
    )
    signs = {
        "file arrives": lambda: directory.exists(),
        "file there": lambda: (directory / "checkpoint_best.pth").exists(),
        "manifest there": lambda: (directory / "manifest.json").exists(),
    }
    process = subprocess.Popen([sys.executable, "-c", DELIVER, str(run.folder.root)], cwd=REPOSITORY)
    _wait_for(lambda: signs[moment]() or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    record = download_checkpoint(tracker, run_id(run), "best", tmp_path / "after_kill.pth")
    assert record.manifest in ((first, second) if moment == "manifest there" else (first,))
    assert deliver_run(run.folder, run.fencing_token, 60)
    assert_published_is_committed_best(tracker, run, tmp_path / "best.pth")
    assert_history_is_exact(tracker, run)


def _wait_for(happened: object, timeout_s: float = 60.0) -> None:
    assert callable(happened)
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.002)


# ---- the end ------------------------------------------------------------------------------------------------------


def test_validated_run_has_scores_table_model_and_can_be_exported(tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    run.epoch()
    assert deliver_run(run.folder, run.fencing_token, 60)
    run.epoch()
    run.finish()
    for name in ("plans.json", "dataset.json"):
        (run.folder.model_folder / name).write_text("{}")
    summary = run.folder.validation("best") / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    for _ in range(2):  # a validation that is repeated records the same
        rows = [{"case": "case_2", "dice": 0.9, "hd95_mm": float("nan")}]
        tracker.log_validation(
            run_id(run), "best", {"dice_mean": 0.9, "dice/left kidney": 0.9, "nsd": float("nan")}, rows, summary, summary.stat().st_mtime
        )
        assert deliver_run(run.folder, run.fencing_token, 60)
    assert run.best is not None
    assert set(tracker.list_files(run_id(run), "checkpoints/best")) == {directory_of(run.best)}, "the one before is not needed any more"
    assert points(tracker, run, "full/best/dice_mean") == [(0, 0.9)]
    assert points(tracker, run, "full/best/dice/left kidney") == [(0, 0.9)]
    table = json.loads(tracker.download(run_id(run), "fullval/best/per_case.json", tmp_path).read_text())
    assert table == {"columns": ["case", "dice", "hd95_mm"], "data": [["case_2", 0.9, None]]}
    experiment = client_of(tracker).get_run(run_id(run)).info.experiment_id
    [model] = client_of(tracker).search_logged_models([experiment], f"source_run_id = '{run_id(run)}'")
    assert str(model.status) == "READY"
    assert [output.model_id for output in client_of(tracker).get_run(run_id(run)).outputs.model_outputs] == [model.model_id]
    assert {m.key: m.value for m in model.metrics}["full/best/dice_mean"] == 0.9
    expected = {"plans.json", "dataset.json", "splits_final.json", "run.json", "progress.png", "checkpoints", "fullval"}
    assert expected <= set(tracker.list_files(run_id(run)))

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        exported(tracker, run, tmp_path / "own")
    target = exported(tracker, run, tmp_path / "model")
    assert sha256((target / "fold_0" / "checkpoint_best.pth").read_bytes()).hexdigest() == run.best.sha256
    assert (target / "fold_0" / "checkpoint_final.pth").read_bytes() == run.folder.checkpoint("final").read_bytes()
    assert {p.name for p in target.iterdir()} == {"plans.json", "dataset.json", "fold_0"}
    assert exported(tracker, run, target) == target, "it is there already"


def exported(tracker: Tracker, run: FakeRun, target: Path) -> Path:
    key = run.spec.run_key
    return export_model(key, target, folds_in_mlflow(tracker.uri, key), "in MLflow").folder


def test_a_model_has_one_run_with_its_cross_validation_beside_those_of_its_folds(tracker: Tracker, tmp_path: Path) -> None:
    folders = validated_model(tmp_path, lambda case, name: 0.5, [["case_a"], ["case_b"]], tracking_uri=tracker.uri, seed=5)
    for folder in folders:
        track(folder.spec(), tracker)
        assert deliver_run(folder, 1, 60)
    model_folder, name = folders[0].model_folder, folders[0].spec().model
    sent = [publish_cross_validation(model_folder, lambda fold: False) for _ in range(2)]
    assert sent == ["cross-validation of folds 0, 1", ""]
    experiment = tracker.ensure_experiment("Dataset901_Toy")
    [found] = client_of(tracker).search_runs([experiment], f"tags.`nnfleet.kind` = 'cv' AND tags.`nnfleet.model` = '{name}'")
    assert (found.info.run_name, found.info.status, found.data.metrics["cv/dice_mean"]) == ("901/3d_fullres/default+seed5", "FINISHED", 0.5)
    assert "dice.png" in tracker.list_files(found.info.run_id)
    assert set(tracker.list_files(found.info.run_id, "fullval/final")) == {"fullval/final/summary.json", "fullval/final/per_case.json"}
    runs = tracker.find_runs(name)
    assert len(runs) == 2, "the folds alone"
    assert found.info.run_id not in {*runs, *(shown.run_id for shown in tracker.open_runs())}
    exported = export_model(name, tmp_path / "model", folds_in_mlflow(tracker.uri, name), "in MLflow")
    assert exported.folds == {"0": ("best", "final"), "1": ("best", "final")}
    going = {"state": "STOPPED", "epochs_done": 1, "epochs": 1, "size_bytes": 0}
    remove([Removable.model_validate(going | {"run_key": "", "address": "", "run_folder": fold.root}) for fold in folders], mlflow=True)
    assert client_of(tracker).search_runs([experiment], f"tags.`nnfleet.model` = '{name}'") == [], "neither its folds nor itself"


def test_export_without_a_checkpoint_leaves_nothing(tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no published checkpoint"):
        exported(tracker, run, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert newest_committed(run.folder) is None


# ---- without any job ----------------------------------------------------------------------------------------------


def age(run: FakeRun) -> None:
    """Make every sign of life old."""
    for file in run.folder.tokens.glob("*.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"claimed_unix": 1.0}))


def test_sync_delivers_what_no_job_did_and_ends_the_run_once(tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    age(run)
    for _ in range(3):
        run.epoch()
    run.finish()
    tracker.set_state(run_id(run), RunState.RUNNING)
    (first,) = sync([run.folder], [])
    assert first.lacking == ""
    assert first.delivered == ("3 epochs", "checkpoint best of epoch 2", "checkpoint final of epoch 2", "state STOPPED")
    assert_history_is_exact(tracker, run)
    assert_published_is_committed_best(tracker, run, tmp_path / "best.pth")
    assert "nnfleet resume" in tracker.tags(run_id(run))["nnfleet.reason"]
    (again,) = sync([run.folder], [])
    assert (again.delivered, again.lacking) == ((), "")


def test_a_run_that_the_server_lost_is_made_anew_with_everything(tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    age(run)
    run.epoch()
    assert deliver_run(run.folder, run.fencing_token, 60)
    run.track(tracker.uri, "0" * 32)  # what a server with another database does not know
    client_of(tracker).delete_tag(*tracker.find_runs(run.spec.run_key), "nnfleet.run_key")
    with pytest.raises(TrackingError, match="nnfleet sync"):
        tracker.tags(run_id(run))
    (done,) = sync([run.folder], [])
    assert done.lacking == ""
    assert done.delivered == ("a new MLflow run", "1 epochs", "checkpoint best of epoch 0", "state STOPPED")
    assert "plans.json" in tracker.list_files(run_id(run))
    assert_published_is_committed_best(tracker, run, tmp_path / "best.pth")


def test_a_run_deleted_in_mlflow_while_it_trains_is_restored_with_one_warning(
    tracker: Tracker, run: FakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = Publisher(run.folder, run.fencing_token, interval_s=0.02)
    publisher.start()
    try:
        run.epoch()
        assert publisher.flush(60)
        client_of(tracker).delete_run(run_id(run))
        run.epoch()
        assert publisher.flush(60)
    finally:
        publisher.stop()
    assert_history_is_exact(tracker, run)
    assert 1 <= len([m for m in caplog.messages if "was deleted there and is restored" in m]) <= 2, "two threads may find it at once"


def test_a_run_goes_into_the_bin_once_and_one_that_is_gone_is_no_error(tracker: Tracker, run: FakeRun) -> None:
    for _ in range(2):
        tracker.delete_run(run_id(run))
        recorded = tracker.recorded_run(run_id(run))
        assert recorded is not None
        assert recorded.is_deleted
        assert tracker.known_run(run.spec.run_key) is None, "the same may be trained again"
    tracker.delete_run("0" * 32)


def test_sync_restores_a_run_that_was_deleted_unless_another_took_its_place(tracker: Tracker, run: FakeRun) -> None:
    age(run)
    run.epoch()
    made = run_id(run)
    client_of(tracker).delete_run(made)
    (done,) = sync([run.folder], [])
    assert (done.delivered[0], done.lacking) == ("1 epochs", "")
    client_of(tracker).delete_run(made)
    other = tracker.get_or_create_run(tracker.ensure_experiment("Dataset901_Toy"), run.spec)
    (done,) = sync([run.folder], [])
    assert done.delivered[0] == "a new MLflow run"
    assert run_id(run) == other
    assert (gone := tracker.recorded_run(made)) is not None
    assert gone.is_deleted
    assert publish_end(run.folder, Outcome(job="training", state="STOPPED", fencing_token=run.fencing_token, message="stopped"))


def test_an_experiment_deleted_in_mlflow_comes_back_with_its_runs(
    tracker: Tracker, tmp_path: Path, server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    run = FakeRun(tmp_path, run_key="901-binned", tracking_uri=server.uri)
    experiment = tracker.ensure_experiment("binned")
    run.track(server.uri, tracker.get_or_create_run(experiment, run.spec))
    age(run)
    run.epoch()
    tracker.delete_experiment("binned")
    (done,) = sync([run.folder], [])
    assert (done.delivered[0], done.lacking) == ("1 epochs", "")
    tracker.delete_experiment("binned")
    caplog.clear()
    assert tracker.ensure_experiment("binned") == tracker.ensure_experiment("binned") == experiment
    assert len([m for m in caplog.messages if "'binned' was deleted there and is restored" in m]) == 1
    assert tracker.known_run("901-binned") is not None
    client_of(tracker).delete_run(run_id(run))
    with pytest.raises(TrackingError, match=r"must be in the 'active' state.* The server answers and refuses this"):
        tracker.set_tags(run_id(run), {"key": "value"})


def test_a_run_deleted_before_its_experiment_stays_deleted_when_that_comes_back(
    tracker: Tracker, tmp_path: Path, server: MlflowServer
) -> None:
    run = FakeRun(tmp_path, run_key="901-anew", tracking_uri=server.uri)
    experiment = tracker.ensure_experiment("anew")
    first = tracker.get_or_create_run(experiment, run.spec)
    client_of(tracker).delete_run(first)
    run.track(server.uri, second := tracker.get_or_create_run(experiment, run.spec))
    assert second != first
    tracker.delete_experiment("anew")
    tracker.ensure_experiment("anew")
    assert [n.mlflow_run_id for n in tracker.run_names() if n.run_key == "901-anew"] == [second]
    assert tracker.recorded_run("0" * 32) is None
    client_of(tracker).delete_run(second)
    assert track(run.spec, tracker).run_id == second, "the folder names it"


def test_an_artifact_store_that_cannot_be_written_keeps_back_no_metrics(server: MlflowServer, tracker: Tracker, run: FakeRun) -> None:
    age(run)
    run.epoch()
    blocked = server.artifacts / str(client_of(tracker).get_run(run_id(run)).info.experiment_id) / run_id(run)
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where the run's folder should be")
    (done,) = sync([run.folder], [])
    assert "could not upload" in done.lacking
    assert_history_is_exact(tracker, run)
    blocked.unlink()
    (done,) = sync([run.folder], [])
    assert (done.delivered[0], done.lacking) == ("checkpoint best of epoch 0", "")


def test_who_ends_last_tells_and_a_sweep_ends_what_died_unnoticed(tracker: Tracker, run: FakeRun, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "board")
    run.epoch()
    tracker.set_state(run_id(run), RunState.RUNNING)
    assert run.spec.run_key not in end_orphaned_runs(tracker, [], registry), "its claim is fresh"
    age(run)
    assert run.spec.run_key in end_orphaned_runs(tracker, [], registry)
    assert tracker.tags(run_id(run))["nnfleet.state"] == "STOPPED"
    outcome = Outcome(job="validation", state="SUCCEEDED", fencing_token=run.fencing_token, message="done")
    assert publish_end(run.folder, outcome)
    assert publish_end(run.folder, outcome)
    assert client_of(tracker).get_run(run_id(run)).info.status == "FINISHED"
    run.resume()
    assert not publish_end(run.folder, outcome.model_copy(update={"state": "FAILED_CODE"})), "another driver has the run"
