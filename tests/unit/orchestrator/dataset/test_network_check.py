import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.dataset import network_check
from orchestrator.dataset.network_check import network_problem, try_ahead
from tests.fake_run import FakeRun
from tests.unit.planned import planned
from trainers.contract.architecture import NetworkVerdict

Instead = Callable[[str], Path]


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instead:
    """Has such code run in place of the trial, and gives the file that has a line for each start of it. Nothing was kept before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def prepared(code: str) -> Path:
        starts = tmp_path / "starts"
        starts.touch()
        (tmp_path / "python").write_text(f"#!{sys.executable}\nwith open({str(starts)!r}, 'a') as f: f.write('x\\n')\n{code}\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        return starts

    return prepared


def answer(refusal: str = "", unknown: str = "") -> str:
    return f"print({NetworkVerdict(refusal=refusal, unknown=unknown).model_dump_json()!r})"


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", "import os; os.kill(os.getpid(), 9)", "print('hello')", "1 / 0"])
def test_a_check_that_fails_itself_refuses_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, instead: Instead, code: str
) -> None:
    instead(code)
    monkeypatch.setattr(network_check, "LIMIT_S", 2.0)
    assert network_problem(planned(tmp_path)) == ""
    assert "is not known before a worker starts" in caplog.text


def test_runs_of_the_same_plans_ask_once(tmp_path: Path, instead: Instead) -> None:
    starts = instead(answer())
    spec = planned(tmp_path)
    assert {network_problem(spec.model_copy(update={"seed": seed, "fold": seed})) for seed in range(3)} == {""}
    assert len(starts.read_text().split()) == 1
    network_problem(planned(tmp_path / "other", conv_bias=True))
    assert len(starts.read_text().split()) == 2


@pytest.mark.parametrize(("refusal", "unknown"), [("", "no such operation"), ("can't allocate memory", "")])
def test_what_is_not_known_or_refused_is_asked_again(tmp_path: Path, instead: Instead, refusal: str, unknown: str) -> None:
    starts = instead(answer(refusal, unknown))
    spec = planned(tmp_path)
    for _ in range(2):
        assert network_problem(spec).endswith(refusal)
    assert len(starts.read_text().split()) == 2


def test_without_a_place_for_answers_each_run_asks(tmp_path: Path, instead: Instead) -> None:
    starts = instead(answer())
    (tmp_path / "cache").write_text("a file where the folder should be")
    spec = planned(tmp_path)
    assert network_problem(spec) == network_problem(spec) == ""
    assert len(starts.read_text().split()) == 2


def test_a_broken_answer_is_asked_for_anew(tmp_path: Path, instead: Instead) -> None:
    starts = instead(answer())
    spec = planned(tmp_path)
    network_problem(spec)
    (kept,) = (tmp_path / "cache" / "nnfleet-networks").glob("*.json")
    kept.write_text("{")
    assert network_problem(spec) == ""
    assert len(starts.read_text().split()) == 2
    assert NetworkVerdict.model_validate_json(kept.read_text()) == NetworkVerdict()


def test_a_campaign_asks_ahead_once_for_each_plan_of_runs_that_begin(tmp_path: Path, instead: Instead) -> None:
    starts = instead(answer())
    spec = planned(tmp_path)
    trained = FakeRun(tmp_path / "trained")
    trained.epoch()
    of_no_dataset = spec.model_copy(update={"preprocessed_folder": tmp_path / "nowhere"})
    try_ahead([of_no_dataset, trained.spec, spec, spec.model_copy(update={"fold": 1})]).join(30.0)
    assert len(starts.read_text().split()) == 1
    assert network_problem(spec) == ""
    assert len(starts.read_text().split()) == 1
