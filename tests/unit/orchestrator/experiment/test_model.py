"""The experiment file: what it accepts, what it refuses and in which words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import ConfigError
from orchestrator.experiment.model import Experiment, experiment_from, experiment_schema, load_experiment, parse_experiment, single_training
from trainers.contract.run_spec import RunSpec, Schedule

SCHEMA_FILE = Path(__file__).parents[4] / "docs" / "experiment.schema.json"
MINIMAL = "dataset: 17\nconfigurations: 3d_fullres\n"


def test_a_minimal_file_has_the_defaults_of_nnunet() -> None:
    experiment = parse_experiment(MINIMAL)
    assert (experiment.plans, experiment.trainers) == (("nnUNetPlans",), ("nnUNetTrainer",))
    assert (experiment.folds, experiment.seeds) == ((0, 1, 2, 3, 4), (0,))
    assert (experiment.epochs, experiment.train_iterations, experiment.val_iterations) == (1000, 250, 50)
    assert (experiment.initial_lr, experiment.weight_decay) == (0.01, 3e-5)
    assert not experiment.images


def test_short_forms_and_single_values_become_full_lists() -> None:
    experiment = parse_experiment(MINIMAL + "trainers: da5\nfolds: all\nseeds: 3\nplans: P\ninitial_lr: 1e-3\n")
    assert experiment.trainers == ("nnUNetTrainerDA5",)
    assert (experiment.folds, experiment.seeds, experiment.plans) == (("all",), (3,), ("P",))
    assert experiment.initial_lr == 0.001


@pytest.mark.parametrize(
    ("text", "dataset"), [("17", "17"), ("017", "17"), ("'010'", "010"), ("010", "10"), ("Dataset017_X", "Dataset017_X")]
)
def test_a_leading_zero_is_never_octal(text: str, dataset: str) -> None:
    assert parse_experiment(f"dataset: {text}\nconfigurations: 2d\n").dataset == dataset


def test_runs_come_in_the_documented_order_with_folds_innermost() -> None:
    text = "dataset: 17\nplans: [P, Q]\nconfigurations: [2d, 3d]\ntrainers: [default, da5]\nseeds: [0, 1]\nfolds: [0, all]\n"
    axes = parse_experiment(text).axes()
    assert len(axes) == 32
    assert axes[:3] == [("P", "2d", "nnUNetTrainer", 0, 0), ("P", "2d", "nnUNetTrainer", 0, "all"), ("P", "2d", "nnUNetTrainer", 1, 0)]
    assert axes[4][2] == "nnUNetTrainerDA5"
    assert axes[8][1] == "3d"
    assert axes[16][0] == "Q"


@pytest.mark.parametrize(
    ("text", "folds", "seeds"),
    [
        ("fold: 0", (0,), (0,)),
        ("fold: all", ("all",), (0,)),
        ("fold: [1, 2]", (1, 2), (0,)),
        ("folds: 0-4", (0, 1, 2, 3, 4), (0,)),
        ('folds: "1 - 2"', (1, 2), (0,)),
        ("folds: [0-1, 4, all]", (0, 1, 4, "all"), (0,)),
        ("seed: 3\nfold: 1", (1,), (3,)),
        ("seeds: 0-2\nfold: 1", (1,), (0, 1, 2)),
    ],
)
def test_folds_and_seeds_are_understood_as_people_write_them(text: str, folds: tuple[int | str, ...], seeds: tuple[int, ...]) -> None:
    experiment = parse_experiment(MINIMAL + text)
    assert (experiment.folds, experiment.seeds) == (folds, seeds)
    assert parse_experiment(experiment.to_yaml()) == experiment


def test_the_many_keys_of_an_experiment_are_listed_only_where_none_is_near() -> None:
    for key, is_listed in (("epoch", False), ("zzz", True)):
        with pytest.raises(ConfigError, match=f"{key}: unknown key") as refused:
            parse_experiment(f"dataset: 17\nconfigurations: 2d\n{key}: 5")
        assert ("Known here: epochs, " in str(refused.value)) is is_listed


REFUSED = [
    ("dataset: 17\nconfigurations: 2d\nfold: 0\nfolds: [1]", "`fold` stands beside `folds`, which means the same; write one of the two."),
    ("dataset: 17\nconfigurations: 2d\nseeds: 0\nseed: 0", "`seed` stands beside `seeds`, which means the same; write one of the two."),
    ("dataset: 17\nconfigurations: 2d\nfold: x", "e.yaml:3: fold.0: got 'x': a fold is `all` or must be a whole number from 0"),
    ("dataset: 17\nconfigurations: 2d\nfolds: 4-0", "e.yaml:3: folds: got '4-0': 4-0 counts down; write 0-4."),
    ("dataset: 17\nconfigurations: 2d\nfolds: 0-99999", "0-99999 stands for 100000 numbers, at most 1000 are allowed"),
    ("dataset: 17\nconfigurations: 2d\nfolds: [0-2, 2]", "folds: got ['0-2', 2]: 2 is listed more than once"),
    ("dataset: 17\nconfigurations: 2d\nfolds: 0-4-5", "folds.0: got '0-4-5': a fold is `all` or must be a whole number"),
    ("dataset: 17\nconfigurations: 2d\nepoch: 5", "e.yaml:3: epoch: unknown key. Did you mean 'epochs'?"),
    ("dataset: 17\nconfigurations: 2d\nlearning_rate: 0.1", "learning_rate: unknown key. Did you mean 'initial_lr'?"),
    ("dataset: 17\nconfigurations: 2d\nlr: 0.1", "lr: unknown key. Did you mean 'initial_lr'?"),
    ("dataset: 17\nconfigurations: 2d\nmax_epochs: 5", "max_epochs: unknown key. Did you mean 'epochs'?"),
    ("dataset: 17\nconfigurations: 2d\nsteps_per_epoch: 5", "steps_per_epoch: unknown key. Did you mean 'train_iterations'?"),
    ("dataset: 17\nconfigurations: 2d\npatchsize: 64", "patchsize: unknown key. Did you mean 'patch_size'?"),
    (
        "dataset: 17\nconfigurations: 2d\nworkers:\n  gpu: 1",
        "e.yaml:4: workers.gpu: unknown key. Did you mean 'gpus'? Known here: count, min, max, gpus, accelerator_type, cpus.",
    ),
    ("configurations: 2d", "e.yaml: dataset: missing. Add it."),
    ("dataset: brain\nconfigurations: 2d", "e.yaml:1: dataset: got 'brain': must be a dataset's number (17, 017) or its whole name"),
    ("dataset: 1.5\nconfigurations: 2d", "e.yaml:1: dataset: got 1.5: must be a dataset's number"),
    ("dataset: true\nconfigurations: 2d", "e.yaml:1: dataset: got True: must be a dataset's number"),
    ("dataset: 17\nconfigurations: []", "e.yaml:2: configurations: got []:"),
    ("dataset: 17\nconfigurations: [a/b]", "e.yaml:2: configurations.0: got 'a/b':"),
    ("dataset: 17\nconfigurations: 2d\ntrainers: DA6", "'DA6' is not a trainer of nnfleet. Did you mean 'da5'?"),
    ("dataset: 17\nconfigurations: 2d\ntrainers: nnUNetTrainerDA", "Did you mean 'nnUNetTrainerDA5'?"),
    ("dataset: 17\nconfigurations: 2d\ntrainers: [default, nnUNetTrainer]", "nnUNetTrainer is listed more than once; list each once."),
    (
        "dataset: 17\nconfigurations: 2d\ntrainers: nnUNetTrainerAdam",
        "e.yaml:3: trainers.0: got 'nnUNetTrainerAdam': nnfleet does not train nnUNetTrainerAdam of nnU-Net: it trains with AdamW",
    ),
    (
        "dataset: 17\nconfigurations: 2d\nepochs: 10\ntrainers: [default, nnUNetTrainer_5epochs]",
        "epochs: 10 contradicts trainers: nnUNetTrainer_5epochs, which sets epochs to 5; remove `epochs`, or name a trainer that leaves",
    ),
    (
        "dataset: 17\nconfigurations: 2d\nfolds: [0, -1]",
        "e.yaml:3: folds.1: got -1: a fold is `all` or must be a whole number from 0, got -1.",
    ),
    ("dataset: 17\nconfigurations: 2d\nfolds: [true]", "folds.0: got True"),
    ("dataset: 17\nconfigurations: 2d\nseeds: 1.5", "seeds.0: got 1.5: a seed must be a whole number from 0"),
    ("dataset: 17\nconfigurations: 2d\nepochs: 0", "e.yaml:3: epochs: got 0: must be greater than or equal to 1."),
    ("dataset: 17\nconfigurations: 2d\ninitial_lr: .inf", "e.yaml:3: initial_lr: got inf: must be a finite number."),
    ("dataset: 17\nconfigurations: 2d\nepochs: many", "e.yaml:3: epochs: got 'many': must be a valid integer"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {gpus: 2}", "workers.gpus: got 2: must be less than or equal to 1."),
    (
        "dataset: 17\nconfigurations: 2d\nworkers: {gpus: 0, accelerator_type: A100}",
        "`accelerator_type: A100` beside `gpus: 0`: set `gpus: 1`, or remove it to train on CPUs",
    ),
    ("dataset: 17\nconfigurations: 2d\nworkers: {accelerator_type: 'A 100'}", "workers.accelerator_type: got 'A 100'"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {min: 3, max: 2}", "`min: 3` is more than `max: 2`; exchange them"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {min: 3}", "`min` without `max`: name both for an elastic number of workers"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {max: 3}", "`max` without `min`: name both"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {count: 2, min: 1, max: 3}", "`count` beside `min` and `max`: name `count` for a fixed"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {min: 0, max: 3}", "workers.min: got 0: must be greater than or equal to 1."),
    ("dataset: 17\nconfigurations: 2d\nworkers: {cpus: 2}\nloader: {actors: 3}", "3 loader actors do not fit into workers.cpus: 2"),
    (
        "dataset: 17\nconfigurations: 2d\nworkers: {cpus: 8}\nloader: {most: 9}",
        "loader.most: 9 is not between 1 loader actor and workers.cpus: 8",
    ),
    ("dataset: 17\nconfigurations: 2d\nworkers: {cpus: 8}\nloader: {actors: 4, most: 3}", "loader.most: 3 is not between 4 loader actors"),
    ("dataset: 17\nconfigurations: 2d\nloader: {actors: 4, most: 3, placement: cluster}", "loader.most: 3 is less than loader.actors: 4"),
    ("dataset: 17\nconfigurations: 2d\nloader: {placement: gpu}", "placement"),
    ("dataset: 17\nconfigurations: 2d\nworkers: {loader_cpus: 3}", "follows from `loader: {actors: N, placement: cluster}`"),
    (
        "dataset: 17\nconfigurations: 2d\nvalidation: {checkpoints: [latest]}",
        "validation.checkpoints.0: got 'latest': must be 'best' or 'final'.",
    ),
    (
        "dataset: 17\nconfigurations: 2d\nvariant: seed3",
        "e.yaml:3: variant: got 'seed3': the name would be taken for a seed; write `seeds: 3`",
    ),
    ("dataset: 17\nconfigurations: 2d\nvariant: low__lr", "e.yaml:3: variant: got 'low__lr': the name must not hold `__`"),
    ("dataset: 17\nconfigurations: 2d\nvariant: low_", "nor begin or end with `_`"),
    ("dataset: 17\nconfigurations: 2d\nvariant: low+lr", "the name must consist of letters (a-z, A-Z), digits and _.-, begin with"),
    ("dataset: 17\nconfigurations: 2d\nvariant: ../x", "the name must consist of letters"),
    (f"dataset: 17\nconfigurations: 2d\nvariant: {'v' * 61}", "the name is longer than 60 bytes"),
    ("dataset: 17\ndataset: 18\nconfigurations: 2d", "e.yaml:2: not valid YAML: the key 'dataset' is a duplicate"),
    ("dataset: [17", "not valid YAML"),
    ("- 17", "the file must hold keys and values (such as `dataset: 17`), got [17]."),
    ("", "e.yaml: the file is empty. It needs at least `dataset` and `configurations`."),
    ("&a [*a]", "e.yaml"),
    ("dataset: 2020-13-45\nconfigurations: 2d", "not valid YAML"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_fault_is_refused_with_its_place_and_a_way_out(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(text, "e.yaml")
    assert message in str(caught.value)


def test_a_trainers_name_sets_the_schedule_of_its_runs_alone() -> None:
    text = "dataset: 17\nconfigurations: 2d\ntrainers: [nnUNetTrainer, nnUNetTrainer_5epochs, nnUNetTrainerNoMirroring]"
    for experiment in (parse_experiment(text), parse_experiment(parse_experiment(text).to_yaml())):
        assert [experiment.schedule_of(trainer).epochs for trainer in experiment.trainer_names] == [1000, 5, 1000]
    assert parse_experiment(f"{text}\ntrain_iterations: 7").schedule_of("nnUNetTrainer_5epochs") == Schedule(epochs=5, train_iterations=7)
    assert parse_experiment(f"{text}\nepochs: 5").schedule_of("nnUNetTrainer") == Schedule(epochs=5)  # the same number is no contradiction


def test_a_misspelt_key_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment("dataset: 17\nconfiguration: 2d", "e.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("e.yaml:2: configuration: unknown key. Did you mean 'configurations'?")


def test_a_missing_key_is_told_beside_an_unknown_one_that_means_another() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment("dataset: 17\nepoch: 5", "e.yaml")
    assert "e.yaml: configurations: missing. Add it." in str(caught.value).splitlines()


@pytest.mark.parametrize(
    "workers", ["{count: 2, gpus: 0}", "{gpus: 0}", "{min: 2, max: 8}", "{min: 1, max: 1, cpus: 3}", "{accelerator_type: A100}"]
)
def test_workers_survive_every_way_on_which_they_are_stored(workers: str) -> None:
    experiment = parse_experiment(MINIMAL + f"workers: {workers}")
    assert parse_experiment(experiment.to_yaml()).workers == experiment.workers
    stored = experiment.workers.model_dump_json()
    assert type(experiment.workers).model_validate_json(stored) == experiment.workers
    assert ("count" in stored) is not experiment.workers.is_elastic
    assert ("accelerator_type" in stored) is bool(experiment.workers.accelerator_type)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment("dataset: 17\nepochs: 0\ntrainers: x\nfoo: 1")
    assert len(str(caught.value).splitlines()) == 4


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load_experiment(tmp_path / "b.yaml")


def test_a_file_lends_its_name_and_its_folder(tmp_path: Path) -> None:
    (tmp_path / "brain.yaml").write_text(MINIMAL + "nnUNet_results: models\nnnUNet_preprocessed: ~/data\n")
    experiment = load_experiment(tmp_path / "brain.yaml")
    assert experiment.name == "brain"
    assert experiment.nnUNet_results == tmp_path / "models"
    assert str(experiment.nnUNet_preprocessed) == "~/data"  # the home of the machine that has the data, not of this one
    assert experiment.with_folders_resolved().nnUNet_preprocessed == Path.home() / "data"


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        "dataset: '017'\nname: 'yes'\nconfigurations: [2d, '1e3']\ntrainers: [da5_classic]\nfolds: [all, 3]\nseeds: [7]\nimages: true\n"
        "workers: {count: 2, gpus: 0, cpus: 1}\nloader: {prefetch: 1}\nvalidation: {checkpoints: [final]}\ninitial_lr: 1e-5\n"
        "tracking: {uri: 'http://h:1', experiment: Größe}\nnnUNet_results: /r\n",
    ],
)
def test_yaml_of_an_experiment_gives_the_same_experiment(text: str) -> None:
    experiment = parse_experiment(text)
    again = parse_experiment(experiment.to_yaml())
    assert again == experiment
    assert again.to_yaml() == experiment.to_yaml()
    assert again.effective_loader == experiment.effective_loader


def test_folders_come_from_the_file_then_from_the_environment() -> None:
    environment = {"nnUNet_preprocessed": "/env/p", "nnUNet_results": "/env/r"}
    experiment = parse_experiment(MINIMAL + "nnUNet_results: /file/r\n").with_folders_resolved(environment=environment)
    assert (experiment.nnUNet_preprocessed, experiment.nnUNet_results) == (Path("/env/p"), Path("/file/r"))
    assert experiment.nnUNet_raw is None
    assert parse_experiment(experiment.to_yaml()) == experiment


def test_folders_named_nowhere_are_refused_where_they_are_required() -> None:
    experiment = parse_experiment(MINIMAL)
    assert experiment.with_folders_resolved(required=False, environment={}) == experiment
    with pytest.raises(ConfigError, match="nnUNet_preprocessed and nnUNet_results: neither in the experiment file nor in the environment"):
        experiment.with_folders_resolved(environment={})


def test_loader_actors_follow_the_cpus_unless_named() -> None:
    assert parse_experiment(MINIMAL + "workers: {cpus: 8}").effective_loader.actors == 6
    assert parse_experiment(MINIMAL + "workers: {cpus: 4}").effective_loader.actors == 2
    assert parse_experiment(MINIMAL + "workers: {cpus: 1}").effective_loader.actors == 1
    assert parse_experiment(MINIMAL + "workers: {cpus: 8}\nloader: {actors: 8}").effective_loader.actors == 8


@pytest.mark.parametrize(
    ("settings", "loaders"),
    [
        ("workers: {cpus: 12}", (6, 11)),
        ("workers: {cpus: 8}", (6, 7)),
        ("workers: {cpus: 3}", (1, 2)),
        ("workers: {cpus: 2}", (1, None)),
        ("workers: {cpus: 1}", (1, None)),
        ("workers: {cpus: 12}\nloader: {actors: 4}", (4, None)),
        ("workers: {cpus: 12}\nloader: {actors: 4, most: 9}", (4, 9)),
        ("workers: {cpus: 12}\nloader: {most: 3}", (3, None)),
        ("workers: {cpus: 1}\nloader: {placement: cluster}", (6, None)),
        ("workers: {cpus: 1}\nloader: {placement: cluster, most: 3}", (3, 3)),
        ("workers: {cpus: 1}\nloader: {placement: cluster, actors: 20, most: 40}", (20, 40)),
    ],
)
def test_loader_actors_may_grow_into_the_cpus_unless_they_are_named(settings: str, loaders: tuple[int, int | None]) -> None:
    loader = parse_experiment(MINIMAL + settings).effective_loader
    assert (loader.actors, loader.most) == loaders


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("validation: {checkpoints: []}", "3: validation.checkpoints: [] validates nothing. Name `best`, `final` or both, or leave it out"),
        ("notify:\n  when: []", "4: notify.when: [] sends nothing. Name `failed`, `succeeded` or `ended`, or leave `notify` out"),
    ],
)
def test_a_list_of_nothing_is_refused_where_a_user_writes_it(text: str, refusal: str, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(MINIMAL + text)
    with pytest.raises(ConfigError) as found:
        load_experiment(file)
    assert str(found.value).startswith(f"{file}:{refusal}")
    with pytest.raises(ConfigError) as found:
        experiment_from(yaml.safe_load(MINIMAL + text))
    assert str(found.value).startswith(f"experiment: {refusal[3:]}")
    assert load_experiment(file, is_sent=True).dataset == "17", "a drill asks for nothing on purpose"


def test_a_single_training_is_named_as_on_nnunets_command_line() -> None:
    experiment = single_training("017", "3d_fullres", "all", "da5", epochs=3, workers={"gpus": 0, "cpus": 2})
    assert experiment.axes() == [("nnUNetPlans", "3d_fullres", "nnUNetTrainerDA5", 0, "all")]
    assert (experiment.epochs, experiment.workers.gpus) == (3, 0)
    assert parse_experiment(experiment.to_yaml()) == experiment
    with pytest.raises(ConfigError, match=r"command line: folds\.0: got 'x'"):
        single_training(17, "2d", "x")
    with pytest.raises(ConfigError, match=r"command line: epoch: unknown key. Did you mean 'epochs'"):
        single_training(17, "2d", 0, epoch=3)


def test_defaults_are_those_of_the_run_specification() -> None:
    experiment = parse_experiment(MINIMAL)
    for field in ("images", "pseudonyms", "deterministic", "compile", "workers", "loader", "validation"):
        assert getattr(experiment, field) == RunSpec.model_fields[field].default, field
    assert experiment.schedule_of("nnUNetTrainer") == RunSpec.model_fields["schedule"].default
    derived = {
        "run_key",
        "dataset",
        "preprocessed_folder",
        "model_folder",
        "train_cases",
        "val_cases",
        "data_digest",
        "case_digests",
        "previous_stage",
        "next_stages",
        "imported",
        "continued",
    }
    one_of_several = {"plans", "configuration", "trainer", "fold", "seed"}
    named_otherwise = {"schedule", "upload_interval_s", "local_artifacts", "tracking_uri", "mlflow_experiment", "own"}
    assert set(RunSpec.model_fields) - derived - one_of_several - named_otherwise <= set(Experiment.model_fields)
    assert experiment.tracking.upload_interval_s == RunSpec.model_fields["upload_interval_s"].default


def _undescribed(schema: dict[str, Any]) -> Iterator[str]:
    for owner in (schema, *schema["$defs"].values()):
        for name, field in owner["properties"].items():
            if not field.get("description"):
                yield f"{owner['title']}.{name}"


def test_every_key_of_the_schema_has_a_description() -> None:
    assert list(_undescribed(experiment_schema())) == []


def test_the_shipped_schema_is_current() -> None:
    """Write it anew with `nnfleet schema > docs/experiment.schema.json`."""
    assert json.loads(SCHEMA_FILE.read_text()) == json.loads(json.dumps(experiment_schema()))


KEYS = st.sampled_from([*Experiment.model_fields, "fold", "seed", "count", "gpus", "actors", "x"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["all", "da5", "2d", "17"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_document_is_an_experiment_or_a_config_error(content: dict[str, Any]) -> None:
    text = yaml.safe_dump({"dataset": 17, "configurations": "2d", **content})
    try:
        experiment = parse_experiment(text)
    except ConfigError:
        return
    assert parse_experiment(experiment.to_yaml()) == experiment


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@`,? \n\t0123456789._~<=") | st.characters(), max_size=40))
@settings(deadline=None, max_examples=500)
def test_any_text_is_an_experiment_or_a_config_error(text: str) -> None:
    try:
        parse_experiment(text)
        parse_experiment(MINIMAL + text)
    except ConfigError:
        pass


def test_a_name_that_is_made_from_a_file_or_a_dataset_is_cut_and_not_refused(tmp_path: Path) -> None:
    file = tmp_path / f"{'e' * 120}.yaml"
    file.write_text("dataset: 1\nconfigurations: [2d]\n")
    assert parse_experiment(load_experiment(file).to_yaml()).name == "e" * 80
    long = single_training(f"Dataset001_{'x' * 90}", "3d_fullres", 0)
    assert parse_experiment(long.to_yaml()).name.startswith("train-Dataset001_xxx")
    with pytest.raises(ConfigError, match="name"):
        parse_experiment(f"name: {'n' * 81}\ndataset: 1\nconfigurations: [2d]\n")
