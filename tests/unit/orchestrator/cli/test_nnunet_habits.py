"""nnU-Net's flags and environment variables: what each becomes, or which sentence answers it."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import api
from orchestrator.cli import app
from orchestrator.cli.nnunet_habits import answers, gpus_on, refuse_contradictions, settings_by_environment, unread
from orchestrator.errors import ConfigError
from orchestrator.experiment.model import parse_experiment

MINE = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\nclass nnUNetTrainerMine(nnUNetTrainer):\n    pass\n"
EXPERIMENT = "dataset: 17\nconfigurations: 3d_fullres\n"


@pytest.mark.parametrize(
    ("device", "cpu", "gpus"), [(None, False, None), (None, True, 0), ("cpu", False, 0), ("cpu", True, 0), ("cuda", False, 1)]
)
def test_a_device_is_a_number_of_gpus(device: str | None, cpu: bool, gpus: int | None) -> None:
    assert gpus_on(device, cpu=cpu) == gpus


@pytest.mark.parametrize(
    ("device", "cpu", "sentence"),
    [("mps", False, "does not train on mps"), ("cuda:1", False, "'cuda:1' is no device"), ("cuda", True, "cuda contradicts --cpu")],
)
def test_a_device_that_cannot_be_is_refused(device: str, cpu: bool, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        gpus_on(device, cpu=cpu)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"continues": True, "only_validates": True}, "--val does not train"),
        ({"continues": True, "has_weights": True}, "--c is for one that has begun"),
        ({"only_validates": True, "has_weights": True}, "--val is for one that has begun"),
    ],
)
def test_flags_that_nnunet_refuses_together_are_refused(flags: dict[str, bool], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        refuse_contradictions(**{"continues": False, "only_validates": False, "has_weights": False, **flags})


def test_flags_that_change_nothing_are_answered_by_a_sentence_each() -> None:
    assert answers(continues=False, val_best=False, no_checkpoints=False) == []
    found = answers(continues=True, val_best=True, no_checkpoints=True)
    assert [sentence.split(":")[0] for sentence in found] == ["--c", "--val_best", "--disable_checkpointing"]


@pytest.mark.parametrize(
    ("environment", "cpus", "settings"),
    [
        ({}, 8, {}),
        ({"nnUNet_compile": "T"}, 8, {"compile": True}),
        ({"nnUNet_compile": "yes"}, 8, {"compile": False}),  # as nnU-Net reads it
        ({"nnUNet_n_proc_DA": "4"}, 8, {"loader": {"actors": 4}}),
        ({"nnUNet_n_proc_DA": "32"}, 8, {"loader": {"actors": 7}}),
        ({"nnUNet_n_proc_DA": "0"}, 8, {"loader": {"actors": 1}}),
        ({"nnUNet_n_proc_DA": "12"}, 1, {"loader": {"actors": 1}}),
        ({"nnUNet_n_proc_DA": "many"}, 8, {}),
    ],
)
def test_environment_variables_of_nnunet_are_settings_and_each_is_told(
    environment: dict[str, str], cpus: int, settings: dict[str, Any]
) -> None:
    found, sentences = settings_by_environment(environment, cpus)
    assert found == settings
    assert [sentence.split("=")[0] for sentence in sentences] == list(environment)


def test_an_experiment_file_does_not_read_the_environment_and_says_so_once_for_each() -> None:
    both = {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "12"}
    assert unread({}, parse_experiment(EXPERIMENT)) == []
    found = unread(both, parse_experiment(EXPERIMENT))
    assert [sentence.split(" is set")[0] for sentence in found] == list(both)
    written = parse_experiment(f"{EXPERIMENT}compile: false\nloader: {{actors: 2}}\n")
    assert unread(both, written) == []


def test_epochs_of_a_class_of_the_users_are_named_where_it_trains_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "pre" / "Dataset017_X").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def validate(addresses: list[str], *_: Any, **__: Any) -> list[str]:
        asked.extend(addresses)
        return []

    monkeypatch.setattr(api, "validate", validate)
    command = ["train", "17", "3d_fullres", "0", "-tr", "mine:nnUNetTrainerMine"]
    folders = {"nnUNet_preprocessed": str(tmp_path / "pre"), "nnUNet_results": str(tmp_path / "results")}
    CliRunner().invoke(app, [*command, "--val"], env=folders)
    assert asked == ["17/3d_fullres/nnUNetTrainerMine/0"]
    found = CliRunner().invoke(app, command, env=folders)
    assert "nnUNetTrainerMine trains for as many epochs as the experiment names; set `--epochs`" in str(found.exception)
