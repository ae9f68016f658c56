"""A sweep: which variants it makes, how they are named, and what is refused."""

import json
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import parse_experiment
from orchestrator.experiment.plan import plan_report
from orchestrator.queue.gang_fit import NodeResources
from tests.unit.tiny_dataset import tiny_dataset

MINIMAL = "dataset: 17\nconfigurations: 3d_fullres\n"


def settings(text: str) -> list[tuple[str, int, float]]:
    return [(name, schedule.epochs, schedule.initial_lr) for name, schedule in parse_experiment(MINIMAL + text).variants("nnUNetTrainer")]


def test_without_a_sweep_there_is_one_variant() -> None:
    assert settings("epochs: 5") == [("", 5, 0.01)]
    assert settings("epochs: 5\nvariant: short") == [("short", 5, 0.01)]


def test_every_combination_of_the_lists_is_a_variant_named_by_its_values() -> None:
    assert settings("sweep: {initial_lr: [0.01, 1e-3], epochs: [50, 100]}") == [
        ("initial_lr-0.01_epochs-50", 50, 0.01),
        ("initial_lr-0.01_epochs-100", 100, 0.01),
        ("initial_lr-0.001_epochs-50", 50, 0.001),
        ("initial_lr-0.001_epochs-100", 100, 0.001),
    ]
    assert settings("sweep: {initial_lr: 3e-5}\nepochs: 7") == [("initial_lr-3e-05", 7, 3e-5)]


def test_a_value_that_is_added_renames_no_variant() -> None:
    few, more = settings("sweep: {initial_lr: [0.01], epochs: [50]}"), settings("sweep: {initial_lr: [0.01, 0.1], epochs: [50, 60]}")
    assert set(few) < set(more)


def test_variants_may_be_named_and_override_what_holds_for_all() -> None:
    text = "epochs: 100\nsweep:\n  base: {}\n  low: {initial_lr: 0.001}\n  low-short: {initial_lr: 0.001, epochs: 10}\n"
    assert settings(text) == [("base", 100, 0.01), ("low", 100, 0.001), ("low-short", 10, 0.001)]


@pytest.mark.parametrize("sweep", ["{initial_lr: [1e-5, 0.1], epochs: 3}", "{low: {weight_decay: 0}, base: {}}"])
def test_a_sweep_survives_the_way_to_the_cluster(sweep: str) -> None:
    experiment = parse_experiment(MINIMAL + f"sweep: {sweep}")
    again = parse_experiment(experiment.to_yaml())
    assert again == experiment
    assert again.variants("nnUNetTrainer") == experiment.variants("nnUNetTrainer")


REFUSED = [
    ("sweep: {oversampling: [0.5]}", "'oversampling' is no field of the schedule. Did you mean 'foreground_oversampling'? Known: epochs, "),
    ("sweep: {low: {lr: 0.5}}", "low: 'lr' is no field of the schedule. Known: epochs, "),
    ("sweep: {epochs: [3, 0]}", "e.yaml:3: sweep: got {'epochs': [3, 0]}: epochs: 0 must be greater than or equal to 1."),
    ("sweep: {initial_lr: [.inf]}", "initial_lr: inf must be a finite number"),
    ("sweep: {epochs: [3, 3.0]}", "3 is listed more than once; list each once"),
    ("sweep: {epochs: []}", "epochs: the list is empty; name values, or leave the field out"),
    ("sweep: {}", "must name fields of the schedule with lists (`initial_lr: [0.01, 0.001]`), or variants with fields"),
    ("sweep: [0.1]", "must name fields of the schedule with lists"),
    ("sweep: {low: {epochs: 3}, epochs: [4]}", "'low' names a variant beside fields with lists; name fields"),
    ("sweep: {seed3: {epochs: 3}}", "'seed3' would be taken for a seed"),
    ("sweep: {a__b: {epochs: 3}}", "'a__b' must not hold `__`"),
    ("sweep: {epochs: [3]}\nvariant: x", "`variant: x` beside `sweep`, which makes variants of its own; write one of the two"),
    ("sweep: {epochs: [3]}\nepochs: 4", "`epochs` stands in `sweep` and beside it; write it in one place"),
    (f"sweep: {{epochs: {[*range(1, 1000)]}, initial_lr: [0.1, 0.2, 0.3]}}", "it asks for 14985 runs, at most 10000 are allowed"),
    (f"sweep: {{epochs: {[*range(1, 1002)]}}}", "has 1001 entries, at most 1000 are allowed"),
    (
        "sweep: {foreground_oversampling: [0.25], train_iterations: [250], val_iterations: [50]}",
        "foreground_oversampling-0.25_train_iterations-250_val_iterations-50 is longer than 60 characters; name each variant yourself: "
        "`NAME: {foreground_oversampling: ...}`",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_faulty_sweep_is_refused_with_a_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(MINIMAL + text, "e.yaml")
    assert message in str(caught.value)


def test_a_sweep_of_endless_size_is_refused_at_once() -> None:
    values = [*range(1, 1000)]
    fields = ("epochs", "train_iterations", "val_iterations", "initial_lr", "weight_decay")
    with pytest.raises(ConfigError, match="at most 10000 are allowed"):
        parse_experiment(MINIMAL + f"sweep: {json.dumps(dict.fromkeys(fields, values))}")


def test_plan_shows_the_runs_of_every_variant_one_variant_after_the_other(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    content = {"dataset": 17, "configurations": "3d_fullres", "folds": [0, 1], "workers": {"gpus": 0, "cpus": 1}, **tiny.folders}
    experiment = parse_experiment(json.dumps({**content, "sweep": {"initial_lr": [0.01, 0.001]}}))
    specs = expand(experiment)
    rows = plan_report(experiment, specs, [NodeResources("n", {"CPU": 2}, {"CPU": 2})]).rows
    assert [row.address for row in rows] == [
        f"17/3d_fullres/nnUNetTrainer+initial_lr-{rate}/{fold}" for rate in ("0.01", "0.001") for fold in (0, 1)
    ]
    assert [spec.model_folder.name for spec in specs[1:3]] == [
        f"nnUNetTrainer__nnUNetPlans__3d_fullres__initial_lr-{rate}" for rate in ("0.01", "0.001")
    ]
    assert [spec.schedule.initial_lr for spec in specs] == [0.01, 0.01, 0.001, 0.001]
    assert len({spec.run_key for spec in specs}) == 4


@pytest.mark.parametrize("sweep", ["{epochs: [5, 10]}", "{short: {epochs: 5}}"])
def test_a_sweep_of_what_the_trainers_name_sets_is_refused(sweep: str) -> None:
    text = MINIMAL + f"trainers: [nnUNetTrainer_10epochs]\nsweep: {sweep}\n"
    with pytest.raises(ConfigError, match="sweep: epochs contradicts trainers: nnUNetTrainer_10epochs, which sets epochs to 10"):
        parse_experiment(text)


def test_a_sweep_keeps_what_the_trainers_name_sets() -> None:
    experiment = parse_experiment(MINIMAL + "trainers: [nnUNetTrainer_10epochs, nnUNetTrainer]\nsweep: {initial_lr: [0.01, 0.001]}\n")
    assert [[v.schedule.epochs for v in experiment.variants(trainer)] for trainer in experiment.trainer_names] == [[10, 10], [1000, 1000]]
