"""In which order a full validation stores its end and delivers it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.run.outcome import Outcome, read_outcome, write_outcome
from orchestrator.validation import job
from tests.fake_run import FakeRun
from trainers.contract.run_folder import RunFolder

DONE = Outcome(job="validation", state="SUCCEEDED", fencing_token=1, message="mean Dice: best 0.9")


class Server:
    """Answers deliveries in turn, and remembers what end of the run was stored when each began."""

    def __init__(self, *answers: str | None) -> None:
        self._answers = list(answers)
        self.stored: list[Outcome | None] = []
        self.takes_over: Outcome | None = None

    def deliver_all(self, folder: RunFolder, fencing_token: int, reports: Any, waits_s: Sequence[float]) -> str | None:
        self.stored.append(read_outcome(folder))
        if len(self.stored) == 2 and self.takes_over is not None:
            write_outcome(folder, self.takes_over)
        return self._answers.pop(0)


def deliver(run: FakeRun, monkeypatch: pytest.MonkeyPatch, server: Server) -> Outcome:
    monkeypatch.setattr(job, "deliver_all", server.deliver_all)
    return job.delivered(run.folder, DONE, [], (1.0,))


def test_whoever_sees_the_end_finds_the_scores_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, server = FakeRun(tmp_path), Server(None)
    assert deliver(run, monkeypatch, server) == DONE == read_outcome(run.folder)
    assert server.stored == [None]


def test_the_end_is_stored_before_a_server_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, server = FakeRun(tmp_path), Server("it is away", None)
    assert deliver(run, monkeypatch, server) == DONE == read_outcome(run.folder)
    before, waiting = server.stored
    assert before is None
    assert waiting is not None
    assert waiting.state == "SUCCEEDED"
    assert waiting.evidence == "not delivered to the tracking server: it is away"


def test_a_server_that_stays_away_is_told_and_another_end_of_the_run_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(tmp_path)
    assert "it stays away" in deliver(run, monkeypatch, Server("it is away", "it stays away")).message
    server = Server("it is away", None)
    server.takes_over = Outcome(job="training", state="STOPPED", fencing_token=2, message="by another job")
    deliver(run, monkeypatch, server)
    assert read_outcome(run.folder) == server.takes_over
