"""The hosts benchmark fails when what it measured must not be, and says what."""

from pathlib import Path

import pytest

from benchmarks import hosts
from tests.fake_run import FakeRun
from trainers.contract.run_folder import RunFolder


def trained(base: Path, epochs: int = 4) -> FakeRun:
    run = FakeRun(base)
    for _ in range(epochs):
        run.epoch()
    return run


@pytest.fixture(autouse=True)
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """SHA-256 of the weights by run folder; the same unless a test says otherwise."""
    other: dict[Path, str] = {}

    def digest(folder: RunFolder) -> str:
        return other.get(folder.root, "0" * 64)

    monkeypatch.setattr(hosts, "weights_digest", digest)
    return other


def test_equal_runs_are_no_violation(tmp_path: Path) -> None:
    assert hosts.unequal(trained(tmp_path / "broken").folder, trained(tmp_path / "unbroken").folder) == []


def test_what_differs_is_named(tmp_path: Path, weights: dict[Path, str]) -> None:
    broken, unbroken = trained(tmp_path / "broken"), trained(tmp_path / "unbroken")
    broken.rows[2] = broken.rows[2].model_copy(update={"train_loss": 0.25})
    broken.commit()
    weights[broken.folder.root] = "1" * 64
    assert hosts.unequal(broken.folder, unbroken.folder) == [
        f"{broken.folder.root}: epoch 2: train_loss 0.25 instead of {1 / 3}",
        f"{broken.folder.root}: weights {'1' * 12} instead of {'0' * 12} (SHA-256)",
    ]


def test_a_commit_of_the_old_gang_after_the_claim_of_the_new_one_is_a_violation(tmp_path: Path) -> None:
    run = trained(tmp_path, epochs=3)  # by attempt 1; its epochs end at 1.7e9 + 9.5, 19.5 and 29.5
    run.resume()
    run.epoch()
    assert hosts.late_commits(run.folder, before=1, claimed_unix=1.7e9 + 30, fencing_token=2) == []
    (late,) = hosts.late_commits(run.folder, before=1, claimed_unix=1.7e9 + 20, fencing_token=2)
    assert "epochs [2] were committed by the old gang after the claim of attempt 2" in late


def test_the_exit_code_is_that_of_the_violations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hosts, "reason_against", str)
    monkeypatch.setattr(hosts, "toy_dataset", lambda base: None)
    monkeypatch.setattr(hosts, "spread", lambda toy, base, checks: [])
    monkeypatch.setattr(hosts, "packed", lambda toy, base, checks: ["weights differ"])
    assert hosts.main(["--part", "spread"]) == 0
    assert hosts.main([]) == 1
    assert "VIOLATION weights differ" in capsys.readouterr().out
