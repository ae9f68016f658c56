"""The command line: what each verb asks of the Python API, what it prints, and with which exit code it ends."""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import orchestrator
from orchestrator.campaign.events import ComparisonMade
from orchestrator.campaign.queue_view import QueueReport, QueueRow
from orchestrator.cli import VERBS, main, output
from orchestrator.cli.demo import demo_folder_name, environment_line
from orchestrator.cli.export import predict_command, stage_command
from orchestrator.cli.foreground import answer_of
from orchestrator.cli.gc import _kinds
from orchestrator.cli.models import Model
from orchestrator.cli.plan import plan_table
from orchestrator.cli.tables import dice, seconds, status_line, worst_exit_code
from orchestrator.cli.train import OPTIONS, fitted
from orchestrator.cli.watch import done_fraction, watch_view
from orchestrator.cli.worker_options import in_words_of_the_command_line, worker_options
from orchestrator.dataset.model_folder import CURES
from orchestrator.demo import DATASET, DemoPaths
from orchestrator.errors import ClusterError, ConfigError, DataError
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.plan import PlanReport, PlanRow
from orchestrator.export.model import Exported, _address_of_stage
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.resume.garbage import Garbage
from orchestrator.resume.removal import Removable
from orchestrator.run.job_record import JobRecord
from orchestrator.run.names import NoSuchRun
from orchestrator.run.progress import Progress
from orchestrator.run.status import CasesDone, RunStatus
from orchestrator.tracking.saved_views import QUESTIONS
from tests.fake_run import FakeRun
from trainers.contract.run_spec import CheckpointName, RunSpec, Schedule, WorkerSpec
from trainers.contract.states import RunState

EXPERIMENT = "dataset: 17\nconfigurations: [3d_fullres]\nfolds: [0]\n"


def run_status(**changes: Any) -> RunStatus:
    values: dict[str, Any] = {
        "run_key": "d017-3d_fullres-nnUNetTrainer-f0-abc",
        "address": "17/3d_fullres/nnUNetTrainer/0",
        "campaign": "c1",
        "state": RunState.RUNNING,
        "epochs_done": 12,
        "epochs": 50,
        "fraction_of_epoch": 0.5,
        "ema_pseudo_dice": 0.71,
        "best_ema_pseudo_dice": 0.72,
        "epoch_s": 3.1,
        "seconds_left": 130.0,
        "run_folder": Path("/results/fold_0"),
    }
    return RunStatus(**{**values, **changes})


def removable_run(fold: int) -> Removable:
    return Removable(
        run_key=f"k{fold}",
        address=f"17/2d/nnUNetTrainer/{fold}",
        state=RunState.STOPPED,
        epochs_done=3,
        epochs=5,
        run_folder=Path(f"/r/fold_{fold}"),
        size_bytes=750_000_000,
        mlflow_run_id="m",
        mlflow_url=f"http://mlflow/#/experiments/7/runs/m{fold}",
        crossvals=(Path("/r/crossval_results_folds_0_1"),),
        second_stages=("17/3d_cascade_fullres/nnUNetTrainer",),
    )


def queue_row(fold: int) -> QueueRow:
    return QueueRow(
        run_key=f"k{fold}",
        address=f"17/2d/nnUNetTrainer/{fold}",
        user="ann",
        priority=50 + 30 * fold,
        campaign="c",
        workers="1 worker x (1 GPU, 8 CPUs)",
        since_unix=0.0,
        starts_unix=None if fold else 3e9,
        is_moved=bool(fold),
        because="No capacity: x",
    )


def done(**changes: Any) -> RunStatus:
    return run_status(
        **{"state": RunState.SUCCEEDED, "epochs_done": 50, "fraction_of_epoch": 0.0, "full_dice": {"best": 0.81, "final": 0.8}, **changes}
    )


def plan_report() -> PlanReport:
    spec = RunSpec(
        run_key="k",
        dataset="Dataset017_X",
        preprocessed_folder=Path("/p"),
        model_folder=Path("/r"),
        plans="nnUNetPlans",
        configuration="3d_fullres",
        trainer="nnUNetTrainer",
        fold=0,
        train_cases=("a", "b"),
        val_cases=("c",),
        data_digest="0",
    )
    row = PlanRow(
        run_key="k",
        address=spec.address,
        fold=0,
        seed=0,
        workers=2,
        batch_per_rank=(2, 1),
        resources="2 x (1 GPU, 8 CPUs)",
        n_train=2,
        n_val=1,
        epochs=1000,
        iterations=250,
        progress=Progress(stage="new"),
        fits="never",
        because="no node has a GPU.",
        spec=spec,
    )
    return PlanReport(experiment="e", cluster="local", rows=(row,), n_now=0, n_later=0, n_never=1, n_finished=0, warnings=("odd data",))


class FakeApi:
    """The Python API with a cluster whose runs are what a test says. `asked` lists the verbs it was asked for."""

    def __init__(self) -> None:
        self.queued: QueueReport | None = None
        self.runs: list[RunStatus] = [run_status()]
        self.stored: list[RunStatus] = []
        self.test_sets: list[JobRecord] = []
        self.turns: list[Callable[[], None]] = []
        """What happens between two looks."""
        self.report = plan_report()
        self.asked: list[tuple[Any, ...]] = []
        self.outage = ""
        self.left: list[str] = []
        self.comparisons: list[ComparisonMade] = []
        self.ending: set[str] = set()
        self.printed = ["\x1b[36mline\x1b[0m one\n", "line two\n"]
        self.interruptions = 0
        self.fault: Exception | None = None
        self.interrupted_early: bool | None = None
        self.is_stored = True
        self.again = ""
        self.machine = {"CPU": 64.0, "GPU": 4.0}
        self.is_here = True

    def fail_with(self, fault: Exception) -> None:
        self.fault = fault

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.fault:
            raise self.fault

    def up(self, **asked: Any) -> Any:
        self._ask("up", asked)
        return SimpleNamespace(ray_address="http://127.0.0.1:1", mlflow_uri="http://127.0.0.1:2", token_file=Path("/home/token"))

    def down(self) -> None:
        self._ask("down")

    def plan(self, experiment: Experiment, cluster: str | None = None) -> PlanReport:
        self._ask("plan", experiment, cluster)
        return plan_report()

    def submit(
        self,
        experiment: Experiment,
        cluster: str | None = None,
        on_submit: Callable[[str], None] | None = None,
        on_wait: Callable[[str], None] | None = None,
        *,
        replaces: bool = False,
        again: str = "",
    ) -> Any:
        self.again = again
        self._ask("submit", experiment, cluster, *(["replaces"] if replaces else []))
        return self._sent(on_submit)

    def resume(
        self,
        runs: Sequence[str] = (),
        results: Path | None = None,
        cluster: str | None = None,
        on_submit: Callable[[str], None] | None = None,
        on_wait: Callable[[str], None] | None = None,
        *,
        only_failed: bool = False,
        campaign: str | None = None,
    ) -> Any:
        self._ask("resume", tuple(runs), results, cluster, *(["failed"] if only_failed else []), *([campaign] if campaign else []))
        if on_wait:
            on_wait("workers may still be at work")
        return self._sent(on_submit)

    def snapshot(self, cluster: str | None = None, campaign: str | None = None, results: Path | None = None) -> Any:
        self._ask("snapshot", cluster, campaign, results)
        stored = self.stored if campaign is None else []
        return SimpleNamespace(
            statuses=self.runs, stored=stored, outage=self.outage, test_sets=self.test_sets, left=self.left, comparisons=self.comparisons
        )

    def looks(self, cluster: str | None = None, campaign: str | None = None) -> Iterator[Any]:
        while True:
            how = {"comparisons": self.comparisons, "ending": self.ending}
            yield SimpleNamespace(statuses=self.status(cluster, campaign), test_sets=self.test_sets, **how)
            if self.turns:
                self.turns.pop(0)()

    def _sent(self, on_submit: Callable[[str], None] | None) -> Any:
        if on_submit and not self.interrupted_early:
            on_submit("c1")
        if self.interrupted_early is not None:
            raise KeyboardInterrupt
        return SimpleNamespace(campaign_id="c1", submission_id="campaign-c1", plan=self.report)

    def withdraw(self, campaign_id: str, cluster: str | None = None) -> list[str]:
        self._ask("withdraw", campaign_id, cluster)
        return [f"campaign-{campaign_id}"] if self.is_stored else []

    def queue(self, cluster: str | None = None) -> QueueReport:
        self._ask("queue", cluster)
        return self.queued or QueueReport(rows=tuple(map(queue_row, (0, 1))), shares={"ann": 0.5, "": 0.25})

    def place(
        self, runs: Sequence[str], cluster: str | None = None, *, priority: int | None = None, is_first: bool = False
    ) -> list[RunStatus]:
        self._ask("place", tuple(runs), cluster, priority, is_first)
        return self.runs

    def is_local(self) -> bool:
        return self.is_here

    def tracking_outage(self, cluster: str | None = None) -> str:
        return self.outage

    def this_machine(self) -> NodeResources:
        return NodeResources("this machine", self.machine, self.machine)

    def status(self, cluster: str | None = None, campaign: str | None = None) -> list[RunStatus]:
        self._ask("status", cluster, campaign)
        return self.runs

    def wait(self, campaign: str, cluster: str | None, on_status: Callable[[list[RunStatus]], None]) -> list[RunStatus]:
        self._ask("wait", campaign)
        on_status(self.runs)
        if self.interruptions:
            self.interruptions -= 1
            raise KeyboardInterrupt
        self.runs = [done() if not item.state.is_final else item for item in self.runs]
        return self.runs

    def stop(
        self,
        runs: Sequence[str] = (),
        now: bool = False,
        cluster: str | None = None,
        *,
        campaign: str | None = None,
        everything: bool = False,
        finish: bool = False,
        anneal: int = 0,
        on_wait: Callable[[str], None] | None = None,
        on_test_set: Callable[[JobRecord], None] | None = None,
    ) -> list[RunStatus]:
        self._ask(
            "stop", tuple(runs), now, *([campaign] if campaign else []), *(["all"] if everything else []), *([anneal] if finish else [])
        )
        before, self.runs = self.runs, [run_status(state=RunState.STOPPED)]
        if on_test_set is not None:
            for job in self.test_sets:
                on_test_set(job)
        return before

    def removable(self, runs: Sequence[str], results: Path | None = None, cluster: str | None = None) -> list[Removable]:
        self._ask("removable", tuple(runs), results)
        return [removable_run(fold) for fold in (0, 1)]

    def remove(
        self, runs: Sequence[str], results: Path | None = None, cluster: str | None = None, *, mlflow: bool = False
    ) -> list[Removable]:
        self._ask("remove", tuple(runs), results, mlflow)
        return [removable_run(fold) for fold in (0, 1)]

    def local_runs(self) -> list[RunStatus]:
        return self.runs

    def logs(self, run: str, cluster: str | None, follow: bool, earlier: bool, on_found: Callable[[RunStatus], None]) -> Iterator[str]:
        self._ask("logs", run, follow, earlier)
        on_found(self.runs[0])
        if all(item.state != RunState.QUEUED for item in self.runs):
            yield from self.printed

    def validate(self, runs: Sequence[str], cluster: str | None = None, *, npz: bool = False, best: bool = False) -> list[str]:
        self._ask("validate", *runs, *(["npz"] if npz else []), *(["best"] if best else []))
        return [f"campaign-{run}" for run in runs]

    def export(
        self, model: str, target: Path, tracking_uri: str | None = None, results: Path | None = None, checkpoint: str | None = None
    ) -> Exported:
        self._ask("export", model, target, tracking_uri)
        return Exported(target, {"1": ("best", "final"), "3": ("best",)}, ("fold 4 has no checkpoint yet and is not in it.",))


