"""What a run is said to take on the disk is what a real one takes, within a fifth."""

import json
import shutil
from pathlib import Path

from orchestrator.cli.plan import storage_line
from orchestrator.experiment.plan import plan_of_runs
from orchestrator.experiment.storage import run_bytes
from orchestrator.resume.removal import size_on_disk
from tests.conftest import Toys
from tests.toy import toy_spec
from tests.unit.trainers.training.test_early_end import Run
from trainers.contract.run_spec import OwnCode, OwnParts

FEATURES = [16, 32, 64]
"""Of a network beside whose weights the plans in each checkpoint are small, as in every real one."""


def test_a_trained_run_takes_what_the_plan_says(toys: Toys, tmp_path: Path) -> None:
    """Two epochs, of which each is the best so far; the predictions are the labels themselves."""
    toy = toys("labels")
    preprocessed = tmp_path / toy.name
    shutil.copytree(toy.preprocessed, preprocessed)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            configuration["architecture"]["arch_kwargs"]["features_per_stage"][:3] = FEATURES
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    run = Run(toys, tmp_path, anneal=0, preprocessed_folder=preprocessed)
    assert run.start(ask_in=1) == "TRAINED"
    for name in run.spec.validation.checkpoints:
        run.folder.validation(name).mkdir()
        for case in run.spec.val_cases:
            shutil.copy(preprocessed / "gt_segmentations" / f"{case}.nii.gz", run.folder.validation(name))
    _, *replaced = sorted((run.folder.best).glob("*.pth"), reverse=True)
    for best in replaced:  # as the publisher does once the newer one is in MLflow
        best.unlink()
    expected, found = run_bytes(run.spec), size_on_disk(run.folder.root)
    assert expected is not None
    assert 0.8 < found / expected < 1.2, f"{found} bytes, {expected} expected"
    report = plan_of_runs("e", [run.spec], [])
    assert storage_line(report) == f"Disk: {expected / 1e9:.3f} GB a run (1 run), its validation's predictions included."


def test_what_a_network_of_the_users_takes_is_not_known(toys: Toys) -> None:
    spec = toy_spec(toys("labels"))
    assert run_bytes(spec) is not None
    assert run_bytes(spec.model_copy(update={"own": OwnParts(network=OwnCode(name="mine:make", sha256="0" * 64))})) is None
