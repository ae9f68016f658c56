"""Probabilities of validation cases in nnU-Net's files, beside those that nnU-Net's own export writes of the same logits."""

import contextlib
import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.run.outcome import Outcome, write_outcome
from orchestrator.run.progress import progress_of
from orchestrator.validation.cases import is_done
from tests.fake_run import FakeRun
from tests.unit.trainers.validation.test_spacing import CASE, ShiftedByTwo, write_raw
from trainers.contract.records import read_result
from trainers.contract.run_spec import Schedule, ValidationSpec
from trainers.storage.files import write_atomic
from trainers.validation.inference import CasePredictor
from trainers.validation.one_case import validate_case

TRANSPOSE = [2, 0, 1]


class FixedLogits(ShiftedByTwo):
    """The real prediction of a case, but for the network: its logits are the same random ones at each call."""

    predict = CasePredictor.predict

    def __init__(self, base: Path, *, npz: bool = True) -> None:
        run = FakeRun(base, validation=ValidationSpec(npz=npz))
        self.run, self.threads = run, 1
        write_raw(base / "raw", ".nii.gz", (2.0, 1.0, 1.0))
        super().__init__(run, base / "raw", "SimpleITKIO", ".nii.gz", TRANSPOSE)
        self._predictor: Any = SimpleNamespace(predict_sliding_window_return_logits=self.logits)

    def logits(self, data: torch.Tensor) -> torch.Tensor:
        self.predictions += 1
        return torch.randn((2, *data.shape[1:]), generator=torch.Generator().manual_seed(1)).half()

    def validate(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            validate_case(self, self.run.folder, "final", CASE)


def nnunets(predictor: FixedLogits, output: Path) -> None:
    """nnU-Net's files of the same case, from its own reading of the preprocessed data."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data, _, _, properties = nnUNetDatasetBlosc2(str(predictor.spec.preprocessed_folder / "data"), [CASE]).load_case(CASE)
    output.mkdir()
    plans, dataset_json = predictor.plans, predictor.dataset_json
    logits = predictor.logits(torch.from_numpy(data[:]))
    export_prediction_from_logits(logits, properties, predictor.configuration, plans, dataset_json, str(output / CASE), True, 1)


@pytest.fixture
def predictor(tmp_path: Path) -> FixedLogits:
    return FixedLogits(tmp_path)


def test_probabilities_lie_in_nnunets_files_as_nnunet_writes_them(predictor: FixedLogits, tmp_path: Path) -> None:
    predictor.validate()
    nnunets(predictor, tmp_path / "theirs")
    ours = predictor.run.folder.validation("final")
    assert {path.name for path in ours.iterdir()} == {path.name for path in (tmp_path / "theirs").iterdir()}
    with np.load(ours / f"{CASE}.npz") as mine, np.load(tmp_path / "theirs" / f"{CASE}.npz") as theirs:
        assert mine.files == theirs.files == ["probabilities"]
        assert (mine["probabilities"].dtype, mine["probabilities"].shape) == (theirs["probabilities"].dtype, (2, 6, 20, 20))
        np.testing.assert_array_equal(mine["probabilities"], theirs["probabilities"])
    properties = [pickle.loads((folder / f"{CASE}.pkl").read_bytes()) for folder in (ours, tmp_path / "theirs")]
    assert list(properties[0]) == list(properties[1])
    assert {key: str(value) for key, value in properties[0].items()} == {key: str(value) for key, value in properties[1].items()}
    assert (ours / f"{CASE}.nii.gz").read_bytes() == (tmp_path / "theirs" / f"{CASE}.nii.gz").read_bytes()


def test_a_case_without_its_probabilities_is_predicted_again_and_else_kept(predictor: FixedLogits) -> None:
    predictor.validate()
    predictor.validate()
    assert predictor.predictions == 1
    folder, spec = predictor.run.folder, predictor.spec
    assert is_done(folder, spec, "final", CASE, predictor.checkpoint_sha256)
    folder.probabilities("final", CASE)[0].unlink()
    assert not is_done(folder, spec, "final", CASE, predictor.checkpoint_sha256)
    predictor.validate()
    assert predictor.predictions == 2
    assert is_done(folder, spec, "final", CASE, predictor.checkpoint_sha256)


def test_probabilities_of_other_weights_do_not_stay_beside_a_prediction(tmp_path: Path) -> None:
    predictor = FixedLogits(tmp_path, npz=False)
    files = predictor.run.folder.probabilities("final", CASE)
    for file in files:
        write_atomic(file, b"of older weights")
    predictor.validate()
    assert not any(file.exists() for file in files)
    assert read_result(predictor.run.folder, "final", CASE) is not None


def test_a_finished_run_whose_probabilities_are_wanted_now_is_validated(tmp_path: Path) -> None:
    run = FakeRun(tmp_path, schedule=Schedule(epochs=1))
    run.epoch()
    run.finish()
    for name in run.spec.validation.checkpoints:
        write_atomic(run.folder.summary(name), b"{}")
    write_outcome(run.folder, Outcome(job="validation", state="SUCCEEDED", fencing_token=run.fencing_token, message=""))
    assert progress_of(run.spec).stage == "finished"
    spec = run.spec.model_copy(update={"validation": ValidationSpec(npz=True)})
    assert progress_of(spec).stage == "validates"
    for name in spec.validation.checkpoints:
        for case in spec.val_cases:
            for file in run.folder.probabilities(name, case):
                write_atomic(file, b"")
    assert progress_of(spec).stage == "finished"
    assert "npz" not in run.spec.model_dump_json()
