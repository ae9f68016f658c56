"""What a campaign's entry in the registry holds back from others."""

from pathlib import Path

import pytest

from orchestrator.experiment.estimates import Measured
from orchestrator.queue.admission import NODES_RETURN_S, Decision
from orchestrator.run.estimate import ExpectedDuration, estimate_error
from tests.fake_campaign import Stage, finish_on_disk, look, states
from tests.fake_run import epoch_row
from trainers.contract.commits import Committed, newest_committed
from trainers.contract.records import read_record
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, RunSpec, WorkerSpec
from trainers.storage.files import write_atomic


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_run_that_waits_for_results_of_others_holds_no_workers(stage: Stage) -> None:
    """The first stage of a cascade that it waits for may need them."""
    campaign = stage.campaign(run := stage.run(0))
    look(campaign)
    followed = campaign.runs[run.run_key]
    assert [held.run_key for held in campaign._dispatcher.entry([followed]).holding] == [run.run_key]
    followed.needs_others = True
    assert campaign._dispatcher.entry([followed]).holding == ()


def test_a_wait_counts_as_unknown_only_since_its_end_is_not_known(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a large gang that waited for long for a known end would be passed by everybody at the first full validation."""
    stage.cluster.gpus = 0
    campaign = stage.campaign(run := stage.run(0))
    starts: list[float | None] = [None]
    monkeypatch.setattr("orchestrator.campaign.dispatch.decide", lambda *_: Decision((), {}, run.run_key, starts[0]))
    since = []
    for known in (None, None, 5e9, None):
        starts[0] = known
        look(campaign)
        since.append(campaign._dispatcher._front)
        stage.clock.clock.sleep(100)
    assert [key for key, _ in since] == [run.run_key] * 4
    first, second, third, fourth = (unix for _, unix in since)
    assert [unix - first for unix in (second, third, fourth)] == pytest.approx([0, 200, 200], abs=1)


def test_a_run_that_is_kept_back_publishes_since_when(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = stage.campaign(run := stage.run(0))
    followed, since = campaign.runs[run.run_key], []
    for kept in (True, True, False, True):
        keys = frozenset({run.run_key} if kept else ())
        monkeypatch.setattr("orchestrator.campaign.dispatch.decide", lambda *_, keys=keys: Decision((), {}, kept_back=keys))
        look(campaign)
        since.append(campaign._dispatcher._waits(followed, 0).kept_back_unix)
        stage.clock.clock.sleep(100)
    assert since[2] == 0.0
    assert [unix - since[0] for unix in (since[1], since[3])] == pytest.approx([0, 300], abs=1)


@pytest.mark.parametrize("is_back", [True, False])
def test_a_gang_keeps_what_is_left_of_its_nodes_while_one_of_them_may_only_boot(stage: Stage, is_back: bool) -> None:
    gang, other = stage.run(0, gpus=2), stage.run(1)
    stage.cluster.gpus = 2
    campaign = stage.campaign(gang, other)
    look(campaign)
    stage.cluster.workers_begin(gang)
    look(campaign)
    stage.cluster.gpus = 1
    stage.cluster.kill_driver(gang)
    look(campaign)
    assert stage.cluster.live_jobs() == []
    if is_back:
        stage.clock.clock.sleep(NODES_RETURN_S / 2)
        stage.cluster.gpus = 2
        look(campaign)
        assert stage.cluster.live_jobs() == ["train-key0-a2"]
        return
    stage.clock.clock.sleep(NODES_RETURN_S + 60)
    look(campaign)
    assert stage.cluster.live_jobs() == ["train-key1-a1"]
    assert states(campaign) == ["RECOVERING", "RUNNING"]
    stage.cluster.gpus = 2
    stage.cluster.training_ends(other)
    look(campaign)
    stage.cluster.validation_ends(other)
    look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]


def test_of_two_gangs_whose_nodes_have_gone_one_trains_on_the_nodes_that_are_left(stage: Stage) -> None:
    first, second = stage.run(0, gpus=2), stage.run(1, gpus=2)
    stage.cluster.gpus = 8
    campaign = stage.campaign(first, second)
    look(campaign)
    for run in (first, second):
        stage.cluster.workers_begin(run)
    look(campaign)
    assert states(campaign) == ["RUNNING", "RUNNING"]
    stage.cluster.gpus = 2
    for run in (first, second):
        stage.cluster.kill_driver(run)
    look(campaign)
    assert stage.cluster.live_jobs() == ["train-key0-a2"]


def test_loaders_on_other_nodes_are_waited_for_and_held_as_the_workers_are(stage: Stage) -> None:
    """While they wait in the queue too: whoever reads the registry decides alike. It goes through the registry's file and back."""
    loader = LoaderSpec(actors=2, most=5, placement="cluster")
    campaign = stage.campaign(run := stage.run(0).model_copy(update={"loader": loader}))
    followed = campaign.runs[run.run_key]
    (waits,) = campaign._dispatcher._waiting([followed], {run.run_key})
    look(campaign)
    (held,) = type(entry := campaign._dispatcher.entry([followed])).model_validate_json(entry.model_dump_json()).holding
    assert (waits.workers, held.workers) == (run.gang, run.gang)
    assert run.gang == WorkerSpec(count=1, gpus=1, cpus=1, loader_cpus=5)


def test_a_run_that_begins_records_what_its_epochs_are_expected_to_take_and_at_its_end_how_wrong_that_was(stage: Stage) -> None:
    """By hand: three folds took 10, 20 and 30 s an epoch, so 20 are expected of the fourth, which takes 22: 10 % longer."""
    *before, fourth = (stage.run(fold) for fold in range(4))
    for run, seconds in zip(before, (10.0, 20.0, 30.0), strict=True):
        _trained(run, seconds)
    look(stage.campaign(fourth))
    folder = RunFolder(fourth.run_folder)
    assert read_record(folder.expected_file, ExpectedDuration).epoch_s == 20.0  # type: ignore[union-attr]
    assert estimate_error(folder, _trained(fourth, 22.0)) == pytest.approx(0.1)
    measured = Measured()
    assert measured.epoch_s(fourth) == pytest.approx(21.0)
    assert measured.errors() == pytest.approx([0.1])


def test_of_a_first_run_nothing_is_expected(stage: Stage) -> None:
    look(stage.campaign(run := stage.run(0)))
    assert not RunFolder(run.run_folder).expected_file.exists()


def _trained(run: RunSpec, epoch_s: float) -> Committed:
    """Leave the folder of a run that is trained, each of whose epochs took so long on its workers."""
    finish_on_disk(run)
    folder = RunFolder(run.run_folder)
    write_atomic(folder.spec_file, run.model_dump_json().encode())
    committed = newest_committed(folder)
    assert committed is not None
    measures = {"epoch_s": epoch_s, "world_size": run.workers.least, "gpu_memory_gib": float(run.workers.gpus)}
    rows = tuple(epoch_row(epoch).model_copy(update=measures) for epoch in range(run.schedule.epochs))
    committed = committed.model_copy(update={"history": rows})
    write_atomic(folder.state / f"{committed.stem}.json", committed.model_dump_json().encode())
    return committed
