"""What a worker notes and warns of at its start."""

import logging
from pathlib import Path

import pytest

from orchestrator.training import worker
from orchestrator.training.worker import WorkerJob, acquire_start, step_threads, warn_of_threads
from tests.fake_run import FakeRun
from trainers.contract.run_spec import LoaderSpec, WorkerSpec


@pytest.mark.parametrize(("gpus", "placement", "warns"), [(0, "cluster", True), (0, "local", False), (1, "cluster", False)])
def test_a_run_on_cpus_that_goes_on_with_another_number_of_threads_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gpus: int, placement: str, warns: bool
) -> None:
    monkeypatch.setattr(worker, "this_node", lambda: "a node")
    run = FakeRun(tmp_path, loader=LoaderSpec(actors=6), workers=WorkerSpec(count=1, cpus=8, gpus=gpus))
    moved = run.spec.model_copy(update={"loader": LoaderSpec(actors=6, placement=placement)})
    job = WorkerJob(str(run.folder.root), "driver-1", run.fencing_token)
    with caplog.at_level(logging.WARNING):
        for spec in (run.spec, moved):
            warn_of_threads(run.folder, spec, acquire_start(run.folder, job, 1, step_threads(spec)))
    assert ("computes with 8 threads, and did with 2 before" in caplog.text) == warns
    assert len(caplog.records) == warns
