"""What ended runs hold that nobody needs: what is listed, what stays, and what is left alone."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.errors import ConfigError, TrackingError
from orchestrator.export.fold_sources import folds_below
from orchestrator.export.model import export_model
from orchestrator.publishing.checkpoint_store import keep_only_published, replaced_uploads
from orchestrator.publishing.published import Published, published_tag
from orchestrator.resume import garbage
from orchestrator.resume.garbage import Garbage, free_all, garbage_below
from orchestrator.run.job_record import JobRecord
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.run.progress import progress_of
from tests.fake_run import FakeRun
from trainers.contract.commits import committed_states
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import sha256_of, write_atomic, write_json_atomic

BLOCKS = 64 << 10
"""Bytes of a file that are whole blocks of any usual file system."""


def stored(run: FakeRun) -> None:
    """Give the newest commit its tensors, as the writer of states does."""
    newest = committed_states(run.folder)[0]
    file = run.folder.state / f"{newest.stem}.pth"
    write_atomic(file, newest.stem.encode() * (BLOCKS // len(newest.stem)))
    os.truncate(file, BLOCKS)
    whole = newest.model_copy(update={"state_sha256": sha256_of(file), "state_size_bytes": BLOCKS})
    write_atomic(file.with_suffix(".json"), whole.model_dump_json().encode())


def ended(base: Path, fold: int = 0, *, is_finished: bool = True) -> FakeRun:
    """A run of two epochs with a state of each, a best of each, and what a kill and a dead upload left."""
    run = FakeRun(base, f"901-toy-{fold}", fold)
    for _ in range(2):
        run.epoch(size_bytes=BLOCKS)
        stored(run)
    if is_finished:
        run.end_early()
        stored(run)
        for checkpoint in run.spec.validation.checkpoints:
            write_json_atomic(run.folder.summary(checkpoint), {})
        write_outcome(run.folder, Outcome(job="validation", state="SUCCEEDED", fencing_token=run.fencing_token, message=""))
        assert progress_of(run.spec).stage == "finished"
    else:
        write_outcome(run.folder, Outcome(job="training", state="STOPPED", fencing_token=run.fencing_token, message=""))
    first, second = sorted(run.folder.best.glob("*.pth"))[:2]
    for half in (run.folder.state / ".e00003_a0001.pth.x.part", run.folder.root / ".checkpoint_best.pth.x.part"):
        write_atomic(half, bytes(BLOCKS))
    for name, file in (("gone", first), ("held", second)):
        (run.folder.uploading / name).mkdir(parents=True)
        os.link(file, run.folder.uploading / name / "best.pth")
    return run


def listed(base: Path, jobs: list[JobRecord] | None = None) -> tuple[list[Garbage], list[str]]:
    found, left, failed = garbage_below([], base / "results", [], jobs or [])
    assert failed == []
    return found, left


def names(found: Garbage, kind: str) -> list[str]:
    return [path.name for path in found.files.get(kind, ())]  # type: ignore[call-overload]


def test_of_a_finished_run_earlier_states_replaced_bests_and_what_kills_left_can_go(tmp_path: Path) -> None:
    run = ended(tmp_path)
    (found,), left = listed(tmp_path)
    assert left == []
    assert names(found, "states") == ["e00001_a0001.json", "e00001_a0001.pth"]
    (replaced,) = names(found, "bests")
    assert replaced != run.best.file.rpartition("/")[2]  # type: ignore[union-attr]
    assert len(names(found, "unfinished writes")) == 2
    assert names(found, "uploads") == ["gone", "held"]
    assert found.sizes["bests"] == BLOCKS, "with its second name among the uploads"
    assert found.sizes["uploads"] == 0
    assert found.sizes["unfinished writes"] == 2 * BLOCKS
    assert BLOCKS <= found.sizes["states"] <= 2 * BLOCKS
    assert run.folder.state.is_dir(), "nothing has gone yet"
    assert len(committed_states(run.folder)) == 2


def test_what_is_freed_is_what_was_said_and_the_rest_is_exported_as_before(tmp_path: Path) -> None:
    run = ended(tmp_path)
    (found,), _ = listed(tmp_path)
    freed, left = free_all([found])
    assert (freed, left) == ([found], [])
    (after,), _ = listed(tmp_path)
    assert after.size_bytes == 0
    assert after.held_bytes == found.held_bytes - found.size_bytes
    assert progress_of(run.spec).stage == "finished"
    exported = export_model("901", tmp_path / "model", folds_below(tmp_path / "results", "901"), "here")
    assert exported.folds == {"0": ("best", "final")}


def test_of_a_run_that_may_go_on_every_state_stays_with_its_best(tmp_path: Path) -> None:
    run = ended(tmp_path, is_finished=False)
    (found,), _ = listed(tmp_path)
    assert sorted(found.files) == ["unfinished writes", "uploads"]
    free_all([found])
    assert len(committed_states(run.folder)) == 2
    assert len(list(run.folder.best.glob("*.pth"))) == 2


def test_a_best_that_is_newer_than_every_state_stays_for_its_commit_in_the_making(tmp_path: Path) -> None:
    run = ended(tmp_path, is_finished=False)
    making = run.folder.best / "e00003_a0001.pth"
    write_atomic(making, bytes(BLOCKS))
    write_atomic(run.folder.best / "e00001i000001_a0001.pth", bytes(BLOCKS))
    (found,), _ = listed(tmp_path)
    assert names(found, "bests") == ["e00001i000001_a0001.pth"]
    free_all([found])
    assert making.is_file()


def test_a_run_at_work_is_left_and_one_that_was_started_since_too(tmp_path: Path) -> None:
    run = ended(tmp_path)
    job = JobRecord(submission_id="validate-x", kind="validate", state="RUNNING", run_key=run.spec.run_key)
    assert listed(tmp_path, [job]) == ([], [f"901/3d_fullres/nnUNetTrainer/0 ({run.spec.run_key}) has the job validate-x."])
    (found,), _ = listed(tmp_path)
    run.resume()
    assert free_all([found])[1] == [
        f"901/3d_fullres/nnUNetTrainer/0 ({run.spec.run_key}): "
        "gc: 901/3d_fullres/nnUNetTrainer/0 was started meanwhile. Nothing of it was removed; run `nnfleet gc` again once it has ended."
    ]
    assert len(committed_states(run.folder)) == 2


def test_where_the_newest_state_is_not_whole_the_one_before_stays(tmp_path: Path) -> None:
    run = ended(tmp_path)
    (found,), _ = listed(tmp_path)
    (run.folder.state / f"{committed_states(run.folder)[0].stem}.pth").write_bytes(b"damaged")
    freed, (why,) = free_all([found])
    assert freed == []
    assert "is not whole. Nothing of it was removed" in why
    assert len(list(run.folder.state.glob("*.pth"))) == 2


def test_the_verb_shows_it_and_frees_it_with_yes_alone(tmp_path: Path) -> None:
    ended(tmp_path)
    arguments = ["gc", "--results", str(tmp_path / "results")]
    shown = CliRunner().invoke(app, arguments).stdout
    assert shown.startswith("901/3d_fullres/nnUNetTrainer/0  0.000 GB of 0.00")
    assert "unfinished writes 131.1 kB" in shown
    assert shown.rstrip().endswith("in 1 of 1 runs can be freed: nnfleet gc --yes.")
    assert CliRunner().invoke(app, arguments).stdout == shown
    assert CliRunner().invoke(app, [*arguments, "--yes"]).stdout.rstrip().endswith("in 1 of 1 runs.")
    assert CliRunner().invoke(app, arguments).stdout == "0.000 GB in 0 of 1 runs can be freed.\n"
    assert isinstance(CliRunner().invoke(app, ["gc", "nonsense", *arguments[1:]]).exception, ConfigError)


@pytest.mark.parametrize("error", [TrackingError("mlflow: away"), OSError("stale handle")])
def test_where_mlflow_or_a_disk_fails_the_others_go_and_the_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run, other = ended(tmp_path, 0), ended(tmp_path, 1)
    arguments = ["gc", "--results", str(tmp_path / "results")]

    def fails_for(found: Garbage | RunFolder) -> None:
        if (found.run_folder if isinstance(found, Garbage) else found.root) == run.folder.root:
            raise error

    def with_uploads(found: Garbage) -> Garbage:
        fails_for(found)
        return found

    monkeypatch.setattr(garbage, "_free_uploads", fails_for)
    found, _ = listed(tmp_path)
    freed, (why,) = free_all([each.model_copy(update={"uploads": {"old": 7}}) for each in found])
    assert [(each.run_folder, each.uploads) for each in freed] == [(run.folder.root, {}), (other.folder.root, {"old": 7})]
    assert why == f"901/3d_fullres/nnUNetTrainer/0 ({run.spec.run_key}): {error}"
    monkeypatch.setattr(garbage, "_with_uploads", with_uploads)
    shown = CliRunner().invoke(app, [*arguments, "--mlflow", "--yes"])
    assert shown.exit_code == 1
    assert "Freed 0.000 GB in 0 of 1 runs." in shown.output
    assert f"Failed: {why}" in shown.output.replace("\n", " ")


class Store:
    """Artifacts of one run: directory -> files with their bytes."""

    def __init__(self, published: Published) -> None:
        self._tags = {published_tag("best"): published.model_dump_json()}
        self.held = {published.directory: 10, "checkpoints/best/e00000-old": 7}

    def tags(self, run_id: str) -> dict[str, str]:
        return self._tags

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        return {f"{directory}/x": self.held[directory]} if directory in self.held else dict.fromkeys(self.held)

    def delete_directory(self, run_id: str, directory: str) -> None:
        del self.held[directory]


def test_replaced_checkpoints_in_mlflow_are_those_that_no_tag_names(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    assert run.best is not None
    store = Store(Published(directory="checkpoints/best/e00001-0123abcd", manifest=run.best))
    assert replaced_uploads(store, "r", "best") == {"checkpoints/best/e00000-old": 7}  # type: ignore[arg-type]
    keep_only_published(store, "r", "best")  # type: ignore[arg-type]
    assert list(store.held) == ["checkpoints/best/e00001-0123abcd"]


@pytest.mark.parametrize("name", ["901", "901-toy-0"])
def test_runs_are_named_as_everywhere(tmp_path: Path, name: str) -> None:
    ended(tmp_path)
    assert len(garbage_below([name], tmp_path / "results")[0]) == 1
