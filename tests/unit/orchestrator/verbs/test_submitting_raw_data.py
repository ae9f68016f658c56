"""Submitting an experiment whose data are preprocessed first: what is shown, printed and stopped before its runs have keys."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import api
from orchestrator.campaign.events import CampaignEvent, Failed, Planned, StatusChanged, Waiting
from orchestrator.cli.plan import show_plan
from orchestrator.cluster import local_services
from orchestrator.errors import ClusterError, ConfigError, TrackingError
from orchestrator.experiment.awaited import plan_to_come
from orchestrator.experiment.model import Experiment
from orchestrator.experiment.preprocess import Preprocess
from orchestrator.preprocessing.order import Progressed, entry_key
from orchestrator.queue.registry import Entry, Registry
from orchestrator.run.events import line_of
from orchestrator.run.names import UNPLANNED
from orchestrator.run.status import RunStatus
from tests.unit.orchestrator.preprocessing.test_due import write_raw
from tests.unit.orchestrator.verbs.test_submitting import STORE, Place, mlflow_is_away, place
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.contract.states import RunState

__all__ = ["place"]
JOB = "preprocess-0123456789ab-r0"
ADDRESSES = ["17/3d_fullres/nnUNetTrainer/0", "17/3d_fullres/nnUNetTrainer/1"]


def unprepared(place: Place, **more: Any) -> Experiment:
    """An experiment of two folds that lacks a preprocessed case."""
    if not (raw := place.tiny.base / "raw" / place.tiny.name).exists():
        write_raw(raw)
    (place.tiny.data_folder() / "case_0.pkl").unlink(missing_ok=True)
    return place.experiment(preprocess=True, **more).model_copy(update={"folds": (0, 1)})


def submitted(place: Place) -> api.Submission:
    return api.submit(unprepared(place))


def prints(place: Place, submission: api.Submission, *events: CampaignEvent) -> None:
    plan = submission.plan
    place.head.texts[submission.submission_id] = "".join(f"{line_of(event)}\n" for event in (Planned(plan=plan), *events))


def test_it_starts_one_job_and_names_what_comes_first(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    submission = submitted(place)
    assert place.head.started == [submission.submission_id]
    plan = submission.plan
    assert (plan.rows, plan.preprocesses, plan.cluster) == ((), ("nnUNetPlans: 3d_fullres",), STORE)
    assert [run.address for run in plan.awaited] == ADDRESSES
    show_plan(plan)
    assert capsys.readouterr().out == (
        "Preprocessed first, by nnU-Net: nnUNetPlans: 3d_fullres.\n"
        f"Then 2 runs are planned, and named by key: {ADDRESSES[0]} to {ADDRESSES[1]}.\n"
    )


def test_what_the_cluster_can_never_hold_is_refused_before_hours_of_preprocessing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = unprepared(place, workers={"count": 2, "gpus": 1, "cpus": 2})
    plan = api.plan(greedy)
    assert (plan.preprocesses, plan.n_never) == (("nnUNetPlans: 3d_fullres",), 2)
    show_plan(plan)
    (*_, line) = capsys.readouterr().out.splitlines()
    because = "needs 2 workers x (1 GPU, 2 CPUs); the cluster has 0 GPUs in all."
    assert line.startswith(f"The cluster can never hold them: each {because}")
    with pytest.raises(ClusterError, match="it can never hold") as refused:
        api.submit(greedy)
    assert all(f"\n{address} {because}" in str(refused.value) for address in ADDRESSES)
    assert place.is_untouched


@pytest.mark.parametrize("is_up", [True, False])
def test_cores_of_the_preprocessing_that_no_node_has_are_refused_at_once(
    place: Place, monkeypatch: pytest.MonkeyPatch, is_up: bool
) -> None:
    if not is_up:
        monkeypatch.setattr(local_services, "running", lambda *_: None)
    greedy = unprepared(place).model_copy(update={"preprocess": Preprocess(cpus=10**6)})
    for send in (api.plan, api.submit):
        with pytest.raises(ClusterError, match=r"no node of this cluster has 1000000 CPU cores .* Ask for fewer: preprocess: {cpus: N}"):
            send(greedy)
    assert place.is_untouched


def test_a_tracking_server_that_does_not_answer_is_reported_before_the_preprocessing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow_is_away(place, monkeypatch)
    place.head.text = line_of(Failed(error="TrackingError", message="tracking: no answer")) + "\n"
    with pytest.raises(TrackingError, match="no answer"):
        submitted(place)


def test_until_then_status_shows_the_runs_and_what_they_wait_for(place: Place) -> None:
    submission = submitted(place)
    assert [(run.address, run.state, run.reason) for run in api.status()] == [
        (a, RunState.QUEUED, "its campaign begins.") for a in ADDRESSES
    ]
    why = f"waits for preprocessing of 3d_fullres: 3d_fullres, 2 of 10 cases (nnfleet logs {JOB})."
    prints(place, submission, Waiting(message=why))
    assert {run.reason for run in api.status()} == {why}
    place.head.add(JOB, "preprocess", "RUNNING", f"{line_of(Progressed(what='2d'))}\nnnU-Net prints\nhalf")
    for name in (ADDRESSES[0], JOB):
        assert "".join(api.logs(name)) == "nnU-Net prints\n"
        assert "".join(api.logs(name, earlier=True)).startswith("NNFLEET ")


def test_a_refusal_ends_all_with_its_reason(place: Place) -> None:
    submission = submitted(place)
    prints(place, submission, Failed(error="DataError", message=f"dataset: refused. Its log: nnfleet logs {JOB}."))
    place.head.set_state(submission.submission_id, "FAILED")
    shown = api.status()
    assert {run.state for run in shown} == {RunState.FAILED_CONFIG}
    assert shown[0].reason.endswith(f"could not begin: dataset: refused. Its log: nnfleet logs {JOB}.")


def test_a_campaign_that_came_without_its_runs_reports_them_itself(place: Place) -> None:
    submission = submitted(place)
    job = place.head.jobs[submission.submission_id]
    place.head.jobs[submission.submission_id] = job.model_copy(update={"handed": ()})
    assert api.status() == []
    prints(place, submission)
    assert [run.address for run in api.status()] == ADDRESSES


def test_once_a_run_has_its_key_only_that_one_is_shown(place: Place) -> None:
    failed = submitted(place)
    prints(place, failed, Failed(error="DataError", message="refused"))
    place.head.set_state(failed.submission_id, "FAILED")
    run = failed.plan.awaited[0]
    now = place.head.jobs[failed.submission_id].started_unix + 60
    planned = RunStatus(
        run_key="d017", address=run.address, campaign="c9", state=RunState.RUNNING, epochs=4, since_unix=now, run_folder=run.run_folder
    )
    event = StatusChanged(status=planned.model_dump(mode="json"))
    place.head.add("campaign-c9", "campaign", "RUNNING", f"{line_of(event)}\n", campaign="c9", run_key="", started_unix=now)
    assert [(run.address, run.run_key.startswith(UNPLANNED)) for run in api.status()] == [(ADDRESSES[1], True), (ADDRESSES[0], False)]


def test_a_stop_ends_the_campaign_with_its_job_as_a_whole(place: Place) -> None:
    submission = submitted(place)
    prints(place, submission)
    place.head.add(JOB, "preprocess", "RUNNING", campaign=submission.campaign_id)
    with pytest.raises(ConfigError, match=f"Stop all of them: nnfleet stop --campaign {submission.campaign_id}"):
        api.stop([ADDRESSES[0]])
    assert place.head.stopped == []
    api.stop(campaign=submission.campaign_id)
    assert place.head.stopped == [submission.submission_id, JOB]


def test_the_runs_are_named_as_they_will_be(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By address and folder, variants, seeds and trainers included."""
    more: dict[str, Any] = {"seeds": [0, 1], "trainers": ["default", "da5"], "sweep": {"low": {"initial_lr": 0.001}, "base": {}}}
    experiment = place.experiment(**more)
    specs: list[RunSpec] = [row.spec for row in api.plan(experiment).rows]
    awaited = plan_to_come(experiment.with_folders_resolved(), place.tiny.name, ["x"], place.nodes()).awaited
    assert [(run.address, RunFolder(run.run_folder)) for run in awaited] == [(spec.address, RunFolder(spec.run_folder)) for spec in specs]
    assert len({run.run_key for run in awaited}) == 8


