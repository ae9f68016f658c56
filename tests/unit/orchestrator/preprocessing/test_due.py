"""What is due of a dataset, by the names of its files; and what cannot be preprocessed, refused before a job is started."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.dataset.folder import file_names
from orchestrator.errors import ConfigError, DataError
from orchestrator.experiment.model import Experiment, experiment_from
from orchestrator.preprocessing.due import due_of
from tests.raw import NAME, raw_experiment
from tests.unit.tiny_dataset import CASES, DATASET_JSON, Tiny, tiny_dataset


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """Preprocessed as a whole, with its raw dataset beside it."""
    made = tiny_dataset(tmp_path)
    write_raw(tmp_path / "nnUNet_raw" / made.name)
    return made


def write_raw(raw: Path, ids: tuple[str, ...] = CASES) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for case in ids:
        (raw / "imagesTr" / f"{case}_0000.nii").touch()
        (raw / "labelsTr" / f"{case}.nii").touch()
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON))


def on(tiny: Tiny, **more: Any) -> Experiment:
    return experiment_from(raw_experiment(tiny.base, **{"dataset": 17, **more}))


def names(experiment: Experiment) -> tuple[str, ...]:
    due = due_of(experiment)
    return due.names if due else ()


def test_what_is_preprocessed_is_not_due_and_without_the_key_nothing_is(tiny: Tiny) -> None:
    assert names(on(tiny)) == ()
    for file in tiny.data_folder().iterdir():
        file.unlink()
    assert names(on(tiny)) == ("nnUNetPlans: 3d_fullres",)
    assert names(on(tiny, preprocess=False)) == ()


def test_a_folder_that_lacks_a_file_of_a_case_is_due_once_for_all_that_read_it(tiny: Tiny) -> None:
    (tiny.data_folder() / f"{CASES[3]}.pkl").unlink()
    assert names(on(tiny, configurations=["small", "3d_fullres"])) == ("nnUNetPlans: small",)


def test_cases_that_the_split_does_not_name_are_not_due(tiny: Tiny) -> None:
    raw = tiny.base / "nnUNet_raw" / tiny.name
    (raw / "imagesTr" / "later_0000.nii").touch()
    (raw / "labelsTr" / "later.nii").touch()
    (raw / "dataset.json").write_text(json.dumps({**DATASET_JSON, "numTraining": 11}))
    assert names(on(tiny)) == ("nnUNetPlans: 3d_fullres",)
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[:8], "val": CASES[8:]}]))
    assert names(on(tiny)) == ()


def test_a_raw_dataset_alone_is_due_with_the_planner_of_its_plans(tmp_path: Path) -> None:
    write_raw(tmp_path / "nnUNet_raw" / NAME)
    plans = ["nnUNetPlans", "nnUNetResEncUNetLPlans"]
    due = due_of(experiment_from(raw_experiment(tmp_path, plans=plans, configurations=["2d", "3d_fullres"])))
    assert due is not None
    assert due.dataset == NAME
    assert due.text == ("nnUNetPlans by ExperimentPlanner: 2d, 3d_fullres; nnUNetResEncUNetLPlans by nnUNetPlannerResEncL: 2d, 3d_fullres")
    assert file_names(tmp_path) == {"nnUNet_raw"}  # nothing was made


def test_a_planner_alone_names_its_plans(tmp_path: Path) -> None:
    experiment = experiment_from(raw_experiment(tmp_path, preprocess={"planner": "nnUNetPlannerResEncM"}))
    assert experiment.plans == ("nnUNetResEncUNetMPlans",)
    assert experiment_from(json.loads(experiment.model_dump_json(exclude_unset=True))) == experiment


@pytest.mark.parametrize(
    ("more", "error", "text"),
    [
        ({"nnUNet_raw": None}, ConfigError, "nnUNet_raw: neither in the experiment file nor in the environment"),
        ({"nnUNet_raw": "/nowhere"}, ConfigError, "nnUNet_raw: /nowhere is not a folder"),
        ({"nnUNet_preprocessed": "/p/Dataset905_Raw"}, ConfigError, "nnUNet_preprocessed: .* own folder; set it to its parent, /p"),
        ({"dataset": 18}, ConfigError, "dataset: 18 is not in .*nnUNet_raw, from which `preprocess` takes it. Found: Dataset905_Raw"),
        ({"plans": "myPlans"}, ConfigError, "plans: 'myPlans' does not exist, and no planner of nnU-Net's makes plans of that name"),
    ],
)
def test_what_cannot_be_found_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], error: type[Exception], text: str
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    write_raw(tmp_path / "nnUNet_raw" / NAME)
    with pytest.raises(error, match=text):
        due_of(experiment_from(raw_experiment(tmp_path, **more)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "dataset.json: .*/dataset.json"),
        (json.dumps({**DATASET_JSON, "labels": {"organ": 1}}), "'labels' needs \"background\": 0"),
        (json.dumps({"labels": {}}), "lacks file_ending, channel_names"),
        ("", "dataset.json: .*/dataset.json"),
    ],
)
def test_a_broken_dataset_json_is_refused(tmp_path: Path, content: str, text: str) -> None:
    raw = tmp_path / "nnUNet_raw" / NAME
    write_raw(raw)
    (raw / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=text):
        due_of(experiment_from(raw_experiment(tmp_path)))
    (raw / "dataset.json").unlink()
    with pytest.raises(DataError, match="does not exist. See nnU-Net's dataset format"):
        due_of(experiment_from(raw_experiment(tmp_path)))


def test_a_raw_dataset_without_images_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "nnUNet_raw" / NAME, ())
    with pytest.raises(DataError, match=r"has no training images \(imagesTr/<case>_0000.nii\)"):
        due_of(experiment_from(raw_experiment(tmp_path)))


def test_what_would_fail_only_after_the_preprocessing_is_refused_before(tmp_path: Path) -> None:
    raw = tmp_path / "nnUNet_raw" / NAME
    write_raw(raw)

    def due(**more: Any) -> Any:
        return due_of(experiment_from(raw_experiment(tmp_path, **more)))

    with pytest.raises(ConfigError, match="configurations: '3d_fulres': nnU-Net's planners make no .*Did you mean '3d_fullres'"):
        due(configurations=["2d", "3d_fulres"])
    with pytest.raises(ConfigError, match="folds: 7: nnU-Net makes 5 folds. Name folds of 0 to 4, or `all`"):
        due(folds=[0, 7])
    assert due(folds=[4, "all"]) is not None
    (raw / "dataset.json").write_text(json.dumps({**DATASET_JSON, "numTraining": 9}))
    with pytest.raises(DataError, match="numTraining of .* is 9, and the dataset has 10 training cases. Correct the number"):
        due()
    (raw / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (raw / "labelsTr" / f"{CASES[0]}.nii").unlink()
    with pytest.raises(DataError, match=f"labelsTr lacks {CASES[0]}.nii. Put the label file"):
        due()


def test_folds_that_the_split_file_has_are_due_and_no_others(tiny: Tiny) -> None:
    (tiny.preprocessed / "splits_final.json").write_text(json.dumps([{"train": CASES[:8], "val": CASES[8:]}] * 8))
    (tiny.data_folder() / f"{CASES[3]}.pkl").unlink()
    assert names(on(tiny, folds=[7])) == ("nnUNetPlans: 3d_fullres",)
    with pytest.raises(ConfigError, match="splits_final.json has 8 folds"):
        due_of(on(tiny, folds=[8]))


def test_a_cascade_that_cannot_be_trained_is_refused_before(tmp_path: Path) -> None:
    """Without a split file nnU-Net's five folds are meant; segmentations that are there may be those that lack."""
    write_raw(tmp_path / "nnUNet_raw" / NAME)

    def due(**more: Any) -> Any:
        return due_of(experiment_from(raw_experiment(tmp_path, **{"configurations": ["3d_lowres", "3d_cascade_fullres"], **more})))

    with pytest.raises(ConfigError, match="sees the segmentations by '3d_lowres', .* Missing: folds 2, 3, 4 of '3d_lowres'"):
        due(folds=[0, 1])
    with pytest.raises(ConfigError, match="Name '3d_lowres' in `configurations` too, with all folds"):
        due(folds=[0, 1, 2, 3, 4], configurations=["3d_cascade_fullres"])
    with pytest.raises(ConfigError, match="Missing: folds 0, 1, 2, 3, 4 of .* with `final`"):
        due(folds=[0, 1, 2, 3, 4], validation={"checkpoints": ["best"]})
    assert due(folds=[0, 1, 2, 3, 4, "all"]) is not None
    assert due(folds=[0, 1], configurations=["3d_lowres"]) is not None
    model = tmp_path / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    (model / "predicted_next_stage" / "3d_cascade_fullres").mkdir(parents=True)
    (model / "predicted_next_stage" / "3d_cascade_fullres" / f"{CASES[0]}.b2nd").touch()
    assert due(folds=[0, 1]) is not None


