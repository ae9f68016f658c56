"""A preprocessed case whose bytes have changed: what unpacking finds, and what the values themselves show. blosc2 keeps no checksum."""

import random
import shutil
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import blosc2
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK

from orchestrator.training.loader_pool import Loader
from tests.away import Away
from tests.conftest import Toys
from tests.toy import toy_spec
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.data.whole_file import check_whole
from trainers.errors import DataError, StorageError
from trainers.storage.files import write_json_atomic

Change = Callable[[npt.NDArray[np.generic]], None]


@pytest.fixture
def spec(toys: Toys, tmp_path: Path) -> RunSpec:
    """A run on a copy of the toy dataset, with one training case."""
    toy = toys("labels")
    copy = tmp_path / toy.name
    shutil.copytree(toy.preprocessed, copy)
    whole = toy_spec(toy, preprocessed_folder=copy)
    return whole.model_copy(update={"train_cases": whole.train_cases[:1]})


def file_of(spec: RunSpec, ending: str) -> Path:
    (path,) = (p for p in spec.preprocessed_folder.glob(f"*3d*/{spec.train_cases[0]}{ending}") if p.is_file())
    return path


def draw(spec: RunSpec) -> None:
    for iteration in range(4):
        make_batch(open_dataset(spec), spec, "train", 0, iteration, [0, 1])


def rewrite(path: Path, change: Change) -> None:
    """Store other values in the place of those that are there, without a fault in the format."""
    values = blosc2.open(urlpath=str(path), mode="r")[:]
    change(values)
    path.unlink()
    blosc2.asarray(values, urlpath=str(path))


def overwrite(path: Path, start: float, count: int) -> None:
    """Zeros over `count` bytes, from this fraction of the file on."""
    content = bytearray(path.read_bytes())
    first = int(start * len(content))
    content[first : first + count] = bytes(len(content[first : first + count]))
    path.write_bytes(content)


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd"])
@pytest.mark.parametrize("left", [0.0, 0.2, 0.5, 0.99])
def test_a_case_that_was_cut_anywhere_is_named(spec: RunSpec, ending: str, left: float) -> None:
    path = file_of(spec, ending)
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(DataError, match=f"case {spec.train_cases[0]}.*[Rr]un nnUNetv2_preprocess"):
        draw(spec)


def test_a_case_that_was_cut_while_it_was_read_is_named(spec: RunSpec) -> None:
    """What a kill of the preprocessing leaves: the format's frame says how long the file has to be."""
    path = file_of(spec, ".b2nd")
    draw(spec)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=spec.train_cases[0]):
        draw(spec)


@pytest.mark.parametrize(
    ("ending", "change", "found"),
    [
        ("_seg.b2nd", lambda values: np.put(values, range(0, values.size, 7), 77), "labels from -?[01] to 77"),
        ("_seg.b2nd", lambda values: np.put(values, range(0, values.size, 7), -9), "labels from -9 to"),
    ],
)
def test_values_that_no_preprocessing_writes_are_an_error_that_names_the_case(
    spec: RunSpec, ending: str, change: Change, found: str
) -> None:
    rewrite(file_of(spec, ending), change)
    with pytest.raises(DataError, match=f"case {spec.train_cases[0]} .* is damaged: it holds {found}"):
        draw(spec)


@pytest.mark.parametrize("seed", range(12))
def test_bytes_changed_in_the_middle_are_an_error_of_the_case_or_finite_values_of_its_labels(spec: RunSpec, seed: int) -> None:
    """What can be promised without checksums: never a crash, never another kind of error, never values that break the loss."""
    chance = random.Random(seed)
    overwrite(file_of(spec, chance.choice([".b2nd", "_seg.b2nd"])), chance.uniform(0.05, 0.95), chance.choice([1, 64, 4096]))
    try:
        batch = make_batch(open_dataset(spec), spec, "train", 0, 0, [0, 1])
    except DataError as err:
        message = str(err)
        assert spec.train_cases[0] in message
        return
    assert np.isfinite(batch.images).all()
    assert {int(v) for v in np.unique(batch.targets[0])} <= {-1, 0, 1, 2}


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_a_case_on_a_disk_that_is_away_is_not_called_damaged(spec: RunSpec, ending: str) -> None:
    path = file_of(spec, ending)
    away = Away(path)
    with pytest.raises(StorageError, match=f"storage: {path} cannot be read"):
        draw(spec)
    away.come_back()
    draw(spec)


def test_a_case_whose_disk_goes_away_while_it_is_open_is_not_called_damaged(spec: RunSpec) -> None:
    data, path = open_dataset(spec), file_of(spec, ".b2nd")
    make_batch(data, spec, "train", 0, 0, [0, 1])
    overwrite(path, 0.1, 10**9)  # what is open fails on unpacking
    Away(path)
    with pytest.raises(StorageError, match=f"storage: {path} cannot be read"):
        make_batch(data, spec, "train", 0, 1, [0, 1])


