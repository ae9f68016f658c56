"""Preflight: every kind of bad data is refused in words that say what to do."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from orchestrator.dataset.folder import cases_in, ensure_splits, find_dataset
from orchestrator.dataset.preflight import check_run, label_problems, usable_configuration
from orchestrator.dataset.raw import find_raw_dataset
from orchestrator.dataset.remembered import Reading
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import single_training
from tests.away import Away
from tests.conftest import Toys
from tests.nnunet_beside import configuration
from tests.unit.tiny_dataset import CASES, CONFIGURATIONS, DATASET_JSON, Tiny, tiny_dataset
from trainers.contract.plans import labels_of, load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import OwnCode, OwnParts, RunSpec, WorkerSpec
from trainers.contract.split_batch import split_dependence
from trainers.storage.files import write_json_atomic


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_dataset(tmp_path)


@pytest.fixture
def spec(tiny: Tiny) -> RunSpec:
    (spec,) = expand(single_training(17, "3d_fullres", 0, **tiny.folders))
    return spec


def test_a_good_run_has_no_problems(spec: RunSpec) -> None:
    assert check_run(spec) == []


@pytest.mark.parametrize(("shape", "is_like"), [((2, 3, 4), True), ((4, 2, 3), True), ((2, 3, 5), False), ((6, 4), False)])
def test_labels_of_another_image_are_found_before_a_worker_starts(tiny: Tiny, spec: RunSpec, shape: tuple[int, ...], is_like: bool) -> None:
    """The label file has 2 x 3 x 4 voxels. Readers that turn images, and transposed plans, give the axes in another order."""
    case = spec.val_cases[1]
    (tiny.data_folder() / f"{case}.pkl").write_bytes(pickle.dumps({"shape_before_cropping": shape}))
    problems = check_run(spec)
    if is_like:
        assert problems == []
    else:
        (problem,) = problems
        assert f"the file of {case} is of another image: that of {case} has the shape (2, 3, 4), its image had {shape}" in problem
        assert "Restore the label file" in problem


@pytest.mark.parametrize("kind", ["labels", "regions", "ignore"])
def test_what_nnunet_preprocessed_passes(toys: Toys, tmp_path: Path, kind: str) -> None:
    toy = toys(kind)
    folders: dict[str, Any] = {"nnUNet_preprocessed": toy.preprocessed.parent, "nnUNet_results": tmp_path}
    specs = [expand(single_training(toy.name, "toy_3d", fold, workers={"gpus": 0}, **folders))[0] for fold in (0, "all")]
    assert [check_run(spec) for spec in specs] == [[], []]
    assert set(specs[0].train_cases) | set(specs[0].val_cases) == set(specs[1].train_cases)
    plans = load_plans(toy.preprocessed, "nnUNetPlans")
    assert {"2d", "3d_fullres", "toy_aniso"} <= {name for name in plans.configurations if usable_configuration(plans, name)}


def _remove(path: Path) -> None:
    path.rename(path.with_name("away"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


BROKEN: list[tuple[str, Callable[[Tiny, RunSpec], object], str]] = [
    ("no folder", lambda t, s: _remove(t.preprocessed), "Dataset017_Tiny does not exist. Run nnUNetv2_plan_and_preprocess or mount it"),
    ("no plans", lambda t, s: (t.preprocessed / "nnUNetPlans.json").unlink(), "nnUNetPlans.json does not exist. Found: none."),
    ("broken plans", lambda t, s: (t.preprocessed / "nnUNetPlans.json").write_text("{"), "nnUNetPlans.json cannot be read as JSON"),
    ("v1 plans", lambda t, s: t.write_json("nnUNetPlans.json", {"plans_per_stage": {}}), "is no nnU-Net v2 plans file"),
    (
        "old plans",
        lambda t, s: t.write_plans(configurations={"3d_fullres": {"data_identifier": "x"}}),
        "lacks batch_size, patch_size, spacing, use_mask_for_norm, batch_dice, architecture",
    ),
    ("circular plans", lambda t, s: t.write_plans(configurations={"3d_fullres": {"inherits_from": "3d_fullres"}}), "inherits from itself"),
    ("no configuration", lambda t, s: t.write_plans(configurations={"3d_fulres": {}}), "Did you mean '3d_fulres'?"),
    ("no dataset.json", lambda t, s: (t.preprocessed / "dataset.json").unlink(), "dataset.json does not exist"),
    (
        "labels",
        lambda t, s: t.write_json("dataset.json", {**DATASET_JSON, "labels": {"background": 0, "a": 2}}),
        "consecutive from 0, got [0, 2]",
    ),
    ("no data", lambda t, s: _remove(t.data_folder()), "Run nnUNetv2_preprocess -d 17 -plans_name nnUNetPlans -c 3d_fullres."),
    ("no image", lambda t, s: (t.data_folder() / "case_3.b2nd").unlink(), "1 of 10 cases lack files in"),
    ("no image, named", lambda t, s: (t.data_folder() / "case_3.b2nd").unlink(), "case_3 (.b2nd)"),
    ("no segmentation", lambda t, s: (t.data_folder() / "case_3_seg.b2nd").unlink(), "case_3 (_seg.b2nd)"),
    ("no properties", lambda t, s: (t.data_folder() / "case_3.pkl").unlink(), "case_3 (.pkl)"),
    ("cut image", lambda t, s: _cut(t.data_folder() / "case_3.b2nd"), "Run nnUNetv2_preprocess again."),
    ("cut image, named", lambda t, s: _cut(t.data_folder() / "case_3.b2nd"), "case case_3 in "),
    ("empty labels", lambda t, s: (t.data_folder() / "case_3_seg.b2nd").write_bytes(b""), "case case_3 in "),
    ("no blosc2", lambda t, s: (t.data_folder() / "case_3.b2nd").write_bytes(b"hello" * 99), "case case_3 in "),
    (
        "other shape",
        lambda t, s: (t.data_folder() / "case_3_seg.b2nd").write_bytes(blosc2.asarray(np.zeros((1, 9, 3, 2), np.int8)).to_cframe()),
        "has labels of shape (1, 9, 3, 2) beside an image of shape (1, 4, 3, 2). Run nnUNetv2_preprocess again.",
    ),
    ("no label", lambda t, s: t.label_file("case_3").unlink(), "gt_segmentations the file of case_3 is missing"),
    ("broken label", lambda t, s: t.label_file("case_3").write_bytes(b"x"), "the file of case_3 cannot be read ("),
    (
        "unknown label",
        lambda t, s: t.write_label("case_3", [0, 3, 7]),
        "case_3 has the value 3, 7, which dataset.json does not name (it names 0, 1, 2)",
    ),
    ("half a label", lambda t, s: t.write_label("case_3", [0, 0.5], "float32"), "case_3 has the value 0.5, which"),
    ("no such fold", lambda t, s: t.write_json("splits_final.json", []), "splits_final.json of Dataset017_Tiny has no folds"),
    (
        "other split",
        lambda t, s: t.write_json("splits_final.json", [{"train": ["case_1"], "val": ["case_2"]}]),
        "has other cases than planned",
    ),
    ("broken split", lambda t, s: t.write_json("splits_final.json", [{"train": []}]), "must be a list of objects with 'train' and 'val'"),
    ("nnU-Net's fold", lambda t, s: write_json_atomic(s.run_folder / "debug.json", {}), "was not made by nnfleet (it holds debug.json)"),
    (
        "other plans",
        lambda t, s: write_json_atomic(s.model_folder / "plans.json", {"configurations": {"3d_fullres": {}}}),
        "folds of one model folder must share",
    ),
    ("no plans there", lambda t, s: write_json_atomic(s.model_folder / "plans.json", {}), "is not a plans file with '3d_fullres'"),
]


@pytest.mark.parametrize(("name", "damage", "message"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_bad_data_are_refused(tiny: Tiny, spec: RunSpec, name: str, damage: Callable[[Tiny, RunSpec], object], message: str) -> None:
    damage(tiny, spec)
    problems = check_run(spec)
    assert len(problems) == 1
    assert message in problems[0]


def _with(tiny: Tiny, **settings: Any) -> None:
    tiny.write_plans(configurations={"3d_fullres": {**CONFIGURATIONS["3d_fullres"], **settings}})


def test_a_patch_that_its_strides_do_not_divide_is_refused_before_anything_is_submitted(tiny: Tiny) -> None:
    network = configuration(3)["architecture"]
    _with(tiny, architecture=network, patch_size=[20, 16, 16])
    with pytest.raises(DataError, match=r"'3d_fullres' of .*nnUNetPlans.json: patch_size \[20, 16, 16\] must be divisible by \[8, 8, 8\]"):
        expand(single_training(17, "3d_fullres", 0, **tiny.folders))
    _with(tiny, architecture=network, patch_size=[24, 16, 16])
    assert len(expand(single_training(17, "3d_fullres", 0, **tiny.folders))) == 1


def test_plans_for_another_number_of_channels_are_refused(tiny: Tiny) -> None:
    _with(tiny, use_mask_for_norm=[False, True])
    with pytest.raises(DataError, match=r"has 2 entries in use_mask_for_norm, and dataset.json of Dataset017_Tiny names 1 channels"):
        expand(single_training(17, "3d_fullres", 0, **tiny.folders))


def test_many_damaged_cases_are_one_problem(tiny: Tiny, spec: RunSpec) -> None:
    for case in CASES[:7]:
        _cut(tiny.data_folder() / f"{case}.b2nd")
    (problem,) = check_run(spec)
    assert "7 of the run's cases are damaged: case_0, case_1, case_2, case_3, case_4 and 2 more. The first: preprocessed data: " in problem


def test_a_disk_that_is_away_is_no_fault_of_the_data(tiny: Tiny, spec: RunSpec) -> None:
    folder = tiny.preprocessed
    for path in (tiny.data_folder() / "case_3.b2nd", tiny.label_file("case_3"), folder / "dataset.json", folder / "nnUNetPlans.json"):
        away = Away(path)
        with pytest.raises(StorageError, match=f"storage: {path} cannot be read"):
            check_run(spec)
        away.come_back()
    assert check_run(spec) == []


def test_a_folder_of_another_run_is_refused_and_ones_own_is_not(spec: RunSpec) -> None:
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    write_json_atomic(folder.root / "debug.json", {})
    assert check_run(spec) == []
    other = spec.model_copy(update={"run_key": "another-key"})
    assert check_run(other) == [], "nothing was kept there"
    write_json_atomic(folder.state / "e00001_a0001.json", {})
    (problem,) = check_run(other)
    assert f"{folder.root} belongs to the run {spec.run_key}" in problem
    assert "`variant: NAME` in the experiment file gives the new runs a model folder of their own" in problem
    assert "`nnfleet submit --replace` moves the old run folder aside." in problem
    folder.spec_file.write_text("{}")
    (problem,) = check_run(spec)
    assert "is not a run specification of this version" in problem


def test_checkpoints_of_nnunet_beside_our_claim_are_never_overwritten(spec: RunSpec) -> None:
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    folder.checkpoint("final").touch()
    (problem,) = check_run(spec)
    assert "was not made by nnfleet (it holds checkpoint_final.pth)" in problem
    write_json_atomic(folder.state / "e00001_a0001.json", {})
    assert check_run(spec) == []


def test_data_that_changed_since_the_run_was_planned_are_refused(tiny: Tiny, spec: RunSpec) -> None:
    tiny.write_label(spec.val_cases[0], [0, 1])
    (problem,) = check_run(spec)
    assert f"changed since {spec.address} was planned" in problem
    tiny.write_label(spec.val_cases[0], [0, 1, 2])
    assert check_run(spec) == []
    tiny.write_json("dataset.json", {**DATASET_JSON, "channel_names": {"0": "CT"}})
    assert "changed since" in check_run(spec)[0]


@pytest.mark.parametrize(("scheme", "count"), [("CTNormalization", 1), ("ZScoreNormalization", 0)])
def test_intensities_of_plans_that_are_no_numbers_are_refused_where_they_normalise(
    tiny: Tiny, spec: RunSpec, scheme: str, count: int
) -> None:
    """What nnU-Net's planning makes of a NaN in the foreground of any raw CT image: by it every case becomes NaN."""
    settings = {**CONFIGURATIONS["3d_fullres"], "normalization_schemes": [scheme]}
    intensities = {"0": {"mean": float("nan"), "std": 3.0}}
    tiny.write_plans(configurations={"3d_fullres": settings}, foreground_intensity_properties_per_channel=intensities)
    problems = [p for p in check_run(spec) if "not finite" in p]
    assert len(problems) == count
    assert all("of channel 0" in p and "Correct that image, then run nnUNetv2_plan_and_preprocess again." in p for p in problems)


