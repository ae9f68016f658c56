"""Own network, loss and recipe, and weights of nnU-Net's and of a run to begin with: trained, validated, compared; every part real."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import api
from orchestrator.errors import ConfigError
from orchestrator.tracking.client import Tracker
from tests.conftest import Toys
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.nnunet_reference import built_trainer
from tests.own_functions import EXAMPLES, NAMES
from tests.toy import Toy, nnunet_environment
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
MODEL = "901/toy_3d/nnUNetTrainer"
LEARNS = {"epochs": 1, "train_iterations": 2, "val_iterations": 1, "validation": {"checkpoints": ["final"]}}


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[str]:
    with services_of_its_own(num_cpus=2) as (_, services):
        yield services.mlflow_uri


def trained(toy: Toy, results: Path, workers: int = 1, **keys: Any) -> RunSpec:
    """One run to its end."""
    gang = {"count": workers, "gpus": 0, "cpus": 1}
    submission = api.submit(toy_experiment(toy, results, workers=gang, loader={"actors": 1}, **LEARNS, **keys))
    (status,) = list(api.wait(submission.campaign_id))
    assert status.state is RunState.SUCCEEDED, status.reason
    return RunFolder(status.run_folder).spec()


def of_nnunet(toy: Toy, place: Path) -> Path:
    """A checkpoint that nnU-Net's own trainer has written."""
    trainer = built_trainer("nnUNetTrainer", toy, place)
    with nnunet_environment(toy.base):
        trainer.initialize()
    trainer.save_checkpoint(str(place / "checkpoint_final.pth"))
    return place / "checkpoint_final.pth"


def test_own_parts_and_fine_tuning_are_trained_validated_and_compared(toys: Toys, tmp_path: Path, local: str) -> None:
    toy, results = toys("labels"), tmp_path / "results"
    plain = trained(toy, results)
    parts = {part: f"{EXAMPLES}/{name}" for part, name in NAMES.items()}
    network = trained(toy, results, workers=2, network=parts["network"])
    loss = trained(toy, results, loss=parts["loss"])
    recipe = trained(toy, results, recipe=parts["recipe"], patch_size=[16, 24, 24], batch_size=3)
    file = trained(toy, results, variant="of-nnunet", pretrained_weights=str(of_nnunet(toy, tmp_path)))
    run = trained(toy, results, variant="of-run", pretrained_weights=f"{MODEL}/0")
    assert run.pretrained_weights is not None
    assert run.pretrained_weights.run == plain.run_key
    specs = [plain, network, loss, recipe, file, run]
    names = [
        MODEL,
        f"{MODEL}+network-own_network.small_unet",
        f"{MODEL}+loss-own_loss.focal",
        f"{MODEL}+recipe-own_recipe.light_batch_size-3_patch_size-16x24x24",
        f"{MODEL}+of-nnunet",
        f"{MODEL}+of-run",
    ]
    assert [spec.model for spec in specs] == names
    assert all(RunFolder(spec.run_folder).summary("final").is_file() for spec in specs)
    compared = api.compare(results=results)
    shown = ["toy_3d nnUNetTrainer", *(f"toy_3d nnUNetTrainer {name.rpartition('+')[2]}" for name in names[1:])]
    assert sorted(model.name for model in compared.answer.models) == sorted(shown)
    _check_logs(specs)
    _check_exports(results, tmp_path, names)
    gang = {"count": 1, "gpus": 0, "cpus": 1}
    ended = api.predict(names[1], toy.raw / "imagesTr", tmp_path / "predicted", results=results / toy.name, workers=gang)
    assert ended.exit_code == 0, ended.message
    assert len({path.name for path in (tmp_path / "predicted").rglob("toy_*.nii.gz")}) == 6
    _check_tracked(local, network, recipe, run)


def _check_logs(specs: list[RunSpec]) -> None:
    *_, file, run = specs
    for spec in (file, run):
        (log,) = spec.run_folder.glob("training_log_*.txt")
        assert "begins with the weights of" in log.read_text()
        committed = newest_committed(RunFolder(spec.run_folder))
        assert committed is not None


def _check_exports(results: Path, base: Path, names: list[str]) -> None:
    """nnU-Net's predictor loads what has its own network, with the patch of the run; an own network is never exported."""
    _, network, loss, recipe, *_ = names
    with pytest.raises(ConfigError, match="has the network own_network:small_unet .* which nnU-Net cannot build"):
        api.export(network, base / "network", results=results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    patches = []
    for name in (loss, recipe):
        folder = api.export(name, base / name.rpartition("+")[2], results=results).folder
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
        patches.append(list(predictor.configuration_manager.patch_size))
    assert patches == [[24, 24, 24], [16, 24, 24]]


def _check_tracked(uri: str, network: RunSpec, recipe: RunSpec, run: RunSpec) -> None:
    tracker = Tracker(uri)
    known = {spec.run_key: tracker.known_run(spec.run_key) for spec in (network, recipe, run)}
    assert all(known.values())
    params = {key: tracker.params(found.run_id) for key, found in known.items() if found is not None}
    assert params[network.run_key]["network"] == network.own.named["network"].text
    assert params[recipe.run_key]["recipe"] == recipe.own.named["recipe"].text
    assert params[recipe.run_key]["patch_size"] == "16 x 24 x 24"
    tags = known[run.run_key]
    assert tags is not None
    assert tags.tags["nnfleet.pretrained_run"] == run.pretrained_weights.run  # type: ignore[union-attr] # checked before