@pytest.fixture(autouse=True)
def hears_of_a_closed_terminal() -> Iterator[None]:
    """Also where the tests themselves were started by `nohup`, whose SIGHUP all of them would ignore."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setattr(orchestrator, "api", fake, raising=False)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("e.yaml").write_text(EXPERIMENT)
    return fake


@pytest.fixture
def nnfleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line, its output into a pipe; its exit code, stdout and stderr."""
    for name in ("COLUMNS", "nnUNet_compile", "nnUNet_n_proc_DA"):  # which a benchmark that was imported sets
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nnfleet", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


Nnfleet = Callable[..., tuple[int, str, str]]


def test_every_verb_has_a_file_of_its_own_and_help(nnfleet: Nnfleet) -> None:
    for verb in VERBS:
        assert importlib.import_module(
            f"orchestrator.cli.{'import_folder' if verb == 'import' else verb}"
        )  # no module has a keyword's name
        code, out, _ = nnfleet(verb, "--help")
        assert code == 0
        assert "Usage" in out


def test_plan_prints_the_table_in_full_and_its_warnings_apart(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, err = nnfleet("plan", "e.yaml")
    assert code == 5  # one run never fits: what submit would end with
    for text in ("17/3d_fullres/nnUNetTrainer/0", "2,1", "1000 x 250", "2 x (1 GPU, 8 CPUs)", "never: no node has a GPU.", "1 never"):
        assert text in " ".join(out.split())
    assert "odd data" in err
    assert "\x1b" not in out


def test_a_plan_of_eighty_columns_shows_progress_and_a_finished_run_fits_nothing() -> None:
    (row,) = plan_report().rows
    done = row.model_copy(update={"progress": Progress(stage="finished"), "fits": "now", "because": "nothing to submit."})
    console = Console(width=80, file=StringIO())
    console.print(plan_table(plan_report().model_copy(update={"rows": (row, done)}), 80))
    _, header, first, second, *_ = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert header.split() == ["run", "resources", "progress", "fits"]
    assert first.split()[-2:] == ["new", "never"]
    assert second.split()[-3:] == ["finished:", "skipped", "-"]


def test_plan_as_json_is_the_report(nnfleet: Nnfleet, api: FakeApi) -> None:
    _, out, _ = nnfleet("plan", "e.yaml", "--json")
    assert PlanReport.model_validate(json.loads(out)) == plan_report()


def test_submit_names_the_campaign(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, _ = nnfleet("submit", "e.yaml", "--cluster", "http://head:8265")
    assert code == 0
    assert "c1" in out
    assert api.asked[0][2] == "http://head:8265"
    _, out, _ = nnfleet("submit", "e.yaml", "--json")
    assert json.loads(out)["campaign"] == "c1"


def test_submit_and_train_replace_runs_only_when_asked_to(nnfleet: Nnfleet, api: FakeApi) -> None:
    for arguments in (("submit", "e.yaml"), ("train", "17", "3d_fullres", "0", "--cpu")):
        nnfleet(*arguments)
        nnfleet(*arguments, "--replace")
    assert [what[3:] for what in api.asked if what[0] == "submit"] == [(), ("replaces",), (), ("replaces",)]


def test_train_names_a_variant(nnfleet: Nnfleet, api: FakeApi) -> None:
    nnfleet("train", "17", "3d_fullres", "0", "--cpu", "--variant", "short", "--epochs", "5")
    (sent,) = (what[1] for what in api.asked if what[0] == "submit")
    assert [(name, schedule.epochs) for name, schedule in sent.variants("nnUNetTrainer")] == [("short", 5)]
    code, _, err = nnfleet("train", "17", "3d_fullres", "0", "--variant", "seed1")
    assert code == 2
    assert "--variant: got 'seed1': the name would be taken for a seed" in err


def test_train_names_its_own_options_for_a_folder_of_another_run(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.fail_with(ConfigError(f"results: /r belongs to the run k. {CURES}"))
    _, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert "To keep both: --variant NAME gives the new runs a model folder of their own; or name another nnUNet_results." in err
    assert "To start anew here: --replace moves the old run folder aside." in err


def test_submit_says_when_nothing_is_left_to_do(nnfleet: Nnfleet, api: FakeApi) -> None:
    finished = api.report.rows[0].model_copy(update={"standing": Progress(stage="finished", epochs_done=1000)})
    api.report = api.report.model_copy(update={"rows": (finished,), "n_never": 0, "n_finished": 1})
    _, out, _ = nnfleet("submit", "e.yaml")
    assert "Nothing is left to train or validate. Campaign c1 brings MLflow what it lacks" in out
    assert "Submitted" not in out
    api.report = api.report.model_copy(update={"rows": (finished, plan_report().rows[0])})
    assert "Submitted as campaign c1" in nnfleet("submit", "e.yaml")[1]


def test_status_shows_runs_that_only_their_folders_know_but_not_among_those_of_one_campaign(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = []
    api.stored = [run_status(state=RunState.PAUSED, reason="no campaign of this cluster follows it; `nnfleet resume` continues it.")]
    _, out, _ = nnfleet("status")
    assert "`nnfleet resume` continues it" in out
    _, out, _ = nnfleet("status", "--campaign", "c1")
    assert "PAUSED" not in out


def test_status_names_the_comparison_of_the_models_that_it_shows(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    made = ComparisonMade(models=("4/2d/a", "4/2d/b"), verdict="a is better than b.", link="http://mlflow/#/9")
    api.runs = [done(run_key=name, address=f"4/2d/{name}/0", full_dice={"final": 0.8}) for name in "abc"]
    api.comparisons, line = [made], "Comparison: a is better than b. Report in MLflow: http://mlflow/#/9\n"
    assert nnfleet("status")[1].endswith(line)
    assert nnfleet("status", "4/2d/b")[1].endswith(line)
    assert "Comparison" not in nnfleet("status", "4/2d/c")[1]
    api.comparisons, api.ending = [], {api.runs[0].campaign}

    def ends() -> None:
        api.comparisons, api.ending = [made], set()

    api.turns = [lambda: None, ends]
    assert nnfleet("status", "--watch")[1].endswith(line), "its campaign has not ended"


def test_status_names_run_folders_that_it_cannot_follow_also_beside_json_and_where_no_run_is_found(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.left = ["results: /r/a is of a run in /q: the folder was moved.", "run folder: /r/b is damaged."]
    left = f"2 run folders are left out:\n- {api.left[0]}\n- {api.left[1]}\n"
    code, out, err = nnfleet("status", "--json")
    assert (code, left) == (0, err)
    assert len(json.loads(out)) == len(api.runs)
    code, _, err = nnfleet("status", "nobody")
    assert code == ConfigError.exit_code
    assert left.rstrip() in err
    api.runs = []
    _, out, err = nnfleet("status", "--results", "/r")
    assert "/r holds none that can be followed (2 left out)" in out
    assert err == left


def test_status_of_named_runs_shows_these_alone(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(), done(run_key="other", address="4/2d/nnUNetTrainer/1")]
    out = nnfleet("status", "4/2d/nnUNetTrainer/1", "--json")[1]
    assert [item["run_key"] for item in json.loads(out)] == ["other"]
    assert nnfleet("status", "--watch", "other")[0] == 0, "it has ended, the other one is not waited for"
    api.runs.append(done(run_key="third", address="4/2d/nnUNetTrainer/2", run_folder=Path("/results/fold_2")))
    out = nnfleet("status", "4/2d", "other", "--json")[1]
    assert [item["run_key"] for item in json.loads(out)] == ["other", "third"], "all that match, each once"
    code, _, err = nnfleet("status", "nobody")
    assert code == ConfigError.exit_code
    assert "there is no run 'nobody'" in err


def folds(model: str, *states: RunState, **changes: Any) -> list[RunStatus]:
    """The runs of a model, one for each state."""
    return [
        run_status(run_key=f"{model}-{i}", address=f"{model}/{i}", state=state, run_folder=Path(f"/r/{model}/fold_{i}"), **changes)
        for i, state in enumerate(states)
    ]


def test_folds_stand_below_their_model_and_those_that_wait_or_succeeded_are_folded_away(nnfleet: Nnfleet, api: FakeApi) -> None:
    waiting = folds("17/2d/nnUNetTrainer", *[RunState.QUEUED] * 5, reason="waits for 1 GPU.")
    api.runs = [*waiting, *folds("17/3d/da5", RunState.SUCCEEDED, RunState.RUNNING, RunState.PAUSED)]
    lines = [" ".join(line.split()) for line in nnfleet("status")[1].splitlines() if line]
    assert lines[0] == "8 runs of 2 models: 1 RUNNING, 5 QUEUED, 1 PAUSED, 1 SUCCEEDED."
    assert [line.split()[0] for line in lines[2:]] == ["17/3d/da5", "fold", "fold", "17/2d/nnUNetTrainer", "17/2d/nnUNetTrainer/0"]
    assert "1 RUNNING" in lines[2]
    assert "1/3 folds" in lines[2]
    assert lines[-1] == "17/2d/nnUNetTrainer/0 and 4 more of its model: waits for 1 GPU."
    for arguments in (("--runs",), ("17",)):
        assert nnfleet("status", *arguments)[1].count("  fold ") == 8


def test_scripts_see_how_many_folds_of_its_model_are_in_each_state(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = folds("17/2d/t", RunState.RUNNING, RunState.FAILED_CODE, RunState.SUCCEEDED, RunState.SUCCEEDED)
    for names, count in (((), 4), (("17/2d/t/1",), 1)):
        found = json.loads(nnfleet("status", *names, "--json")[1])
        assert len(found) == count
        for run in found:
            assert (run["model"], run["model_states"]) == ("17/2d/t", {"RUNNING": 1, "FAILED_CODE": 1, "SUCCEEDED": 2})


def test_scripts_see_which_run_is_none_of_its_models_folds_now(nnfleet: Nnfleet, api: FakeApi) -> None:
    old = run_status(run_key="old", state=RunState.FAILED_CODE)
    api.runs = [old, run_status(run_key="new")]
    found = json.loads(nnfleet("status", "--json")[1])
    assert [run.get("older") for run in found] == ["another run has its folder now", None]
    assert [line.split()[:2] for line in nnfleet("status")[1].splitlines()[3:5]] == [[old.address, "RUNNING"], [old.address, "(older)"]]


def test_a_table_for_eighty_columns_fits_them(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    model = "913/2d/nnUNetTrainer@nnUNetResEncUNetMPlans"
    runs = folds(model, RunState.VALIDATING, RunState.FAILED_CLUSTER, epochs=1000, epochs_done=1000)
    console = Console(width=80, file=StringIO())
    console.print(watch_view(runs, 80))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"913/2d/nnUNetTrainer{20 * chr(32)}  1 VALIDATING,   0/2 folds" in shown
    assert "  1 FAILED  " in shown
    assert "  fold 1" in shown
    assert "1000/1000" in shown


def test_the_dice_of_a_model_that_cannot_be_taken_over_its_cases_is_marked(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = folds("17/2d/t", RunState.SUCCEEDED, RunState.SUCCEEDED, full_dice={"best": 0.8, "final": 0.7})
    api.runs[1] = api.runs[1].model_copy(update={"full_dice": {"final": 0.9}})
    (row,) = [line.split() for line in nnfleet("status")[1].splitlines() if line.startswith("17/2d/t ") and "0.8" in line]
    assert row[-4:-2] == ["0.800", "~0.800"], "one fold's best, the mean of two folds' final"


def test_no_mean_is_taken_over_folds_of_unlike_schedules(nnfleet: Nnfleet, api: FakeApi, tmp_path: Path) -> None:
    fakes = [FakeRun(tmp_path, f"k{fold}", fold, schedule=Schedule(epochs=4, initial_lr=lr)) for fold, lr in enumerate((0.01, 0.02))]
    runs = folds("17/2d/t", RunState.SUCCEEDED, RunState.SUCCEEDED, full_dice={"final": 0.7}, ema_pseudo_dice=0.5, epochs=4)
    api.runs = [run.model_copy(update={"run_folder": fake.folder.root}) for run, fake in zip(runs, fakes, strict=True)]
    _, out, _ = nnfleet("status")
    *_, result, reason = out.splitlines()
    assert reason == "17/2d/t: no mean over its folds, which are unlike: fold 1 differs from fold 0 in initial_lr (0.02 instead of 0.01)."
    assert result.split()[:6] == ["17/2d/t", "2", "SUCCEEDED", "-", "-", "-"]
    assert "0.700" in nnfleet("status", "--runs")[1]


def test_folds_that_are_not_seen_are_unlike_by_their_epochs(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = folds("17/2d/t", RunState.SUCCEEDED, RunState.SUCCEEDED, full_dice={"final": 0.7})
    api.runs[1] = api.runs[1].model_copy(update={"epochs": 3})
    assert "17/2d/t: no mean over its folds, which are unlike: its folds have 3 and 50 epochs." in nnfleet("status")[1]


def test_stop_takes_models_campaigns_or_all_and_says_what_becomes_of_each(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [*folds("17/2d/t", RunState.QUEUED, RunState.RUNNING, RunState.VALIDATING, RunState.SUCCEEDED)]
    _, out, err = nnfleet("stop", "17/2d/t", "17/3d")
    assert api.asked == [("stop", ("17/2d/t", "17/3d"), False)]
    for text in (
        "asked to end now (was QUEUED",
        "asked to end before its next epoch (was RUNNING, 12/50 epochs are done)",
        "after the cases",
        "had ended before: SUCCEEDED",
    ):
        assert text in out
    assert "nnfleet status --watch" in err
    api.runs = [run_status(phase="train")]
    assert "asked to end after the epoch in flight (was RUNNING, epoch 12/50)" in nnfleet("stop", "17")[1]
    api.asked.pop()
    nnfleet("stop", "--campaign", "c1", "--now")
    nnfleet("stop", "--all")
    assert api.asked[1:] == [("stop", (), True, "c1"), ("stop", (), False, "all")]
    api.runs = [run_status(state=RunState.FAILED_CONFIG, is_claimed=False)]
    assert "never began; `nnfleet status` shows it no more" in nnfleet("stop", "17")[1]
    api.runs = [run_status(state=RunState.PAUSED, campaign="", run_key="k")]
    assert "was paused, and is stopped now: `nnfleet resume` leaves it, `nnfleet resume k` continues it" in nnfleet("stop", "17")[1]
    api.runs = [run_status(state=RunState.PAUSED, campaign="", run_key="k")]
    assert "was not asked: it is paused; `nnfleet resume k` continues it" in nnfleet("stop", "17", "--finish")[1]


def test_stop_with_finish_says_what_becomes_of_each(nnfleet: Nnfleet, api: FakeApi) -> None:
    states = (RunState.QUEUED, RunState.RUNNING, RunState.VALIDATING, RunState.SUCCEEDED)
    api.runs = [run.model_copy(update={"epochs_done": 0}) if run.state is RunState.QUEUED else run for run in folds("17/2d/t", *states)]
    _, out, _ = nnfleet("stop", "17/2d/t", "--finish", "--anneal", "10")
    assert api.asked == [("stop", ("17/2d/t",), False, 10)]
    for text in (
        "was not asked: it has trained no epoch yet; `nnfleet stop` takes it out of the queue",
        "asked to end early after 10 more epochs with an annealed learning rate; then it is validated (was RUNNING, epoch 12/50)",
        "was not asked: it is trained already and is being validated",
        "had ended before: SUCCEEDED",
    ):
        assert text in out
    api.runs = [run_status(phase="train")]
    assert "asked to end early after the epoch in flight; then it is validated" in nnfleet("stop", "17", "--finish")[1]


def test_status_and_stop_name_a_test_set_at_work_with_its_id(nnfleet: Nnfleet, api: FakeApi) -> None:
    command = "python -m orchestrator.validation.held_out_job 4/2d/t --images=/data/imagesTs"
    api.test_sets = [JobRecord(submission_id="test-ab-0", kind="test", state="PENDING", command=command)]
    line = "Test set: /data/imagesTs by 4/2d/t. Stop it: nnfleet stop test-ab-0"
    assert nnfleet("status")[1].splitlines()[-1] == line
    assert nnfleet("status", "--cluster", "http://h:1")[1].splitlines()[-1] == f"{line} --cluster http://h:1"
    shown = {"test_set": "test-ab-0", "state": "QUEUED", "what": "/data/imagesTs by 4/2d/t"}
    assert json.loads(nnfleet("status", "--json")[1])[-1] == shown
    assert json.loads(nnfleet("status", "test-ab-0", "--json")[1]) == [shown]
    assert nnfleet("status", "test-ab-0")[1] == f"{line}\n"
    assert nnfleet("status", "test-no-0")[0] == ConfigError.exit_code
    api.runs = []
    assert nnfleet("stop", "--all")[1] == "test-ab-0  asked to end now (/data/imagesTs by 4/2d/t; finished cases are kept)\n"


@pytest.mark.parametrize(
    ("state", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("STOPPED", 1, 9), ("FAILED", 3, 3), ("FAILED", 137, 5), ("FAILED", None, 5), ("FAILED", 1, 1)],
)
@pytest.mark.parametrize("named", [(), ("test-ab-0",)])
def test_watch_waits_for_test_sets_and_ends_as_they_do(
    nnfleet: Nnfleet,
    api: FakeApi,
    monkeypatch: pytest.MonkeyPatch,
    state: Any,
    exit_code: int | None,
    expected: int,
    named: tuple[str, ...],
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    job = JobRecord(submission_id="test-ab-0", kind="test", state="RUNNING", command="python -m held_out_job 4/2d/t --images=/i")
    ended = job.model_copy(update={"state": state, "exit_code": exit_code})
    api.runs, api.test_sets = [done()], [job]
    api.turns = [lambda: None, lambda: setattr(api, "test_sets", [ended])]
    code, out, err = nnfleet("status", "--watch", *named)
    assert code == expected
    lines = [line for line in (out + err).splitlines() if "test-ab-0" in line]
    assert lines == [f"test-ab-0  {what}  test set /i by 4/2d/t" for what in ("RUNNING", state)]
    assert ("SUCCEEDED" in (out + err).replace("test-ab-0  SUCCEEDED", "")) is not bool(named), "a run alone is not waited for"


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
@pytest.mark.parametrize(
    ("number", "is_own", "code", "text"),
    [
        (signal.SIGTERM, None, output.EXIT_TERMINATED, "Interrupted."),
        (signal.SIGHUP, None, output.EXIT_HUNG_UP, "Interrupted."),
        (signal.SIGTERM, True, output.EXIT_RUN_STOPPED, "Finished cases are kept: the same command continues."),
        (signal.SIGTERM, False, output.EXIT_DETACHED, "Detached: test-a-0 goes on."),
        (signal.SIGHUP, True, output.EXIT_DETACHED, "Detached: test-a-0 goes on."),
        (signal.SIGINT, True, output.EXIT_INTERRUPTED, "Finished cases are kept: the same command continues."),
    ],
)
def test_a_signal_stops_a_test_set_or_leaves_it_and_the_exit_code_shows_which(
    nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch, verb: str, number: int, is_own: bool | None, code: int, text: str
) -> None:
    def followed(*_: Any, on_job: Callable[[str, bool], None], **__: Any) -> None:
        if is_own is not None:
            on_job("test-a-0", is_own)
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr(api, verb, followed, raising=False)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    ended, _, err = nnfleet(verb, "4/2d/t", "--images", "i", "--output", "o")
    assert (ended, text in err) == (code, True), err
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before


def test_a_hang_up_that_is_ignored_stays_so(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def hung_up(*_: Any, **__: Any) -> list[str]:
        os.kill(os.getpid(), signal.SIGHUP)
        return ["campaign-c"]

    monkeypatch.setattr(api, "validate", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert nnfleet("validate", "r")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    code, _, err = nnfleet("validate", "r")
    assert (code, "Validations that were submitted before go on: nnfleet status" in err) == (output.EXIT_HUNG_UP, True)


def test_a_closed_terminal_detaches_and_takes_no_more_lines() -> None:
    """A real terminal, gone while a training is waited for."""
    code = (
        "import sys, time, types, orchestrator\n"
        "from orchestrator.cli import main\n"
        "plan = types.SimpleNamespace(warnings=())\n"
        "def wait(campaign, cluster, watch):\n"
        "    watch([])\n"
        "    print('waits', flush=True)\n"
        "    time.sleep(60)\n"
        "sent = lambda *a, **k: types.SimpleNamespace(campaign_id='c1', plan=plan)\n"
        "orchestrator.api = types.SimpleNamespace(submit=sent, wait=wait)\n"
        "sys.argv = ['nnfleet', 'train', '17', '3d_fullres', '0', '--cluster', 'http://h:1']\n"
        "main()"
    )
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    while b"waits" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)  # the terminal emulator ends; the kernel tells only a session that has it as its controlling terminal
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == output.EXIT_DETACHED, shown.decode()


def test_down_lists_runs_that_have_not_ended_and_pauses_them_only_when_it_is_told_to(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, _, err = nnfleet("down")
    assert code == ConfigError.exit_code
    assert "17/3d_fullres/nnUNetTrainer/0  RUNNING" in err
    assert "down: 1 run has not ended. `nnfleet down --yes` pauses them" in err
    assert api.asked == []
    api.runs = [done()]
    assert nnfleet("down")[0] == 0
    assert api.asked == [("down",)]


def test_rm_lists_runs_with_their_sizes_and_removes_them_only_when_it_is_told_to(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, _, err = nnfleet("rm", "17")
    assert code == ConfigError.exit_code
    assert "17/2d/nnUNetTrainer/0  STOPPED  3/5 epochs  750.0 MB  /r/fold_0" in err
    assert err.count("/r/crossval_results_folds_0_1  (a cross-validation with what is removed)") == 1
    assert err.count("Warning: 17/3d_cascade_fullres/nnUNetTrainer was trained on segmentations of these runs and predicts no new") == 1
    assert "rm: 2 runs (1.5 GB on the disk) would be removed, and there is no terminal to ask at." in err
    assert "Their MLflow runs, with curves and checkpoints, stay: --mlflow puts them into MLflow's bin too" in err
    assert " and only with this removal. `nnfleet rm --yes`" in err
    assert api.asked == [("removable", ("17",), None)]
    code, out, err = nnfleet("rm", "17", "--yes", "--results", "/r")
    assert code == 0
    assert api.asked[2] == ("remove", ("k0", "k1"), Path("/r"), False), "exactly the runs that were listed"
    assert out.startswith("removed 17/2d/nnUNetTrainer/0  STOPPED")
    assert out.splitlines()[2:] == ["removed /r/crossval_results_folds_0_1"]
    assert "Their MLflow runs stay" in err
    assert "delete them in MLflow's pages:\n- 17/2d/nnUNetTrainer/0: http://mlflow/#/experiments/7/runs/m0\n" in err
    assert "--mlflow" not in err, "it finds no run any more"
    _, out, err = nnfleet("rm", "17", "--yes", "--mlflow", "--json")
    assert [run["size_bytes"] for run in json.loads(out)] == [750_000_000, 750_000_000]
    assert api.asked[-1][-1] is True
    assert "Their MLflow runs stay" not in err


def test_mlflow_runs_of_what_was_removed_before_are_deleted_in_its_pages(
    nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object) -> list[Removable]:
        raise NoSuchRun("run: there is no run 17 below /r. Known: none.")

    monkeypatch.setattr(api, "removable", none)
    code, _, err = nnfleet("rm", "17", "--yes", "--mlflow")
    assert code == ConfigError.exit_code
    assert "Known: none. The MLflow run of one that was removed before is deleted in MLflow's pages: nnfleet ui." in err
    assert "MLflow" not in nnfleet("rm", "17", "--yes")[2]


def test_a_no_removes_nothing(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.rm.console", lambda stderr: SimpleNamespace(is_terminal=True))
    monkeypatch.setattr("sys.stdin", StringIO("n\n"))
    code, _, err = nnfleet("rm", "17", "--mlflow")
    assert code == 1
    assert "Remove 2 runs (1.5 GB on the disk) and their MLflow runs, for good?" in err
    assert "stay" not in err
    assert [what[0] for what in api.asked] == ["removable"]
    monkeypatch.setattr("sys.stdin", StringIO("n\n"))
    code, _, err = nnfleet("rm", "17")
    assert code == 1
    assert (
        "stay: --mlflow puts them into MLflow's bin too, and only with this removal.\nRemove 2 runs (1.5 GB on the disk), for good?" in err
    )
    assert [what[0] for what in api.asked] == ["removable", "removable"]


def test_a_run_that_waits_says_since_when(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(state=RunState.RECOVERING, reason="its workers were lost.", since_unix=1.7e9)]
    _, out, _ = nnfleet("status")
    assert "its workers were lost. (since 2023-11-1" in out


def test_resume_says_what_it_takes_up_and_what_it_leaves(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.report = plan_report().model_copy(update={"left": ("17/2d/nnUNetTrainer/0 (key) is finished.",)})
    code, out, err = nnfleet("resume", "17/3d_fullres/nnUNetTrainer/0", "--results", "/results", "--cluster", "http://head:8265")
    assert code == 0
    assert api.asked == [("resume", ("17/3d_fullres/nnUNetTrainer/0",), Path("/results"), "http://head:8265")]
    assert "Left: 17/2d/nnUNetTrainer/0 (key) is finished." in err
    assert "workers may still be at work" in err
    assert "Resumed as campaign c1. Watch it: nnfleet status --watch --cluster http://head:8265" in out
    api.report = api.report.model_copy(update={"rows": ()})
    _, out, _ = nnfleet("resume")
    assert out == "Nothing to resume.\n"
    _, out, _ = nnfleet("resume", "--json")
    assert json.loads(out)["plan"]["left"] == ["17/2d/nnUNetTrainer/0 (key) is finished."]


def test_an_error_is_its_message_and_exit_code_without_a_traceback(nnfleet: Nnfleet, api: FakeApi) -> None:
    for fault in (ConfigError("folds: no"), DataError("plans: gone"), ClusterError("head: asleep")):
        api.fail_with(fault)
        code, out, err = nnfleet("submit", "e.yaml")
        assert (code, out) == (fault.exit_code, "")
        assert str(fault) in err
        assert "Traceback" not in err


def test_a_missing_experiment_file_is_a_config_error(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, _, err = nnfleet("plan", "nix.yaml")
    assert code == ConfigError.exit_code
    assert "nix.yaml" in err


def test_an_unforeseen_error_says_how_to_get_the_traceback(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.fail_with(ZeroDivisionError("oops"))
    code, _, err = nnfleet("status")
    assert code == output.EXIT_UNEXPECTED
    assert "nnfleet --debug status" in err
    assert "Traceback" not in err


def test_a_wrong_command_line_ends_with_2(nnfleet: Nnfleet, api: FakeApi) -> None:
    assert nnfleet("plan")[0] == 2
    assert nnfleet("fly")[0] == 2


def test_status_for_people_and_for_scripts(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, _ = nnfleet("status")
    assert code == 0
    for text in ("17/3d_fullres/nnUNetTrainer/0", "RUNNING", "12/50", "0.710", "3.1", "2:10"):
        assert text in out
    assert "\x1b" not in out
    _, out, _ = nnfleet("status", "--json")
    assert json.loads(out)[0]["run_key"] == run_status().run_key


def test_status_json_has_null_for_nan(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(full_dice={"best": float("nan")})]
    _, out, _ = nnfleet("status", "--json")
    assert json.loads(out)[0]["full_dice"] == {"best": None}


def test_watch_in_a_pipe_prints_one_plain_line_per_change_and_ends_with_the_worst_state(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [done(), run_status(run_key="k2", state=RunState.FAILED_CODE, reason="loss is NaN")]
    code, out, err = nnfleet("status", "--watch")
    assert code == output.EXIT_RUN_FAILED
    assert err.count("SUCCEEDED") == 1
    assert out.split()[:2] == ["run", "state"], "the table of results at the end"
    assert "(loss is NaN)" in out + err
    assert "\x1b" not in out + err


def test_train_takes_the_options_of_nnunets_users(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, _ = nnfleet(
        "train", "17", "3d_fullres", "0", "-tr", "nnUNetTrainerDA5", "-p", "nnUNetResEncPlans", "--epochs", "5", "-num_gpus", "2"
    )
    assert code == 0
    experiment = api.asked[0][1]
    assert experiment.trainers == ("nnUNetTrainerDA5",)
    assert experiment.plans == ("nnUNetResEncPlans",)
    assert experiment.folds == (0,)
    assert experiment.epochs == 5
    assert experiment.workers.count == 2
    assert experiment.workers.gpus == 1
    assert "0.810" in out
    assert "0.800" in out


def test_train_has_the_settings_of_an_experiment_file(nnfleet: Nnfleet, api: FakeApi, tmp_path: Path) -> None:
    options = ("--iterations", "20", "--val-iterations", "5", "--name", "trial", "--images", "--no-compile", "--npz")
    assert nnfleet("train", "17", "3d_fullres", "0", *options, "-pretrained_weights", "w.pth", "-device", "cpu")[0] == 0
    experiment = api.asked[0][1]
    assert (experiment.train_iterations, experiment.val_iterations) == (20, 5)
    assert (experiment.name, experiment.images, experiment.compile, experiment.validation.npz) == ("trial", True, False, True)
    assert experiment.pretrained_weights == tmp_path / "w.pth"
    assert experiment.workers.gpus == 0
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert code == 0, err
    usual = api.asked[-2][1].model_fields_set
    assert not usual & {"train_iterations", "val_iterations", "images", "compile", "validation", "pretrained_weights", "loader"}


def test_train_obeys_the_environment_of_nnunet_unless_its_option_says_otherwise(
    nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setenv("nnUNet_n_proc_DA", "12")
    _, _, err = nnfleet("train", "17", "3d_fullres", "0", "--cpus", "4")
    assert (api.asked[0][1].compile, api.asked[0][1].loader.actors) == (False, 3)
    assert "nnUNet_n_proc_DA=12: 3 loader actors for each worker, which has 4 CPU cores." in err
    _, _, err = nnfleet("train", "17", "3d_fullres", "0", "--compile")
    assert api.asked[-2][1].compile is True
    assert "nnUNet_compile" not in err
    assert "nnUNet_compile is set, and an experiment file does not read it" in nnfleet("submit", "e.yaml")[2]
    assert api.asked[-1][1].compile is True


def test_train_val_validates_the_runs_that_it_names_and_trains_nothing(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, _ = nnfleet("train", "017", "3d_fullres", "0-1", "-p", "P", "--variant", "low", "--seed", "2", "--val", "--npz")
    assert code == 0
    runs = [f"17/3d_fullres/nnUNetTrainer@P+low+seed2/{fold}" for fold in (0, 1)]
    assert api.asked == [("validate", *runs, "npz"), *(("wait", run) for run in runs)]
    assert "0.810" in out


def test_train_val_best_is_done_when_the_best_of_a_stopped_run_is_validated(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(state=RunState.STOPPED, full_dice={"best": 0.7})]
    assert nnfleet("train", "17", "3d_fullres", "0", "--val", "--val_best")[0] == 0
    assert api.asked[0] == ("validate", "17/3d_fullres/nnUNetTrainer/0", "best")
    assert nnfleet("train", "17", "3d_fullres", "0", "--val")[0] == output.EXIT_RUN_STOPPED


def test_train_answers_flags_that_change_nothing(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, _, err = nnfleet("train", "17", "3d_fullres", "0", "--c", "--val_best", "--disable_checkpointing")
    assert code == 0
    for sentence in (
        "--c: the same command continues a run",
        "--val_best: the best checkpoint is validated",
        "a checkpoint is kept all the same",
    ):
        assert sentence in err
    code, _, err = nnfleet("train", "17", "3d_fullres", "0", "-device", "mps")
    assert code == ConfigError.exit_code
    assert "nnfleet does not train on mps" in err


def test_train_takes_several_folds_at_once_and_says_so(nnfleet: Nnfleet, api: FakeApi) -> None:
    assert "several as 0-4" in " ".join(nnfleet("train", "--help")[1].split())
    nnfleet("train", "17", "3d_fullres", "0-2")
    assert next(what for what in api.asked if what[0] == "submit")[1].folds == (0, 1, 2)


def test_train_refuses_a_misspelt_trainer_before_anything_starts(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, _, err = nnfleet("train", "17", "3d_fullres", "0", "-tr", "nnUNetTrainerDA6")
    assert code == ConfigError.exit_code
    assert "nnUNetTrainerDA5" in err
    assert api.asked == []


def test_ctrl_c_without_a_terminal_stops_after_the_epoch(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.interruptions = 1
    code, _, _ = nnfleet("train", "17", "3d_fullres", "0")
    assert ("stop", (), False, "c1") in api.asked
    assert code == output.EXIT_RUN_STOPPED


@pytest.mark.parametrize("verb", [("train", "17", "3d_fullres", "0"), ("submit", "e.yaml")])
def test_ctrl_c_while_submitting_withdraws_what_was_sent(nnfleet: Nnfleet, api: FakeApi, verb: tuple[str, ...]) -> None:
    api.interrupted_early = False
    code, _, err = nnfleet(*verb, "--cluster", "http://head:8265")
    assert code == output.EXIT_INTERRUPTED
    assert api.asked[-1] == ("withdraw", "c1", "http://head:8265")
    assert "Withdrawn: campaign-c1" in err
    assert api.again == shlex.join(["nnfleet", *verb, "--cluster", "http://head:8265"])
    api.is_stored = False
    code, _, err = nnfleet(*verb)
    assert code == output.EXIT_INTERRUPTED
    assert "Withdrawn" not in err
    assert "Should the job server store it after all: nnfleet status --campaign c1 shows it, nnfleet stop --campaign c1 ends it." in err


def test_ctrl_c_before_anything_was_sent_says_so(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.interrupted_early = True
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert code == output.EXIT_INTERRUPTED
    assert "Nothing was submitted" in err
    assert [what[0] for what in api.asked] == ["submit"]


def test_a_withdrawal_that_fails_tells_what_may_go_on(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> list[str]:
        raise ClusterError("cluster: away")

    api.interrupted_early = False
    monkeypatch.setattr(api, "withdraw", refused)
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert code == ClusterError.exit_code
    assert "nnfleet status --campaign c1" in err


def test_ctrl_c_elsewhere_is_said(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "snapshot", interrupted)
    code, _, err = nnfleet("status")
    assert code == output.EXIT_INTERRUPTED
    assert "Interrupted." in err


@pytest.mark.parametrize("show", ["table", "text"])
def test_a_reader_that_leaves_is_no_failure(show: str) -> None:
    """As `nnfleet status | head -1` does."""
    code = (
        "import sys, types, orchestrator\n"
        "from tests.unit.orchestrator.cli.test_cli import run_status\n"
        "runs = [run_status(run_key=str(i)) for i in range(2000)] if sys.argv.pop() == 'table' else []\n"
        "seen = types.SimpleNamespace(statuses=runs, stored=[], outage='', test_sets=[], left=[], comparisons=[])\n"
        "orchestrator.api = types.SimpleNamespace(snapshot=lambda *a: seen)\n"
        "from orchestrator.cli import main\n"
        "sys.argv = ['nnfleet', 'status']\n"
        "main()"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code, show], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_watch_and_json_exclude_each_other(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, err = nnfleet("status", "--watch", "--json")
    assert (code, out, api.asked) == (ConfigError.exit_code, "", [])
    assert "Name one of them" in err


def test_the_log_of_a_queued_run_says_why_it_waits(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(state=RunState.QUEUED, reason="0 GPUs free now.")]
    code, out, err = nnfleet("logs", run_status().address)
    assert (code, out) == (0, "")
    assert "is QUEUED" in err
    assert "0 GPUs free now." in err


def test_the_log_of_a_run_whose_workers_start_says_that_it_waits_for_them(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs, api.printed = [run_status(epochs_done=0)], ["", ""]
    code, out, err = nnfleet("logs", run_status().address)
    assert (code, out) == (0, "")
    assert "is RUNNING and no job of it has printed anything here. It waits: its job checks the data, and its workers start." in err
    _, _, err = nnfleet("logs", "-f", run_status().address)
    assert "is RUNNING and waits: its job checks the data, and its workers start. Its log follows when it starts." in err


def test_the_log_of_a_run_that_waits_for_preprocessing_names_the_wait_once(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(state=RunState.QUEUED, reason="waits for preprocessing of Dataset017_X, which campaign c begins.")]
    _, _, err = nnfleet("logs", run_status().address)
    assert "has printed anything here. It waits for preprocessing of Dataset017_X, which campaign c begins." in err
    _, _, err = nnfleet("logs", "-f", run_status().address)
    assert "is QUEUED and waits for preprocessing of Dataset017_X, which campaign c begins. Its log follows when it starts." in err


def test_suggested_commands_name_the_cluster(nnfleet: Nnfleet, api: FakeApi) -> None:
    for arguments in (("submit", "e.yaml"), ("validate", "k")):
        assert "--cluster http://head:8265" in nnfleet(*arguments, "--cluster", "http://head:8265")[1]


def test_export_and_down_for_scripts(nnfleet: Nnfleet, api: FakeApi, tmp_path: Path) -> None:
    exported = json.loads(nnfleet("export", "k", str(tmp_path / "m"), "--json")[1])
    folds = {"1": ["checkpoint_best.pth", "checkpoint_final.pth"], "3": ["checkpoint_best.pth"]}
    assert exported == {"folder": str(tmp_path / "m"), "folds": folds, "optimistic": {}}
    assert json.loads(nnfleet("down", "--yes", "--json")[1]) == {"down": True}


@pytest.mark.parametrize(
    ("asked", "cores", "gpus", "expected"),
    [
        ({}, 64, 4, {}),
        ({}, 2, 0, {"gpus": 0, "cpus": 2}),
        ({}, 4, 1, {"cpus": 4}),
        ({"gpus": 0, "count": 2}, 4, 1, {"gpus": 0, "count": 2, "cpus": 2}),
        ({"cpus": 16}, 2, 1, {"cpus": 16}),
        ({"count": 2}, 64, 0, {"count": 2}),
        ({"count": 4, "gpus": 0}, 2, 0, {"count": 4, "gpus": 0, "cpus": 1}),
    ],
)
def test_what_is_left_open_is_fitted_to_the_machine(asked: dict[str, int], cores: int, gpus: int, expected: dict[str, int]) -> None:
    chosen, told = fitted(asked, WorkerSpec(), cores, gpus)
    assert chosen == expected
    assert bool(told) == (chosen != asked)


def test_train_on_a_small_machine_says_what_it_takes(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.machine = {"CPU": 2.0, "GPU": 0.0}
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert code == 0
    assert api.asked[0][1].workers == WorkerSpec(count=1, gpus=0, cpus=2)
    assert "Fitted to this machine: it has no GPU, so training runs on CPUs; 2 CPU cores per worker instead of 8." in err
    nnfleet("train", "17", "3d_fullres", "0", "--cluster", "http://head:8265")
    assert api.asked[2][1].workers == WorkerSpec(), "another cluster is not this machine"
    nnfleet("submit", "e.yaml")
    assert api.asked[-1][1].workers == WorkerSpec(), "an experiment file stays as written"
    api.fail_with(ConfigError("dataset: 17 is not there."))
    assert "Fitted" not in nnfleet("train", "17", "3d_fullres", "0")[2], "nothing starts"


def test_errors_of_train_name_its_options(nnfleet: Nnfleet, api: FakeApi) -> None:
    text = "Set workers.gpus: 0 to run on CPUs, or lower workers.cpus.\nAsk for less under `workers`, or for a larger cluster."
    assert in_words_of_the_command_line(text, OPTIONS) == (
        "Add --cpu to run on CPUs, or lower --cpus.\nAsk for less (--num-workers, --cpus, --cpu), or for a larger cluster."
    )
    assert in_words_of_the_command_line("For a number of epochs, set `epochs`, or validate its best checkpoint (--best).", OPTIONS) == (
        "For a number of epochs, set `--epochs`, or validate its best checkpoint (--val_best)."
    )
    code, _, err = nnfleet("train", "17", "3d_fullres", "nine")
    assert code == ConfigError.exit_code
    assert "FOLD" in err
    assert "folds" not in err


@pytest.mark.parametrize(
    ("typed", "expected"), [("", "stop"), ("s", "stop"), ("N", "now"), ("detach", "detach"), ("k", "keep"), ("x", None)]
)
def test_answers_to_ctrl_c(typed: str, expected: str | None) -> None:
    assert answer_of(typed) == expected


def test_ctrl_c_and_detach_leaves_the_run_alone(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.foreground.ask", lambda: "detach")
    api.interruptions = 1
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert code == output.EXIT_DETACHED
    assert "Detached: the runs continue" in err
    assert not [what for what in api.asked if what[0] == "stop"]


def test_sigterm_stops_after_the_epoch_without_a_question(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*arguments: Any) -> list[RunStatus]:
        monkeypatch.setattr(api, "wait", lambda *again: api.runs)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr("orchestrator.cli.foreground.ask", lambda: pytest.fail("nobody is there to answer"))
    monkeypatch.setattr(api, "wait", wait)
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert code == output.EXIT_RUN_STOPPED
    assert "Stopping after the epoch in flight" in err
    assert ("stop", (), False, "c1") in api.asked
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_closed_terminal_leaves_the_run_alone(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.foreground.ask", lambda: pytest.fail("nobody is there to answer"))
    monkeypatch.setattr(api, "wait", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    code, _, err = nnfleet("train", "17", "3d_fullres", "0")
    assert (code, "Detached: the runs continue" in err) == (output.EXIT_DETACHED, True)
    assert [what[0] for what in api.asked] == ["submit"]


def test_ctrl_c_and_keep_goes_on_to_the_end(nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cli.foreground.ask", lambda: "keep")
    api.interruptions = 1
    assert nnfleet("train", "17", "3d_fullres", "0")[0] == 0
    assert [what[0] for what in api.asked] == ["submit", "wait", "wait"]


def test_the_queue_is_shown_in_order_and_runs_are_moved_in_it(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, _ = nnfleet("queue")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1].startswith("1 17/2d/nnUNetTrainer/0 ann 50 1 worker x (1 GPU, 8 CPUs)")
    assert lines[1].endswith(f"{datetime.fromtimestamp(3e9):%Y-%m-%d %H:%M}")
    assert "ann 80 first 1 worker" in lines[2]
    assert lines[2].endswith("not known")
    assert lines[-1] == "Held now: ann 50 %, - 25 %."
    assert json.loads(nnfleet("queue", "--json")[1])["rows"][1]["priority"] == 80
    api.queued = QueueReport(num_preprocessing=1)
    assert nnfleet("queue")[1].splitlines() == [
        "No run waits.",
        "Runs whose data are being preprocessed have no place in it yet: `nnfleet status` shows them.",
    ]
    api.asked.clear()
    assert "asked for: priority 70, first of its user's runs" in nnfleet("queue", "17", "--priority", "70", "--first")[1]
    assert api.asked[0] == ("place", ("17",), None, 70, True)
    assert nnfleet("queue", "17")[0] == nnfleet("queue", "--first")[0] == 2


def test_submit_takes_a_priority_and_a_user(nnfleet: Nnfleet, api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("dataset: 17\nconfigurations: 2d\npriority: 3\n")
    nnfleet("submit", str(tmp_path / "e.yaml"))
    nnfleet("submit", str(tmp_path / "e.yaml"), "--priority", "70", "--user", "ann")
    sent = [asked[1] for asked in api.asked if asked[0] == "submit"]
    assert [(each.priority, each.user, each.name) for each in sent] == [(3, "", "e"), (70, "ann", "e")]


def test_stop_and_stop_now(nnfleet: Nnfleet, api: FakeApi) -> None:
    assert nnfleet("stop", "17/3d_fullres/nnUNetTrainer/0")[0] == 0
    nnfleet("stop", "k", "--now")
    assert api.asked == [("stop", ("17/3d_fullres/nnUNetTrainer/0",), False), ("stop", ("k",), True)]


def test_logs_validate_export_up_down(nnfleet: Nnfleet, api: FakeApi, tmp_path: Path) -> None:
    assert nnfleet("logs", "k")[1] == "line one\nline two\n"  # no colours in a pipe
    assert json.loads(nnfleet("validate", "k", "--json")[1]) == {"submission_ids": ["campaign-k"]}
    _, out, err = nnfleet("export", "k", str(tmp_path / "m"))
    assert f"-m {tmp_path / 'm'} -f 1 3 -chk checkpoint_best.pth" in out
    assert "Predict with it, as `nnfleet predict --checkpoint best` does: " in out
    assert "Only with the best checkpoint so far: fold 3." in err
    assert "fold 4 has no checkpoint yet" in err
    assert json.loads(nnfleet("up", "--json", "--cpus", "3", "--gpus", "0")[1])["mlflow"] == "http://127.0.0.1:2"
    assert api.asked[-1] == (
        "up",
        {"num_cpus": 3, "num_gpus": 0, "memory_gib": None, "allow_hosts": (), "artifacts": None},
    )
    assert nnfleet("down", "--yes")[0] == 0
    assert [what[0] for what in api.asked] == ["logs", "validate", "export", "up", "down"]


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        ({"0": ("best", "final"), "1": ("best", "final")}, "-f 0 1 -chk checkpoint_final.pth"),
        ({"0": ("best", "final"), "1": ("final",)}, "-f 0 1 -chk checkpoint_final.pth"),
        ({"0": ("best", "final"), "1": ("best",)}, "-f 0 1 -chk checkpoint_best.pth"),
        ({"0": ("final",), "1": ("best",)}, "-f 0 -chk checkpoint_final.pth"),
        ({"0": ("best", "final"), "all": ("best",)}, "-f 0 -chk checkpoint_final.pth"),
        ({"all": ("best", "final")}, "-f all -chk checkpoint_final.pth"),
    ],
)
def test_the_command_that_predicts_takes_folds_and_checkpoint_as_nnfleet_predict_does(
    folds: dict[str, tuple[CheckpointName, ...]], expected: str
) -> None:
    command = predict_command(Exported(Path("/m"), folds, ()))
    assert command == f"nnUNetv2_predict_from_modelfolder -m /m {expected} -i INPUT -o OUTPUT"


def test_the_command_of_a_second_stage_names_the_predictions_of_its_first() -> None:
    command = predict_command(Exported(Path("/m"), {"0": ("final",)}, (), previous_stage="3d_lowres"))
    assert command.endswith(" -i INPUT -o OUTPUT -prev_stage_predictions PREDICTIONS_OF_3d_lowres")


def test_a_second_stage_is_exported_with_the_command_that_exports_its_first() -> None:
    assert (_address_of_stage("17/3d_cascade_fullres/t", "3d_lowres"), _address_of_stage("17/2d/t", "")) == ("17/3d_lowres/t", "")
    second = Exported(Path("/m"), {"0": ("final",)}, (), previous_stage="3d_lowres", previous_model="17/3d_lowres/t")
    assert stage_command(second) == "\nExport it: nnfleet export 17/3d_lowres/t /m-3d_lowres"
    assert stage_command(Exported(Path("/m"), {"0": ("final",)}, ())) == ""


def test_gc_names_what_goes_and_not_the_best_that_stays() -> None:
    held = Garbage(run_key="k", address="a", run_folder=Path("/r"), is_finished=True, sizes={"bests": 180_200, "states": 2_000_000})
    assert _kinds(held) == "replaced bests 180.2 kB, earlier states 2.0 MB"


def test_ui_links_a_run(nnfleet: Nnfleet, api: FakeApi) -> None:
    page = "http://127.0.0.1:2/#/experiments/7/runs/{}?workflowType=machine_learning"
    api.runs = [done(mlflow_url=page.format("a")), done(run_key="k2", mlflow_url=page.format("b"))]
    links = json.loads(nnfleet("ui", run_status().run_key, "--json")[1])
    assert links["run"] == page.format("a")
    [table] = links["mlflow"]
    assert table.startswith("http://127.0.0.1:2/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=")
    assert "compare-runs" in links["comparison"][0]
    assert nnfleet("ui", "18/none")[0] == ConfigError.exit_code


def test_ui_links_each_question_of_one_dataset_by_name(nnfleet: Nnfleet, api: FakeApi) -> None:
    page = "http://127.0.0.1:2/#/experiments/{}/runs/{}?workflowType=machine_learning"
    places = {17: "Dataset017_BTCV", 4: "Dataset004_Hippocampus"}
    api.runs = [
        done(
            run_key=f"k{n}-{fold}",
            address=f"{n}/2d/nnUNetTrainer/{fold}",
            mlflow_url=page.format(n, f"r{n}{fold}"),
            run_folder=Path(f"/results/{name}/model/fold_{fold}"),
            since_unix=float(n),
        )
        for n, name in places.items()
        for fold in (0, 1)
    ]
    out = nnfleet("ui")[1].splitlines()
    assert out[0] == "Dataset017_BTCV in MLflow:"
    assert [line[:25].strip() for line in out[1:-1]] == [*QUESTIONS.values(), "Runs side by side", "Ray dashboard"]
    assert all("/experiments/17/" in line for line in out[1:6])
    assert out[-1] == "Other datasets: Dataset004_Hippocampus (nnfleet ui DATASET)"
    links = json.loads(nnfleet("ui", "4/2d/nnUNetTrainer", "--json")[1])
    assert (links["datasets"], "run" in links) == (["Dataset004_Hippocampus"], False)
    assert "/experiments/4/" in links["questions"]["Folds averaged"]
    assert "r40" in links["comparison"][0]
    assert "r17" not in links["comparison"][0]


def test_ui_of_another_cluster_starts_nothing_here(nnfleet: Nnfleet, api: FakeApi) -> None:
    code, out, _ = nnfleet("ui", "--cluster", "http://head:8265")
    assert code == 0
    assert "http://head:8265" in out
    assert "no run of this cluster has a page" in out
    assert [what[0] for what in api.asked] == ["snapshot"]


@pytest.mark.parametrize("variable", ["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"])
def test_ui_means_the_cluster_that_rays_variables_name(
    variable: str, nnfleet: Nnfleet, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://head:8265")
    api.is_here = False
    code, out, _ = nnfleet("ui")
    assert code == 0
    assert "http://head:8265  (asks for its token)" in out
    assert [what[:2] for what in api.asked] == [("snapshot", None)]


def test_schema_is_json(nnfleet: Nnfleet) -> None:
    assert "dataset" in json.loads(nnfleet("schema")[1])["properties"]


@pytest.mark.parametrize("width", [40, 60, 84, 140])
def test_the_watch_view_fits_its_terminal(width: int) -> None:
    sink = StringIO()
    Console(file=sink, width=width, force_terminal=True, color_system=None).print(watch_view([run_status(), done()], width))
    lines = sink.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any("RUNNING" in line for line in lines)


def test_numbers_for_people() -> None:
    assert [seconds(value) for value in (3.14, 125, 3723, None, float("inf"))] == ["3.1 s", "2:05", "1:02:03", "-", "-"]
    assert [dice(value) for value in (0.12345, None, float("nan"))] == ["0.123", "-", "-"]
    assert done_fraction(run_status()) == pytest.approx(0.25)
    assert "EMA pseudo-Dice 0.710 (best 0.720)" in status_line(run_status())


def test_a_fold_whose_epochs_are_done_shows_no_seconds_left() -> None:
    console = Console(width=140, record=True, file=StringIO())
    console.print(watch_view([run_status(epochs_done=50, seconds_left=0.0)], 140))
    assert "0.0 s" not in console.export_text()


def test_a_model_shows_the_seconds_left_of_what_trains_alone_and_none_that_are_not_known() -> None:
    trains, begins, validated = run_status(), run_status(seconds_left=None), run_status(state=RunState.VALIDATING, seconds_left=0.0)
    assert Model("m", (trains, validated)).seconds_left == trains.seconds_left
    for unknown in ((begins, validated), (begins, trains), (run_status(seconds_left=0.0), validated)):
        assert Model("m", unknown).seconds_left is None


def test_what_is_logged_for_people_has_no_name_of_a_module() -> None:
    code = (
        "import logging, sys, orchestrator\n"
        "from orchestrator.cli import main\n"
        "logging.getLogger().handlers.clear()\n"
        "class Api:\n"
        "    def down(self, *a, **k): logging.getLogger('orchestrator.cluster.x').warning('a head of ann')\n"
        "    def local_runs(self): return []\n"
        "orchestrator.api = Api()\n"
        "sys.argv = ['nnfleet', 'down', '--yes']\n"
        "main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Warning: a head of ann" in ended.stderr.splitlines(), ended.stderr


def test_a_validation_is_shown_by_its_cases() -> None:
    validating = run_status(state=RunState.VALIDATING, epochs_done=50, validation=CasesDone(checkpoint="best", done=3, cases=12))
    assert done_fraction(validating) == pytest.approx(0.25)
    assert "full validation of best: 3/12 cases" in status_line(validating)
    starved = run_status().model_copy(update={"limited_by": "disk", "limit_advice": "put nnUNet_preprocessed on a faster disk."})
    assert "limited by disk: put nnUNet_preprocessed on a faster disk." in status_line(starved)
    assert "limited by" not in status_line(starved.model_copy(update={"state": RunState.SUCCEEDED}))
    assert "left" not in status_line(validating)
    console = Console(width=100, record=True, file=StringIO())
    console.print(watch_view([validating, run_status(), starved], 100))
    assert f"{starved.address}: limited by disk" in " ".join(console.export_text(clear=False).split())
    assert "17/3d_fullres/nnUNetTrainer/0: full validation of best: 3/12 cases" in console.export_text()


def test_the_worst_state_decides_the_exit_code() -> None:
    assert worst_exit_code([done()]) == 0
    assert worst_exit_code([done(), run_status(state=RunState.STOPPED)]) == output.EXIT_RUN_STOPPED
    assert worst_exit_code([run_status(state=RunState.FAILED_CLUSTER), run_status(state=RunState.STOPPED)]) == ClusterError.exit_code


def test_a_demo_of_another_size_gets_a_folder_of_its_own() -> None:
    assert demo_folder_name(10, 3.0, None) == "demo"
    assert demo_folder_name(20, 2.0, 3) == "demo-cases20-spacing2-epochs3"
    assert demo_folder_name(20, 3.0, None, to_compare=True) == "demo-compare"
    assert demo_folder_name(10, 3.0, None, to_compare=True) == "demo-compare-cases10"


@pytest.mark.parametrize(
    "name", ["experiment.yaml", "compare.html", "preprocess.log", f"nnUNet_raw/{DATASET}", f"nnUNet_preprocessed/{DATASET}"]
)
def test_the_demo_touches_nothing_in_a_folder_of_the_users(
    name: str, nnfleet: Nnfleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("_write_raw", "_preprocess"):
        monkeypatch.setattr(f"orchestrator.demo.{step}", lambda *_: None)
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix:
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    code, _, err = nnfleet("demo", "--data-only", "--folder", str(tmp_path))
    assert code == ConfigError.exit_code
    assert f"{place} is there, and no demo has made it. Name an empty folder: --folder" in " ".join(err.split())
    assert sorted(tmp_path.rglob("*")) == before
    assert not place.is_file() or place.read_text() == "mine"


def test_the_demo_prints_the_line_that_a_shell_needs(tmp_path: Path) -> None:
    paths = DemoPaths(tmp_path / "my data")
    script = f'{environment_line(paths)}\nprintf "%s|" "$nnUNet_raw" "$nnUNet_preprocessed" "$nnUNet_results"'
    printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed == f"{paths.raw}|{paths.preprocessed}|{paths.results}|"


def test_worker_options_name_only_what_was_asked_for() -> None:
    assert worker_options(None, False, None) == {}
    assert worker_options(2, True, 1) == {"count": 2, "gpus": 0, "cpus": 1}


def test_status_and_train_say_that_mlflow_is_down(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.outage = "MLflow is down"
    assert "MLflow is down" in nnfleet("status")[2]
    assert "MLflow is down" in nnfleet("train", "17", "3d_fullres", "0")[2]


def test_a_stop_before_the_first_epoch_names_no_model(nnfleet: Nnfleet, api: FakeApi) -> None:
    api.runs = [run_status(state=RunState.STOPPED).model_copy(update={"epochs_done": 0})]
    told = nnfleet("train", "17", "3d_fullres", "0")[2]
    assert "No checkpoint yet" in told
    assert "Model:" not in told
