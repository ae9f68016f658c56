"""The whole head dies in the middle of a training: a new one continues it from the run folder, to the same bits; and whatever becomes of a
head, each verb answers for each run as before."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from orchestrator import api
from orchestrator.cli import main
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.cluster.local_services import Services
from orchestrator.cluster.processes import family
from orchestrator.errors import ConfigError
from orchestrator.experiment.model import Experiment
from tests.conftest import Toys
from tests.integration.digests import curves, epochs_done, reached, weights_digest
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.nnunet_begun import begun_fold
from tests.toy import Toy, environment
from trainers.contract.requests import request_stop
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
    for number in (signal.SIGSTOP, signal.SIGKILL):  # all are halted first: none of them sees another die
        for process in doomed:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(process.pid, number)
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
    deadline = time.monotonic() + 600
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


Answer = tuple[int, str, str]
"""Exit code, stdout and stderr of a command."""
Nnfleet = Callable[..., Answer]
ENDED, CUT_OFF = ("SUCCEEDED", "STOPPED"), "PAUSED"
OF_A_CAMPAIGN = ("campaign", "since_unix", "reason")
"""What of a run's status only the cluster that runs its campaign knows, or words otherwise than the run's folder."""
OF_THE_OTHER_FOLDS = "model_states"
MLFLOW_IS_AWAY = "Versions of code and libraries, which MLflow keeps"
"""How the sentence begins by which `diff` names what it does not know without MLflow."""


@pytest.fixture
def nnfleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Nnfleet:
    """Run a command line, its output into a pipe. Ports are left out."""

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["nnfleet", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = (re.sub(r"(127\.0\.0\.1):[0-9]+", r"\1:PORT", text) for text in capsys.readouterr())
        return int(end.value.code or 0), out, err

    return run


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 900
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Verbs:
    """What each verb answers for the runs of one model, by the states in which they are."""

    def __init__(self, nnfleet: Nnfleet, experiments: dict[str, Experiment], place: Path) -> None:
        self.nnfleet, self.place = nnfleet, place
        self.names: dict[str, str] = {}
        self.num_looks = 0
        for state, experiment in experiments.items():
            (place / f"{state}.yaml").write_text(experiment.to_yaml())

    def answers(self) -> dict[str, Any]:
        """Of the verbs that start nothing."""
        code, out, err = self.nnfleet("status", "--json")
        assert code == 0, err
        shown = {item["state"]: item for item in json.loads(out)}
        self.names = {state: item["address"] for state, item in shown.items()}
        self.num_looks += 1
        return {state: self._of(state, item) for state, item in shown.items()}

    def _of(self, state: str, item: dict[str, Any]) -> dict[str, Any]:
        name, target = self.names[state], str(self.place / f"{self.num_looks}-{state}")
        code, table, _ = self.nnfleet("status", name)
        rows = [line for line in table.splitlines() if line.startswith(f"{name} ")]
        answers: dict[str, Any] = {
            "json": {key: value for key, value in item.items() if key not in (*OF_A_CAMPAIGN, OF_THE_OTHER_FOLDS)},
            "status": (code, rows),
            "logs": self.nnfleet("logs", name)[:2],
            "stop": self.nnfleet("stop", name)[:2] if state in ENDED else None,  # a paused one counts as stopped from then on
        }
        code, out, err = self.nnfleet("export", name, target)
        answers["export"] = (code, out.replace(target, "DIR"), err)
        code, out, err = self.nnfleet("compare", name, "--json")
        answers["compare"] = (code, out, err.replace(" or in MLflow", ""))
        code, out, _ = self.nnfleet("diff", self.names["SUCCEEDED"], name, "--json")
        found = json.loads(out)
        answers["diff"] = (code, found | {"unknown": [text for text in found["unknown"] if not text.startswith(MLFLOW_IS_AWAY)]})
        code, out, _ = self.nnfleet("plan", str(self.place / f"{state}.yaml"), "--json")
        answers["plan"] = (code, [row["standing"] for row in json.loads(out)["rows"]])
        return answers

    def starting(self) -> dict[str, Any]:
        """Likewise of those that start services where none run; `validate` is asked of those that it refuses."""
        found: dict[str, Any] = {}
        for state, name in self.names.items():
            code, out, _ = self.nnfleet("ui", name, "--json")
            links = json.loads(out)
            refusal = self.nnfleet("validate", name) if state != "SUCCEEDED" else None
            found[state] = {"ui": (code, links["questions"], links["run"]), "validate": refusal}
        return found


@pytest.mark.timeout(1800)
def test_each_verb_answers_for_each_run_as_before_whatever_became_of_the_head(
    local: tuple[Home, Services], toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nnfleet: Nnfleet
) -> None:
    home, _ = local
    local_services.up(home, num_cpus=2)
    toy, results = toys("labels"), tmp_path / "results"
    for name, value in {**toy.env(), "nnUNet_results": str(results)}.items():
        monkeypatch.setenv(name, value)
    one_worker = {"workers": {"count": 1, "gpus": 0, "cpus": 1}, "validation": {"checkpoints": ["final"]}}
    experiment = toy_experiment(toy, results, epochs=8, train_iterations=4, seeds=[5], **one_worker)
    long = experiment.model_copy(update={"epochs": 500, "folds": (2,)})
    shown = {state: experiment.model_copy(update={"folds": (fold,)}) for fold, state in enumerate(ENDED)} | {CUT_OFF: long}
    verbs = Verbs(nnfleet, shown, tmp_path)

    submission = api.submit(experiment.model_copy(update={"folds": (0, 1)}))
    to_stop = RunFolder(submission.plan.rows[1].spec.run_folder)
    until(lambda: epochs_done(to_stop) >= 1)
    request_stop(to_stop, is_now=False)
    assert [status.state for status in api.wait(submission.campaign_id)] == [*ENDED]
    before, before_starting = verbs.answers(), verbs.starting()
    assert set(before) == set(ENDED)

    _, cut_off = begun(long)
    until(lambda: epochs_done(cut_off) >= 1)
    code, _, err = nnfleet("down")
    assert (code, "1 run has not ended" in err) == (ConfigError.exit_code, True), err
    assert nnfleet("down", "--yes")[0] == 0
    after_down = verbs.answers()
    assert list(after_down) == [*ENDED, CUT_OFF]
    assert {state: after_down[state] for state in ENDED} == before
    starting = verbs.starting()
    assert {state: starting[state] for state in ENDED} == before_starting
    assert verbs.answers() == after_down, "after `up`, which `ui` called"
    head = local_services.running(home)
    assert head is not None
    kill_head(head)
    assert verbs.answers() == after_down, "after kill -9"
    assert verbs.starting() == starting, "and after the next `up`"
    code, out, err = nnfleet("validate", verbs.names["SUCCEEDED"])
    assert code == 0, err
    (again,) = api.wait(out.split()[3].strip(".").removeprefix("campaign-"))
    assert (again.state, again.full_dice) == (RunState.SUCCEEDED, before["SUCCEEDED"]["json"]["full_dice"])