def unmounted(spec: RunSpec) -> Callable[[], object]:
    """Take the dataset's share away; call what is returned to bring it back."""
    dataset, kept = spec.preprocessed_folder, spec.preprocessed_folder.with_name("kept")
    dataset.rename(kept)
    dataset.mkdir()  # a mount point without its mount
    return lambda: kept.rename(dataset)


@pytest.mark.parametrize("read", ["arrays", "locations"])
def test_a_case_of_a_dataset_that_is_unmounted_is_not_called_damaged(spec: RunSpec, read: str) -> None:
    data, case_id = open_dataset(spec), spec.train_cases[0]
    back = unmounted(spec)
    with pytest.raises(StorageError, match=r"dataset\.json is not there on this node\. Mount the folder of the preprocessed datasets\."):
        getattr(data, read)(case_id)
    with pytest.raises(StorageError, match="Mount the folder of the preprocessed datasets"):
        open_dataset(spec)
    back()
    getattr(data, read)(case_id)


@pytest.mark.parametrize(("read", "ending"), [("arrays", ".b2nd"), ("arrays", "_seg.b2nd"), ("locations", ".pkl")])
def test_a_file_that_is_missing_from_a_dataset_that_is_there_is_the_users_affair(spec: RunSpec, read: str, ending: str) -> None:
    data = open_dataset(spec)
    file_of(spec, ending).unlink()
    with pytest.raises(DataError, match=f"{spec.train_cases[0]}.* cannot be read.*Run nnUNetv2_preprocess again"):
        getattr(data, read)(spec.train_cases[0])


def test_a_loader_whose_dataset_is_unmounted_waits_for_it_and_opens_it_anew(spec: RunSpec, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec.model_copy(update={"model_folder": spec.preprocessed_folder.with_name("model")})
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    loader, expected = Loader(str(folder.root), [0, 1]), Loader(str(folder.root), [0, 1]).make("train", 0, 0)
    loader.opened = spec, open_dataset(spec)
    back = threading.Timer(0.2, unmounted(spec))
    back.start()
    assert np.array_equal(loader.make("train", 0, 0).images, expected.images)
    back.join()
    assert "batch 0 of train in epoch 0: storage recovered" in caplog.text


def test_a_loader_waits_for_its_disk_and_opens_the_files_anew(spec: RunSpec, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec.model_copy(update={"model_folder": spec.preprocessed_folder.with_name("model")})
    folder = RunFolder(spec.run_folder)
    write_json_atomic(folder.spec_file, spec.model_dump(mode="json"))
    loader = Loader(str(folder.root), [0, 1])
    before = [loader.make("train", 0, iteration) for iteration in range(4)]
    away = Away(file_of(spec, ".b2nd"))
    loader.opened = None
    back = threading.Timer(0.2, away.come_back)
    back.start()
    after = [loader.make("train", 0, iteration) for iteration in range(4)]
    back.join()
    assert all(np.array_equal(one.images, other.images) for one, other in zip(before, after, strict=True))
    assert [record.getMessage()[:44] for record in caplog.records if record.name == "trainers.storage.faults"] == [
        "batch 0 of train in epoch 0: storage is unav",
        "batch 0 of train in epoch 0: storage recover",
    ]


def test_a_loader_whose_node_does_not_have_the_run_folder_yet_waits_for_it(spec: RunSpec) -> None:
    spec = spec.model_copy(update={"model_folder": spec.preprocessed_folder.with_name("model")})
    folder, away = RunFolder(spec.run_folder), spec.run_folder.with_name("away")
    write_json_atomic(away / folder.spec_file.relative_to(folder.root), spec.model_dump(mode="json"))
    back = threading.Timer(0.2, lambda: away.rename(folder.root))
    back.start()
    assert len(Loader(str(folder.root), [0, 1]).make("train", 0, 0).images) == 2
    back.join()


def test_a_file_that_unpacks_to_a_thousand_times_its_size_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "case.nii.gz"
    SimpleITK.WriteImage(SimpleITK.Image(512, 512, 120, SimpleITK.sitkUInt8), str(path))
    assert path.stat().st_size < 1 << 17
    tracemalloc.start()
    check_whole(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "30 MiB are unpacked"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_label_file_that_was_cut_is_not_read_as_zeros(tmp_path: Path, ending: str) -> None:
    """SimpleITK itself reads most such files without an error."""
    values = np.random.default_rng(0).integers(0, 3, (20, 20, 20)).astype(np.uint8)
    path = tmp_path / f"case{ending}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    content = path.read_bytes()
    check_whole(path)
    for left in np.linspace(0, len(content) - 1, 50).astype(int):
        path.write_bytes(content[:left])
        with pytest.raises((ValueError, OSError)):
            check_whole(path)
