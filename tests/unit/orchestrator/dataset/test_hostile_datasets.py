"""Bad and hostile plans, dataset.json, splits, names of folders and run folders, each with the error that answers it."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from orchestrator.dataset.folder import find_dataset
from orchestrator.dataset.preflight import check_run
from orchestrator.errors import ConfigError, DataError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import single_training
from tests.hostile import Place, Row, check
from tests.unit.old_plans import old_configuration
from tests.unit.tiny_dataset import CASES, CONFIGURATIONS, DATASET_JSON, Tiny, tiny_dataset
from trainers.contract.run_folder import RunFolder

PLAIN = "must consist of letters, digits and _.+-"
UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def _plan(place: Place, damage: Callable[[Tiny], object] = lambda tiny: None, configuration: str = "3d_fullres", fold: Any = 0) -> object:
    """Expand a run of a small dataset that `damage` has changed."""
    tiny = tiny_dataset(place.base / "data")
    damage(tiny)
    return expand(single_training(17, configuration, fold, **tiny.folders))


def _plans(place: Place, **settings: Any) -> object:
    changed = {**CONFIGURATIONS["3d_fullres"], **settings}
    return _plan(place, lambda tiny: tiny.write_plans(configurations={"3d_fullres": changed}))


def _labels(place: Place, **changes: Any) -> object:
    return _plan(place, lambda tiny: tiny.write_json("dataset.json", {**DATASET_JSON, **changes}))


def _splits(place: Place, content: Any) -> object:
    return _plan(place, lambda tiny: tiny.write_json("splits_final.json", content))


def _linked(tiny: Tiny) -> None:
    tiny.write_plans("nnUNetPlans")
    (tiny.preprocessed / "splits_final.json").symlink_to(tiny.base / "away" / "splits_final.json")


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def _old_plans(place: Place, **settings: Any) -> object:
    return _plan(place, lambda tiny: tiny.write_plans(configurations={"3d_fullres": old_configuration(**settings)}))


def _label_file(place: Place, content: bytes) -> None:
    """Look at a planned run of which the labels of one case have been replaced, as is done before a worker starts."""
    tiny = tiny_dataset(place.base / "data")
    (spec,) = expand(single_training(17, "3d_fullres", 0, **tiny.folders))
    tiny.label_file(spec.train_cases[0]).write_bytes(content)
    raise DataError("\n".join(check_run(spec)))


def _nifti(values: Any, affine: Any = None) -> bytes:
    return bytes(nibabel.Nifti1Image(np.asarray(values), np.eye(4) if affine is None else affine).to_bytes())


def _grown(nifti: bytes) -> bytes:
    """The same file with a header that promises 30000 voxels along each axis."""
    return nifti[:40] + np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes() + nifti[56:]


def _dataset(place: Place, folder: str, text: str) -> object:
    there = place.base / "preprocessed"
    (there / folder).mkdir(parents=True)
    return find_dataset(there, text)


def _network(name: str, **arguments: Any) -> dict[str, Any]:
    return {"architecture": {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": list(arguments)}}


def _run_folder(place: Place, content: str) -> RunFolder:
    folder = RunFolder(place.base / "fold_0")
    folder.own.mkdir(parents=True)
    folder.spec_file.write_text(content)
    return folder


ROWS: tuple[Row, ...] = (
    Row(
        "name",
        "dataset folder with a quote",
        lambda p: _dataset(p, "Dataset017_it's", "17"),
        ConfigError,
        ("dataset: the folder", PLAIN, "Rename the dataset"),
    ),
    Row(
        "plans",
        "a data folder elsewhere",
        lambda p: _plans(p, data_identifier="../../../etc"),
        DataError,
        ("data_identifier '../../../etc'", PLAIN, "Repair it or run nnUNetv2_plan_and_preprocess"),
    ),
    Row("plans", "an absolute data folder", lambda p: _plans(p, data_identifier="/etc"), DataError, ("data_identifier '/etc'", PLAIN)),
    Row(
        "plans",
        "a network that runs commands",
        lambda p: _plans(p, **_network("os.system")),
        DataError,
        ("architecture names 'os.system'", "dynamic_network_architectures and torch.nn alone"),
    ),
    Row(
        "plans",
        "a function behind a class's module",
        lambda p: _plans(p, **_network("torch.nn.modules.conv.torch.hub.load")),
        DataError,
        ("architecture names 'torch.nn.modules.conv.torch.hub.load'",),
    ),
    Row(
        "plans",
        "a layer that runs commands",
        lambda p: _plans(p, **_network(UNET, nonlin="subprocess.Popen")),
        DataError,
        ("architecture names 'subprocess.Popen'",),
    ),
    Row(
        "plans",
        "a circle of configurations",
        lambda p: _plans(p, inherits_from="3d_fullres"),
        DataError,
        ("inherits from itself (3d_fullres -> 3d_fullres)", "Repair `inherits_from`"),
    ),
    Row(
        "plans",
        "a parent that is a list",
        lambda p: _plans(p, inherits_from=["2d"]),
        DataError,
        ("inherits from ['2d'], which is not there",),
    ),
    Row(
        "plans",
        "a batch of words",
        lambda p: _plans(p, batch_size="two"),
        DataError,
        ("batch_size must be a whole number from 1", "got 'two'"),
    ),
    Row("plans", "a batch of nothing", lambda p: _plans(p, batch_size=0), DataError, ("batch_size must be a whole number from 1", "got 0")),
    Row(
        "plans",
        "a patch of 10^12 voxels on an edge",
        lambda p: _plans(p, patch_size=[10**12, 8, 8]),
        DataError,
        ("patch_size must be two or three whole numbers from 1 to 100000",),
    ),
    Row(
        "plans",
        "more stages than any patch allows",
        lambda p: _plans(p, architecture={"arch_kwargs": {"n_stages": 90, "strides": [[1, 1, 1], *[[9, 9, 9]] * 89]}}),
        DataError,
        ("patch_size [8, 8, 8] must be divisible by", "the products of its 90 stages' strides"),
    ),
    Row(
        "plans",
        "a network of a billion stages",
        lambda p: _plans(p, architecture={"arch_kwargs": {"n_stages": 10**9, "strides": []}}),
        DataError,
        ("n_stages must be a whole number from 2 to 100, got 1000000000",),
    ),
    Row("plans", "a patch with five axes", lambda p: _plans(p, patch_size=[8] * 5), DataError, ("patch_size must be two or three",)),
    Row(
        "plans",
        "a reader with a path",
        lambda p: _plan(p, lambda t: t.write_plans(image_reader_writer="../evil")),
        DataError,
        ("image_reader_writer of", "got '../evil'", "Repair it"),
    ),
    Row(
        "plans",
        "a configuration with an escape",
        lambda p: _plan(p, lambda t: t.write_plans(configurations={"\x1b[2J": {}, **CONFIGURATIONS})),
        DataError,
        ("the configuration '\\x1b[2J'", "Rename it"),
    ),
    Row(
        "plans",
        "50000 nested lists",
        lambda p: _plan(p, lambda t: (t.preprocessed / "nnUNetPlans.json").write_text(_nested(50000))),
        DataError,
        ("nnUNetPlans.json cannot be read as JSON", "recursion"),
    ),
    Row(
        "plans",
        "a number of 5000 digits",
        lambda p: _plan(p, lambda t: (t.preprocessed / "nnUNetPlans.json").write_text("9" * 5000)),
        DataError,
        ("nnUNetPlans.json cannot be read as JSON", "digits"),
    ),
    Row(
        "plans",
        "half a letter",
        lambda p: _plan(p, lambda t: (t.preprocessed / "nnUNetPlans.json").write_text('{"a": "\\ud800"}')),
        DataError,
        ("nnUNetPlans.json cannot be read as JSON", "surrogates not allowed"),
    ),
    Row(
        "dataset.json",
        "an ending with a path",
        lambda p: _labels(p, file_ending="/../../x.nii"),
        DataError,
        ("file_ending of", "must be like .nii.gz", "got '/../../x.nii'"),
    ),
    Row("dataset.json", "labels that are a text", lambda p: _labels(p, labels="all"), DataError, ("'labels' must map names to integers",)),
    Row(
        "dataset.json",
        "half a label",
        lambda p: _labels(p, labels={"background": 0, "a": 1.5}),
        DataError,
        ("must map names to integers", "got 1.5"),
    ),
    Row(
        "dataset.json",
        "an endless label",
        lambda p: _labels(p, labels={"background": 0, "a": float("inf")}),
        DataError,
        ("must map names to integers", "got inf"),
    ),
    Row(
        "dataset.json",
        "nothing to learn",
        lambda p: _labels(p, labels={"background": 0}),
        DataError,
        ("names nothing but background", "Name at least one class"),
    ),
    Row(
        "dataset.json",
        "a label's name with an escape",
        lambda p: _labels(p, labels={"background": 0, "a\x1b]0;x\x07": 1}),
        DataError,
        ("label name 'a\\x1b]0;x\\x07'", "printable"),
    ),
    Row(
        "dataset.json",
        "a number of channels",
        lambda p: _labels(p, channel_names=3),
        DataError,
        ("channel_names of", "must map channels to names, got 3"),
    ),
    Row(
        "dataset.json",
        "regions in words",
        lambda p: _labels(p, labels={"background": 0, "a": [1, 2], "b": 2}, regions_class_order=["x", "y"]),
        DataError,
        ("must map names to integers", "got 'x'"),
    ),
    Row(
        "splits",
        "a case outside",
        lambda p: _splits(p, [{"train": ["../../../etc/passwd"], "val": ["case_1"]}]),
        DataError,
        ("the id '../../../etc/passwd'", "splits_final.json must consist of letters", "Rename the case's files"),
    ),
    Row("splits", "a case with a newline", lambda p: _splits(p, [{"train": ["a\nb"], "val": ["case_1"]}]), DataError, ("the id 'a\\nb'",)),
    Row(
        "splits",
        "a case with quotes and a command",
        lambda p: _splits(p, [{"train": ["a'$(id)'"], "val": ["case_1"]}]),
        DataError,
        ("the id \"a'$(id)'\"",),
    ),
    Row(
        "splits",
        "a case that is an option",
        lambda p: _splits(p, [{"train": ["-rf"], "val": ["case_1"]}]),
        DataError,
        ("the id '-rf'", "begin with a letter"),
    ),
    Row(
        "splits",
        "a case of 300 letters",
        lambda p: _splits(p, [{"train": ["a" * 300], "val": ["case_1"]}]),
        DataError,
        ("longer than 150 bytes",),
    ),
    Row(
        "splits",
        "a file with a strange name, fold all",
        lambda p: _plan(p, lambda t: (t.data_folder() / "a\nb.b2nd").touch(), fold="all"),
        DataError,
        ("the id 'a\\nb' in the preprocessed folder",),
    ),
    Row(
        "splits",
        "cases as one text",
        lambda p: _splits(p, [{"train": "case_1", "val": ["case_2"]}]),
        DataError,
        ("must be a list of objects with 'train' and 'val'",),
    ),
    Row(
        "splits",
        "cases that were never preprocessed",
        lambda p: _splits(p, [{"train": ["ghost"], "val": [CASES[0]]}]),
        DataError,
        ("ghost (.b2nd, _seg.b2nd, .pkl)", "Run nnUNetv2_preprocess"),
    ),
    Row(
        "plans",
        "from before nnU-Net 2.4, with another network",
        lambda p: _old_plans(p, network="MyUNet"),
        DataError,
        ("UNet_class_name is 'MyUNet'", "before nnU-Net 2.4 only PlainConvUNet"),
    ),
    Row(
        "plans",
        "from before nnU-Net 2.4, with features in words",
        lambda p: _old_plans(p, unet_max_num_features="many"),
        DataError,
        ("unet_max_num_features must be a whole number", "got 'many'"),
    ),
    Row(
        "splits",
        "files in place of cases",
        lambda p: _splits(p, [{"train": ["case_1.nii.gz"], "val": ["case_2_0000.nii"]}]),
        DataError,
        ("2 of 2 ids", "'case_1.nii.gz' should read 'case_1'", "'case_2_0000.nii' should read 'case_2'", "nothing has to be preprocessed"),
    ),
    Row(
        "splits",
        "a case twice in one list",
        lambda p: _splits(p, [{"train": ["case_1", "case_1"], "val": ["case_2"]}]),
        DataError,
        ("'train' of fold 0", "lists case_1 more than once", "List each once"),
    ),
    Row(
        "labels",
        "next to a whole number",
        lambda p: _label_file(p, _nifti(np.full((4, 4, 4), 1 + 2**-16, np.float32))),
        DataError,
        ("has the value 1.0000152587890625", "which dataset.json does not name (it names 0, 1, 2)", "Labels must be whole numbers"),
    ),
    Row(
        "labels",
        "no number",
        lambda p: _label_file(p, _nifti(np.full((4, 4, 4), np.nan, np.float32))),
        DataError,
        ("has the value nan", "Correct the label file"),
    ),
    Row("labels", "a file of nothing", lambda p: _label_file(p, b""), DataError, ("0 of 348 bytes", "Restore it")),
    Row("labels", "a cut file", lambda p: _label_file(p, _nifti(np.zeros((4, 4, 4), np.uint8))[:-1]), DataError, ("cannot be read",)),
    Row(
        "labels",
        "a packed file with the name of a plain one",
        lambda p: _label_file(p, gzip.compress(_nifti(np.zeros((4, 4, 4), np.uint8)))),
        DataError,
        ("cannot be read",),
    ),
    Row(
        "labels",
        "a header of 27000 milliards of voxels",
        lambda p: _label_file(p, _grown(_nifti(np.zeros((4, 4, 4), np.uint8)))),
        DataError,
        ("cannot be read",),
    ),
    Row(
        "labels",
        "axes that are not at right angles",
        lambda p: _label_file(p, _nifti(np.zeros((4, 4, 4), np.uint8), np.eye(4) + 0.3 * np.eye(4, k=1))),
        DataError,
        ("cannot be read", "orthonormal"),
    ),
    Row("splits", "a link that leads nowhere", lambda p: _plan(p, _linked), DataError, ("splits_final.json", "does not exist")),
    Row(
        "run folder", "run.json of another kind", lambda p: _run_folder(p, "[]").spec(), DataError, ("run.json is not a run specification",)
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_hostile_input_is_answered_by_its_error(tmp_path: Path, row: Row) -> None:
    check(row, tmp_path)
