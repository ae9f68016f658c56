"""A drill on local services: a worker and the driver die, nothing is lost, nothing is left behind."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import api
from orchestrator.tracking import Tracker
from tests.integration.local_home import local_services

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]


def test_a_drill_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    with local_services(num_cpus=2) as (_, services):
        report = api.drill(["worker", "driver"], folder=tmp_path, on_event=events.append)
        assert report.is_nothing_lost, (report, events)
        assert [strike.part for strike in report.strikes] == ["worker", "driver"]
        assert all(strike.epochs_redone <= 1 for strike in report.strikes)
        assert report.stays == ()
        assert list(tmp_path.iterdir()) == []
        names = [found.name for found in Tracker(services.mlflow_uri)._client.search_experiments()]
        assert not any(name.startswith("nnfleet-drill") for name in names)
