"""Never two writers on one run: drivers, campaigns and submissions that overlap are forced to, with real files and threads."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.resume.unfinished import choose, find_runs
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from tests.fake_campaign import FakeCluster, Stage, finish_on_disk, look, states
from tests.unit.trainers.training.test_state import FIXED, committed_epochs, row, tensors
from trainers.contract.commits import BestRecord, committed_states, newest_committed
from trainers.contract.fencing import acquire_token, check_driver_fence, check_fence, newest_token
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.errors import Superseded
from trainers.storage.files import sha256_of, write_atomic
from trainers.training import state
from trainers.training.state import StateWriter, TrainingProgress, link_for_nnunet, newest_valid, prune

PATIENCE_S = 60


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


class Gate:
    """Holds whoever writes it into a file, until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        self.reached.set()
        assert self.opened.wait(PATIENCE_S)
        return str, ("",)


# ---- two drivers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_best", [False, True])
def test_a_commit_that_a_newer_driver_overtakes_in_the_middle_is_refused(tmp_path: Path, is_best: bool) -> None:
    folder, gate = RunFolder(tmp_path / "fold_0"), Gate()
    old = committed_epochs(folder, [0.5], driver="old")
    old.fixed = {**FIXED, "gate": gate}
    reached = TrainingProgress(history=(row(0, 0.5), row(1, 0.9)), best_policy=BestRecord(ema=0.9, score=0.9, best_epoch=1))
    old.commit(reached, is_best, lambda: tensors(1.0))
    assert gate.reached.wait(PATIENCE_S)  # its tensors are half written
    new = StateWriter(folder, "key", acquire_token(folder, "new"), FIXED, 1000)
    restored = newest_valid(folder)
    new.start_from(restored)
    gate.opened.set()
    with pytest.raises(Superseded):  # also where the new driver has cleared away what was half written
        old.drain()
    assert restored is not None
    assert [(c.epochs_done, c.fencing_token) for c in committed_states(folder)] == [(1, 1)]
    best = newest_committed(folder).best  # type: ignore[union-attr]
    assert best is not None
    assert best.epoch == 0
    new.commit(reached, False, lambda: tensors(2.0))
    new.drain()
    assert newest_committed(folder).fencing_token == new.fencing_token  # type: ignore[union-attr]


def files_of(folder: RunFolder) -> dict[str, str]:
    """Every file of states, bests and nnU-Net's names, by what is in it."""
    places = (folder.state, folder.best, folder.root)
    return {str(path): sha256_of(path) for place in places for path in place.iterdir() if path.is_file()}


def goes_on_as_newer(folder: RunFolder) -> dict[str, str]:
    """Another driver takes the run, commits a new best and has more half written; returns what lies there then."""
    new = StateWriter(folder, "key", acquire_token(folder, "new"), FIXED, 1000)
    restored = newest_valid(folder)
    assert restored is not None
    new.start_from(restored)
    best = BestRecord(ema=0.9, score=0.9, best_epoch=2)
    new.commit(TrainingProgress((*restored.history, row(2, 0.9)), best), True, lambda: tensors(9.0))
    new.drain()
    stem = f"e00004_a{new.fencing_token:04d}.pth"
    for half_written in (folder.state / f".{stem}.x.part", folder.best / f".{stem}.y.part", folder.root / ".checkpoint_best.pth.z.part"):
        half_written.write_text(half_written.name)
    return files_of(folder)


def test_a_start_that_a_newer_driver_overtook_touches_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.2, 0.5], driver="old")
    stalled, restored = StateWriter(folder, "key", acquire_token(folder, "old"), FIXED, 1000), newest_valid(folder)
    before = goes_on_as_newer(folder)
    with pytest.raises(Superseded, match="token 2 .* superseded by token 3"):
        stalled.start_from(restored)
    assert files_of(folder) == before


