"""The key `halving`: what is refused, which runs are compared, and what the plan shows of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.plan import show_plan
from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.halving import halving_sentences
from orchestrator.experiment.model import Experiment, parse_experiment
from orchestrator.experiment.plan import plan_report
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.run.halving import competitor_of
from tests.unit.tiny_dataset import Tiny, tiny_dataset
from trainers.contract.run_spec import RunSpec

TWO = "[nnUNetTrainer, nnUNetTrainerDA5]"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_dataset(tmp_path)


def experiment_of(tiny: Tiny, **keys: Any) -> Experiment:
    content = {"name": "e", "dataset": 17, "configurations": "3d_fullres", "folds": [0, 1], "workers": {"gpus": 0, "cpus": 1}}
    content |= {"trainers": ["nnUNetTrainer", "nnUNetTrainerDA5"], "halving": {"at": [100, 300]}, **tiny.folders}
    return parse_experiment(json.dumps({**content, **keys}))


def compared(specs: list[RunSpec]) -> list[set[str]]:
    ids = dict.fromkeys(spec.halving.comparison for spec in specs if spec.halving)
    return [{competitor_of(spec) for spec in specs if spec.halving and spec.halving.comparison == one} for one in ids]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "trainers: nnUNetTrainer\nhalving: {at: [100]}",
            "halving: there is one model only; name several trainers, values under `sweep`, or",
        ),
        (f"trainers: {TWO}\nhalving: {{at: [1000]}}", "halving: at: 1000 is not below epochs: 1000"),
        (f"trainers: {TWO}\nhalving: {{at: [300, 100]}}", "at: [300, 100] does not ascend; name each rung once, the earliest first"),
        (f"trainers: {TWO}\nhalving: {{at: [100, 100]}}", "does not ascend"),
        (f"trainers: {TWO}\nhalving: {{at: []}}", "halving.at: "),
        (f"trainers: {TWO}\nhalving: {{at: [0]}}", "halving.at"),
        (f"trainers: {TWO}\nhalving: {{at: [9], keep: 1}}", "halving.keep: "),
        (f"trainers: {TWO}\nhalving: {{at: [9], over: folds}}", "halving.over: "),
        (f"trainers: {TWO}\nhalving: {{at: [9]}}\nfolds: all", "halving: fold all validates on cases that it trains on"),
        ("trainers: [nnUNetTrainer, nnUNetTrainer_250epochs]\nhalving: {at: [9]}", "halving: the models differ in epochs (250, 1000), so"),
        ("sweep: {ema_decay: [0.5, 0.9]}\nhalving: {at: [9]}", "halving: the models differ in ema_decay (0.5, 0.9), so"),
    ],
)
def test_what_cannot_be_compared_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_experiment(f"dataset: 17\nconfigurations: 3d_fullres\n{text}\n")
    assert fault in str(refused.value)


def test_a_sweep_of_the_learning_rate_can_be_halved() -> None:
    assert parse_experiment("dataset: 17\nconfigurations: 2d\nsweep: {initial_lr: [0.01, 0.1]}\nhalving: {at: [9]}").halving is not None


def test_trainers_compete_within_a_configuration_with_all_seeds_and_folds_as_one_model(tiny: Tiny) -> None:
    specs = expand(experiment_of(tiny, configurations=["2d", "3d_fullres"], seeds=[0, 1]))
    assert len(specs) == 16
    assert compared(specs) == [{f"17/{name}/nnUNetTrainer", f"17/{name}/nnUNetTrainerDA5"} for name in ("2d", "3d_fullres")]


def test_over_configurations_all_models_compete_and_unlike_patches_are_warned_of(tiny: Tiny) -> None:
    experiment = experiment_of(tiny, configurations=["2d", "3d_fullres"], halving={"at": [100], "over": "configurations"})
    specs = expand(experiment)
    assert len(compared(specs)) == 1
    report = plan_report(experiment, specs, [NodeResources("n", {"CPU": 8.0}, {"CPU": 8.0})])
    (warning,) = [text for text in report.warnings if "halving" in text]
    assert "pseudo-Dice of unlike patches (2d: 8x8 voxels" in warning
    alike = experiment_of(tiny, configurations=["small", "3d_fullres"], halving={"at": [100], "over": "configurations"})
    report = plan_report(alike, expand(alike), [NodeResources("n", {"CPU": 8.0}, {"CPU": 8.0})])
    assert not [text for text in report.warnings if "halving" in text], "of the same patches it is comparable"


def test_the_run_key_does_not_depend_on_it_but_the_comparison_does_on_its_runs(tiny: Tiny) -> None:
    with_it, without = expand(experiment_of(tiny)), expand(experiment_of(tiny, halving=None))
    assert [spec.run_key for spec in with_it] == [spec.run_key for spec in without]
    fewer = expand(experiment_of(tiny, folds=[0]))
    assert fewer[0].halving != with_it[0].halving
    assert RunSpec.model_validate_json(with_it[0].model_dump_json()) == with_it[0]


def test_the_plan_shows_what_is_trained(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    four = experiment_of(tiny, sweep={"a": {"initial_lr": 0.01}, "b": {"initial_lr": 0.1}})
    specs = expand(four)
    # 4 models to epoch 100, 2 to epoch 300, 1 to epoch 1000, two folds each: 2 * (400 + 400 + 700)
    assert halving_sentences(specs) == [
        "Successive halving (nnUNetPlans, 3d_fullres): 2 of 4 models go on after epoch 100, 1 of 2 models go on after epoch 300: 3000 of "
        "8000 epochs, and those that runs train after a rung until the others have reached it, or until they leave their workers to these."
    ]
    report = plan_report(four, specs, [NodeResources("n", {"CPU": 8.0}, {"CPU": 8.0})])
    show_plan(report)
    assert "3000 of 8000 epochs" in " ".join(capsys.readouterr().out.split())
