"""What MLflow does not take of a run, as its folder keeps it."""

import shutil
from pathlib import Path

from orchestrator.run.undelivered import forget_undelivered, note_undelivered, undelivered_text
from tests.fake_run import FakeRun


def test_a_run_folder_that_has_gone_is_not_made_anew_to_say_that_something_is_lacking(tmp_path: Path) -> None:
    folder = FakeRun(tmp_path).folder
    note_undelivered(folder, "metrics", 1.0, "it is away.")
    assert "metrics" in undelivered_text(folder)
    forget_undelivered(folder, "metrics")
    assert undelivered_text(folder) == ""
    shutil.rmtree(folder.root)
    note_undelivered(folder, "metrics", 1.0, "it is away.")
    assert not folder.root.exists()