def test_a_loss_that_does_not_take_the_datasets_labels_is_refused(tiny: Tiny, spec: RunSpec) -> None:
    refused = "trainers: the loss of {} cannot be used with {}, which dataset.json of Dataset017_Tiny names. Name another trainer"
    for labels, trainer, part in (
        ({"background": 0, "a": [1, 2], "b": 2}, "nnUNetTrainerCELoss", "regions"),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, "nnUNetTrainerDiceLoss", "an ignore label"),
    ):
        tiny.write_json("dataset.json", {**DATASET_JSON, "labels": labels, "regions_class_order": [1, 2]})
        for name in ("nnUNetTrainer", trainer):
            found = [p for p in check_run(spec.model_copy(update={"trainer": name})) if p.startswith("trainers:")]
            assert [p[: len(refused.format(name, part))] for p in found] == [refused.format(name, part)] * (name == trainer)


def test_too_many_workers_for_the_batch_are_refused(spec: RunSpec) -> None:
    (problem,) = check_run(spec.model_copy(update={"workers": spec.workers.model_copy(update={"count": 4})}))
    assert problem.startswith("workers: 4 workers cannot share a global batch of 3")
    assert problem.endswith("(configuration '3d_fullres' of nnUNetPlans)")


def elastic(spec: RunSpec, most: int) -> RunSpec:
    return spec.model_copy(update={"workers": WorkerSpec(min=1, max=most, gpus=0, cpus=1)})


