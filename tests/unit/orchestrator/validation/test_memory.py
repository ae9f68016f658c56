"""The memory that a validation worker requests, by nodes and cases."""

import json
import logging
from pathlib import Path

import pytest

from orchestrator.validation import memory
from orchestrator.validation.memory import largest_case, memory_request, memory_to_request
from tests.fake_run import FakeRun
from trainers.contract.run_spec import WorkerSpec
from trainers.storage.files import write_atomic, write_json_atomic
from trainers.validation import case_memory
from trainers.validation.case_memory import CaseMemory, Model, peak_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("need", "request_bytes", "fits"),
    [(3, 3, True), (8, 8, True), (9, 8, False)],
)
def test_no_more_is_requested_than_the_largest_node_that_holds_a_worker_has(need: int, request_bytes: int, fits: bool) -> None:
    nodes = [{"CPU": 4, "memory": 8}, {"CPU": 8, "memory": 4}, {"CPU": 1, "memory": 99}, {"CPU": 4}]
    assert memory_request(need, nodes, WorkerSpec(cpus=4, gpus=0)) == (request_bytes, fits)


def test_where_no_node_is_known_to_have_memory_nothing_is_requested() -> None:
    assert memory_request(3, [{"CPU": 4}], WorkerSpec(cpus=4, gpus=0)) == (0, True)
    assert memory_request(3, [{"CPU": 4, "memory": 8}], WorkerSpec(cpus=4, gpus=1)) == (0, True)


def test_a_case_that_no_node_has_memory_for_is_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run, asked = FakeRun(tmp_path_factory.mktemp("run")), []
    write_atomic(run.folder.checkpoint("best"), b"0" * 10)
    write_atomic(run.folder.checkpoint("final"), b"0" * 20)

    def of_largest(spec: object, cases: object, weights_bytes: int) -> CaseMemory:
        asked.append(weights_bytes)
        return CaseMemory("case_2", 6 * GIB)

    monkeypatch.setattr(case_memory, "of_largest", of_largest)
    nodes = [{"CPU": 64, "GPU": 8, "memory": 4 * GIB}]
    with caplog.at_level(logging.WARNING, memory.__name__):
        largest = largest_case(run.folder, run.spec, ["case_2"], ["best", "final"])
        assert largest is not None
        assert memory_to_request(largest, run.spec, nodes) == 4 * GIB
        assert memory_to_request(largest, run.spec, nodes, before=4 * GIB) == 4 * GIB
        nodes += [{"CPU": 64, "GPU": 8, "memory": 2 * GIB, "accelerator_type:A100": 1}]
        of_a_kind = run.spec.workers.model_copy(update={"gpus": 1, "accelerator_type": "A100"})
        assert memory_to_request(largest, run.spec.model_copy(update={"workers": of_a_kind}), nodes, before=2 * GIB) == 2 * GIB
    assert len(caplog.records) == 1, "not for each worker"
    assert (
        "case case_2 is expected to need about 6.0 GiB of memory, and of the nodes that can hold a worker none has more than 4.0 GiB"
        in (caplog.text)
    )
    assert asked == [30], "both checkpoints"


def test_the_predicted_peak_is_near_the_measured_one() -> None:
    """100 classes, 160^3 voxels to 192^3, patch 64^3, a network of one convolution: 1,908 MB (docs/performance.md)."""
    predicted = peak_bytes(Model(channels=1, heads=100, features=1, patch=(64, 64, 64), weights_bytes=0), (160, 160, 160), 192**3)
    assert 1908 * 2**20 < predicted < 2600 * 2**20


def test_a_case_smaller_than_a_patch_needs_what_the_patch_needs() -> None:
    model = Model(channels=1, heads=3, features=32, patch=(16, 64, 64), weights_bytes=0)
    assert peak_bytes(model, (8, 10, 10), 800) == peak_bytes(model, (16, 64, 64), 800)
    of_slices = Model(channels=1, heads=3, features=32, patch=(64, 64), weights_bytes=0)
    assert peak_bytes(of_slices, (8, 10, 10), 800) == peak_bytes(of_slices, (8, 64, 64), 800)


def test_a_run_with_a_patch_of_its_own_needs_what_that_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case_memory, "shape_of_case", lambda *_: (8, 10, 10))
    monkeypatch.setattr(case_memory, "read_properties", lambda *_: {"shape_before_cropping": (8, 10, 10)})
    run = FakeRun(tmp_path)
    plans_file = run.spec.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_fullres"]["data_identifier"] = "cases"
    write_json_atomic(plans_file, plans)
    write_json_atomic(run.spec.model_folder / "dataset.json", json.loads((run.spec.preprocessed_folder / "dataset.json").read_text()))
    own = run.spec.model_copy(update={"patch_size": (64, 96, 128)})
    of_plans, of_own = (case_memory.of_largest(spec, ["case_2"], 0) for spec in (run.spec, own))
    assert of_plans is not None
    assert of_own is not None
    assert of_own.peak_bytes - GIB > 7 * (of_plans.peak_bytes - GIB)
