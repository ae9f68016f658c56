"""What submitting to the local services starts, waits for and leaves; and when only the campaign's own answer counts."""

import json
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from orchestrator import api
from orchestrator.campaign.events import Failed, Planned, StatusChanged
from orchestrator.campaign.preprocessing import job_workers
from orchestrator.campaign.resuming import chosen
from orchestrator.cli.plan import show_plan
from orchestrator.cluster import local_services
from orchestrator.cluster.home import Home
from orchestrator.errors import ClusterError, ConfigError, DataError, NeverFits, name_of
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment, experiment_from, single_training
from orchestrator.experiment.plan import PlanReport
from orchestrator.experiment.preprocess import Preprocess
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Entry, Registry
from orchestrator.resume import resume_check
from orchestrator.resume.takeover import acquire
from orchestrator.run.events import line_of
from orchestrator.run.job_record import HANDED_KEY, HandedRun, handed_text, record_of
from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.run.status import RunStatus
from orchestrator.verbs import submitting
from tests.fake_campaign import finish_on_disk
from tests.serving import serving
from tests.unit.orchestrator.campaign.test_follower import FakeJobs
from tests.unit.orchestrator.verbs.test_watching import Machine, machine_below
from tests.unit.tiny_dataset import Tiny, tiny_dataset
from trainers.contract.fencing import acquire_token
from trainers.contract.requests import StopRequest, read_stop_request
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WorkerSpec
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

STORE = "127.0.0.1:6379"
NO_ROWS = PlanReport(experiment="of the campaign", cluster="c", rows=(), n_now=0, n_later=0, n_never=0, n_finished=0)