def test_an_elastic_run_may_not_exceed_the_batch_with_its_most_workers(spec: RunSpec) -> None:
    assert check_run(elastic(spec, 3)) == []
    (problem,) = check_run(elastic(spec, 4))
    assert problem.startswith("workers: 4 workers cannot share a global batch of 3")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}, "batch normalisation (norm_op: torch.nn.modules.batchnorm.BatchNorm3d)"),
        ({"norm_op": "torch.nn.SyncBatchNorm"}, "batch normalisation"),
        ({"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.1}}, "dropout (dropout_op: torch.nn.Dropout3d)"),
        ({"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": None}, "dropout"),
        ({"stochastic_depth_p": 0.2}, "stochastic depth (stochastic_depth_p: 0.2)"),
        ({"norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "dropout_op": None, "dropout_op_kwargs": None}, ""),
        ({"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.0}}, ""),
    ],
)
def test_networks_whose_results_depend_on_the_number_of_workers(arguments: dict[str, Any], part: str) -> None:
    found = split_dependence({"architecture": {"arch_kwargs": arguments}})
    assert found.startswith(part)
    assert bool(found) is bool(part)


def test_a_network_with_batch_normalisation_needs_a_fixed_number_of_workers(tiny: Tiny, spec: RunSpec) -> None:
    plans = json.loads((tiny.preprocessed / "nnUNetPlans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["arch_kwargs"] = {**architecture.get("arch_kwargs", {}), "norm_op": "torch.nn.BatchNorm3d"}
    tiny.write_json("nnUNetPlans.json", plans)
    assert not [p for p in check_run(spec) if "must be fixed" in p]
    (problem,) = [p for p in check_run(elastic(spec, 2)) if p.startswith("workers:")]
    assert "the number of workers must be fixed for configuration '3d_fullres' of nnUNetPlans: its network has batch normali" in problem
    assert problem.endswith("Set workers.count (such as 1) instead of workers.min and workers.max.")
    own = OwnParts(network=OwnCode(name="mine:make", sha256="0" * 64))
    assert not [p for p in check_run(elastic(spec, 2).model_copy(update={"own": own})) if p.startswith("workers:")], "its own trial asks it"


def test_a_cascade_without_its_first_stage_and_an_unknown_trainer_are_refused(spec: RunSpec) -> None:
    (problem,) = check_run(spec.model_copy(update={"configuration": "3d_cascade_fullres"}))
    assert "'3d_cascade_fullres' of " in problem
    assert "needs the segmentations of '3d_lowres', which is not in these plans" in problem
    (problem,) = check_run(spec.model_copy(update={"trainer": "nnUNetTrainerDA6"}))
    assert "Did you mean 'nnUNetTrainerDA5'?" in problem


def test_an_empty_validation_split_is_refused(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": list(CASES), "val": []}])
    with pytest.raises(DataError, match=r"fold 0 of Dataset017_Tiny has no validation case; at least one is needed"):
        expand(single_training(17, "3d_fullres", 0, **tiny.folders))


def test_a_split_with_a_case_that_was_never_preprocessed_is_refused(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": ["case_1", "ghost"], "val": ["case_2"]}])
    with pytest.raises(DataError) as caught:
        expand(single_training(17, "3d_fullres", 0, **tiny.folders))
    assert "ghost (.b2nd, _seg.b2nd, .pkl)" in str(caught.value)
    assert "the file of ghost is missing" in str(caught.value)


def test_a_configuration_that_is_not_preprocessed_is_refused_with_what_preprocesses_it(tiny: Tiny) -> None:
    """Not with too few cases for the folds, whether there is a split file or none."""
    shutil.rmtree(tiny.data_folder())
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            expand(single_training(17, "3d_fullres", 0, **tiny.folders))
        command = "nnUNetv2_preprocess -d 17 -c 3d_fullres, or `preprocess: true` in the experiment file."
        assert str(caught.value) == f"configurations: '3d_fullres' is not preprocessed: {command}"
        (tiny.preprocessed / "splits_final.json").unlink(missing_ok=True)


def test_npz_folders_of_older_versions_pass_when_they_are_whole(tiny: Tiny) -> None:
    for case in CASES:
        data, seg = np.zeros((1, 4, 3, 2), np.float32), np.zeros((1, 4, 3, 2), np.int8)
        np.savez_compressed(tiny.data_folder() / f"{case}.npz", data=data, seg=seg)
        for ending in (".b2nd", "_seg.b2nd"):
            (tiny.data_folder() / f"{case}{ending}").unlink()
    (spec,) = expand(single_training(17, "3d_fullres", "all", **tiny.folders))
    assert spec.train_cases == CASES
    (tiny.data_folder() / "case_3.npz").unlink()
    assert "case_3 (.npz)" in "".join(check_run(spec))


@pytest.mark.parametrize("text", ["17", "017", "Dataset017_Tiny"])
def test_a_dataset_is_found_by_number_and_by_name(tiny: Tiny, text: str) -> None:
    assert find_dataset(tiny.preprocessed.parent, text) == "Dataset017_Tiny"


def test_a_dataset_that_is_not_there_is_refused_with_those_that_are(tiny: Tiny, tmp_path: Path) -> None:
    there = tiny.preprocessed.parent
    with pytest.raises(ConfigError, match=r"dataset: 18 is not in .* Found: Dataset017_Tiny\."):
        find_dataset(there, "18")
    with pytest.raises(ConfigError, match="Did you mean 'Dataset017_Tiny'"):
        find_dataset(there, "Dataset017_Tinny")
    with pytest.raises(ConfigError, match=r"nnUNet_preprocessed: .* is not a folder.* \(export nnUNet_preprocessed="):
        find_dataset(tmp_path / "nowhere", "17")
    with pytest.raises(ConfigError, match=r"dataset: 18 is not in .* nnUNet_raw names .*typo, which is not a folder \(export nnUNet_raw="):
        find_dataset(there, "18", tmp_path / "typo")
    (there / "Dataset017_Other").mkdir()
    with pytest.raises(ConfigError, match="17 means several folders .* Dataset017_Other, Dataset017_Tiny. Write the whole name"):
        find_dataset(there, "17")


def test_a_raw_dataset_that_was_not_preprocessed_is_told_apart(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_raw" / "Dataset018_Raw").mkdir(parents=True)
    for preprocessed in (tiny.preprocessed.parent, tmp_path / "not yet"):
        with pytest.raises(
            ConfigError,
            match=r"Dataset018_Raw is raw but not preprocessed .* Run nnUNetv2_plan_and_preprocess -d 18, or write `preprocess: true`",
        ):
            find_dataset(preprocessed, "018", tmp_path / "nnUNet_raw")


def test_a_variable_that_names_a_datasets_own_folder_is_refused_with_its_parent(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"nnUNet_preprocessed: {tiny.preprocessed} is a dataset's own folder; set it to its parent"):
        find_dataset(tiny.preprocessed, "17")
    raw = tmp_path / "nnUNet_raw" / "Dataset018_Raw"
    raw.mkdir(parents=True)
    text = rf"nnUNet_raw: .*Dataset018_Raw is a dataset's own folder; .* parent, {raw.parent}\."
    with pytest.raises(ConfigError, match=text):
        find_raw_dataset(raw, "18")
    with pytest.raises(ConfigError, match=text):
        find_dataset(tiny.preprocessed.parent, "18", raw)


def test_cases_are_told_from_their_segmentations(tmp_path: Path) -> None:
    for name in ("a.b2nd", "a_seg.b2nd", "a.pkl", "b_seg.b2nd", "b_seg_seg.b2nd", "c.npz", "d.npy", "d_seg.npy"):
        (tmp_path / name).touch()
    assert cases_in(tmp_path) == ("a", "b_seg", "c", "d")


def test_too_few_cases_for_nnunets_folds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 cases are too few for nnU-Net's 5 folds"):
        ensure_splits(tmp_path, ["a", "b", "c", "d"])


def test_cases_with_nan_among_their_labels_are_one_problem(tmp_path: Path) -> None:
    labels = {f"case_{number}": Reading(values=(0.0, 1.0, float("nan"))) for number in range(40)}  # as read anew, each a NaN of its own
    (problem,) = label_problems(tmp_path, labels, labels_of(DATASET_JSON))
    assert "case_0, case_1" in str(problem)
    assert "has the value nan, which dataset.json does not name" in str(problem)


@pytest.mark.usefixtures("read_only_disk")
def test_a_split_that_a_read_only_share_does_not_take_is_used_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other").mkdir()
    assert ensure_splits(tmp_path, CASES) == ensure_splits(tmp_path / "other", CASES)
    assert caplog.text.count("the file system is read-only") == 2
    assert not list(tmp_path.rglob("*.json"))


def test_a_split_that_cannot_be_written_is_used_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = ensure_splits(tmp_path, CASES)
    assert json.loads((tmp_path / "splits_final.json").read_text())[0]["val"] == list(expected[0].val)
    (tmp_path / "file").touch()
    assert ensure_splits(tmp_path / "file", CASES) == expected
    assert "cannot be written" in caplog.text
