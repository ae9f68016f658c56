"""What a full validation takes for the checkpoints of a run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from orchestrator.campaign.validating import check_trained
from orchestrator.publishing.validation_report import picture_file
from orchestrator.run.progress import Action, progress_of
from orchestrator.validation import job
from orchestrator.validation.case_queue import CaseQueue
from orchestrator.validation.cases import checkpoints_to_validate, digest_of_named, is_done, share_results, visits
from tests.fake_run import FakeRun
from trainers.contract.commits import BestRecord, newest_committed
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec, Schedule, candidate_name
from trainers.contract.summary import SCORING, CaseResult, ClassMetrics
from trainers.errors import CheckpointError, ConfigError
from trainers.storage.files import link_atomic, sha256_of, write_atomic, write_json_atomic


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    """A run of two epochs; a writer that stalled has named the first one's best after the last commit."""
    run = FakeRun(tmp_path)
    older = run.epoch().best
    run.epoch()
    assert older is not None
    link_atomic(run.folder.root / older.file, run.folder.checkpoint("best"))
    return run


def test_the_best_of_the_newest_commit_gets_nnunets_name_back(run: FakeRun, caplog: pytest.LogCaptureFixture) -> None:
    assert run.best is not None
    with caplog.at_level(logging.WARNING):
        assert digest_of_named(run.folder, "best") == run.best.sha256 == sha256_of(run.folder.checkpoint("best"))
    assert "was not of epoch 1, as the newest state records: it is now" in caplog.text
    caplog.clear()
    assert digest_of_named(run.folder, "best") == run.best.sha256
    assert not caplog.text


def test_nothing_else_is_scored_where_the_best_itself_is_lost(run: FakeRun) -> None:
    assert run.best is not None
    (run.folder.root / run.best.file).write_bytes(b"damaged")
    left = sha256_of(run.folder.checkpoint("best"))
    with pytest.raises(CheckpointError, match=r"is not what the newest state names \(best of epoch 1\), and that one is damaged or lost"):
        digest_of_named(run.folder, "best")
    assert sha256_of(run.folder.checkpoint("best")) == left


def validated(run: FakeRun, name: CheckpointName, digest: str) -> CaseResult:
    """A finished case, as a worker leaves it."""
    prediction = run.folder.validation(name) / "case_2.tif"
    for file in (prediction, prediction.with_suffix(".json"), picture_file(run.folder, name, "case_2")):
        write_atomic(file, f"{file.name} by {digest}".encode())
    result = CaseResult(
        case_id="case_2",
        checkpoint_sha256=digest,
        reference_file="labels.tif",
        prediction_file=str(prediction),
        surface_tolerance_mm=run.spec.validation.surface_tolerance_mm,
        scoring=SCORING,
        metrics={"organ": ClassMetrics(tp=3, fp=1, fn=1, tn=9, dice=0.75, iou=0.6, hd95_mm=1.5, nsd=0.9)},
        seconds=2.0,
    )
    write_json_atomic(run.folder.cases(name) / "case_2.json", result.model_dump())
    return result


def test_the_best_and_the_final_weights_of_one_epoch_are_predicted_once(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    run.finish()
    assert run.best is not None
    assert run.final is not None
    of_best = validated(run, "best", run.best.sha256)
    assert not is_done(run.folder, run.spec, "final", "case_2", run.final.sha256)
    share_results(run.folder, run.spec, "final", run.final.sha256)
    assert is_done(run.folder, run.spec, "final", "case_2", run.final.sha256)
    of_final = read_result(run.folder, "final", "case_2")
    assert of_final is not None
    assert of_final.metrics == of_best.metrics
    assert of_final.checkpoint_sha256 == run.final.sha256
    shared = Path(of_final.prediction_file)
    for file in (shared, shared.with_suffix(".json"), picture_file(run.folder, "final", "case_2")):
        assert file.read_text() == f"{file.name} by {run.best.sha256}"
        assert "final" in str(file) or file.parent == run.folder.validation("final")
    assert is_done(run.folder, run.spec, "best", "case_2", run.best.sha256)


class Pool:
    """Validates every case at once with the checkpoints that it is given, and notes which."""

    made: ClassVar[list[list[str]]] = []

    def __init__(self, folder: RunFolder, spec: RunSpec, digests: Mapping[CheckpointName, str], queue: CaseQueue, *_: object) -> None:
        self.run_digests, self.queue = digests, queue
        self.evidence: list[str] = []

    def run(self, count: int) -> None:
        self.made.append(list(self.run_digests))
        for name, digest in self.run_digests.items():
            validated(self.of, name, digest)

    of: ClassVar[FakeRun]


@pytest.mark.parametrize(("is_best", "pools"), [(True, [["best"]]), (False, [["best", "final"]])])
def test_best_and_final_weights_are_validated_in_one_visit_of_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_best: bool, pools: list[list[str]]
) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    run.epoch(is_best=is_best)
    run.finish()
    assert run.best is not None
    assert run.final is not None
    link_atomic(run.folder.root / run.best.file, run.folder.checkpoint("best"))
    link_atomic(run.folder.root / run.final.file, run.folder.checkpoint("final"))
    monkeypatch.setattr(job, "case_sizes", lambda _, cases: dict.fromkeys(cases, 1))
    monkeypatch.setattr(job, "largest_case", lambda *_: None)
    monkeypatch.setattr(job, "Pool", Pool)
    monkeypatch.setattr(Pool, "of", run, raising=False)
    monkeypatch.setattr(Pool, "made", [])
    committed = newest_committed(run.folder)
    for names in visits(["best", "final"], committed):
        ended = job.validate_checkpoints(run.folder, run.spec, names, 1, [], is_last=True)
        assert all(isinstance(results, list) for results in ended.values())
    assert Pool.made == pools
    assert all(read_result(run.folder, name, "case_2") for name in ("best", "final"))
    assert visits(["best", candidate_name(3), candidate_name(4)], committed) == [["best"], [candidate_name(3)], [candidate_name(4)]]