def at_work(place: Place) -> api.Submission:
    """A campaign whose preprocessing is at work."""
    submission = submitted(place)
    prints(place, submission)
    folder = str(place.tiny.preprocessed)
    place.head.add(JOB, "preprocess", "RUNNING", campaign=submission.campaign_id, run_key="", dataset_folder=folder)
    Registry.of_cluster(STORE).post(submission.campaign_id, Entry())
    return submission


def begins(place: Place) -> api.Submission:
    """A campaign that was submitted a moment ago."""
    return submitted(place)


def begins_and_is_seen(place: Place) -> api.Submission:
    """One that has left its entry, and not started its job yet."""
    submission = submitted(place)
    Registry.of_cluster(STORE).post(submission.campaign_id, Entry())
    return submission


def waits_for_cores(place: Place) -> api.Submission:
    submission = submitted(place)
    Registry.of_cluster(STORE).post(submission.campaign_id, Entry(runs=(entry_key(str(place.tiny.preprocessed)),)))
    job = place.head.jobs[submission.submission_id]
    place.head.jobs[submission.submission_id] = job.model_copy(update={"started_unix": 1.0})
    return submission


@pytest.mark.parametrize("first", [at_work, begins, begins_and_is_seen, waits_for_cores])
def test_a_second_submission_names_the_campaign_that_preprocesses_already(
    place: Place, first: Callable[[Place], api.Submission], capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = first(place)
    second = submitted(place)
    assert (earlier.plan.preprocessed_by, second.plan.preprocessed_by) == ("", earlier.campaign_id)
    show_plan(second.plan)
    (*_, line) = capsys.readouterr().out.splitlines()
    assert line == (
        f"Campaign {earlier.campaign_id} preprocesses this dataset already: that is waited for, and nothing is preprocessed twice. "
        f"`nnfleet status` shows how far it is, `nnfleet stop --campaign {earlier.campaign_id}` ends it."
    )
    assert [(run.address, run.campaign) for run in api.status()] == [(address, earlier.campaign_id) for address in ADDRESSES]


def test_a_campaign_that_has_its_runs_preprocesses_nothing_for_another(place: Place) -> None:
    """It trains the other configuration of the same file."""
    earlier = submitted(place)
    Registry.of_cluster(STORE).post(earlier.campaign_id, Entry(runs=("17-0",)))
    assert submitted(place).plan.preprocessed_by == ""


def test_a_campaign_that_has_failed_and_sends_its_message_is_not_planned_around(place: Place) -> None:
    earlier = submitted(place)
    Registry.of_cluster(STORE).post(earlier.campaign_id, Entry(has_failed=True))
    assert submitted(place).plan.preprocessed_by == ""


def test_a_stop_of_runs_that_two_campaigns_await_ends_both(place: Place) -> None:
    """Else the other one would go on with them."""
    first = at_work(place)
    second = submitted(place)
    prints(place, second)
    api.stop(["17"])
    assert sorted(place.head.stopped) == sorted([first.submission_id, second.submission_id, JOB])


def test_a_stop_of_one_campaign_leaves_the_other_that_preprocesses(place: Place) -> None:
    first = at_work(place)
    second = submitted(place)
    prints(place, second)
    Registry.of_cluster(STORE).post(second.campaign_id, Entry())
    api.stop(campaign=second.campaign_id)
    assert place.head.stopped == [second.submission_id]
    assert {run.campaign for run in api.status()} == {first.campaign_id}