def test_the_first_stage_of_a_known_split_needs_the_folds_that_validate_its_cases(tmp_path: Path) -> None:
    write_raw(tmp_path / "nnUNet_raw" / NAME)
    preprocessed = tmp_path / "nnUNet_preprocessed" / NAME
    preprocessed.mkdir(parents=True)
    splits = [{"train": CASES[:5], "val": CASES[5:]}, {"train": CASES[5:], "val": CASES[:5]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))

    def due(**more: Any) -> Any:
        return due_of(experiment_from(raw_experiment(tmp_path, configurations=["3d_lowres", "3d_cascade_fullres"], **more)))

    assert due(folds=[0, 1]) is not None
    with pytest.raises(ConfigError, match="those of fold 1 are made by nobody. Missing: fold 1 of '3d_lowres'"):
        due(folds=[0])
    place = tmp_path / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_lowres" / "predicted_next_stage" / "3d_cascade_fullres"
    place.mkdir(parents=True)
    for case in CASES[:5]:
        (place / f"{case}.b2nd").touch()
    assert due(folds=[0]) is not None


def test_a_configuration_that_existing_plans_lack_is_refused(tiny: Tiny) -> None:
    text = "'3d_lowres' is not in .*nnUNetPlans.json. nnU-Net plans .* much larger than a patch; train 3d_fullres instead"
    with pytest.raises(ConfigError, match=text):
        due_of(on(tiny, configurations=["3d_lowres"]))


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"preprocess": {"planner": "ExperimentPlaner"}}, "Did you mean 'ExperimentPlanner'[?] Known: ExperimentPlanner, "),
        ({"preprocess": {"planner": "ResEncL"}}, "'ResEncL' is no planner of nnU-Net's. Did you mean 'nnUNetPlannerResEncL'[?]"),
        ({"preprocess": "yes please"}, "'yes please' is neither true nor false; write `true`"),
        ({"preprocess": 8}, "8 is neither true nor false"),
        ({"preprocess": {"planner": "ExperimentPlanner"}, "plans": ["a", "b"]}, "preprocess.planner makes one plans file"),
        ({"preprocess": {"cpus": 0}}, "preprocess.cpus"),
        ({"preprocess": {"cpu": 1}}, "cpus"),
    ],
)
def test_a_key_that_cannot_be_is_refused_with_the_file(tmp_path: Path, more: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        experiment_from(raw_experiment(tmp_path, **more))
