"""Drills on local services and on a cluster of several nodes: whatever dies, nothing is lost, nothing is left behind."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator import api
from orchestrator.drill.order import DrillEvent
from tests.integration.local_home import services_of_its_own
from tests.integration.many_nodes import ManyNodes

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


def test_a_drill_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    events: list[DrillEvent] = []
    with services_of_its_own(num_cpus=2) as (_, services):
        report = api.drill(["worker", "tracking", "driver"], folder=tmp_path, on_event=events.append)
        assert report.is_nothing_lost, (report, events)
        assert [strike.part for strike in report.strikes] == ["worker", "driver", "tracking"]  # that one last: training goes on meanwhile
        assert all(strike.epochs_redone <= 1 for strike in report.strikes)
        assert report.stays == ()
        assert list(tmp_path.iterdir()) == []
        names = [found.name for found in MlflowClient(services.mlflow_uri).search_experiments()]
        assert not any(name.startswith("nnfleet-drill") for name in names)


def test_a_drill_that_kills_a_node_loses_nothing(tmp_path: Path) -> None:
    events: list[DrillEvent] = []
    with ManyNodes(tmp_path / "cluster", (2, 2)) as nodes:
        report = api.drill(["node"], nodes.address, tmp_path / "shared", is_sure=True, on_event=events.append)
        assert report.is_nothing_lost, (report, events, nodes.log_tails())
        assert [strike.part for strike in report.strikes] == ["node"]
        assert report.stays == ()
