"""A subclass of nnU-Net's trainer from a file, by its own loop: stopped, killed with its loaders, continued, validated, compared beside one
of ours, exported where nnU-Net finds it; every part real."""

import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from orchestrator import api
from orchestrator.errors import ConfigError
from orchestrator.experiment.model import Experiment
from orchestrator.report.page import html
from orchestrator.tracking.client import Tracker
from tests.conftest import Toys
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.own_functions import EXAMPLES
from trainers.contract.commits import newest_committed
from trainers.contract.fencing import claims_seen
from trainers.contract.requests import request_stop
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import NOT_EXACT
from trainers.contract.states import RunState

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]
OWN, OURS = "nnUNetTrainerAdamWStep", "nnUNetTrainer"
EPOCHS = 6


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[str]:
    with services_of_its_own(num_cpus=2) as (_, services):
        yield services.mlflow_uri


def until(what: str, is_so: Callable[[], bool]) -> None:
    """Wait for something that a run does."""
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def epochs_done(folder: RunFolder) -> int:
    committed = newest_committed(folder)
    return committed.epochs_done if committed else 0


def begun(experiment: Experiment, address: str) -> tuple[str, RunFolder]:
    """Submit; the campaign and the folder of the run at this address."""
    submission = api.submit(experiment)
    (row,) = [row for row in submission.plan.rows if row.spec.model.endswith(address)]
    return submission.campaign_id, RunFolder(row.spec.run_folder)


def killed(folder: RunFolder) -> list[psutil.Process]:
    """Kill the worker at once; the loader processes that it had."""
    worker = psutil.Process([claim.pid for claim in claims_seen(folder) if claim.role == "workers"][-1])
    loaders: list[psutil.Process] = worker.children(recursive=True)
    os.kill(worker.pid, signal.SIGKILL)
    return loaders


def test_a_subclass_is_stopped_killed_continued_validated_and_compared(
    toys: Toys, tmp_path: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, results = toys("labels"), tmp_path / "results"
    settings = {
        "trainers": [OURS, f"{EXAMPLES}/own_trainer:{OWN}"],
        "epochs": EPOCHS,
        "train_iterations": 12,
        "val_iterations": 2,
        "workers": {"count": 1, "gpus": 0, "cpus": 1},
        "loader": {"actors": 1},
    }
    experiment = toy_experiment(toy, results, **settings)
    assert any(NOT_EXACT in warning for warning in api.plan(experiment).warnings)
    campaign, folder = begun(experiment, OWN)
    until("no epoch was committed", lambda: epochs_done(folder) >= 1)
    request_stop(folder, is_now=False)
    stopped = {status.address.split("/")[2]: status for status in api.wait(campaign)}
    assert (stopped[OURS].state, stopped[OWN].state) == (RunState.SUCCEEDED, RunState.STOPPED), stopped[OWN].reason
    assert stopped[OWN].reason.startswith(NOT_EXACT)
    before = epochs_done(folder)
    assert 1 <= before < EPOCHS - 2

    campaign, folder = begun(experiment, OWN)
    until("it did not go on", lambda: epochs_done(folder) > before)
    loaders = killed(folder)
    killed_after = epochs_done(folder)
    assert len(loaders) >= 2, "processes for training and for validation"
    assert psutil.wait_procs(loaders, timeout=30)[1] == []
    ended = {status.address.split("/")[2]: status for status in api.wait(campaign)}
    assert ended[OWN].state is RunState.SUCCEEDED, ended[OWN].reason

    committed = newest_committed(folder)
    assert committed is not None
    assert [row.epoch for row in committed.history] == list(range(EPOCHS))
    tokens = [row.fencing_token for row in committed.history]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 3, "it was stopped once and killed once"
    assert killed_after < EPOCHS
    rates = [row.learning_rate for row in committed.history]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2)
    assert all(folder.summary(name).is_file() and folder.checkpoint(name).is_file() for name in ("best", "final"))
    assert any("Current learning rate: 0.001" in log.read_text() for log in folder.root.glob("training_log_*.txt"))

    compared = api.compare(results=results).answer
    (made,) = api.snapshot(campaign=campaign).comparisons
    assert made.verdict == compared.verdict
    assert made.link == api.publish_report(compared, local), "one MLflow run, as by hand"
    print(tokens, killed_after, len(loaders), ended[OWN].full_dice, compared.notes, compared.verdict, sep="\n")
    assert any(note.endswith(NOT_EXACT) and OWN in note for note in compared.notes)
    assert f"{OWN}: Not exact: trained by the trainer" in html(compared)
    _check_tracked(local, folder)
    _check_exports(folder, tmp_path, results, monkeypatch)
    gang = {"count": 1, "gpus": 0, "cpus": 1}
    predicted = api.predict(folder.spec().model, toy.raw / "imagesTr", tmp_path / "predicted", results=results / toy.name, workers=gang)
    assert predicted.exit_code == 0, predicted.message
    assert len({path.name for path in (tmp_path / "predicted").rglob("toy_*.nii.gz")}) == 6


def _check_tracked(uri: str, folder: RunFolder) -> None:
    spec, tracker = folder.spec(), Tracker(uri)
    known = tracker.known_run(spec.run_key)
    assert known is not None
    assert known.tags["nnfleet.not_exact"] == NOT_EXACT
    assert tracker.params(known.run_id)["own_trainer"] == spec.own.named["trainer"].text
    for key in ("train/loss", "val/loss", "val/pseudo_dice/organ", "val/ema_pseudo_dice", "time/epoch_s"):
        assert sorted(tracker.metric_history(known.run_id, key)) == list(range(EPOCHS)), key


def _check_exports(folder: RunFolder, base: Path, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's predictor loads the model by its trainer's name where it finds the class; elsewhere ours alone predicts with it."""
    model = folder.spec().model
    with pytest.raises(ConfigError, match=f"has the trainer own_trainer:{OWN} .* which nnU-Net does not find here"):
        api.export(model, base / "exported", results=results)
    monkeypatch.setenv("nnUNet_extTrainer", str(EXAMPLES))
    exported = api.export(model, base / "exported", results=results).folder
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(exported), (0,), "checkpoint_final.pth")
    assert (predictor.trainer_name, predictor.allowed_mirroring_axes) == (OWN, None)
