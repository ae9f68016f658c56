"""Whose workers train a run: a job's name is taken once per cluster, so a name alone makes nobody ours."""

import functools
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from tests.fake_campaign import Stage, look, states
from trainers.contract.fencing import acquire_token
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_json_atomic

HERE, THERE = "10.0.0.1:6379", "10.0.0.2:6379"


@pytest.mark.parametrize(("cluster", "is_ours"), [(HERE, True), (THERE, False), ("", True)])
def test_a_job_of_the_same_name_on_another_cluster_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, is_ours: bool
) -> None:
    """The training job of this cluster died before it claimed the run; since then somebody claims it under that name."""
    monkeypatch.setenv("RAY_ADDRESS", HERE)
    stage = Stage(tmp_path)
    run = stage.run(0)
    look(stage.campaign(run))
    name = stage.cluster.living(run)
    stage.cluster.kill_driver(run)
    stage.cluster.kill_campaign("c1")
    folder = RunFolder(run.run_folder)
    acquire_token(folder, "a driver", {"job": name, "cluster": cluster})
    at_work = acquire_token(folder, "a driver", {"role": "workers", "world_size": 1})

    def heartbeat(iteration: int) -> None:
        record = {"epoch": 0, "iteration": iteration, "phase": "train", "unix": stage.clock.unix(), "attempt": at_work}
        write_json_atomic(folder.progress_file, record)

    for second in range(200):
        stage.clock.after(second, functools.partial(heartbeat, second))
    if is_ours:
        campaign = stage.campaign(run, name="c2")
        look(campaign)
        assert states(campaign) == ["RUNNING"]
        return
    with pytest.raises(ConfigError, match="Follow or stop it on its own cluster"):
        stage.campaign(run, name="c2")
