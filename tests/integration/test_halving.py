"""Successive halving on a real cluster with CPUs for one run: the first trainer pauses at the rung while the second trains to it, the worse
one is stopped there, the better one finishes with the bits of a run that was never paused. The other goes on when a person resumes it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from orchestrator import api
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.local_services import Services
from orchestrator.experiment.model import Experiment
from orchestrator.resume.stored import stored_below
from orchestrator.run.halving import read_halving
from orchestrator.run.outcome import read_outcome
from tests.conftest import Toys
from tests.integration.digests import curves, epochs_done, reached, weights_digest
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.integration.test_resume import kill_head
from trainers.contract.requests import last_pause, read_pause_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Halving
from trainers.contract.states import RunState

pytestmark = pytest.mark.long

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDA5")
EPOCHS = 24
RUNG = 2


@pytest.fixture(scope="module")
def local() -> Iterator[tuple[Home, Services]]:
    with services_of_its_own(num_cpus=2) as started:
        yield started


def on_one_worker(toys: Toys, results: Path, **changes: Any) -> Experiment:
    one_worker = {"workers": {"count": 1, "gpus": 0, "cpus": 2}, "validation": {"checkpoints": ["final"]}}
    return toy_experiment(toys("labels"), results, epochs=EPOCHS, train_iterations=6, **one_worker, **changes)


@pytest.mark.timeout(1800)
def test_the_worse_trainer_is_stopped_at_its_rung_and_a_person_may_resume_it(
    local: tuple[Home, Services], toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, services = local
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    experiment = on_one_worker(toys, tmp_path)
    compared = {"trainers": TRAINERS, "halving": Halving(at=(RUNG,))}
    submission = api.submit(experiment.model_copy(update=compared))
    assert submission.plan.halving[0].startswith("Successive halving (nnUNetPlans, toy_3d): 1 of 2 models go on after epoch 2: 26 of 48")
    statuses = {status.state: status for status in api.wait(submission.campaign_id)}
    by_trainer = {status.address.split("/")[2]: status for status in statuses.values()}
    first, second = (by_trainer[name] for name in TRAINERS)
    assert set(statuses) == {RunState.SUCCEEDED, RunState.STOPPED}, [status.reason for status in statuses.values()]
    kept, stopped = statuses[RunState.SUCCEEDED], statuses[RunState.STOPPED]
    (decision,) = read_halving(RunFolder(stopped.run_folder)).decisions
    assert read_halving(RunFolder(kept.run_folder)).decisions == (decision,)
    values = [reached(RunFolder(status.run_folder)).history[RUNG - 1].ema_pseudo_dice for status in (kept, stopped)]
    assert [model.value for model in decision.judged] == values
    assert RUNG <= stopped.epochs_done < EPOCHS
    assert "successive halving at epoch 2: " in stopped.reason
    pauses = [last_pause(RunFolder(status.run_folder)) for status in (first, second)]
    assert [(pause.rung, pause.workers_to) if pause else None for pause in pauses] == [(RUNG, second.run_key), None]
    assert first.num_drivers == (2 if first is kept else 1)
    tags = MlflowClient(services.mlflow_uri).get_run(stopped.mlflow_run_id).data.tags
    assert tags["nnfleet.halving"] == "stopped at epoch 2"
    assert api.resume().plan.rows == (), "it was not cut off"

    resumed = api.resume([stopped.run_key])
    (again,) = api.wait(resumed.campaign_id)
    assert (again.state, epochs_done(RunFolder(stopped.run_folder))) == (RunState.SUCCEEDED, EPOCHS), again.reason
    tags = MlflowClient(services.mlflow_uri).get_run(stopped.mlflow_run_id).data.tags
    assert tags["nnfleet.halving"] == "stopped by successive halving, then continued by a person"

    unpaused = experiment.model_copy(update={"trainers": TRAINERS[:1], "variant": "unpaused", "replicate": "unpaused"})
    (alone,) = api.wait(api.submit(unpaused).campaign_id)
    folders = [RunFolder(status.run_folder) for status in (first, alone)]
    assert alone.num_drivers == 1
    assert len({row.fencing_token for row in reached(folders[0]).history}) == 2, "paused and continued once"
    assert curves(folders[0]) == curves(folders[1])
    assert weights_digest(folders[0]) == weights_digest(folders[1])


@pytest.mark.timeout(1800)
def test_a_head_that_is_killed_while_a_run_is_paused_costs_no_decision(
    local: tuple[Home, Services], toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, services = local
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    experiment = on_one_worker(toys, tmp_path, seeds=[3])
    submission = api.submit(experiment.model_copy(update={"trainers": TRAINERS, "halving": Halving(at=(RUNG,))}))
    first, second = (RunFolder(row.spec.run_folder) for row in submission.plan.rows)
    while not second.tokens.exists():
        assert read_halving(first).decisions == ()
        time.sleep(0.5)
    outcome, request = read_outcome(first), read_pause_request(first)
    assert outcome is not None
    assert request is not None
    assert (outcome.state, outcome.message) == ("PAUSED", f"paused after {epochs_done(first)} epochs")
    assert (request.campaign, request.rung) == (submission.campaign_id, RUNG)
    kill_head(services)
    shown = {status.run_folder: status for status in stored_below(tmp_path, ())[0]}[first.root]
    assert shown.state is RunState.PAUSED, "cut off, like everything"
    assert f"continues from epoch {epochs_done(first)}" in shown.reason

    local_services.up(home, num_cpus=2)
    resumed = api.resume()
    assert len(resumed.plan.rows) == 2
    ends = {status.run_folder: status for status in api.wait(resumed.campaign_id)}
    assert {status.state for status in ends.values()} == {RunState.SUCCEEDED, RunState.STOPPED}
    (decision,) = read_halving(first).decisions
    assert decision.campaign == resumed.campaign_id
    assert ends[first.root].num_drivers == (2 if ends[first.root].state is RunState.SUCCEEDED else 1), "it gave way without another start"
    assert last_pause(first) == request, "it was paused once"