class Head(FakeJobs):
    """A job server that takes campaigns; what they print is `text`."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.only_failed = False
        """What the newest resume asked for."""
        self.text = line_of(Planned(plan=NO_ROWS)) + "\n"
        """What a campaign prints that somebody waits for."""

    def submit_campaign(self, campaign: str, experiment_yaml: str, *, handed: Sequence[HandedRun] = (), **more: Any) -> str:
        return self._start(campaign, handed)

    def submit_resume(
        self,
        campaign: str,
        results: str,
        names: Sequence[str],
        uri: str,
        *,
        only_failed: bool,
        is_filter: bool,
        handed: Sequence[HandedRun] = (),
    ) -> str:
        self.only_failed = only_failed
        return self._start(campaign, handed)

    def submit_revalidation(
        self, campaign: str, folder: Path, run_key: str, options: Sequence[str], handed: Sequence[HandedRun] = ()
    ) -> str:
        return self._start(campaign, handed)

    def _start(self, campaign: str, handed: Sequence[HandedRun]) -> str:
        name = f"campaign-{campaign}"
        self.started.append(name)
        more = {"run_key": "", "campaign": campaign, "handed": tuple(handed), "started_unix": time.time()}
        self.add(name, "campaign", "RUNNING", "" if handed else self.text, **more)
        return name

    @property
    def logs_read(self) -> list[str]:
        return [name for name in self.reads if name != "list"]


class Tracking(BaseHTTPRequestHandler):
    """An MLflow server with one experiment and the runs of the keys in `known`."""

    known: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        is_known = any(f"tags.`nnfleet.run_key` = '{key}'" == wanted.get("filter") for key in self.known)
        runs: dict[str, Any] = {"runs": [{"info": {}}]} if is_known and wanted["experiment_ids"] == ["1"] else {}
        body = json.dumps(runs if self.path.endswith("/runs/search") else {"experiments": [{"experiment_id": "1"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


class Place:
    """A machine with local services, a dataset, and experiments on it."""

    def __init__(self, machine: Machine, tiny: Tiny) -> None:
        self.machine, self.tiny, self.head = machine, tiny, Head()
        machine.jobs = self.head
        self.nodes: Callable[[], list[NodeResources]] = lambda: [NodeResources("n", {"CPU": 8.0}, {"CPU": 8.0})]

    def experiment(self, fold: int = 0, **more: Any) -> Experiment:
        workers = {"count": 1, "gpus": 0, "cpus": 8}
        folders = {"nnUNet_raw": str(self.tiny.base / "raw"), **self.tiny.folders}
        return single_training(17, "3d_fullres", fold, **{"workers": workers, "epochs": 4, **folders, **more})

    def trained(self, fold: int) -> RunSpec:
        """A run that an earlier campaign has taken possession of."""
        (spec,) = expand(self.experiment(fold))
        acquire(spec, [])
        return spec

    def finished(self, spec: RunSpec, *, is_validated: bool) -> None:
        """What the training, and the validation, of that run leave."""
        finish_on_disk(spec, is_validated=is_validated)
        for name in ("best", "final"):
            (spec.run_folder / f"checkpoint_{name}.pth").touch()
        if is_validated:
            write_outcome(RunFolder(spec.run_folder), Outcome(job="validation", state="SUCCEEDED", fencing_token=1, message=""))

    @property
    def is_untouched(self) -> bool:
        return not self.head.started and not list(self.tiny.results.glob("*/*/fold_*"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    machine = machine_below(tmp_path, monkeypatch)
    monkeypatch.setattr(Tracking, "known", set())
    with serving(Tracking) as mlflow:
        here = Place(machine, tiny_dataset(tmp_path / "data"))
        listening = machine.services.mlflow.model_copy(update={"port": urlsplit(mlflow).port})
        machine.services = machine.services.model_copy(update={"mlflow": listening})
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(local_services, "up", machine.running)
        monkeypatch.setattr(local_services, "control_store", lambda home: STORE)
        monkeypatch.setattr("orchestrator.cluster.list_nodes.nodes_of", lambda store, token: here.nodes())
        yield here


def test_a_submission_starts_one_job_and_waits_for_none(place: Place) -> None:
    submission = api.submit(place.experiment())
    assert place.head.started == [submission.submission_id]
    assert place.head.logs_read == []
    (row,) = submission.plan.rows
    assert (row.fits, submission.plan.cluster) == ("now", STORE)
    (status,) = api.status(campaign=submission.campaign_id)
    assert (status.run_key, status.run_folder, status.state) == (row.run_key, row.spec.run_folder, RunState.QUEUED)
    assert not list(place.tiny.results.glob("*/*/fold_*")), "the campaign takes possession, nobody else"


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"fold": 7}, ConfigError, "fold 7 does not exist"),
        ({"workers": {"count": 1, "gpus": 0, "cpus": 9}}, ClusterError, "it can never hold"),
        ({"configuration": "3d_fullre"}, ConfigError, "Did you mean '3d_fullres'"),
    ],
)
def test_what_cannot_be_is_refused_before_a_job_is_started(place: Place, asked: dict[str, Any], error: type[Exception], text: str) -> None:
    wanted = {key: value for key, value in asked.items() if key != "configuration"}
    experiment = place.experiment(**wanted)
    if "configuration" in asked:
        experiment = experiment.model_copy(update={"configurations": (asked["configuration"],)})
    with pytest.raises(error, match=text):
        api.submit(experiment)
    assert place.is_untouched


def test_no_head_is_started_for_what_this_machine_can_never_hold(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("services were started")

    monkeypatch.setattr(local_services, "running", lambda *_: None)
    monkeypatch.setattr(local_services, "up", started)
    with pytest.raises(ClusterError, match="it can never hold"):
        api.submit(place.experiment(workers={"count": 1, "gpus": 0, "cpus": 10**6}))
    assert place.is_untouched


def test_what_is_replaced_is_no_reason_against_starting_a_head(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.finished(place.trained(0), is_validated=True)
    monkeypatch.setattr(local_services, "running", lambda *_: None)
    other = place.experiment(epochs=5, workers={"count": 1, "gpus": 0, "cpus": 1}, loader={"actors": 1})
    with pytest.raises(ConfigError, match="--replace"):
        api.submit(other)
    assert place.head.started == []
    submission = api.submit(other, replaces=True)
    assert place.head.started == [submission.submission_id]


def test_a_results_folder_that_is_not_there_yet_is_made_with_the_first_submission(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = place.tiny.base / "fresh" / "nnUNet_results"
    monkeypatch.setenv("nnUNet_results", str(fresh))
    experiment = place.experiment(nnUNet_results=None)
    assert api.plan(experiment).n_now == 1
    with pytest.raises(ConfigError, match="fold 7 does not exist"):
        api.submit(place.experiment(7, nnUNet_results=None))
    assert not fresh.parent.exists(), "nothing is submitted"
    submission = api.submit(experiment)
    assert [run.campaign for run in api.snapshot().statuses] == [submission.campaign_id]
    place.head.jobs.clear()
    assert api.snapshot().stored == [], "no error where a typo would be one"


def test_an_interrupt_before_the_campaign_is_sent_leaves_nothing(place: Place) -> None:
    def interrupted() -> list[NodeResources]:
        raise KeyboardInterrupt

    place.nodes = interrupted
    sent: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        api.submit(place.experiment(), on_submit=sent.append)
    assert sent == []
    assert place.is_untouched


def nodes_are_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> list[NodeResources]:
        raise ClusterError("cluster: away")

    place.nodes = away


def mlflow_is_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    down = place.machine.services.mlflow.model_copy(update={"port": port})
    place.machine.services = place.machine.services.model_copy(update={"mlflow": down})


def mlflow_knows_the_run(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its epochs would be mixed with those of the folder, which is gone."""
    (spec,) = expand(place.experiment())
    monkeypatch.setattr(Tracking, "known", {spec.run_key})