def test_final_weights_of_another_epoch_or_training_than_the_best_are_predicted_themselves(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    run.epoch(is_best=False)
    run.finish()
    assert run.best is not None
    assert run.final is not None
    validated(run, "best", run.best.sha256)
    share_results(run.folder, run.spec, "final", run.final.sha256)
    assert read_result(run.folder, "final", "case_2") is None
    again = FakeRun(tmp_path / "again")
    again.epoch()
    again.resume()
    again.finish()
    assert again.best is not None
    assert again.final is not None
    validated(again, "best", again.best.sha256)
    share_results(again.folder, again.spec, "final", again.final.sha256)
    assert read_result(again.folder, "final", "case_2") is None, "weights of one epoch, of two trainings of it"


def test_a_half_validation_by_an_older_scoring_rule_is_done_again_and_shared_with_nobody(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    run.finish()
    assert run.best is not None
    assert run.final is not None
    older = validated(run, "best", run.best.sha256).model_dump(exclude={"scoring"})
    write_json_atomic(run.folder.cases("best") / "case_2.json", older)
    assert not is_done(run.folder, run.spec, "best", "case_2", run.best.sha256)
    share_results(run.folder, run.spec, "final", run.final.sha256)
    assert read_result(run.folder, "final", "case_2") is None


def test_results_of_older_weights_are_not_shared(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    run.finish()
    assert run.final is not None
    validated(run, "best", "1" * 64)
    share_results(run.folder, run.spec, "final", run.final.sha256)
    assert read_result(run.folder, "final", "case_2") is None


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (BestRecord(), "no epoch of this run saw foreground, so it has no best checkpoint"),
        (
            BestRecord(ema=0.3, score=0.4, best_epoch=0),
            "the weights of epoch 0, the best one, are lost and no later epoch has beaten it, so this run has no best checkpoint",
        ),
    ],
)
def test_a_run_without_a_best_checkpoint_is_validated_without_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: BestRecord, reason: str
) -> None:
    run = FakeRun(tmp_path, schedule=Schedule(epochs=2))
    run.epoch(is_best=False)
    run.epoch(is_best=False)
    committed = run.finish().model_copy(update={"best_policy": policy})
    write_atomic(run.folder.state / f"{committed.stem}.json", committed.model_dump_json().encode())
    assert checkpoints_to_validate(run.folder, run.spec) == ["final"]
    assert f"{reason}: only the others are validated" in caplog.text


def stopped(base: Path) -> FakeRun:
    """A run that was stopped after one of three epochs, every validation case of which has its best checkpoint's result."""
    run = FakeRun(base, schedule=Schedule(epochs=3))
    committed = run.epoch()
    assert committed.best is not None
    link_atomic(run.folder.root / committed.best.file, run.folder.checkpoint("best"))
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".tif"}
    write_json_atomic(run.folder.model_folder / "dataset.json", dataset)
    validated(run, "best", committed.best.sha256)
    return run


def test_a_run_that_was_stopped_is_validated_with_its_best_checkpoint_alone_and_stays_stopped(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    assert checkpoints_to_validate(run.folder, run.spec) == ["best"]
    outcome, reports = job.validate(run.folder, run.fencing_token)
    assert outcome.state == "STOPPED"
    assert outcome.message.startswith("stopped after 1 of 3 epochs; full validation of 1 cases, mean Dice: best 0.75")
    assert [report.name for report in reports or []] == ["best"]
    assert progress_of(run.spec).action is Action.TRAIN, "submitted again, it continues"


def test_the_best_of_a_stopped_run_is_validated_by_hand_only_when_that_is_asked_for(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"1 of 3 epochs are done\. Continue it first \(`nnfleet resume 901/.*/0`\), or validate its best checkpoint \(--best\)",
    ):
        check_trained(run.folder, run.spec, [])
    check_trained(run.folder, run.spec, [], best=True)
    fresh = FakeRun(tmp_path / "fresh", schedule=Schedule(epochs=3))
    with pytest.raises(ConfigError, match=r"validate: 901/.*/0 in .* no epoch is done\. Continue it first \(`nnfleet resume 901/.*/0`\)\."):
        check_trained(fresh.folder, fresh.spec, [], best=True)
