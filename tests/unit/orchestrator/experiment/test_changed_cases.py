"""Preprocessed cases that changed make another run, which is named once; runs from before that was known stay what they are."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.dataset import case_readings
from orchestrator.dataset.case_readings import case_differences, most_threads
from orchestrator.dataset.preflight import check_run
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import Experiment, parse_experiment
from orchestrator.experiment.plan import plan_report
from orchestrator.queue.gang_fit import NodeResources
from tests.away import share_is_away
from tests.unit.tiny_dataset import CASES, Tiny, tiny_dataset
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.data.case_files import content_sha256
from trainers.storage.files import write_json_atomic

SPLITS = [{"train": [c for c in CASES if c != f"case_{n}"], "val": [f"case_{n}"]} for n in range(2)]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    tiny = tiny_dataset(tmp_path)
    tiny.write_json("splits_final.json", SPLITS)
    return tiny


def experiment_of(tiny: Tiny, **keys: Any) -> Experiment:
    content = {"name": "e", "dataset": 17, "configurations": ["3d_fullres"], "folds": [0, 1], "workers": {"gpus": 0, "cpus": 1}}
    return Experiment.model_validate({**content, **tiny.folders, **keys})


def replace(tiny: Tiny, case: str, value: float, ending: str = "", **options: Any) -> None:
    """Other values in a preprocessed case, as after a new preprocessing."""
    path = tiny.data_folder() / f"{case}{ending}.b2nd"
    values: npt.NDArray[Any] = np.full((1, 4, 3, 2), value, np.int8 if ending else np.float32)
    path.unlink()
    blosc2.asarray(values, urlpath=str(path), **options)


def keep(spec: RunSpec) -> RunSpec:
    """Let a run have its folder with something in it."""
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    write_json_atomic(folder.state / "e00001_a0001.json", {})
    return spec


def former(spec: RunSpec, tiny: Tiny) -> RunSpec:
    """The run as a version wrote it whose keys did not cover the preprocessed cases: without the field that it did not know."""
    from orchestrator.dataset.digest import data_digest, run_key
    from trainers.contract.plans import Split, load_dataset_json, load_plans

    labels = case_readings.labels_of_cases(tiny.preprocessed, CASES, ".nii", "SimpleITKIO", spec.model_folder.parent)
    plans, split = load_plans(tiny.preprocessed, spec.plans), Split(spec.train_cases, spec.val_cases)
    sha256 = {case: reading.sha256 for case, reading in labels.items()}
    digest = data_digest(plans, spec.configuration, load_dataset_json(tiny.preprocessed), split, sha256)
    names = {name: getattr(spec, name) for name in ("dataset", "configuration", "trainer", "plans", "fold", "seed", "schedule")}
    content = spec.model_dump(mode="json") | {"run_key": run_key(**names, data_digest=digest), "data_digest": digest}
    del content["case_digests"]
    return RunSpec.model_validate(content)


def relabel(tiny: Tiny) -> None:
    """Only the label file of another case."""
    replace(tiny, "case_3", 7.0)
    tiny.write_label("case_4", [0, 1])


def crop(tiny: Tiny) -> None:
    """Image and labels change together."""
    replace(tiny, "case_3", 7.0)
    replace(tiny, "case_3", 1, "_seg")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tiny: replace(tiny, "case_3", 7.0), "images of case_3"),
        (lambda tiny: replace(tiny, "case_3", 1, "_seg"), "preprocessed labels of case_3"),
        (crop, "images of case_3"),
        (relabel, "labels of case_4, images of case_3"),
    ],
)
def test_another_content_is_another_run_that_names_what_changed_once(tiny: Tiny, change: Any, said: str) -> None:
    before = [keep(spec) for spec in expand(experiment_of(tiny))]
    assert expand(experiment_of(tiny)) == before
    change(tiny)
    with pytest.raises(ConfigError) as caught:
        expand(experiment_of(tiny))
    assert f"2 folders belong to other runs, which differ from those of this experiment in {said}: " in str(caught.value)
    assert str(caught.value).count("case_3") == 1
    (problem,) = check_run(before[0])
    assert f"belongs to the run {before[0].run_key}" not in problem
    assert f"{said} changed since {before[0].address} was planned" in problem
    elsewhere = expand(experiment_of(tiny, nnUNet_results=tiny.base / "others"))
    assert {spec.run_key for spec in elsewhere}.isdisjoint(spec.run_key for spec in before)


def test_one_folder_of_another_run_is_told_with_both_keys(tiny: Tiny) -> None:
    keep(expand(experiment_of(tiny, folds=[0]))[0])
    replace(tiny, "case_0", 7.0)
    with pytest.raises(
        ConfigError, match=r"fold_0 belongs to the run .*-f0-s0-\w+, which differs from .*-f0-s0-\w+ in images of case_0\. "
    ):
        expand(experiment_of(tiny, folds=[0]))


def test_the_same_values_packed_in_another_way_are_the_same_run(tiny: Tiny) -> None:
    before = expand(experiment_of(tiny))
    replace(tiny, "case_3", 0.0, cparams={"clevel": 0}, chunks=(1, 1, 3, 2), blocks=(1, 1, 1, 2))
    assert expand(experiment_of(tiny)) == before


def test_a_case_of_another_configuration_or_fold_leaves_a_run_alone(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": ["case_1"], "val": ["case_2"]}])
    before = expand(experiment_of(tiny, folds=[0], configurations=["2d", "3d_fullres"]))
    replace(tiny, "case_3", 7.0)
    assert expand(experiment_of(tiny, folds=[0], configurations=["2d", "3d_fullres"])) == before
    replace(tiny, "case_1", 7.0)
    after = expand(experiment_of(tiny, folds=[0], configurations=["2d", "3d_fullres"]))
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False]


def test_a_run_from_before_contents_were_known_stays_the_same_run(tiny: Tiny) -> None:
    old = [keep(former(spec, tiny)) for spec in expand(experiment_of(tiny))]
    assert expand(experiment_of(tiny)) == old
    replace(tiny, "case_3", 7.0)
    assert expand(experiment_of(tiny)) == old, "nobody knows which images it began with"
    assert check_run(old[0]) == []
    with pytest.raises(ConfigError, match=r"differ from those of this experiment in epochs \(1000, now 3\): "):
        expand(experiment_of(tiny, epochs=3))
    tiny.write_label("case_4", [0, 1])
    with pytest.raises(ConfigError, match=r"in labels, plans or dataset\.json: "):
        expand(experiment_of(tiny))
    assert "labels, plans or dataset.json changed since" in check_run(old[0])[0]


def test_a_folder_in_which_an_old_run_kept_nothing_is_a_new_runs(tiny: Tiny) -> None:
    (old,) = [former(spec, tiny) for spec in expand(experiment_of(tiny, folds=[0], epochs=5))]
    write_json_atomic(RunFolder(old.run_folder).spec_file, old.model_dump(mode="json"))
    assert expand(experiment_of(tiny, folds=[0], epochs=5)) == [old], "it may be queued"
    (new,) = expand(experiment_of(tiny, folds=[0], epochs=6))
    assert new.case_digests is not None


def test_a_run_whose_share_is_away_gets_no_new_key(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    old = keep(former(expand(experiment_of(tiny, folds=[0]))[0], tiny))
    assert expand(experiment_of(tiny, folds=[0])) == [old]
    share_is_away(monkeypatch, "run.json")
    with pytest.raises(StorageError, match=r"run\.json cannot be read: the file system is unavailable"):
        expand(experiment_of(tiny, folds=[0]))


def test_a_content_is_read_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.data import case_files

    read: list[str] = []

    def noted(folder: Path, case_id: str, channels: int, part: case_files.Part) -> str:
        read.append(f"{case_id} {part}")
        return content_sha256(folder, case_id, channels, part)

    monkeypatch.setattr(case_files, "content_sha256", noted)
    for path in tiny.data_folder().iterdir():
        os.utime(path, (1e9, 1e9))
    before = expand(experiment_of(tiny))
    assert sorted(read) == sorted(f"{case} {part}" for case in CASES for part in ("image", "labels"))
    replace(tiny, "case_3", 0.0)
    read.clear()
    assert expand(experiment_of(tiny, configurations=["3d_fullres", "small"]))[:2] == before
    assert read == ["case_3 image"]


def test_packed_arrays_of_older_versions_have_the_digests_of_the_same_values(tiny: Tiny) -> None:
    expected = [content_sha256(tiny.data_folder(), "case_1", 1, part) for part in ("image", "labels")]
    for ending in (".b2nd", "_seg.b2nd"):
        (tiny.data_folder() / f"case_1{ending}").unlink()
    np.savez(tiny.data_folder() / "case_1.npz", data=np.zeros((1, 4, 3, 2), np.float32), seg=np.zeros((1, 4, 3, 2), np.int8))
    assert [content_sha256(tiny.data_folder(), "case_1", 1, part) for part in ("image", "labels")] == expected
    assert expected[0] != expected[1]


def test_of_a_packed_case_only_the_part_is_unpacked_that_is_asked_for(tmp_path: Path) -> None:
    packed = tmp_path / "a.npz"
    np.savez(packed, data=np.ones((1, 20, 20, 20), np.float32), seg=np.ones((1, 20, 20, 20), np.int8))
    expected = content_sha256(tmp_path, "a", 1, "image")
    content = bytearray(packed.read_bytes())
    content[zipfile.ZipFile(packed).start_dir - 1] ^= 1  # the last voxel of the labels, which come last
    packed.write_bytes(content)
    assert content_sha256(tmp_path, "a", 1, "image") == expected
    with pytest.raises(DataError, match="case a in .* cannot be read"):
        content_sha256(tmp_path, "a", 1, "labels")
    np.savez(packed, data=np.ones((1, 20, 20, 20), np.float32), seg=np.ones((1, 20, 20, 9), np.int8))
    with pytest.raises(DataError, match=r"has labels of shape \(1, 20, 20, 9\) beside an image of shape \(1, 20, 20, 20\)"):
        content_sha256(tmp_path, "a", 1, "image")


def test_fewer_packed_cases_are_held_in_memory_at_once() -> None:
    assert most_threads([Path("a.b2nd"), Path("b.npy")]) == 8
    assert most_threads([Path("a.npy"), Path("b.npz")]) == 2


def test_the_digest_counts_every_channel_and_the_order_of_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 5, 4, 6)).astype(np.float32)
    found = set()
    others: list[npt.NDArray[Any]] = [image[::-1], image[:, ::-1], image[..., ::-1], image.reshape(3, 5, 6, 4), image.astype(np.float64)]
    for n, values in enumerate([image, *others]):
        blosc2.asarray(np.ascontiguousarray(values), urlpath=str(tmp_path / f"{n}.b2nd"), chunks=(2, 2, 4, 3), blocks=(1, 1, 2, 2))
        blosc2.asarray(np.zeros((1, *values.shape[1:]), np.int8), urlpath=str(tmp_path / f"{n}_seg.b2nd"))
        found.add(content_sha256(tmp_path, str(n), 3, "image"))
    assert len(found) == 6


def test_preprocessed_labels_are_not_named_where_their_cause_is() -> None:
    before = {"a": ("1", "1", "1"), "b": ("1", "1", "1"), "gone": ("1", "1", "1")}
    now = {"a": ("2", "1", "2"), "b": ("1", "1", "2"), "new": ("1", "1", "1")}
    assert case_differences(before, now) == ["labels of a", "preprocessed labels of b"]


def test_raw_files_newer_than_the_preprocessed_cases_are_a_warning(tiny: Tiny) -> None:
    raw = tiny.base / "nnUNet_raw" / tiny.name
    (raw / "labelsTr").mkdir(parents=True)
    (raw / "imagesTr").mkdir()
    for case in CASES:
        shutil.copy2(tiny.label_file(case), raw / "labelsTr")
        (raw / "imagesTr" / f"{case}_0000.nii").touch()
        os.utime(raw / "imagesTr" / f"{case}_0000.nii", (1e9, 1e9))
    experiment = experiment_of(tiny, nnUNet_raw=raw.parent)
    specs, nodes = expand(experiment), [NodeResources("n", {"CPU": 2}, {"CPU": 2})]
    assert plan_report(experiment, specs, nodes).warnings == ()
    later = 1e10
    os.utime(tiny.label_file("case_1"), (later, later))
    os.utime(raw / "labelsTr" / "case_2.nii", (later, later))
    os.utime(raw / "imagesTr" / "case_3_0000.nii", (later, later))
    assert plan_report(experiment, specs, nodes).warnings == (
        f"dataset: labels of case_1, case_2 and images of case_3 are newer than the preprocessed cases in {tiny.data_folder()}. "
        "Unless their times alone changed, run nnUNetv2_preprocess -d 17 -plans_name nnUNetPlans -c 3d_fullres.",
    )
    without_raw = parse_experiment(experiment.model_copy(update={"nnUNet_raw": None}).to_yaml())
    assert plan_report(without_raw, specs, nodes).warnings[0].startswith("dataset: labels of case_1 are newer than")


def test_a_new_run_in_the_place_of_an_old_one_knows_its_images(tiny: Tiny) -> None:
    (old,) = [keep(former(spec, tiny)) for spec in expand(experiment_of(tiny, folds=[0], epochs=5))]
    assert expand(experiment_of(tiny, folds=[0], epochs=5), replaces=True) == [old], "the very same run continues"
    (new,) = expand(experiment_of(tiny, folds=[0], epochs=6), replaces=True)
    assert new.case_digests is not None
