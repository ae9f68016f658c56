"""A campaign asks the autoscaler for what all campaigns want, and takes back what it wanted itself."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.campaign.loop import Campaign
from orchestrator.errors import ClusterError
from orchestrator.queue.enlarging import AGAIN_S
from orchestrator.queue.gang_fit import NodeResources
from orchestrator.queue.registry import Registry
from orchestrator.queue.space import Resources
from tests.fake_campaign import Stage, look

GPU = {"CPU": 1.0, "GPU": 1.0}


class Autoscaler:
    """Whoever is asked for nodes, and may not answer."""

    def __init__(self) -> None:
        self.asked: list[list[Resources]] = []
        self.is_away = False

    def __call__(self, bundles: Sequence[Resources]) -> None:
        if self.is_away:
            raise ClusterError("cluster: away")
        self.asked.append(list(bundles))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def campaign_of(stage: Stage, autoscaler: Autoscaler, fold: int, group: str = "workers") -> Campaign:
    stage.cluster.gpus = 0
    stage.cluster.add_campaign(name := f"c{fold}")
    nodes = [NodeResources("head", {}, {}, group)]
    board = Registry(stage.base / "board")
    made = Campaign(
        name, stage.cluster, lambda: nodes, board, stage.events.append, stage.tracking, stage.clock.clock, ask_for_nodes=autoscaler
    )
    made.open([stage.run(fold)])
    return made


def test_what_waits_is_asked_for_once_and_again_later(stage: Stage) -> None:
    """Ray keeps the newest request alone, and that of a campaign which has ended may have replaced it."""
    campaign = campaign_of(stage, autoscaler := Autoscaler(), 0)
    look(campaign)
    look(campaign)
    assert autoscaler.asked == [[GPU]]
    stage.clock.clock.sleep(AGAIN_S + 1)
    look(campaign)
    assert autoscaler.asked == [[GPU], [GPU]]
    assert "the autoscaler is asked for nodes" in next(iter(campaign.runs.values())).reason


def test_two_campaigns_ask_for_all_and_the_end_of_one_leaves_what_the_other_wants(stage: Stage) -> None:
    autoscaler = Autoscaler()
    first, second = campaign_of(stage, autoscaler, 0), campaign_of(stage, autoscaler, 1)
    look(first)
    look(second)
    assert autoscaler.asked[-1] == [GPU, GPU]
    second._registry.withdraw("c1")
    second._dispatcher.end()
    assert autoscaler.asked[-1] == [GPU]
    first._registry.withdraw("c0")
    first._dispatcher.end()
    assert autoscaler.asked[-1] == []


def test_an_autoscaler_that_is_away_is_asked_again(stage: Stage) -> None:
    campaign = campaign_of(stage, autoscaler := Autoscaler(), 0)
    autoscaler.is_away = True
    look(campaign)
    autoscaler.is_away = False
    look(campaign)
    assert autoscaler.asked == [[GPU]]


def test_a_cluster_without_autoscaler_is_asked_for_nothing(stage: Stage) -> None:
    campaign = campaign_of(stage, autoscaler := Autoscaler(), 0, group="")
    look(campaign)
    campaign._dispatcher.end()
    assert autoscaler.asked == []
