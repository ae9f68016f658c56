"""Both stages of the cascade in one experiment, every part real: Ray, MLflow, training, validation."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import api
from orchestrator.experiment.model import Experiment
from orchestrator.export.fold_sources import folds_below
from orchestrator.export.model import export_model
from orchestrator.run.status import RunStatus
from tests.conftest import Toys
from tests.integration.local_home import services_of_its_own, toy_experiment
from tests.integration.test_cascade import nnunets_ensemble
from tests.integration.test_inference_parity import equal_share
from tests.toy import Toy
from tests.toy_cascade import FIRST, SECOND, with_cascade
from trainers.contract.cascade import predictions_of, read_record
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[None]:
    with services_of_its_own(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def toy(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Of two folds."""
    made = with_cascade(toys("labels"), tmp_path_factory.mktemp("cascade"))
    ids = [f"toy_{number:03d}" for number in range(6)]
    splits = [{"train": ids[1 - fold :: 2], "val": ids[fold::2]} for fold in (0, 1)]
    (made.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    return made


def experiment_on(toy: Toy, results: Path) -> Experiment:
    workers = {"count": 1, "gpus": 0, "cpus": 1}
    made = toy_experiment(toy, results, epochs=2, train_iterations=2, workers=workers, loader={"actors": 1})
    return made.model_copy(update={"configurations": (SECOND, FIRST), "folds": (0, 1)})


def test_an_experiment_trains_validates_and_finishes_both_stages(toy: Toy, tmp_path: Path) -> None:
    """The second stage is listed first, and waits for the first; submitted again, nothing is left to do. New images are predicted by both,
    as by nnU-Net."""
    experiment = experiment_on(toy, tmp_path)
    submission = api.submit(experiment)
    fits = {row.address: (row.fits, row.because) for row in submission.plan.rows}
    assert [when for when, _ in fits.values()][:2] == ["later", "later"]
    assert next(iter(fits.values()))[1] == "waits for the segmentations of 2 runs of its previous stage."
    statuses: list[RunStatus] = list(api.wait(submission.campaign_id))
    assert [status.state for status in statuses] == [RunState.SUCCEEDED] * 4, [status.reason for status in statuses]
    specs = {row.address: row.spec for row in submission.plan.rows}
    first = [spec for spec in specs.values() if spec.configuration == FIRST]
    second = [spec for spec in specs.values() if spec.configuration == SECOND]
    folder, made = predictions_of(first[0].model_folder, SECOND), []
    for spec in first:
        for case in spec.val_cases:
            record = read_record(folder, case)
            assert record is not None
            assert record.run_key == spec.run_key
            made.append((folder / record.file).stat().st_mtime)
    for spec in second:
        assert RunFolder(spec.run_folder).token_file(1).stat().st_mtime > max(made)
        assert RunFolder(spec.run_folder).summary("final").is_file()
    again = api.plan(experiment)
    assert {row.run_key: row.progress.stage for row in again.rows} == {spec.run_key: "finished" for spec in specs.values()}

    image = tmp_path / "imagesTs" / "toy_000_0000.nii.gz"
    image.parent.mkdir()
    shutil.copy(toy.raw / "imagesTr" / image.name, image)
    ended = api.predict(second[0].model, image.parent, tmp_path / "predicted", results=tmp_path, workers={"gpus": 0, "cpus": 1})
    assert (ended.exit_code, ended.num_cases) == (0, 1)
    mask, theirs = None, Path()
    for number, name in enumerate((first[0].model, second[0].model)):
        model = export_model(name, tmp_path / f"model{number}", folds_below(tmp_path, name), "here")
        mask = theirs = nnunets_ensemble(model.folder, image, tmp_path / f"theirs{number}", mask)
    assert equal_share(tmp_path / "predicted" / theirs.name, theirs) >= 0.9999
