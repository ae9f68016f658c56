"""A worker of the full validation whose disks go away and come back, without Ray."""

import importlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.validation.case_worker import CaseWorker
from tests.away import Away
from tests.fake_run import FakeRun
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.summary import SCORING
from trainers.errors import CheckpointError, DataError
from trainers.storage.files import read_json, write_json_atomic


class Predictor:
    """Finds background everywhere; its label files are JSON."""

    checkpoint_sha256 = "0" * 64

    def __init__(self, run: FakeRun, base: Path) -> None:
        self.spec, self.reference = run.spec, base / "labels.json"
        self.labels = labels_of(load_dataset_json(run.spec.preprocessed_folder))
        self.reference.write_text("{}")
        self.predicted = 0

    def reference_file(self, case_id: str) -> Path:
        return self.reference

    def read_segmentation(self, path: Path) -> Any:
        from trainers.data.segmentation_file import SegmentationFile

        read_json(path, "label file")
        return SegmentationFile(np.zeros((2, 2, 2)), (1.0, 1.0, 1.0))

    def original_spacing(self, case_id: str) -> Any:
        from trainers.validation.spacing import Spacing

        return Spacing((1.0, 1.0, 1.0))

    def predict(self, case_id: str, output_folder: Path, next_stages: Sequence[str] = ()) -> Path:
        self.predicted += 1
        output_folder.mkdir(parents=True, exist_ok=True)
        (output_folder / f"{case_id}.json").write_text("{}")
        return output_folder / f"{case_id}.json"


@pytest.fixture
def made(tmp_path: Path) -> tuple[CaseWorker, Predictor, FakeRun]:
    run = FakeRun(tmp_path)
    worker, predictor = CaseWorker(str(run.folder.root)), Predictor(run, tmp_path)
    worker.predictors["best"] = predictor  # type: ignore[assignment]
    return worker, predictor, run


def comes_back(act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.2, act)
    timer.start()
    return timer


def read_as_nnfleet_does(monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> None:
    """From the dataset, by the real code around a reader that any file suits."""
    from trainers.validation.inference import CasePredictor

    class Reader:
        def read_seg(self, path: str) -> Any:
            Path(path).read_bytes()
            return np.zeros((1, 2, 2, 2)), {"spacing": (1.0, 1.0, 1.0)}

    monkeypatch.setattr(Predictor, "reader", Reader(), raising=False)
    monkeypatch.setattr(Predictor, "read_segmentation", CasePredictor.read_segmentation)
    predictor.reference = predictor.spec.preprocessed_folder / "gt_segmentations" / "case_2.json"
    predictor.reference.parent.mkdir()
    predictor.reference.write_text("{}")


def test_a_case_whose_data_are_away_is_waited_for(made: tuple[CaseWorker, Predictor, FakeRun]) -> None:
    worker, predictor, run = made
    timer = comes_back(Away(predictor.reference).come_back)
    worker.validate("case_2")
    timer.join()
    assert predictor.predicted == 1
    assert (run.folder.cases("best") / "case_2.json").is_file()


def test_no_case_is_predicted_while_the_disk_of_the_results_is_away(made: tuple[CaseWorker, Predictor, FakeRun]) -> None:
    worker, predictor, run = made
    away = run.folder.root.rename(run.folder.root.with_name("away"))
    seen: list[int] = []

    def back() -> None:
        seen.append(predictor.predicted)
        away.rename(run.folder.root)

    timer = comes_back(back)
    worker.validate("case_2")
    timer.join()
    assert seen == [0]
    assert (run.folder.cases("best") / "case_2.json").is_file()


def test_a_worker_whose_node_does_not_have_the_run_folder_yet_waits_for_it(made: tuple[CaseWorker, Predictor, FakeRun]) -> None:
    worker, _, run = made
    importlib.import_module("trainers.validation.inference")  # takes longer than the folder is away
    away = run.folder.root.rename(run.folder.root.with_name("away"))
    timer = comes_back(lambda: away.rename(run.folder.root))
    with pytest.raises(CheckpointError, match=r"checkpoint_best\.pth cannot be read"):  # it came to look for it
        worker.load({"best": "0" * 64})
    timer.join()


def test_a_worker_whose_dataset_is_unmounted_waits_for_it_and_works_on(
    made: tuple[CaseWorker, Predictor, FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, predictor, run = made
    read_as_nnfleet_does(monkeypatch, predictor)
    dataset = run.spec.preprocessed_folder
    for _ in range(2):
        away = dataset.rename(dataset.with_name("away"))
        dataset.mkdir()  # a mount point without its mount
        timer = comes_back(lambda away=away: away.rename(dataset))  # type: ignore[misc]
        worker.validate("case_2")
        timer.join()
        result = run.folder.cases("best") / "case_2.json"
        write_json_atomic(result, json.loads(result.read_text()) | {"scoring": SCORING - 1})
    assert predictor.predicted == 1, "the second time the stored prediction is scored anew"


def test_one_visit_validates_with_both_checkpoints_and_a_second_one_with_none(made: tuple[CaseWorker, Predictor, FakeRun]) -> None:
    worker, best, run = made
    (run.folder.root / "other").mkdir()
    final = Predictor(run, run.folder.root / "other")
    final.checkpoint_sha256 = "1" * 64
    worker.predictors["final"] = final  # type: ignore[assignment]
    assert list(worker.validate("case_2")) == ["best", "final"]
    assert worker.validate("case_2") == {}
    (run.folder.cases("final") / "case_2.json").unlink()
    assert list(worker.validate("case_2")) == ["final"], "where it died between the two"
    assert (best.predicted, final.predicted) == (1, 2)


def test_a_label_file_that_is_missing_from_a_dataset_that_is_there_is_not_waited_for(
    made: tuple[CaseWorker, Predictor, FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, predictor, _ = made
    read_as_nnfleet_does(monkeypatch, predictor)
    predictor.reference.unlink()
    with pytest.raises(DataError, match=r"case_2\.json cannot be read: .* Restore it from the raw dataset's labelsTr"):
        worker.validate("case_2")


def test_a_case_whose_data_are_broken_is_not_waited_for(made: tuple[CaseWorker, Predictor, FakeRun]) -> None:
    worker, predictor, _ = made
    predictor.reference.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        worker.validate("case_2")
