"""What a laboratory needs of a raw dataset, by one command whose shell is closed: preprocessed, both stages of the cascade trained and
validated with two trainers, compared; on a cluster that gains a node and loses one meanwhile. Every part is real.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import api
from orchestrator.run.status import RunStatus
from tests.integration.many_nodes import REPOSITORY, ManyNodes
from tests.integration.mlflow_server import MlflowServer
from tests.raw import NAME, raw_dataset, raw_experiment
from trainers.contract.states import RunState

pytestmark = [pytest.mark.long, pytest.mark.timeout(5400), pytest.mark.filterwarnings("ignore")]

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDA5")
CONFIGURATIONS = ("3d_lowres", "3d_cascade_fullres")
PLANS = "tinyPlans"


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "mlflow").start()
    yield server
    server.kill()


def experiment_on(base: Path, uri: str) -> dict[str, Any]:
    return raw_experiment(
        base,
        preprocess={"planner": "ExperimentPlanner", "gpu_memory_target": 0.02, "cpus": 1},
        plans=PLANS,
        configurations=list(reversed(CONFIGURATIONS)),
        trainers=list(TRAINERS),
        folds=[0, 1, 2],
        epochs=1,
        train_iterations=2,
        val_iterations=1,
        loader={"actors": 1},
        validation={"checkpoints": ["final"]},
        tracking={"uri": uri},
    )


class Watch:
    """What `status` shows of the campaign, printed when it changes."""

    def __init__(self, cluster: ManyNodes) -> None:
        self.cluster, self.began_s, self.shown, self.reasons = cluster, time.monotonic(), ("", ""), set[str]()

    def statuses(self) -> list[RunStatus]:
        found = api.status(self.cluster.address)
        self.reasons |= {status.reason for status in found}
        text = ", ".join(f"{count} {state.value}" for state, count in Counter(status.state for status in found).items())
        waits = next((status.reason for status in found if "preprocessing" in status.reason), "")
        if (text, waits) != self.shown:
            self.shown = text, waits
            self.note(f"{text} {waits}")
        return found

    def note(self, text: str) -> None:
        print(f"{time.monotonic() - self.began_s:6.0f} s  {text}", flush=True)

    def until(self, states: set[RunState], count: int) -> list[RunStatus]:
        """Until so many runs are in one of these states."""
        while True:
            found = self.statuses()
            if sum(status.state in states for status in found) >= count:
                return found
            failed = [f"{status.address}: {status.reason}" for status in found if status.state.is_failure]
            assert not failed, failed
            time.sleep(5)


def test_a_raw_dataset_becomes_a_comparison_of_cascades(tmp_path: Path, mlflow: MlflowServer) -> None:
    raw_dataset(tmp_path, folds=3)
    file = tmp_path / "cascade.yaml"
    file.write_text(yaml.safe_dump(experiment_on(tmp_path, mlflow.uri)))
    with ManyNodes(tmp_path / "cluster", (1, 1, 1)) as cluster:
        watch = Watch(cluster)
        command = [sys.executable, "-m", "orchestrator.cli", "submit", str(file), "--cluster", cluster.address]
        client = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=900)
        assert client.returncode == 0, client.stdout + client.stderr
        watch.note(f"the client has ended: {client.stdout}")
        assert "12 runs are planned" in client.stdout
        watch.until({RunState.SUCCEEDED}, 1)
        assert any("waits for preprocessing of 3d_cascade_fullres, 3d_lowres" in reason for reason in watch.reasons)
        cluster.start_node(1)
        watch.note("a node was added")
        watch.until({RunState.SUCCEEDED}, 3)
        killed = cluster.nodes[0]
        killed.kill()
        cluster.nodes.remove(killed)
        watch.note("a node was removed")
        ended = watch.until({RunState.SUCCEEDED}, 12)
        assert [status.state for status in ended] == [RunState.SUCCEEDED] * 12
        check_results(tmp_path, watch)


def check_results(base: Path, watch: Watch) -> None:
    """The group results of all four models, and the comparison."""
    results = base / "nnUNet_results"
    for trainer in TRAINERS:
        for configuration in CONFIGURATIONS:
            model = results / NAME / f"{trainer}__{PLANS}__{configuration}"
            assert (model / "crossval_results_folds_0_1_2" / "summary.json").is_file()
    answer = api.compare(["905"], results).answer
    watch.note(answer.verdict)
    assert len(answer.models) == 4
