"""What a full validation takes for the checkpoints of a run."""

import logging
from pathlib import Path

import pytest

from orchestrator.validation.cases import digest_of_named
from tests.fake_run import FakeRun
from trainers.contract.errors import CheckpointError
from trainers.contract.files import link_atomic, sha256_of


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
