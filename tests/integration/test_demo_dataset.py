"""The demo dataset is in nnU-Net's format, planned and preprocessed by nnU-Net, with small configurations that inherit from its plan."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.demo import DATASET, DemoPaths, build_demo_dataset, demo_folder, write_demo_experiment
from orchestrator.errors import DataError
from orchestrator.experiment.model import load_experiment
from trainers.contract.plans import load_dataset_json, load_plans, load_splits

SPACING_MM = 6.0  # coarse: the test takes seconds
CASES = 5


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoPaths:
    with demo_folder(tmp_path_factory.mktemp("demo")) as paths:
        build_demo_dataset(paths, cases=CASES, spacing_mm=SPACING_MM)
    return paths


def test_raw_dataset_has_nnunets_format(demo: DemoPaths) -> None:
    raw = demo.raw / DATASET
    assert load_dataset_json(raw)["labels"] == {"background": 0, "grey matter": 1, "white matter": 2}
    assert len(list((raw / "imagesTr").glob("*_0000.nii.gz"))) == len(list((raw / "labelsTr").glob("*.nii.gz"))) == CASES


def test_folds_are_nnunets_five(demo: DemoPaths) -> None:
    splits = load_splits(demo.preprocessed / DATASET)
    assert len(splits) == 5
    assert sorted(case for split in splits for case in split.val) == [f"brain_{n:03d}" for n in range(CASES)]


def test_small_configurations_inherit_from_nnunets_plan(demo: DemoPaths) -> None:
    plans = load_plans(demo.preprocessed / DATASET, "nnUNetPlans")
    for name, parent in (("demo_2d", "2d"), ("demo_3d", "3d_fullres")):
        assert plans.content["configurations"][name]["inherits_from"] == parent
        small, own = plans.configuration(name), plans.configuration(parent)
        assert small["data_identifier"] == own["data_identifier"]
        assert small["spacing"] == own["spacing"]
        assert small["batch_size"] >= 2  # one sample for each of two workers
        assert small["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16, 32]
        assert small["architecture"]["network_class_name"] == own["architecture"]["network_class_name"]


def test_every_case_is_preprocessed_and_has_its_truth(demo: DemoPaths) -> None:
    folder = demo.preprocessed / DATASET
    for identifier in ("nnUNetPlans_2d", "nnUNetPlans_3d_fullres"):
        assert len(list((folder / identifier).glob("brain_???.b2nd"))) == CASES
    truth = list((folder / "gt_segmentations").glob("*.nii.gz"))
    assert len(truth) == CASES
    assert max(path.stat().st_mtime for path in truth) < min(path.stat().st_mtime for path in folder.glob("*/*.b2nd")), (
        "else they look changed"
    )


def test_nnunet_reads_the_small_plan(demo: DemoPaths) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(demo.preprocessed / DATASET / "nnUNetPlans.json"))
    assert list(manager.get_configuration("demo_3d").patch_size) == [32, 32, 32]


def test_the_same_parameters_build_nothing_again(demo: DemoPaths) -> None:
    before = (demo.preprocessed / DATASET / "nnUNetPlans.json").stat().st_mtime_ns
    build_demo_dataset(demo, cases=CASES, spacing_mm=SPACING_MM)
    assert (demo.preprocessed / DATASET / "nnUNetPlans.json").stat().st_mtime_ns == before


def test_a_build_that_was_broken_off_is_done_anew(demo: DemoPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("orchestrator.demo.sys.executable", "/bin/false")
    with pytest.raises(DataError, match="ended with exit code 1"):
        build_demo_dataset(DemoPaths(tmp_path), cases=CASES, spacing_mm=SPACING_MM)
    assert not DemoPaths(tmp_path).stamp.exists()


def test_the_shipped_experiment_is_valid_and_names_the_demos_folders(demo: DemoPaths) -> None:
    experiment = load_experiment(write_demo_experiment(demo, epochs=3))
    assert experiment.dataset == DATASET
    assert experiment.trainers == ("nnUNetTrainer", "nnUNetTrainerDA5")
    assert experiment.folds == (0,)
    assert experiment.epochs == 3
    assert experiment.workers.count == 2
    assert experiment.workers.gpus == 0
    assert experiment.nnUNet_results == demo.results
    assert yaml.safe_load(demo.experiment.read_text())["images"] is True


def test_stamp_names_the_parameters(demo: DemoPaths) -> None:
    assert json.loads(demo.stamp.read_text())["spacing_mm"] == SPACING_MM
