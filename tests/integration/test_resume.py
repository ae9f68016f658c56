"""The whole head dies in the middle of a training: a new one continues it from the run folder, to the same bits."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from orchestrator import api
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.processes import family
from orchestrator.experiment.model import Experiment
from tests.conftest import Toys
from tests.integration.digests import curves, epochs_done, reached, weights_digest
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.nnunet_begun import begun_fold
from tests.toy import Toy, environment
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

pytestmark = pytest.mark.long

EPOCHS = 4


@pytest.fixture(scope="module")
def local() -> Iterator[tuple[Home, Services]]:
    with services_of_its_own(num_cpus=2) as started:
        yield started


def experiment_on(toy: Toy, results: Path) -> Experiment:
    """Four short epochs on two CPU workers."""
    settings = {"loader": {"actors": 1, "prefetch": 2}, "validation": {"checkpoints": ["final"]}}
    return toy_experiment(toy, results, epochs=EPOCHS, train_iterations=4, **settings)


def begun(experiment: Experiment) -> tuple[str, RunFolder]:
    """Submit; the campaign and the folder of its one run."""
    submission = api.submit(experiment)
    (row,) = submission.plan.rows
    return submission.campaign_id, RunFolder(row.spec.run_folder)


def kill_head(head: Services) -> None:
    """SIGKILL every process of the Ray head at once: driver, workers and loaders, the campaign, the job server."""
    doomed = family(head.ray)
    for process in doomed:
        os.kill(process.pid, signal.SIGSTOP)  # none of them sees another die
    for process in doomed:
        os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(doomed, timeout=60)
    assert family(head.ray) == []


def an_hour_passes(folder: RunFolder) -> None:
    """The last signs of life become so old; else it is waited for a minute whether leftover workers give another."""
    for path, key in ((folder.progress_file, "unix"), *((claim, "claimed_unix") for claim in folder.tokens.glob("*.json"))):
        content = json.loads(path.read_text())
        write_json_atomic(path, {**content, key: content[key] - 3600})


def test_a_run_whose_head_dies_is_resumed_on_a_new_head_to_the_same_bits(
    local: tuple[Home, Services], toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, head = local
    campaign, unbroken = begun(experiment_on(toys("labels"), tmp_path / "unbroken"))
    (reference,) = api.wait(campaign)
    assert reference.state is RunState.SUCCEEDED, reference.reason
    MlflowClient(head.mlflow_uri).delete_run(reference.mlflow_run_id)  # else it is refused to train the same run a second time

    results = tmp_path / "broken"
    campaign, folder = begun(experiment_on(toys("labels"), results))
    deadline = time.monotonic() + 120
    while epochs_done(folder) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_head(head)
    assert epochs_done(folder) < EPOCHS

    local_services.up(home, num_cpus=2)
    monkeypatch.setenv("nnUNet_results", str(results))
    (paused,) = api.stored()
    assert paused.run_key == reference.run_key
    assert "`nnfleet resume` continues it" in paused.reason
    an_hour_passes(folder)
    submission = api.resume()
    assert [row.progress.stage for row in submission.plan.rows] == ["continues"]
    assert api.stored() == []
    (status,) = api.wait(submission.campaign_id)
    assert status.state is RunState.SUCCEEDED, status.reason
    assert len({row.fencing_token for row in reached(folder).history}) == 2
    assert curves(folder) == curves(unbroken)
    assert weights_digest(folder) == weights_digest(unbroken)

    again = api.resume()
    assert again.plan.rows == ()
    assert "is finished" in again.plan.left[0]


def test_a_training_that_nnunet_began_is_imported_and_finished_by_a_campaign(
    local: tuple[Home, Services], toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three epochs are nnU-Net's; the checkpoint at the end loads in nnU-Net's predictor, and MLflow has all three."""
    toy, results = toys("labels"), tmp_path / "results"
    for name, value in (environment(toy.base) | {"nnUNet_results": str(results)}).items():
        monkeypatch.setenv(name, value)
    theirs = begun_fold(toy, results, [0.4, 0.3], num_iterations_per_epoch="2", num_val_iterations_per_epoch="1")
    before = {path: path.read_bytes() for path in theirs.rglob("*") if path.is_file()}
    (fold,) = api.import_folder(theirs, continues=True, workers={"gpus": 0, "cpus": 1})
    assert fold.run_folder is not None, fold.lacking
    (status,) = api.wait(api.resume([fold.run_key]).campaign_id)
    assert status.state is RunState.SUCCEEDED, status.reason
    assert {path: path.read_bytes() for path in before} == before
    folder = RunFolder(fold.run_folder)
    assert [(row.epoch, row.world_size) for row in reached(folder).history] == [(0, 0), (1, 0), (2, 1)]
    assert (folder.summary("final").is_file(), folder.summary("best").is_file()) == (True, True)
    run = MlflowClient(status.mlflow_url.split("/#/")[0]).get_run(status.mlflow_run_id)
    assert run.data.tags["nnfleet.continued"].startswith("Epochs 0 to 1 were trained by nnU-Net itself")
    assert "full/final/dice_mean" in run.data.metrics
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder.model_folder), (0,), "checkpoint_final.pth")