def workers_may_be_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = place.trained(0)
    acquire_token(RunFolder(spec.run_folder), "driver", {"job": "train-of-an-earlier-head-a1", "cluster": "10.0.0.1:1"})


def another_campaign_meets_elsewhere(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.head.campaign("c", "RUNNING", RunState.RUNNING, 1)


def another_campaign_is_about_to_take_the_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    api.submit(place.experiment())
    place.head.started.clear()


@pytest.mark.parametrize(
    "hindered",
    [
        nodes_are_away,
        mlflow_is_away,
        mlflow_knows_the_run,
        workers_may_be_left,
        another_campaign_meets_elsewhere,
        another_campaign_is_about_to_take_the_folder,
    ],
)
def test_where_only_the_campaign_can_tell_its_answer_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, hindered: Callable[[Place, pytest.MonkeyPatch], None]
) -> None:
    hindered(place, monkeypatch)
    submission = api.submit(place.experiment())
    assert place.head.started == [submission.submission_id]
    assert submission.submission_id in place.head.logs_read
    assert submission.plan == NO_ROWS, "as the campaign reports it"
    place.head.text = line_of(Failed(error="ConfigError", message="results: workers are active")) + "\n"
    with pytest.raises(ConfigError, match="workers are active"):
        api.submit(place.experiment())


def test_another_cluster_is_waited_for(place: Place) -> None:
    submission = api.submit(place.experiment(), "http://head:8265")
    assert submission.submission_id in place.head.logs_read
    assert submission.plan == NO_ROWS


@pytest.mark.parametrize("send", [api.submit, api.plan])
def test_another_cluster_gets_no_folder_that_starts_nowhere_there(place: Place, send: Callable[..., object]) -> None:
    """There it would begin in the job's working directory, which Ray deletes."""
    with pytest.raises(ConfigError, match=r"nnUNet_results: results, pretrained_weights: w\.pth start at no folder of the cluster\. Write"):
        send(place.experiment(nnUNet_results="results", pretrained_weights="w.pth"), "http://head:8265")
    assert place.head.started == []


def test_another_cluster_takes_whole_paths_those_in_the_home_there_and_names_of_runs(place: Place) -> None:
    api.submit(place.experiment(nnUNet_results="~/results", pretrained_weights="17/2d/nnUNetTrainer/0"), "http://head:8265")
    assert len(place.head.started) == 1


def test_folders_of_a_mapping_begin_here_for_this_machine(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.tiny.base)
    content = {"dataset": 17, "configurations": ["3d_fullres"], "folds": [0], "workers": {"gpus": 0}, "nnUNet_raw": "raw"}
    submission = api.submit(experiment_from({**content, **place.tiny.folders, "nnUNet_results": "here"}))
    (row,) = submission.plan.rows
    assert row.spec.run_folder.is_relative_to(place.tiny.base / "here")


