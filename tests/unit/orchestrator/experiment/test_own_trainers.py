"""A trainer of the user's own in an experiment file: found beside it, named by its class, and what cannot stand beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign.control_job import finish_all
from orchestrator.cluster.code_package import code_kept, keep_code
from orchestrator.cluster.home import Home
from orchestrator.compare.models import TrainedModel, ValidatedFold
from orchestrator.compare.run_differences import RunFacts, differences_of
from orchestrator.compare.schedules import not_exact
from orchestrator.dataset.model_folder import run_differences
from orchestrator.dataset.preflight import problems_of
from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment, load_experiment, parse_experiment, single_training
from orchestrator.experiment.plan import plan_of_runs
from orchestrator.export.fold_facts import facts_of
from orchestrator.export.model import EXTERNAL, finds_trainer, refuse_unknown_trainer
from orchestrator.follow.render import Reading, with_reading
from orchestrator.run.status import RunStatus
from orchestrator.tracking.records import NOT_EXACT_TAG, fixed_params, note_of, tags_of
from tests.own_functions import EXAMPLES
from tests.unit.tiny_dataset import Tiny, tiny_dataset
from trainers.contract.own_code import place_of, stored_files
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import NOT_EXACT, RunSpec
from trainers.contract.states import RunState

BASE = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
MINE = f"{BASE}\n\nclass nnUNetTrainerMine(nnUNetTrainer):\n    pass\n"


def written(base: Path, text: str = MINE, trainers: Any = "mine:nnUNetTrainerMine", **keys: Any) -> Experiment:
    """An experiment file with a trainer beside it."""
    tiny = Tiny(base) if (base / "nnUNet_preprocessed").exists() else tiny_dataset(base)
    (base / "mine.py").write_text(text)
    gang = {"count": 1, "gpus": 0, "cpus": 1}
    content = {"dataset": 17, "configurations": "3d_fullres", "fold": 0, "trainers": trainers, "epochs": 3, "workers": gang}
    named = {key: value for key, value in {**content, **tiny.folders, **keys}.items() if value is not None}
    (base / "e.yaml").write_text(json.dumps(named))
    return load_experiment(base / "e.yaml")


def only(experiment: Experiment) -> RunSpec:
    (spec,) = expand(experiment)
    return spec


def test_a_class_travels_with_its_experiment_beside_trainers_of_ours(tmp_path: Path) -> None:
    experiment = written(tmp_path, trainers=["da5", "mine:nnUNetTrainerMine"])
    sent = parse_experiment(experiment.to_yaml())
    (tmp_path / "mine.py").unlink()  # the cluster does not have it
    assert sent == experiment
    ours, mine = expand(sent)
    assert [spec.address for spec in (ours, mine)] == ["17/3d_fullres/nnUNetTrainerDA5/0", "17/3d_fullres/nnUNetTrainerMine/0"]
    assert (ours.own.named, ours.inexactness) == ({}, "")
    assert mine.own.named["trainer"].name == "mine:nnUNetTrainerMine"
    assert "nnUNetTrainerMine(" not in mine.model_dump_json(), "what lies in a run folder is never executed"
    assert RunSpec.model_validate_json(mine.model_dump_json()) == mine
    home = Home(tmp_path / "home")
    keep_code(home, [source.files for source in sent.all_sources])
    assert stored_files(place_of(home.root, mine.own.named["trainer"].sha256)) == {"mine.py": MINE}
    assert [name.rpartition("/")[2] for name in code_kept(home)] == ["mine.py"]


def test_changed_code_is_another_run_and_runs_of_ours_keep_their_keys(tmp_path: Path) -> None:
    first, other = only(written(tmp_path)), only(written(tmp_path, f"{MINE}# changed\n"))
    assert first.run_key == only(written(tmp_path)).run_key != other.run_key
    digest = other.own.named["trainer"].sha256[:12]
    assert run_differences(first, other) == f"trainer ({first.own.named['trainer'].text}, now mine:nnUNetTrainerMine (SHA-256 {digest}...))"
    plain = single_training(17, "3d_fullres", 0, epochs=3, **Tiny(tmp_path).folders)
    beside = written(tmp_path, trainers=["nnUNetTrainer", "mine:nnUNetTrainerMine"], workers=None)
    assert expand(beside)[0].run_key == only(plain).run_key


def test_it_is_named_not_exact_wherever_its_properties_are(tmp_path: Path) -> None:
    spec = only(written(tmp_path))
    params = fixed_params(spec)
    assert (params["trainer"], params["own_trainer"]) == ("nnUNetTrainerMine", spec.own.named["trainer"].text)
    assert (params["epochs"], "initial_lr" in params, "recipe" in params) == ("3", False, False)
    assert tags_of(spec)[NOT_EXACT_TAG] == NOT_EXACT
    assert NOT_EXACT in note_of(spec, "1")
    assert plan_of_runs("e", [spec], []).warnings == (f"trainers: nnUNetTrainerMine: {NOT_EXACT}",)
    ours = only(written(tmp_path, trainers="nnUNetTrainer"))
    assert ("settings", "exactness", NOT_EXACT, "-") in [
        (row.part, row.what, row.first, row.second) for row in differences_of(RunFacts(spec), RunFacts(ours))
    ]
    assert NOT_EXACT_TAG not in tags_of(ours)
    assert (plan_of_runs("e", [ours], []).warnings, NOT_EXACT in note_of(ours, "1")) == ((), False)
    models = [TrainedModel(run.trainer, (ValidatedFold(RunFolder(run.run_folder), run, (), None, ()),)) for run in (ours, spec)]
    assert not_exact(models) == [f"nnUNetTrainerMine: {NOT_EXACT.removesuffix('.')}"]
    named = {"run_key": spec.run_key, "address": spec.address, "campaign": "", "run_folder": spec.run_folder}
    status = RunStatus(**named, epochs=3, state=RunState.RUNNING)
    assert with_reading(status, spec, Reading()).reason == NOT_EXACT


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"epochs": None}, "nnUNetTrainerMine trains for as many epochs as the experiment names; set `epochs`"),
        ({"network": "own_network:small_unet"}, "network: nnUNetTrainerMine trains by its own loop, which has network, loss and augm"),
        ({"workers": {"count": 2}}, "workers.count: nnUNetTrainerMine trains by its own loop, with one worker; remove `workers.count`"),
        ({"workers": {"min": 1, "max": 2}}, "workers.max: .* with one worker"),
        ({"pretrained_weights": "w.pth"}, "pretrained_weights: .* begins with the weights that the class itself gives"),
        ({"loader": {"placement": "cluster"}}, "loader.placement: .* whose loaders are processes beside its worker"),
        ({"loader": {"actors": 1, "most": 1}}, "loader.most: .* with a fixed number of loader processes, `loader.actors`"),
        ({"checkpoint": {"every_minutes": 5}}, "checkpoint.every_minutes: .* saved at the end of its epochs"),
        ({"deterministic": True}, "deterministic: .* whose samples no seed repeats"),
        ({"initial_lr": 0.1}, "initial_lr: .* whose class sets it itself; remove `initial_lr`. Write other trainers into an exp"),
        ({"sweep": {"weight_decay": [0.1, 0.2]}}, "weight_decay: .* whose class sets it itself"),
        ({"trainers": ["mine:nnUNetTrainerMine"] * 2}, "is listed more than once"),
        ({"trainers": "mine:nnUNetTrainrMine"}, r"mine\.py defines no 'nnUNetTrainrMine'\. Did you mean 'nnUNetTrainerMine'\?"),
        ({"trainers": "absent:X"}, r"absent\.py does not exist, nor a package .*; write `module:Class` of a Python file"),
        ({"trainers": "mine:"}, "names no class; write `module:Class`"),
        ({"trainers": "mine:nnUNetTrainer"}, "nnUNetTrainer is trained by nnfleet itself, exactly: name it without its file"),
        ({"trainers": "mine.nnUNetTrainerMine"}, "is not a trainer of nnfleet.*a class of your own is named as `module:Class`"),
        ({"trainers": "nnUNetTrainerAdam"}, "nnfleet does not train nnUNetTrainerAdam .* as a class that a file of yours imports"),
    ],
)
def test_what_cannot_stand_beside_it_is_refused_before_anything_is_sent(tmp_path: Path, keys: Any, words: str) -> None:
    (tmp_path / "own_network.py").write_text((EXAMPLES / "own_network.py").read_text())
    (tmp_path / "w.pth").touch()
    with pytest.raises(ConfigError, match=words):
        written(tmp_path, **keys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def nnUNetTrainerMine():\n    pass\n", "nnUNetTrainerMine of mine.py is no class"),
        ("class nnUNetTrainerMine(:\n", "mine.py is no Python"),
    ],
)
def test_what_is_no_class_is_refused_before_anything_is_sent(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        written(tmp_path, text)


def test_nnunets_names_of_other_trainers_are_for_nnunets_own_classes(tmp_path: Path) -> None:
    own = "nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam"
    spec = only(written(tmp_path, f"from {own} import nnUNetTrainerAdam\n", "mine:nnUNetTrainerAdam"))
    assert (spec.trainer, finds_trainer(spec.trainer, "")) == ("nnUNetTrainerAdam", True)
    with pytest.raises(ConfigError, match="mine.py defines a class by the name of nnU-Net's nnUNetTrainerAdam"):
        written(tmp_path, "class nnUNetTrainerAdam:\n    pass\n", "mine:nnUNetTrainerAdam")
    with pytest.raises(ConfigError, match="holds two underscores in a row"):
        written(tmp_path, "class A__B:\n    pass\n", "mine:A__B")


def test_a_second_stage_of_a_cascade_is_refused(tmp_path: Path) -> None:
    spec = only(written(tmp_path))
    path = spec.preprocessed_folder / f"{spec.plans}.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["low"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_fullres"] = {**plans["configurations"]["low"], "previous_stage": "low"}
    path.write_text(json.dumps(plans))
    (problem,) = problems_of(spec)
    assert "nnUNetTrainerMine, which trains by its own loop, does not train '3d_fullres', the second stage of a cascade" in str(problem)


def test_an_early_end_of_its_own_loop_anneals_nothing(tmp_path: Path) -> None:
    spec = only(written(tmp_path))
    folder = RunFolder(spec.run_folder)
    folder.own.mkdir(parents=True)
    folder.spec_file.write_text(spec.model_dump_json())
    with pytest.raises(
        ConfigError, match=r"trains by its trainer's own loop, whose learning rates nnfleet does not set. Leave out --anneal"
    ):
        finish_all([folder.root], [], anneal_epochs=2)
    assert not folder.finish_file.exists()
    finish_all([folder.root], [], anneal_epochs=0)
    assert folder.finish_file.exists()


def test_it_is_exported_where_nnunet_finds_it_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        facts = facts_of(only(written(tmp_path)))

    monkeypatch.delenv(EXTERNAL, raising=False)
    sources: Any = [Source]
    with pytest.raises(ConfigError, match="mine:nnUNetTrainerMine .* which nnU-Net does not find here.*Name the folder of its file in"):
        refuse_unknown_trainer("it", sources)
    (tmp_path / "external").mkdir()
    (tmp_path / "external" / "mine.py").write_text(MINE)
    monkeypatch.setenv(EXTERNAL, f"/absent:{tmp_path / 'external'}")
    refuse_unknown_trainer("it", sources)
