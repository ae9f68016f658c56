"""`import nnfleet`: the verbs for scripts, as README shows them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nnfleet
from orchestrator import api
from orchestrator.errors import ConfigError
from orchestrator.run.status import RunStatus

README = Path(__file__).parents[2] / "README.md"
KEYS = {"dataset": 17, "configurations": "2d"}


def test_the_example_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    asked: list[Any] = []

    def submit(experiment: nnfleet.Experiment, cluster: str | None, on_wait: None, replaces: bool) -> Any:
        asked.append(experiment)
        return SimpleNamespace(campaign_id="c1")

    run = RunStatus(
        run_key="k", address="4/3d_fullres/nnUNetTrainer/0", campaign="c1", epochs=1, full_dice={"best": 0.9}, run_folder=Path("/r")
    )
    monkeypatch.setattr(api, "submit", submit)
    monkeypatch.setattr(nnfleet, "wait", lambda campaign: [run] if campaign == "c1" else [])
    monkeypatch.setattr(nnfleet, "compare", lambda runs: SimpleNamespace(answer=SimpleNamespace(verdict=f"of {runs}: a tie")))
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out == "4/3d_fullres/nnUNetTrainer/0 QUEUED {'best': 0.9}\nof ['4']: a tie\n"
    assert asked[0].trainers == ("nnUNetTrainer", "nnUNetTrainerDA5")
    assert asked[0].folds == (0, 1, 2, 3, 4)


def test_an_experiment_is_a_file_its_keys_or_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api, "plan", lambda experiment, cluster: experiment)
    file = tmp_path / "e.yaml"
    file.write_text("dataset: 17\nconfigurations: 2d\n")
    planned: Any = nnfleet.plan(KEYS)
    assert planned.configurations == ("2d",)
    assert nnfleet.plan(planned) is planned
    for path in (file, str(file)):
        assert nnfleet.plan(path).configurations == planned.configurations  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="experiment.*epochs"):
        nnfleet.plan({**KEYS, "epochs": -1})
    with pytest.raises(nnfleet.NnfleetError, match="nowhere.yaml"):
        nnfleet.plan(tmp_path / "nowhere.yaml")


def test_every_name_is_there() -> None:
    assert [name for name in nnfleet.__all__ if not hasattr(nnfleet, name)] == []
