"""Functions of the user's own in an experiment file: found beside it, never executed here, part of the run by name and content."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.code_package import code_kept, keep_code
from orchestrator.cluster.home import Home
from orchestrator.dataset.model_folder import run_differences
from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment, load_experiment, parse_experiment, single_training
from orchestrator.export.fold_facts import facts_of, unlike
from orchestrator.tracking.records import fixed_params
from tests.own_functions import EXAMPLES, NAMES
from tests.unit.tiny_dataset import Tiny, tiny_dataset
from trainers.contract.own_code import place_of, stored_files
from trainers.contract.run_spec import RunSpec

LOSS = "def make(labels, configuration):\n    return None\n"


def written(base: Path, text: str = LOSS, **keys: Any) -> Experiment:
    """An experiment file with a loss beside it."""
    tiny = Tiny(base) if (base / "nnUNet_preprocessed").exists() else tiny_dataset(base)
    (base / "my_loss.py").write_text(text)
    content = {"dataset": 17, "configurations": "3d_fullres", "fold": 0, "loss": "my_loss:make", **tiny.folders, **keys}
    (base / "e.yaml").write_text(json.dumps(content))
    return load_experiment(base / "e.yaml")


def only(experiment: Experiment) -> RunSpec:
    (spec,) = expand(experiment)
    return spec


def test_a_function_travels_with_its_experiment_and_names_a_model_of_its_own(tmp_path: Path) -> None:
    experiment = written(tmp_path)
    sent = parse_experiment(experiment.to_yaml())
    (tmp_path / "my_loss.py").unlink()  # the cluster does not have it
    assert sent == experiment
    spec = only(sent)
    assert spec.address == "17/3d_fullres/nnUNetTrainer+loss-my_loss.make/0"
    assert spec.own.named["loss"].name == "my_loss:make"
    assert "def make" not in spec.model_dump_json(), "what lies in a run folder is never executed"
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert fixed_params(spec)["loss"] == spec.own.named["loss"].text
    assert only(written(tmp_path, variant="mine")).address == "17/3d_fullres/nnUNetTrainer+mine/0"


def test_changed_code_is_another_run_and_no_function_the_same_as_ever(tmp_path: Path) -> None:
    first, other = only(written(tmp_path)), only(written(tmp_path, f"{LOSS}# changed\n"))
    plain = only(single_training(17, "3d_fullres", 0, **Tiny(tmp_path).folders))
    assert len({first.run_key, other.run_key, plain.run_key}) == 3
    assert first.run_key == only(written(tmp_path)).run_key
    assert '"own"' not in plain.model_dump_json()
    digest = other.own.named["loss"].sha256[:12]
    assert run_differences(first, other) == f"loss ({first.own.named['loss'].text}, now my_loss:make (SHA-256 {digest}...))"
    assert run_differences(plain, first).startswith("loss (nnU-Net's, now my_loss:make")
    assert ", loss (my_loss:make" in unlike([facts_of(plain), facts_of(first)])[0]


def test_a_sweep_keeps_the_names_of_its_variants_behind_that_of_the_function(tmp_path: Path) -> None:
    found = [spec.variant for spec in expand(written(tmp_path, sweep={"epochs": [1, 2]}))]
    assert found == ["loss-my_loss.make_epochs-1", "loss-my_loss.make_epochs-2"]


def test_a_package_travels_whole(tmp_path: Path) -> None:
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    for name, text in {"__init__": "", "a": f"from .deep.b import x\n{LOSS}", "deep/__init__": "", "deep/b": "x = 1\n"}.items():
        (tmp_path / "pack" / f"{name}.py").write_text(text)
    (tmp_path / "pack" / "secret.txt").write_text("no code")
    source = written(tmp_path, loss="pack.a:make").own_sources["loss"]
    assert sorted(source.files) == ["pack/__init__.py", "pack/a.py", "pack/deep/__init__.py", "pack/deep/b.py"]


@pytest.mark.parametrize(
    ("keys", "text", "words"),
    [
        ({"loss": "my_loss"}, LOSS, "'.*my_loss' names no function; write `module:function`"),
        ({"loss": "absent:make"}, LOSS, r"absent\.py does not exist, nor a package .*absent with an __init__\.py"),
        ({"loss": "my_loss:maker"}, LOSS, r"my_loss\.py defines no 'maker'\. Did you mean 'make'\?"),
        ({}, "def make(:\n", r"my_loss\.py is no Python: invalid syntax"),
        (
            {},
            "def make(labels):\n    pass\n",
            r"make of my_loss\.py does not take configuration; it is called as loss\(labels=\.\.\., conf",
        ),
        ({}, "def make(labels, configuration, gamma):\n    pass\n", r"make of my_loss\.py needs gamma; it is called as"),
        ({}, LOSS + "#" * 50_000, "have more than 50000 bytes"),
        ({"loss": {"name": "a:b", "files": {"../a.py": ""}}}, LOSS, "is no Python file of its own"),
        (
            {"loss": "my_loss:make" + "e" * 60},
            f"def make{'e' * 60}(labels, configuration):\n    pass\n",
            "name it yourself: `variant: NAME`",
        ),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_is_sent(tmp_path: Path, keys: Any, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        written(tmp_path, text, **keys)


@pytest.mark.parametrize(
    "text",
    ["def make(labels, configuration, gamma=2.0):\n    pass\n", "def make(**facts):\n    pass\n", "from torch.nn import ReLU as make\n"],
)
def test_optional_arguments_and_what_is_imported_are_let_pass(tmp_path: Path, text: str) -> None:
    assert written(tmp_path, text).own_sources


def test_the_examples_are_accepted_and_packages_from_here_bring_their_files(tmp_path: Path) -> None:
    parts = {part: f"{EXAMPLES}/{name}" for part, name in NAMES.items()}
    experiment = single_training(17, "3d_fullres", 0, variant="own", **parts)
    home = Home(tmp_path / "home")
    assert code_kept(home) == {}
    keep_code(home, [source.files for source in experiment.own_sources.values()])
    for part, code in experiment.own_parts("nnUNetTrainer").named.items():
        assert stored_files(place_of(home.root, code.sha256)) == experiment.own_sources[part].files
    assert sorted(name.rpartition("/")[2] for name in code_kept(home)) == ["own_loss.py", "own_network.py", "own_recipe.py"]
    damaged = home.own_code / ("0" * 16)
    damaged.mkdir()
    (damaged / "own_loss.py").write_bytes(b"\xff")
    assert len(code_kept(home)) == 3, "a damaged one does not keep the others from being sent"