def passes_then(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the fence next passes, and stalls while `act` happens."""
    real, has_passed = check_fence, threading.Event()

    def passes(folder: RunFolder, fencing_token: int) -> None:
        real(folder, fencing_token)
        if not has_passed.is_set():
            has_passed.set()
            act()

    monkeypatch.setattr(state, "check_fence", passes)


def test_a_start_that_is_overtaken_just_behind_the_fence_touches_nothing_newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.2, 0.5], driver="old")
    stalled, restored = StateWriter(folder, "key", acquire_token(folder, "old"), FIXED, 1000), newest_valid(folder)
    (folder.state / "e00009_a0001.json").write_text("damaged, and the newest by its name")
    (folder.root / ".checkpoint_best.pth.old.part").write_text("left by a kill")
    seen: list[dict[str, str]] = []
    passes_then(lambda: seen.append(goes_on_as_newer(folder)), monkeypatch)
    with pytest.raises(Superseded):
        stalled.start_from(restored)
    assert [files_of(folder)] == seen
    assert (folder.state / "e00009_a0001.json.damaged").is_file()  # by the newer one
    assert not (folder.root / ".checkpoint_best.pth.old.part").exists()


def test_a_writer_that_is_overtaken_after_its_commit_neither_links_nor_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    old = committed_epochs(folder, [0.2, 0.5], driver="old")
    before, write = files_of(folder), write_atomic

    def committed_then_overtaken(path: Path, content: bytes) -> None:
        write(path, content)
        monkeypatch.undo()
        acquire_token(folder, "new")

    monkeypatch.setattr(state, "write_atomic", committed_then_overtaken)
    best = BestRecord(ema=0.9, score=0.9, best_epoch=2)
    old.commit(TrainingProgress((row(0, 0.2), row(1, 0.5), row(2, 0.9)), best), True, lambda: tensors(9.0))
    with pytest.raises(Superseded, match="token 1 .* superseded by token 2"):
        old.drain()
    assert {path: digest for path, digest in files_of(folder).items() if path in before} == before
    assert [c.epochs_done for c in committed_states(folder)] == [3, 2, 1]


def test_who_prunes_deletes_nothing_that_came_after_the_fence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.2, 0.5], driver="old")
    seen: list[dict[str, str]] = []

    def newer_best_of_an_earlier_epoch() -> None:
        acquire_token(folder, "new")
        (folder.best / "e00001_a0002.pth").write_text("not committed yet")
        seen.append(files_of(folder))

    passes_then(newer_best_of_an_earlier_epoch, monkeypatch)
    prune(folder, 1)
    assert [files_of(folder)] == seen


def test_names_that_an_older_writer_took_are_right_again_after_the_next_commit(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    committed_epochs(folder, [0.2, 0.5], driver="old")
    overtaken = newest_valid(folder)
    goes_on_as_newer(folder)
    newest = newest_committed(folder)
    assert overtaken is not None
    assert newest is not None
    assert newest.best is not None
    new = StateWriter(folder, "key", newest_token(folder), FIXED, 1000)
    new.start_from(newest)
    link_for_nnunet(folder, overtaken)  # it stalled just behind the fence
    assert sha256_of(folder.checkpoint("best")) != newest.best.sha256
    new.commit(TrainingProgress((*newest.history, row(3, 0.8)), newest.best_policy), False, lambda: tensors(8.0))
    new.drain()
    assert sha256_of(folder.checkpoint("best")) == newest.best.sha256


def test_a_driver_whose_head_died_writes_nothing_once_another_has_claimed_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    write_atomic(folder.spec_file, b"{}")
    old = acquire_token(folder, "old")
    done: list[tuple[str, int]] = []
    is_claimed, refused = threading.Event(), threading.Event()

    def goes_on() -> None:
        """It publishes and tells its end, again and again, knowing nothing of the other."""
        while not refused.is_set():
            before = is_claimed.is_set()
            try:
                check_driver_fence(folder, old)
                done.append(("published", before))
            except Superseded:
                refused.set()
            if write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=old, message="old")):
                done.append(("outcome", before))

    thread = threading.Thread(target=goes_on)
    thread.start()
    while not done:
        pass
    new = acquire_token(folder, "new")
    is_claimed.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert not any(was_claimed for _, was_claimed in done)
    assert write_outcome(folder, Outcome(job="training", state="STOPPED", fencing_token=new, message="new"))
    assert not write_outcome(folder, Outcome(job="training", state="TRAINED", fencing_token=old, message="old"))
    outcome = read_outcome(folder)
    assert outcome is not None
    assert outcome.message == "new"


def test_many_drivers_that_claim_at_once_get_a_number_each(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    numbers: list[int] = []
    start = threading.Barrier(8)

    def claim(name: str) -> None:
        start.wait(PATIENCE_S)
        numbers.append(acquire_token(folder, name))

    threads = [threading.Thread(target=claim, args=(f"driver-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(numbers) == list(range(1, 9))


# ---- two campaigns, and submissions during recovery ---------------------------------------------------------------------


def watch_doubles(cluster: FakeCluster) -> list[str]:
    """Names of jobs that were started while another of the same run lived."""
    doubles: list[str] = []

    def look(job: JobRecord) -> None:
        others = [other for other in cluster.records() if other.is_live and (other.run_key, other.kind) == (job.run_key, job.kind)]
        if any(other.submission_id != job.submission_id for other in others):
            doubles.append(job.submission_id)

    cluster.on_submit = look
    return doubles


def test_a_submission_and_a_resume_during_recovery_start_nothing_twice(stage: Stage) -> None:
    run, doubles = stage.run(0), watch_doubles(stage.cluster)
    first = stage.campaign(run)
    look(first)
    stage.cluster.workers_begin(run)
    stage.cluster.kill_driver(run)
    second = stage.campaign(run, name="c2")  # before the first has seen the death
    (found,) = choose(*find_runs(stage.base / "results"), (), stage.base).taken
    third = stage.campaign(found.spec, name="c3")
    for campaign in (third, first, second, first):
        look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]
    late = stage.campaign(run, name="c4")  # and while the next job starts
    look(late)
    stage.cluster.workers_begin(run)
    stage.cluster.training_ends(run)
    stage.cluster.validation_ends(run)
    for campaign in (late, second, first, third):
        assert campaign.run(poll_s=0) == 0
        assert states(campaign) == ["SUCCEEDED"]
    assert sorted(name for name in stage.cluster.jobs if "key0" in name) == ["train-key0-a1", "train-key0-a2", "validate-key0-a2"]
    assert doubles == []


def test_campaigns_that_run_at_the_same_time_share_one_job(stage: Stage) -> None:
    """Four campaigns of the same runs, each in its own thread, while drivers are killed."""
    runs = [stage.run(0), stage.run(1)]
    stage.cluster.gpus = 2
    doubles = watch_doubles(stage.cluster)
    codes: list[int] = []
    opened = threading.Barrier(5)

    def campaign(name: str) -> None:
        made = stage.campaign(*runs, name=name)
        opened.wait(PATIENCE_S)
        codes.append(made.run(poll_s=0.001))

    threads = [threading.Thread(target=campaign, args=(f"c{n}",), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    opened.wait(PATIENCE_S)
    for _ in range(2):
        for run in runs:
            wait_for_job(stage.cluster, run, "train")
            stage.cluster.kill_driver(run)
    for run in runs:
        wait_for_job(stage.cluster, run, "train")
        finish_on_disk(run)
        stage.cluster.training_ends(run)
        stage.cluster.validation_ends(run)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert codes == [0] * 4
    assert doubles == []
    for run in runs:
        trainings = [name for name in stage.cluster.jobs if name.startswith(f"train-{run.run_key}")]
        assert trainings == [f"train-{run.run_key}-a{n}" for n in (1, 2, 3)]


def wait_for_job(cluster: FakeCluster, run: RunSpec, kind: str) -> None:
    for _ in range(PATIENCE_S * 200):
        if any(job.is_live and job.kind == kind and job.run_key == run.run_key for job in cluster.records()):
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"no {kind} job of {run.run_key}")
