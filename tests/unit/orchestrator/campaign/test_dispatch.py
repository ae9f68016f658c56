"""What a campaign's entry in the registry holds back from others."""

from pathlib import Path

import pytest

from orchestrator.queue.admission import Decision
from tests.fake_campaign import Stage, look
from trainers.contract.run_spec import LoaderSpec, WorkerSpec


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
