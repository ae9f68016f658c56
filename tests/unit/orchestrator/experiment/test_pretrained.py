"""Pretrained weights in an experiment: the file's contents are part of the run, its place is not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.dataset.model_folder import run_differences
from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import load_experiment, parse_experiment, single_training
from orchestrator.export.fold_facts import facts_of, unlike
from orchestrator.tracking.records import tags_of
from orchestrator.training import driver
from tests.nnunet_beside import configuration
from tests.unit.tiny_dataset import CONFIGURATIONS, Tiny, tiny_dataset
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import PretrainedWeights, RunSpec
from trainers.network.model import build_network, plain_state_dict


def run(tiny: Tiny, **keys: Any) -> RunSpec:
    (spec,) = expand(single_training(17, "3d_fullres", 0, **tiny.folders, **keys))
    return spec


def test_the_contents_of_pretrained_weights_are_part_of_the_run_and_their_place_is_not(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    plain = run(tiny)
    for name, content in (("a.pth", b"1"), ("b.pth", b"2"), ("copy of a.pth", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, copy = (run(tiny, pretrained_weights=str(tmp_path / name)) for name in ("a.pth", "b.pth", "copy of a.pth"))
    assert len({plain.run_key, a.run_key, b.run_key}) == 3
    assert a.run_key == copy.run_key
    assert "pretrained_weights" not in plain.model_dump_json()
    assert RunSpec.model_validate_json(a.model_dump_json()) == a
    assert run_differences(plain, a) == "pretrained_weights (none, now SHA-256 6b86b273ff34...)"
    assert unlike([facts_of(plain), facts_of(a)])[0].startswith("fold 0 differs from fold 0 in pretrained_weights (SHA-256 6b86b273ff34")


def test_a_relative_path_begins_at_the_experiment_file(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    (tmp_path / "w.pth").write_bytes(b"1")
    keys = {"dataset": 17, "configurations": "3d_fullres", "fold": 0, "pretrained_weights": "w.pth", **tiny.folders}
    (tmp_path / "e.yaml").write_text(json.dumps(keys))
    (spec,) = expand(load_experiment(tmp_path / "e.yaml"))
    assert spec.pretrained_weights is not None
    assert spec.pretrained_weights.file == tmp_path / "w.pth"


def test_weights_that_are_not_there_are_refused_when_runs_are_planned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrained_weights: .*none\.pth does not exist\. Name a checkpoint"):
        run(tiny_dataset(tmp_path), pretrained_weights=str(tmp_path / "none.pth"))


def planned(base: Path, features: tuple[int, ...]) -> RunSpec:
    """A run whose network has four stages, with weights of a network of these."""
    tiny = tiny_dataset(base)
    network = {"architecture": configuration(3)["architecture"], "patch_size": [16, 16, 16]}
    tiny.write_plans(configurations={"3d_fullres": {**CONFIGURATIONS["3d_fullres"], **network}})
    torch.save({"network_weights": plain_state_dict(build_network(configuration(3, features), 1, 5))}, base / "w.pth")
    return run(tiny, pretrained_weights=str(base / "w.pth"))


def test_weights_of_another_network_or_changed_ones_end_a_run_before_a_worker_starts(tmp_path: Path) -> None:
    sound = planned(tmp_path / "sound", (4, 8, 16, 16))
    assert driver.preflight(sound, 1) is None
    outcome = driver.preflight(planned(tmp_path / "other", (4, 8, 16, 8)), 1)
    assert outcome is not None
    assert outcome.state == "FAILED_CONFIG"
    assert "w.pth is of another network than this run's" in outcome.message
    assert sound.pretrained_weights is not None
    sound.pretrained_weights.file.write_bytes(b"another")
    outcome = driver.preflight(sound, 1)
    assert outcome is not None
    assert outcome.state == "FAILED_CONFIG"
    assert "has changed since the run was planned" in outcome.message


def source(tiny: Tiny, fold: int, content: bytes = b"weights", **keys: Any) -> RunSpec:
    """A run of ours that has been trained to its end."""
    (spec,) = expand(single_training(17, "3d_fullres", fold, **tiny.folders, **keys))
    folder = RunFolder(spec.run_folder)
    folder.own.mkdir(parents=True)
    folder.spec_file.write_text(spec.model_dump_json())
    folder.checkpoint("final").write_bytes(content)
    return spec


def test_a_run_is_named_by_address_or_key_and_a_model_stands_for_the_same_fold(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    sources = [source(tiny, fold, str(fold).encode()) for fold in (0, 1)]
    names = [
        "17/3d_fullres/nnUNetTrainer/0",
        "Dataset017_Tiny/3d_fullres/default/fold_0",
        sources[0].run_key,
        "17/3d_fullres/nnUNetTrainer",
    ]
    found = [run(tiny, variant="more", pretrained_weights=name) for name in names]
    assert len({spec.run_key for spec in found}) == 1
    assert found[0].pretrained_weights is not None
    assert found[0].pretrained_weights.file == RunFolder(sources[0].run_folder).checkpoint("final")
    assert found[0].pretrained_weights.run == sources[0].run_key
    assert tags_of(found[0])["nnfleet.pretrained_run"] == sources[0].run_key
    (tmp_path / "same.pth").write_bytes(b"0")
    assert run(tiny, variant="more", pretrained_weights=str(tmp_path / "same.pth")).run_key == found[0].run_key, "the content is the key"
    both = expand(
        single_training(17, "3d_fullres", "0-1", **tiny.folders, variant="more", pretrained_weights="17/3d_fullres/nnUNetTrainer")
    )
    assert [spec.pretrained_weights.run for spec in both if spec.pretrained_weights] == [spec.run_key for spec in sources]


def test_the_address_of_a_run_is_no_path_of_the_experiment_file(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    source(tiny, 0)
    keys = {"dataset": 17, "configurations": "3d_fullres", "fold": 0, "variant": "x", "pretrained_weights": "17/3d_fullres/nnUNetTrainer/0"}
    (tmp_path / "e.yaml").write_text(json.dumps({**keys, **tiny.folders}))
    experiment = load_experiment(tmp_path / "e.yaml")
    (spec,) = expand(parse_experiment(experiment.to_yaml()))
    assert spec.pretrained_weights is not None
    assert spec.pretrained_weights.run


def test_weights_of_a_run_that_know_the_validation_cases_or_are_not_there_are_refused(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    done = source(tiny, 1)
    with pytest.raises(ConfigError, match=r"/1 has been trained on 2 of the 2 validation cases of fold 0, first case_\d, so its scores"):
        run(tiny, variant="more", pretrained_weights="17/3d_fullres/nnUNetTrainer/1")
    with pytest.raises(ConfigError, match=r"pretrained_weights: run: there is no run '17/2d/nnUNetTrainer/0' below "):
        run(tiny, pretrained_weights="17/2d/nnUNetTrainer/0")
    RunFolder(done.run_folder).checkpoint("final").unlink()
    with pytest.raises(ConfigError, match=r"/1 has no final checkpoint .*: it has not been trained to its end\. Wait for it"):
        expand(single_training(17, "3d_fullres", 1, **tiny.folders, variant="more", pretrained_weights=done.run_key))


def test_weights_that_know_the_validation_cases_by_way_of_another_dataset_are_refused(tmp_path: Path) -> None:
    tiny = tiny_dataset(tmp_path)
    first = source(tiny, 1)
    between = source(tiny, 0, variant="between")
    began = PretrainedWeights(file=tmp_path / "w.pth", sha256="0" * 64, run=first.run_key)
    elsewhere = between.model_copy(update={"dataset": "Dataset018_Other", "pretrained_weights": began})
    RunFolder(between.run_folder).spec_file.write_text(elsewhere.model_dump_json())
    words = (
        rf"nnUNetTrainer/1 has been trained on 2 of the 2 validation cases of fold 0, .*, and {re.escape(elsewhere.address)} began with its"
    )
    with pytest.raises(ConfigError, match=words):
        run(tiny, variant="more", pretrained_weights=elsewhere.run_key)
    RunFolder(first.run_folder).spec_file.unlink()
    assert run(tiny, variant="more", pretrained_weights=elsewhere.run_key).pretrained_weights, "the walk ends with runs that are there"
