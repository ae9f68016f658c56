"""When the trainings of a campaign are expected to leave their workers."""

from pathlib import Path

import pytest

from orchestrator.campaign.expected import Expected
from orchestrator.follow.followed_run import FollowedRun
from orchestrator.follow.observe import Observer
from orchestrator.run.status import RunStatus
from tests.fake_campaign import Stage
from trainers.contract.requests import PauseRequest
from trainers.contract.states import RunState


@pytest.fixture
def run(tmp_path: Path) -> FollowedRun:
    """It has done 2 of 6 epochs of 100 s."""
    spec = Stage(tmp_path).run(0)
    seen = RunStatus(run_key=spec.run_key, address=spec.address, campaign="c1", epochs=6, epochs_done=2, epoch_s=100.0, run_folder=tmp_path)
    return FollowedRun(Observer(spec), "c1", state=RunState.RUNNING, seen=seen)


def test_a_run_that_is_asked_to_pause_leaves_its_workers_after_its_epoch(run: FollowedRun) -> None:
    expected = Expected()
    expected.note([run], 1000.0)
    assert expected.ends_unix(run) == 1400.0
    run.observer.pause = PauseRequest(rung=2)
    expected.note([run], 1050.0)
    assert expected.ends_unix(run) == 1100.0
    run.observer.pause = None
    assert expected.ends_unix(run) == 1400.0, "nobody needs its workers any more"


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RECOVERING])
def test_a_run_ends_later_by_as_long_as_it_did_not_train(run: FollowedRun, state: RunState) -> None:
    expected = Expected()
    expected.note([run], 1000.0)
    run.state = state
    expected.note([run], 1050.0)
    assert expected.ends_unix(run) is None
    run.state = RunState.RUNNING
    expected.note([run], 9000.0)
    assert expected.ends_unix(run) == 9400.0
