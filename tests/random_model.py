"""A run folder with checkpoints of random weights: everything that a validation needs, without a training."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.toy import Toy, toy_spec
from trainers.contract.cascade import network_channels
from trainers.contract.commits import BestRecord, Committed, EpochRow, Manifest
from trainers.contract.plans import labels_of, load_dataset_json, load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, RunSpec
from trainers.network.checkpoint import checkpoint_header
from trainers.network.model import build_network, mirroring_axes
from trainers.storage.files import write_json_atomic

EMA = 0.5


def random_run(toy: Toy, results: Path, configuration: str = "toy_3d", **overrides: Any) -> tuple[RunSpec, RunFolder]:
    """A finished run in `results` (so that tests share a toy dataset but not a run folder) with different weights in best and final."""
    model_folder = results / toy.name / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    spec = toy_spec(toy, configuration, model_folder=model_folder, **overrides)
    folder = RunFolder(spec.run_folder)
    folder.own.mkdir(parents=True)
    plans, dataset_json = load_plans(toy.preprocessed, spec.plans), load_dataset_json(toy.preprocessed)
    write_json_atomic(model_folder / "plans.json", plans.content)
    shutil.copy(toy.preprocessed / "dataset.json", model_folder / "dataset.json")
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    fixed = checkpoint_header(spec, plans.content, dataset_json, mirroring_axes(plans.configuration(configuration), spec.settings))
    manifests = {name: random_checkpoint(spec, folder, name, fixed, seed) for seed, name in enumerate(spec.validation.checkpoints)}
    commit(spec, folder, manifests)
    return spec, folder


def random_folds(
    toy: Toy, results: Path, configuration: str = "toy_3d", folds: Sequence[int] = (0, 1), **overrides: Any
) -> list[RunFolder]:
    """Folds of one model, each with random weights of its own in its final checkpoint, and no best one."""
    made = []
    for fold in folds:
        spec, folder = random_run(toy, results, configuration, fold=fold, **overrides)
        known = torch.load(folder.checkpoint("final"), weights_only=True)
        fixed = {key: value for key, value in known.items() if key != "network_weights"}
        commit(spec, folder, {"final": random_checkpoint(spec, folder, "final", fixed, seed=5 + fold)})
        made.append(folder)
    return made


def random_checkpoint(spec: RunSpec, folder: RunFolder, name: CheckpointName, fixed: dict[str, Any], seed: int) -> Manifest:
    """Write checkpoint_<name>.pth with the weights of `seed`, its last layer enlarged so that all classes occur."""
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    configuration = load_plans(spec.preprocessed_folder, spec.plans).configuration(spec.configuration)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        labels = labels_of(dataset_json)
        network = build_network(configuration, network_channels(configuration, dataset_json, labels), labels.num_heads)
        for parameter in network.decoder.seg_layers.parameters():  # type: ignore[union-attr]
            torch.nn.init.normal_(parameter, std=0.5)
    path = folder.checkpoint(name)
    torch.save({**fixed, "network_weights": network.state_dict()}, path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Manifest(
        checkpoint=name, file=path.name, epoch=1, fencing_token=1, ema_pseudo_dice=EMA + seed / 10, sha256=digest, size_bytes=len(content)
    )


def commit(spec: RunSpec, folder: RunFolder, manifests: dict[CheckpointName, Manifest]) -> None:
    """Write the committed state that tells of these checkpoints."""
    numbers = dict.fromkeys(EpochRow.model_fields, 1.0)
    row = EpochRow.model_validate(
        numbers | {"epoch": 1, "fencing_token": 1, "world_size": 1, "pseudo_dice": (EMA, EMA), "system": {}, "device": ""}
    )
    committed = Committed(
        run_key=spec.run_key,
        epochs_done=spec.schedule.epochs,
        fencing_token=1,
        history=(row,) * spec.schedule.epochs,
        best_policy=BestRecord(),
        best=manifests.get("best"),
        final=manifests.get("final"),
        state_sha256="0" * 64,
        state_size_bytes=0,
    )
    folder.state.mkdir(parents=True, exist_ok=True)
    (folder.state / f"{committed.stem}.json").write_text(json.dumps(committed.model_dump(mode="json")))