def test_what_a_head_took_and_did_not_begin_is_shown_until_it_is_submitted_again_or_stopped(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = api.submit(place.experiment(), again="nnfleet submit e.yaml")
    (queued,) = api.snapshot().statuses
    assert (queued.state, queued.campaign) == (RunState.QUEUED, submission.campaign_id)
    place.head.jobs.clear()  # of a new head
    (shown,) = api.snapshot().statuses
    assert (shown.state, shown.campaign, shown.run_key) == (RunState.FAILED_CLUSTER, "", queued.run_key)
    at = f"{datetime.now():%Y-%m-%d}"
    assert re.search(
        rf"its campaign {submission.campaign_id}, submitted {at} ..:.., began. Submit it again: nnfleet submit e.yaml", shown.reason
    )
    with monkeypatch.context() as without:
        without.setattr(local_services, "running", lambda *_: None)
        without.chdir("/")
        assert f"again: cd {os.getcwd()} && nnfleet" not in shown.reason
        assert "Submit it again: cd " in api.snapshot().statuses[0].reason

    again = api.submit(place.experiment())
    assert [status.campaign for status in api.snapshot().statuses] == [again.campaign_id]
    place.head.jobs.clear()
    (shown,) = api.snapshot().statuses
    assert shown.reason.endswith("Submit it again."), "what a script submitted has no command"
    assert [run.run_key for run in api.stop([shown.run_key])] == [shown.run_key]
    assert api.snapshot().statuses == []


@pytest.mark.parametrize("reported", ["a run", "the folder"])
def test_what_a_campaign_has_reported_is_no_longer_noted(place: Place, reported: str) -> None:
    submission = api.submit(place.experiment())
    notes = Home.default().submissions
    (row,), (note,) = submission.plan.rows, notes.iterdir()
    assert stat.S_IMODE(note.parent.stat().st_mode) == 0o700
    api.snapshot()
    assert note.exists(), "it still begins"
    state = RunStatus(run_key=row.run_key, address=row.address, campaign="c", epochs=4, run_folder=row.spec.run_folder)
    if reported == "a run":
        place.head.texts[submission.submission_id] = line_of(StatusChanged(status=state.model_dump(mode="json"))) + "\n"
    else:
        acquire(row.spec, [])
        place.head.jobs.clear()
    api.snapshot()
    assert not note.exists()


def refused(place: Place, submission: api.Submission, text: str = "results: they are full.", error: str = "DataError") -> None:
    place.head.texts[submission.submission_id] = line_of(Failed(error=error, message=text)) + "\n"
    place.head.set_state(submission.submission_id, "FAILED")


def test_an_experiment_that_has_to_be_changed_is_not_advised_to_be_submitted_as_it_is(place: Place) -> None:
    submission = api.submit(place.experiment(), again="nnfleet submit e.yaml")
    refused(place, submission, "configurations: none.", "ConfigError")
    for (shown,) in (api.snapshot().statuses, api.status()):
        assert shown.reason.endswith("could not begin: configurations: none. Change the experiment, then submit it again.")


@pytest.mark.parametrize("asked", [Preprocess(cpus=64), Preprocess(memory_gib=64)])
def test_nor_one_that_asks_preprocessing_for_what_no_node_has(place: Place, asked: Preprocess) -> None:
    submission = api.submit(place.experiment(), again="nnfleet submit e.yaml")
    with pytest.raises(NeverFits) as caught:
        job_workers(asked, [NodeResources("n", {"CPU": 8.0, "memory": 2.0**30}, {})])
    refused(place, submission, str(caught.value), name_of(caught.value))
    (shown,) = api.status()
    assert shown.reason.endswith(" N}. Change the experiment, then submit it again.")


def test_a_run_whose_campaign_could_not_begin_is_shown_with_the_command_until_it_is_submitted_again(place: Place) -> None:
    first = api.submit(place.experiment(), again="nnfleet submit e.yaml")
    refused(place, first)
    for statuses in (api.snapshot().statuses, api.snapshot().statuses, api.status(), next(api.looks()).statuses):
        (shown,) = statuses
        assert (shown.state, shown.campaign) == (RunState.FAILED_CONFIG, first.campaign_id)
        assert shown.reason == (
            f"its campaign {first.campaign_id} could not begin: results: they are full. Submit it again: nnfleet submit e.yaml"
        )
    again = api.submit(place.experiment())
    assert [(run.state, run.campaign) for run in api.snapshot().statuses] == [(RunState.QUEUED, again.campaign_id)]
    place.head.set_state(again.submission_id, "FAILED")
    (shown,) = api.snapshot().statuses
    assert (shown.state, shown.campaign) == (RunState.FAILED_CLUSTER, again.campaign_id), "by the last campaign alone"
    assert shown.reason.endswith("). Submit it again.")
    place.head.jobs.clear()
    assert api.snapshot().statuses == [], "of a new head; it was seen"
    assert list(Home.default().submissions.glob("*.json")) == []


def test_a_run_that_never_began_is_gone_once_its_folder_is_submitted_for_another(place: Place) -> None:
    """What was refused is corrected, so that the run has another key."""
    refused(place, api.submit(place.experiment()))
    (failed,) = api.snapshot().statuses
    corrected = api.submit(place.experiment(epochs=5))
    (shown,) = api.snapshot().statuses
    assert (shown.run_folder, shown.campaign) == (failed.run_folder, corrected.campaign_id)
    assert shown.run_key != failed.run_key


@pytest.mark.parametrize("how", ["by name", "by campaign"])
def test_a_stop_takes_a_run_that_never_began_off_the_list_alone_and_until_it_is_submitted_again(place: Place, how: str) -> None:
    first = api.submit(place.experiment().model_copy(update={"folds": (0, 1)}), again="nnfleet submit e.yaml")
    refused(place, first)
    keys = [run.run_key for run in api.snapshot().statuses]
    if how == "by name":
        assert [run.run_key for run in api.stop([keys[0]])] == keys[:1]
        (left,) = api.snapshot().statuses
        assert (left.run_key, "nnfleet submit e.yaml" in left.reason) == (keys[1], True)
        assert api.stop(everything=True) == [], "it has ended"
        with pytest.raises(ConfigError, match="there is no run"):
            api.stop([keys[0]])
        api.stop([keys[1]])
    else:
        assert [run.run_key for run in api.stop(campaign=first.campaign_id)] == keys
    assert api.snapshot().statuses == api.status() == []
    assert place.head.stopped == []
    again = api.submit(place.experiment())
    refused(place, again)
    assert [run.campaign for run in api.snapshot().statuses] == [again.campaign_id]


def test_one_of_several_runs_that_a_head_did_not_begin_is_taken_off_the_list_alone(place: Place) -> None:
    api.submit(place.experiment().model_copy(update={"folds": (0, 1)}))
    place.head.jobs.clear()
    keys = [run.run_key for run in api.snapshot().statuses]
    api.stop([keys[0]])
    assert [run.run_key for run in api.snapshot().statuses] == keys[1:]


def test_a_submission_is_taken_where_it_cannot_be_noted(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    Home.default().submissions.write_text("no folder")
    submission = api.submit(place.experiment())
    assert place.head.started == [submission.submission_id]
    assert f"campaign {submission.campaign_id} is submitted, but not noted here" in caplog.text
    assert len(api.snapshot().statuses) == 1


def test_a_submission_right_after_another_is_planned_behind_it(place: Place) -> None:
    first, second = api.submit(place.experiment(0)), api.submit(place.experiment(1))
    assert place.head.started == [first.submission_id, second.submission_id]
    assert [row.fits for submission in (first, second) for row in submission.plan.rows] == ["now", "later"]
    assert [row.fits for row in api.plan(place.experiment(2)).rows] == ["later"]
    assert place.head.logs_read == []


def test_a_resume_hands_over_what_was_cut_off_and_starts_nothing_where_nothing_was(place: Place) -> None:
    spec = place.trained(0)
    submission = api.resume(results=place.tiny.results)
    assert place.head.started == [submission.submission_id]
    assert place.head.logs_read == []
    assert [row.run_key for row in submission.plan.rows] == [spec.run_key]
    place.head.jobs.clear()
    place.head.started.clear()
    place.finished(spec, is_validated=True)
    nothing = api.resume(results=place.tiny.results)
    assert (nothing.campaign_id, nothing.plan.rows) == ("", ())
    assert "is finished" in nothing.plan.left[0]
    assert place.head.started == []
    with pytest.raises(ConfigError, match="there is no run 'nonsense'"):
        api.resume(["nonsense"], results=place.tiny.results)


def test_a_resume_of_all_leaves_runs_on_which_living_campaigns_are_at_work(place: Place) -> None:
    first, second = place.trained(0), place.trained(1)
    place.head.add("campaign-c", "campaign", "RUNNING", run_key="", campaign="c")
    registry = Registry.of_cluster(STORE)
    registry.post("c", Entry(runs=(first.run_key,)))
    plan = api.resume(results=place.tiny.results).plan
    assert [row.run_key for row in plan.rows] == [second.run_key]
    assert plan.left == ("1 run on which living campaigns are at work: nnfleet status --watch",)
    place.head.started.clear()
    registry.post("c", Entry(runs=(first.run_key, second.run_key)))
    nothing = api.resume(results=place.tiny.results)
    assert (nothing.campaign_id, nothing.plan.rows) == ("", ())
    assert nothing.plan.left == ("2 runs on which living campaigns are at work: nnfleet status --watch",)
    assert place.head.started == []
    named = api.resume([first.run_key], results=place.tiny.results).plan
    assert [row.run_key for row in named.rows] == [first.run_key], "it is followed"


def test_runs_at_work_on_one_tracking_server_keep_back_none_of_another(place: Place) -> None:
    """A campaign has one server: that of most of the runs which it takes."""
    busy, cut_off = [place.trained(fold) for fold in (0, 1)], place.trained(2)
    moved = cut_off.model_copy(update={"tracking_uri": "http://mlflow"})
    write_json_atomic(RunFolder(cut_off.run_folder).spec_file, json.loads(moved.model_dump_json()))
    choice = chosen(place.tiny.results, (), "", [run.run_key for run in busy], only_failed=False)
    assert [run.spec.run_key for run in choice.taken] == [cut_off.run_key]


def test_a_resume_of_a_campaign_leaves_what_cannot_go_on_and_what_was_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, stopped = place.trained(0), place.trained(1)
    assert write_outcome(RunFolder(stopped.run_folder), Outcome(job="training", state="STOPPED", fencing_token=1, message="asked"))
    monkeypatch.setattr(submitting, "_runs_of_campaign", lambda *of: [spec.run_key, stopped.run_key, "removed"])
    plan = api.resume(results=place.tiny.results, campaign="c1").plan
    assert [row.run_key for row in plan.rows] == [spec.run_key]
    assert [text for text in plan.left if "was stopped" in text and stopped.run_key in text]
    assert f"removed has no folder below {place.tiny.results}." in plan.left


def test_a_resume_of_a_campaign_goes_on_without_a_run_whose_data_are_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, other = place.trained(0), place.trained(1)
    fault = DataError("data: gone")
    monkeypatch.setattr(resume_check, "problems_of", lambda run: [fault] if run.run_key == other.run_key else [])
    monkeypatch.setattr(submitting, "_runs_of_campaign", lambda *of: [spec.run_key, other.run_key])
    plan = api.resume(results=place.tiny.results, campaign="c1").plan
    assert [row.run_key for row in plan.rows] == [spec.run_key]
    assert [text for text in plan.left if "cannot continue: data: gone" in text]


def test_a_resume_of_what_failed_hands_over_nothing_that_was_cut_off(place: Place) -> None:
    spec = place.trained(0)
    assert api.resume(results=place.tiny.results, only_failed=True).plan.rows == ()
    failed = Outcome(job="validation", state="FAILED_CODE", fencing_token=1, message="why")
    assert write_outcome(RunFolder(spec.run_folder), failed)
    assert api.resume(results=place.tiny.results).plan.rows == ()
    assert [row.run_key for row in api.resume(results=place.tiny.results, only_failed=True).plan.rows] == [spec.run_key]
    assert place.head.only_failed
    with pytest.raises(ConfigError, match="both named"):
        api.resume([spec.run_key], results=place.tiny.results, campaign="c1")
    with pytest.raises(ConfigError, match="there is no campaign 'nonsense'"):
        api.resume(results=place.tiny.results, campaign="nonsense")


def test_more_runs_than_a_job_can_carry_are_sent_without_them(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.campaign.handover.MOST_HANDED_BYTES", 10)
    submission = api.submit(place.experiment())
    assert submission.plan.experiment == NO_ROWS.experiment, "the campaign's own plan was waited for"
    assert [job.handed for job in place.head.jobs.values()] == [()]


def test_a_trained_run_whose_validation_cannot_begin_keeps_what_its_folder_holds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_results", str(place.tiny.results))
    spec = place.trained(0)
    place.finished(spec, is_validated=True)
    place.head.hand_over("c", "FAILED", Failed(error="TrackingError", message="away"))
    run = place.head.jobs["campaign-c"].handed[0].model_copy(update={"run_key": spec.run_key})
    place.head.jobs["campaign-c"] = place.head.jobs["campaign-c"].model_copy(update={"handed": (run,)})
    found = api.snapshot()
    assert found.statuses == []
    (known,) = found.stored
    assert (known.state, known.reason) == (RunState.SUCCEEDED, "its campaign c could not begin: away")


def test_validations_are_handed_over_and_what_is_not_trained_is_refused_without_a_job(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(place.tiny.results))
    trained, untrained = place.trained(0), place.trained(1)
    place.finished(trained, is_validated=False)
    with pytest.raises(ConfigError, match="is not trained to its end"):
        api.validate([untrained.run_key])
    assert place.head.started == []
    assert api.validate([trained.run_key]) == place.head.started
    assert place.head.logs_read == []
    place.head.jobs.clear()
    with pytest.raises(ConfigError, match="is not trained to its end") as refused:
        api.validate([trained.address, untrained.address])
    assert len(place.head.started) == 2, "the others are started"
    assert str(refused.value).endswith(f"\nStarted: {place.head.started[1]}.")


def test_a_stop_reaches_a_run_whose_campaign_only_begins_once_that_owns_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = api.submit(place.experiment())
    (row,) = submission.plan.rows

    def begins(seconds: float) -> None:
        acquire(row.spec, [])
        place.head.campaign(submission.campaign_id, "RUNNING", RunState.QUEUED, 1, run_key=row.run_key, run_folder=row.spec.run_folder)

    monkeypatch.setattr("orchestrator.campaign.follower.time.sleep", begins)
    assert [status.run_key for status in api.stop(campaign=submission.campaign_id)] == [row.run_key]
    assert read_stop_request(RunFolder(row.spec.run_folder)) == StopRequest(is_now=False, campaigns=(submission.campaign_id,))


def test_a_job_carries_the_runs_of_its_campaign_and_one_of_another_version_is_read_all_the_same() -> None:
    run = HandedRun(run_key="r", address="a", epochs=3, run_folder=Path("/r"), workers=WorkerSpec(count=2))
    details = {"submission_id": "campaign-c", "status": "PENDING"}
    metadata = {"nnfleet_kind": "campaign", "nnfleet_campaign": "c", HANDED_KEY: handed_text([run])}
    for text, handed in ((handed_text([run]), (run,)), ('[{"key": 1}]', ()), ("", ())):
        record = record_of({**details, "metadata": {**metadata, HANDED_KEY: text}})
        assert record is not None
        assert record.handed == handed


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_plan_names_the_campaign_that_is_at_work_on_its_runs(place: Place, capsys: pytest.CaptureFixture[str], has_begun: bool) -> None:
    earlier = api.submit(place.experiment())
    assert earlier.plan.followed == ()
    registry = Registry.of_cluster(STORE)
    if has_begun:
        registry.post(earlier.campaign_id, Entry(runs=(earlier.plan.rows[0].run_key,)))
    again = api.plan(place.experiment())
    assert again.followed == (earlier.campaign_id,)
    show_plan(again)
    assert (
        f"Campaign {earlier.campaign_id} is at work on runs of this plan already: these are followed, and nothing is trained twice.\n"
        in capsys.readouterr().out
    )
    assert api.plan(place.experiment(fold=1)).followed == ()
    registry.post(earlier.campaign_id, Entry())
    assert api.plan(place.experiment()).followed == (), "brought to its end"
