"""Versions before know no kinds of GPUs and refuse unknown fields: what jobs carry and campaigns publish they read all the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.jobs import Jobs
from orchestrator.queue.order import Waiting
from orchestrator.queue.registry import Entry, HeldWorkers
from orchestrator.run.job_record import HANDED_KEY, HandedRun, handed_text, kinds_text, record_of
from tests.fake_run import FakeRun
from trainers.contract.run_spec import Frozen, WorkerSpec

A100 = WorkerSpec(count=2, gpus=1, cpus=4, accelerator_type="A100")
ANY = WorkerSpec(count=2, gpus=1, cpus=4)


class WorkersBefore(Frozen):
    """The fields of WorkerSpec in the version before."""

    count: int = 1
    min: int | None = None
    max: int | None = None
    gpus: int = 1
    cpus: int = 8
    loader_cpus: int = 0


def read_before(workers: Any) -> WorkersBefore:
    return WorkersBefore.model_validate(workers)


TWO = read_before({"count": 2, "gpus": 1, "cpus": 4})


def test_an_entry_is_readable_by_versions_before_and_keeps_its_kinds() -> None:
    waiting = [
        Waiting(run_key=key, address=key, campaign="c", workers=workers, since_unix=1.0) for key, workers in (("a", A100), ("b", ANY))
    ]
    entry = Entry(waiting=tuple(waiting), holding=(HeldWorkers(run_key="h", workers=A100),), runs=("a", "b", "h"))
    text = entry.model_dump_json()
    published = json.loads(text)
    assert [read_before(each["workers"]) for each in (*published["waiting"], *published["holding"])] == [TWO] * 3
    assert Entry.model_validate_json(text) == entry


def test_an_entry_with_the_kind_among_its_workers_is_read_too() -> None:
    held = json.loads(HeldWorkers(run_key="h", workers=ANY).model_dump_json())
    held["workers"]["accelerator_type"] = "A100"
    assert HeldWorkers.model_validate(held).workers == A100


@pytest.mark.parametrize("kind", ["", "A100"])
def test_a_job_is_readable_by_versions_before_and_keeps_its_kind(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path)
    spec = run.spec.model_copy(update={"workers": A100.model_copy(update={"accelerator_type": kind})})
    handed = HandedRun(run_key="r", address="a", epochs=3, run_folder=Path("/r"), workers=spec.workers)
    submitted: list[dict[str, str]] = []

    class Server:
        def submit_job(self, name: str, command: str, environment: Any, metadata: dict[str, str], held: Any) -> None:
            submitted.append(metadata)

        def store_package(self, package: bytes) -> str:
            return "gcs://p.zip"

    monkeypatch.setattr(Jobs, "_connected", lambda jobs, token: Server())
    jobs = Jobs("http://127.0.0.1:1", working_dir="gcs://code.zip")
    jobs.submit_training(run.folder, spec, 1)
    jobs.submit_validation(run.folder, spec, 1)
    jobs.submit_campaign("c", "dataset: 1", handed=[handed])
    training, validation, campaign = submitted
    for metadata in (training, validation):
        assert read_before(json.loads(metadata["nnfleet_reservation"])) == TWO
        record = record_of({"submission_id": "s", "status": "RUNNING", "metadata": metadata})
        assert record is not None
        assert record.reserved == spec.workers
    assert [read_before(each["workers"]) for each in json.loads(campaign[HANDED_KEY])] == [TWO]
    record = record_of({"submission_id": "s", "status": "RUNNING", "metadata": campaign})
    assert record is not None
    assert record.handed == (handed,)
    before = {"kind", "modules", "code", "run_key", "attempt", "campaign", "mlflow_run_id", "run_folder", "reservation", "dataset_folder"}
    known = {f"nnfleet_{key}" for key in before}
    assert all(key in known for metadata in submitted for key in metadata if key.startswith("nnfleet_")), "they refuse another"


def test_kinds_of_another_version_are_passed_over(tmp_path: Path) -> None:
    run = HandedRun(run_key="r", address="a", epochs=3, run_folder=tmp_path, workers=ANY)
    metadata = {"nnfleet_kind": "campaign", HANDED_KEY: handed_text([run]), "nnfleet.accelerator_types": '["A100"]'}
    record = record_of({"submission_id": "s", "status": "RUNNING", "metadata": metadata})
    assert record is not None
    assert record.handed == (run,)
    assert kinds_text({"r": ANY}) == ""
