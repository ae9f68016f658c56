"""Bad and hostile inputs, each with the error that answers it. `python -m tests.hostile_table` prints the table as Markdown.

`tests/unit/test_hostile_inputs.py` runs every row: the type of the error and the telling parts of its text (what, where, got, do).
"""

import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch

from orchestrator.dataset.folder import find_dataset
from orchestrator.errors import CheckpointError, ConfigError, DataError, NnfleetError, StorageError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import load_experiment, parse_experiment, single_training
from orchestrator.tracking.address import check_tracking_uri
from orchestrator.tracking.checkpoint_store import download_checkpoint
from orchestrator.tracking.export import fold_in
from orchestrator.tracking.records import match_run
from tests.away import Away
from tests.unit.tiny_dataset import CASES, CONFIGURATIONS, DATASET_JSON, Tiny, tiny_dataset
from trainers.contract.commits import Manifest
from trainers.contract.run_folder import RunFolder
from trainers.data.case_files import check_case, open_case, read_properties
from trainers.data.dataset import _read_locations
from trainers.network.checkpoint import read_checkpoint

MINIMAL = "dataset: 17\nconfigurations: 3d_fullres\n"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


class Evil:
    """Runs a command when a pickle of it is loaded the usual way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@dataclass
class Place:
    """A folder of its own for one input; the verbs fill it."""

    base: Path
    mark: Path = field(init=False)
    """Exists if anything of an input was executed."""

    def __post_init__(self) -> None:
        self.mark = self.base / "executed"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.base / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def experiment(self, text: str | bytes) -> object:
        return load_experiment(self.write("e.yaml", text))

    def plan(self, damage: Callable[[Tiny], object] = lambda tiny: None, configuration: str = "3d_fullres", fold: Any = 0) -> object:
        """Expand a run of a small dataset that `damage` has changed."""
        tiny = tiny_dataset(self.base / "data")
        damage(tiny)
        return expand(single_training(17, configuration, fold, **tiny.folders))

    def plans(self, **settings: Any) -> object:
        changed = {**CONFIGURATIONS["3d_fullres"], **settings}
        return self.plan(lambda tiny: tiny.write_plans(configurations={"3d_fullres": changed}))

    def labels(self, **changes: Any) -> object:
        return self.plan(lambda tiny: tiny.write_json("dataset.json", {**DATASET_JSON, **changes}))

    def splits(self, content: Any) -> object:
        return self.plan(lambda tiny: tiny.write_json("splits_final.json", content))

    def case(self, image: Any = None, labels: Any = None) -> Path:
        """A folder with one preprocessed case `c`."""
        folder = self.base / "cases"
        folder.mkdir(exist_ok=True)
        arrays = {"": np.zeros((1, 4, 5, 6), np.float32) if image is None else image, "_seg": np.zeros((1, 4, 5, 6), np.int8)}
        arrays["_seg"] = arrays["_seg"] if labels is None else labels
        for end, array in arrays.items():
            blosc2.asarray(array, urlpath=str(folder / f"c{end}.b2nd"), mode="w")
        (folder / "c.pkl").write_bytes(pickle.dumps({"class_locations": {1: np.zeros((2, 4), np.int64)}}))
        return folder

    def opened(self, damage: Callable[[Path], object] = lambda folder: None, **arrays: Any) -> object:
        folder = self.case(**arrays)
        damage(folder)
        return [np.asarray(array[:]) for array in open_case(folder, "c", 1)]

    def checked(self, damage: Callable[[Path], object]) -> object:
        folder = self.case()
        damage(folder)
        check_case(folder, "c", 1)
        return None

    def properties(self, content: bytes) -> object:
        folder = self.case()
        (folder / "c.pkl").write_bytes(content)
        return read_properties(folder, "c")

    def locations(self, value: Any) -> object:
        folder = self.case()
        (folder / "c.pkl").write_bytes(pickle.dumps(value))
        return _read_locations(folder, "c")

    def checkpoint(self, content: Any) -> object:
        path = self.base / "checkpoint_best.pth"
        torch.save(content, path)
        return read_checkpoint(path)

    def cut_checkpoint(self) -> object:
        path = self.base / "checkpoint_best.pth"
        torch.save({"network_weights": {"a": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
        return read_checkpoint(path)


class FakeTracker:
    """An MLflow server whose answers are written by hand."""

    uri = "http://mlflow"

    def __init__(self, tags: Mapping[str, str], content: bytes = b"") -> None:
        self._tags, self._content = dict(tags), content

    def tags(self, run_id: str) -> dict[str, str]:
        return self._tags

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        return {f"{directory}/checkpoint_best.pth": len(self._content)}

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        local = folder / "file"
        local.write_bytes(self._content)
        return local


def answer(directory: str, content: bytes = b"x") -> FakeTracker:
    manifest = Manifest(checkpoint="best", file="f", epoch=1, fencing_token=1, ema_pseudo_dice=0.5, sha256="0" * 64, size_bytes=1)
    tag = {"directory": directory, "manifest": manifest.model_dump()}
    return FakeTracker({"nnfleet.best": json.dumps(tag)}, content)


def fetched(place: Place, tracker: Any) -> object:
    return download_checkpoint(tracker, "run", "best", place.base / "out" / "checkpoint_best.pth")


def _npz(folder: Path, **arrays: Any) -> None:
    for path in folder.glob("*.b2nd"):
        path.unlink()
    np.savez(folder / "c.npz", **arrays)


def _linked(tiny: Tiny) -> None:
    tiny.write_plans("nnUNetPlans")
    (tiny.preprocessed / "splits_final.json").symlink_to(tiny.base / "away" / "splits_final.json")


def _nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def _dataset(place: Place, folder: str, text: str) -> object:
    there = place.base / "preprocessed"
    (there / folder).mkdir(parents=True)
    return find_dataset(there, text)


def _network(name: str, **arguments: Any) -> dict[str, Any]:
    return {"architecture": {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": list(arguments)}}


@dataclass(frozen=True)
class Row:
    """One input: what it is, how it is given, and what answers it."""

    area: str
    what: str
    give: Callable[[Place], object]
    error: type[NnfleetError]
    parts: tuple[str, ...]
    """Telling parts of the text, in any order."""


PLAIN = "must consist of letters, digits and _.+-"
UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
ROWS: tuple[Row, ...] = (
    # ---- experiment files
    Row("experiment", "empty file", lambda p: p.experiment(""), ConfigError, ("e.yaml: the file is empty", "needs at least `dataset`")),
    Row("experiment", "not UTF-8", lambda p: p.experiment(b"\xff\xfe\x00"), ConfigError, ("cannot be read as UTF-8", "Name a YAML file")),
    Row("experiment", "NUL byte", lambda p: p.experiment("a: \0"), ConfigError, ("not valid YAML", "Correct the file")),
    Row(
        "experiment",
        "a Python object",
        lambda p: p.experiment("a: !!python/object/apply:os.system [id]"),
        ConfigError,
        ("e.yaml:1", "could not determine a constructor"),
    ),
    Row("experiment", "a billion laughs", lambda p: p.experiment(BOMB), ConfigError, ("aliases stand for 1e+09 values", "at most 100000")),
    Row("experiment", "an alias within itself", lambda p: p.experiment("dataset: &a [*a]"), ConfigError, ("aliases stand for inf values",)),
    Row(
        "experiment",
        "10000 nested lists",
        lambda p: p.experiment(f"a: {_nested(10000)}"),
        ConfigError,
        ("more than 100 brackets are open within each other",),
    ),
    Row("experiment", "two megabytes", lambda p: p.experiment("#" * 2_000_000), ConfigError, ("longer than 200000 characters",)),
    Row("experiment", "a device in place of a file", lambda p: load_experiment("/dev/zero"), ConfigError, ("/dev/zero", "longer than")),
    Row(
        "experiment",
        "a number of 5000 digits",
        lambda p: p.experiment(f"dataset: {'9' * 5000}"),
        ConfigError,
        ("e.yaml:1", "at most 20 digits"),
    ),
    Row(
        "experiment",
        "endless epochs",
        lambda p: p.experiment(MINIMAL + "initial_lr: .nan"),
        ConfigError,
        ("e.yaml:3: initial_lr: got nan",),
    ),
    Row(
        "experiment",
        "never to save",
        lambda p: p.experiment(MINIMAL + "checkpoint: {every_minutes: .inf}"),
        ConfigError,
        ("checkpoint.every_minutes: inf", "finite"),
    ),
    Row(
        "experiment",
        "a million runs",
        lambda p: p.experiment(MINIMAL + f"folds: {[*range(999)]}\nseeds: {[*range(999)]}"),
        ConfigError,
        ("asks for 998001 runs", "at most 10000"),
    ),
    Row(
        "experiment",
        "20000 folds",
        lambda p: p.experiment(MINIMAL + f"folds: {[*range(20000)]}"),
        ConfigError,
        ("folds: got", "20000 entries"),
    ),
    Row(
        "experiment",
        "a password in the server's address",
        lambda p: p.experiment(MINIMAL + "tracking: {uri: 'http://me:secret@h'}"),
        ConfigError,
        ("tracking.uri", "it holds a user or password", "export MLFLOW_TRACKING_USERNAME"),
    ),
    Row(
        "experiment",
        "a file as server",
        lambda p: check_tracking_uri("file:///etc/passwd"),
        ConfigError,
        ("'file:///etc/passwd' is not the address of an MLflow server",),
    ),
    Row(
        "experiment",
        "a newline in the server's address",
        lambda p: check_tracking_uri("http://host\n:80"),
        ConfigError,
        ("'http://host\\n:80' is not the address",),
    ),
    Row(
        "experiment",
        "a port that is none",
        lambda p: check_tracking_uri("http://host:port"),
        ConfigError,
        ("'http://host:port' is not the address",),
    ),
    Row(
        "experiment",
        "a folder with a newline",
        lambda p: p.experiment(MINIMAL + 'nnUNet_results: "/a\\nb"'),
        ConfigError,
        ("nnUNet_results: got", "printable text on one line"),
    ),
    Row(
        "experiment",
        "the home of nobody",
        lambda p: parse_experiment(MINIMAL + "nnUNet_results: ~no_one_here/x\nnnUNet_preprocessed: /x").with_folders_resolved(),
        ConfigError,
        ("begins with `~`", "Write its path"),
    ),
    # ---- names
    Row(
        "name",
        "configuration ..",
        lambda p: p.experiment("dataset: 17\nconfigurations: ../../etc"),
        ConfigError,
        ("e.yaml:2: configurations.0: got '../../etc'", PLAIN),
    ),
    Row(
        "name",
        "plans with a slash",
        lambda p: p.experiment(MINIMAL + "plans: /etc/passwd"),
        ConfigError,
        ("plans.0: got '/etc/passwd'", PLAIN),
    ),
    Row(
        "name", "a shell command as plans", lambda p: p.experiment(MINIMAL + "plans: \"P'; rm -rf ~; '\""), ConfigError, ("plans.0", PLAIN)
    ),
    Row(
        "name",
        "an option as configuration",
        lambda p: p.experiment("dataset: 17\nconfigurations: --now"),
        ConfigError,
        ("got '--now'", "begin with a letter"),
    ),
    Row(
        "name",
        "a newline in a configuration",
        lambda p: p.experiment('dataset: 17\nconfigurations: "2d\\nx"'),
        ConfigError,
        ("got '2d\\nx'", PLAIN),
    ),
    Row(
        "name",
        "a slash from another script",
        lambda p: p.experiment('dataset: 17\nconfigurations: "a\\uFF0Fb"'),
        ConfigError,
        ("got 'a\uff0fb'", PLAIN),
    ),
    Row(
        "name",
        "text that is shown backwards",
        lambda p: p.experiment('dataset: 17\nconfigurations: "a\\u202Eb"'),
        ConfigError,
        ("got 'a\\u202eb'", PLAIN),
    ),
    Row(
        "name",
        "a name of 300 letters",
        lambda p: p.experiment(f"dataset: 17\nconfigurations: {'a' * 300}"),
        ConfigError,
        ("longer than 80 bytes",),
    ),
    Row(
        "name",
        "dataset with ..",
        lambda p: p.experiment("dataset: Dataset017_/../../x\nconfigurations: 2d"),
        ConfigError,
        ("e.yaml:1: dataset: got", PLAIN),
    ),
    Row(
        "name",
        "dataset folder with a quote",
        lambda p: _dataset(p, "Dataset017_it's", "17"),
        ConfigError,
        ("dataset: the folder", PLAIN, "Rename the dataset"),
    ),
    Row(
        "name",
        "name of the experiment with an escape",
        lambda p: p.experiment(MINIMAL + 'name: "\\e[2J"'),
        ConfigError,
        ("name: got '\\x1b[2J'", "printable text"),
    ),
    # ---- plans
    Row(
        "plans",
        "a data folder elsewhere",
        lambda p: p.plans(data_identifier="../../../etc"),
        DataError,
        ("data_identifier '../../../etc'", PLAIN, "Repair it or run nnUNetv2_plan_and_preprocess"),
    ),
    Row("plans", "an absolute data folder", lambda p: p.plans(data_identifier="/etc"), DataError, ("data_identifier '/etc'", PLAIN)),
    Row(
        "plans",
        "a network that runs commands",
        lambda p: p.plans(**_network("os.system")),
        DataError,
        ("architecture names 'os.system'", "dynamic_network_architectures and torch.nn alone"),
    ),
    Row(
        "plans",
        "a function behind a class's module",
        lambda p: p.plans(**_network("torch.nn.modules.conv.torch.hub.load")),
        DataError,
        ("architecture names 'torch.nn.modules.conv.torch.hub.load'",),
    ),
    Row(
        "plans",
        "a layer that runs commands",
        lambda p: p.plans(**_network(UNET, nonlin="subprocess.Popen")),
        DataError,
        ("architecture names 'subprocess.Popen'",),
    ),
    Row(
        "plans",
        "a circle of configurations",
        lambda p: p.plans(inherits_from="3d_fullres"),
        DataError,
        ("inherits from itself (3d_fullres -> 3d_fullres)", "Repair `inherits_from`"),
    ),
    Row(
        "plans",
        "a parent that is a list",
        lambda p: p.plans(inherits_from=["2d"]),
        DataError,
        ("inherits from ['2d'], which is not there",),
    ),
    Row(
        "plans",
        "a batch of words",
        lambda p: p.plans(batch_size="two"),
        DataError,
        ("batch_size must be a whole number from 1", "got 'two'"),
    ),
    Row("plans", "a batch of nothing", lambda p: p.plans(batch_size=0), DataError, ("batch_size must be a whole number from 1", "got 0")),
    Row(
        "plans",
        "a patch of 10^12 voxels on an edge",
        lambda p: p.plans(patch_size=[10**12, 8, 8]),
        DataError,
        ("patch_size must be two or three whole numbers from 1 to 100000",),
    ),
    Row("plans", "a patch with five axes", lambda p: p.plans(patch_size=[8] * 5), DataError, ("patch_size must be two or three",)),
    Row(
        "plans",
        "a reader with a path",
        lambda p: p.plan(lambda t: t.write_plans(image_reader_writer="../evil")),
        DataError,
        ("image_reader_writer of", "got '../evil'", "Repair it"),
    ),
    Row(
        "plans",
        "a configuration with an escape",
        lambda p: p.plan(lambda t: t.write_plans(configurations={"\x1b[2J": {}, **CONFIGURATIONS})),
        DataError,
        ("the configuration '\\x1b[2J'", "Rename it"),
    ),
    Row(
        "plans",
        "50000 nested lists",
        lambda p: p.plan(lambda t: (t.preprocessed / "nnUNetPlans.json").write_text(_nested(50000))),
        DataError,
        ("nnUNetPlans.json cannot be read as JSON", "recursion"),
    ),
    Row(
        "plans",
        "a number of 5000 digits",
        lambda p: p.plan(lambda t: (t.preprocessed / "nnUNetPlans.json").write_text("9" * 5000)),
        DataError,
        ("nnUNetPlans.json cannot be read as JSON", "digits"),
    ),
    Row(
        "plans",
        "half a letter",
        lambda p: p.plan(lambda t: (t.preprocessed / "nnUNetPlans.json").write_text('{"a": "\\ud800"}')),
        DataError,
        ("nnUNetPlans.json cannot be read as JSON", "surrogates not allowed"),
    ),
    # ---- dataset.json and splits
    Row(
        "dataset.json",
        "an ending with a path",
        lambda p: p.labels(file_ending="/../../x.nii"),
        DataError,
        ("file_ending of", "must be like .nii.gz", "got '/../../x.nii'"),
    ),
    Row("dataset.json", "labels that are a text", lambda p: p.labels(labels="all"), DataError, ("'labels' must map names to integers",)),
    Row(
        "dataset.json",
        "half a label",
        lambda p: p.labels(labels={"background": 0, "a": 1.5}),
        DataError,
        ("must map names to integers", "got 1.5"),
    ),
    Row(
        "dataset.json",
        "an endless label",
        lambda p: p.labels(labels={"background": 0, "a": float("inf")}),
        DataError,
        ("must map names to integers", "got inf"),
    ),
    Row(
        "dataset.json",
        "nothing to learn",
        lambda p: p.labels(labels={"background": 0}),
        DataError,
        ("names nothing but background", "Name at least one class"),
    ),
    Row(
        "dataset.json",
        "a label's name with an escape",
        lambda p: p.labels(labels={"background": 0, "a\x1b]0;x\x07": 1}),
        DataError,
        ("label name 'a\\x1b]0;x\\x07'", "printable"),
    ),
    Row(
        "dataset.json",
        "a number of channels",
        lambda p: p.labels(channel_names=3),
        DataError,
        ("channel_names of", "must map channels to names, got 3"),
    ),
    Row(
        "dataset.json",
        "regions in words",
        lambda p: p.labels(labels={"background": 0, "a": [1, 2], "b": 2}, regions_class_order=["x", "y"]),
        DataError,
        ("must map names to integers", "got 'x'"),
    ),
    Row(
        "splits",
        "a case outside",
        lambda p: p.splits([{"train": ["../../../etc/passwd"], "val": ["case_1"]}]),
        DataError,
        ("the id '../../../etc/passwd'", "splits_final.json must consist of letters", "Rename the case's files"),
    ),
    Row("splits", "a case with a newline", lambda p: p.splits([{"train": ["a\nb"], "val": ["case_1"]}]), DataError, ("the id 'a\\nb'",)),
    Row(
        "splits",
        "a case with quotes and a command",
        lambda p: p.splits([{"train": ["a'$(id)'"], "val": ["case_1"]}]),
        DataError,
        ("the id \"a'$(id)'\"",),
    ),
    Row(
        "splits",
        "a case that is an option",
        lambda p: p.splits([{"train": ["-rf"], "val": ["case_1"]}]),
        DataError,
        ("the id '-rf'", "begin with a letter"),
    ),
    Row(
        "splits",
        "a case of 300 letters",
        lambda p: p.splits([{"train": ["a" * 300], "val": ["case_1"]}]),
        DataError,
        ("longer than 150 bytes",),
    ),
    Row(
        "splits",
        "a file with a strange name, fold all",
        lambda p: p.plan(lambda t: (t.data_folder() / "a\nb.b2nd").touch(), fold="all"),
        DataError,
        ("the id 'a\\nb' in the preprocessed folder",),
    ),
    Row(
        "splits",
        "cases as one text",
        lambda p: p.splits([{"train": "case_1", "val": ["case_2"]}]),
        DataError,
        ("must be a list of objects with 'train' and 'val'",),
    ),
    Row(
        "splits",
        "cases that were never preprocessed",
        lambda p: p.splits([{"train": ["ghost"], "val": [CASES[0]]}]),
        DataError,
        ("ghost (.b2nd, _seg.b2nd, .pkl)", "Run nnUNetv2_preprocess"),
    ),
    Row("splits", "a link that leads nowhere", lambda p: p.plan(_linked), DataError, ("splits_final.json", "does not exist")),
    # ---- cases
    Row(
        "case",
        "truncated blosc2",
        lambda p: p.opened(lambda f: (f / "c.b2nd").write_bytes((f / "c.b2nd").read_bytes()[:60])),
        DataError,
        ("case c in", "cannot be read", "Run nnUNetv2_preprocess again"),
    ),
    Row(
        "case",
        "an empty file",
        lambda p: p.opened(lambda f: (f / "c_seg.b2nd").write_bytes(b"")),
        DataError,
        ("case c in", "cannot be read"),
    ),
    Row(
        "case",
        "not blosc2 at all",
        lambda p: p.opened(lambda f: (f / "c.b2nd").write_bytes(b"hello" * 99)),
        DataError,
        ("case c in", "cannot be read"),
    ),
    Row(
        "case",
        "image without channels",
        lambda p: p.opened(image=np.zeros((4, 5, 6), np.float32)),
        DataError,
        ("has an image of shape (4, 5, 6), expected (1, Z, Y, X)",),
    ),
    Row(
        "case",
        "more channels than named",
        lambda p: p.opened(image=np.zeros((3, 4, 5, 6), np.float32)),
        DataError,
        ("shape (3, 4, 5, 6), expected (1,",),
    ),
    Row(
        "case",
        "labels of another case",
        lambda p: p.opened(labels=np.zeros((1, 9, 5, 6), np.int8)),
        DataError,
        ("labels of shape (1, 9, 5, 6) beside an image of shape (1, 4, 5, 6)",),
    ),
    Row(
        "case", "texts in place of voxels", lambda p: p.opened(image=np.full((1, 4, 5, 6), "a", "U4")), DataError, ("in place of numbers",)
    ),
    Row(
        "case",
        "an image without voxels",
        lambda p: p.opened(lambda f: _npz(f, data=np.zeros((1, 0, 5, 6)), seg=np.zeros((1, 0, 5, 6)))),
        DataError,
        ("shape (1, 0, 5, 6), expected",),
    ),
    Row(
        "case",
        "npz with pickled objects",
        lambda p: p.opened(lambda f: _npz(f, data=np.array([Evil(p.mark)], object), seg=np.zeros(1))),
        DataError,
        ("cannot be read", "allow_pickle=False"),
    ),
    Row(
        "case",
        "npz without labels",
        lambda p: p.opened(lambda f: _npz(f, data=np.zeros((1, 4, 5, 6)))),
        DataError,
        ("cannot be read", "seg"),
    ),
    Row(
        "case",
        "broken npz",
        lambda p: p.opened(lambda f: (_npz(f), (f / "c.npz").write_bytes(b"PK\x03\x04"))),
        DataError,
        ("cannot be read",),
    ),
    Row(
        "case",
        "a disk that gives no bytes",
        lambda p: p.opened(lambda f: Away(f / "c.b2nd")),
        StorageError,
        ("c.b2nd cannot be read: the file system is away", "Bring back the disk"),
    ),
    Row(
        "case",
        "packed npz without labels, before a worker starts",
        lambda p: p.checked(lambda f: _npz(f, data=np.zeros((1, 4, 5, 6)))),
        DataError,
        ("c.npz lacks seg", "Run nnUNetv2_preprocess again"),
    ),
    Row(
        "case",
        "a cut packed npz, before a worker starts",
        lambda p: p.checked(lambda f: (_npz(f), (f / "c.npz").write_bytes(b"PK\x03\x04"))),
        DataError,
        ("case c in", "cannot be read"),
    ),
    Row(
        "pkl",
        "a pickle that runs a command",
        lambda p: p.properties(pickle.dumps(Evil(p.mark))),
        DataError,
        ("c.pkl is not read", "'posix.system'", "could run code", "Find out who wrote it"),
    ),
    Row(
        "pkl",
        "the same in the oldest protocol",
        lambda p: p.properties(pickle.dumps({"a": Evil(p.mark)}, 0)),
        DataError,
        ("'posix.system'",),
    ),
    Row(
        "pkl",
        "an array of objects",
        lambda p: p.properties(pickle.dumps(np.array([1, None], object))),
        DataError,
        ("an array of type 'O8'",),
    ),
    Row(
        "pkl",
        "truncated",
        lambda p: p.properties(pickle.dumps({"a": np.zeros(99)})[:80]),
        DataError,
        ("c.pkl is not read", "no whole pickle"),
    ),
    Row("pkl", "empty", lambda p: p.properties(b""), DataError, ("no whole pickle",)),
    Row(
        "pkl",
        "an array that says to be larger",
        lambda p: p.properties(pickle.dumps(np.zeros(4)).replace(b"K\x04\x85", b"K\x09\x85")),
        DataError,
        ("an array of shape (9,) in 32 bytes",),
    ),
    Row(
        "pkl", "an announced exabyte", lambda p: p.properties(b"\x80\x05\x96" + b"\xff" * 7 + b"\x00."), DataError, ("bytes in a file of",)
    ),
    Row(
        "pkl",
        "a million nested tuples",
        lambda p: p.properties(b"\x80\x04)" + b"\x85" * 10**6 + b"."),
        DataError,
        ("more than 50 containers",),
    ),
    Row("pkl", "no properties", lambda p: p.properties(pickle.dumps([1])), DataError, ("holds a list, no properties",)),
    Row(
        "pkl",
        "no voxels to draw from",
        lambda p: p.locations({"spacing": (1.0,)}),
        DataError,
        ("c.pkl holds no voxels", "no class_locations"),
    ),
    Row(
        "pkl",
        "voxels at negative places",
        lambda p: p.locations({"class_locations": {1: np.full((2, 4), -5)}}),
        DataError,
        ("are no list of voxels (N, 4)",),
    ),
    # ---- checkpoints and what MLflow answers
    Row(
        "checkpoint", "truncated", lambda p: p.cut_checkpoint(), CheckpointError, ("checkpoint_best.pth cannot be read", "Restore the file")
    ),
    Row(
        "checkpoint",
        "pickled code",
        lambda p: p.checkpoint({"network_weights": {}, "x": Evil(p.mark)}),
        CheckpointError,
        ("names posix.system", "could run code"),
    ),
    Row(
        "checkpoint",
        "other keys",
        lambda p: p.checkpoint({"state_dict": {}}),
        CheckpointError,
        ("holds no tensors under 'network_weights'", "Take another one"),
    ),
    Row(
        "checkpoint",
        "weights that are words",
        lambda p: p.checkpoint({"network_weights": {"a": "b"}}),
        CheckpointError,
        ("holds no tensors under 'network_weights'",),
    ),
    Row(
        "checkpoint",
        "missing",
        lambda p: read_checkpoint(p.base / "none.pth"),
        CheckpointError,
        ("none.pth cannot be read", "FileNotFoundError"),
    ),
    Row(
        "run folder", "run.json of another kind", lambda p: _run_folder(p, "[]").spec(), DataError, ("run.json is not a run specification",)
    ),
    Row(
        "MLflow",
        "bytes that are not those published",
        lambda p: fetched(p, answer("checkpoints/best/e00001-00000000")),
        CheckpointError,
        ("is not the file of its manifest", "It is not used"),
    ),
    Row(
        "MLflow",
        "a checkpoint outside its folder",
        lambda p: fetched(p, answer("checkpoints/best/../../../etc")),
        CheckpointError,
        ("has no best checkpoint",),
    ),
    Row(
        "MLflow",
        "a tag that is no record",
        lambda p: fetched(p, FakeTracker({"nnfleet.best": '{"directory": 7}'})),
        CheckpointError,
        ("has no best checkpoint",),
    ),
    Row(
        "MLflow",
        "a fold outside its folder",
        lambda p: fold_in({"nnfleet.fold": "../../x"}),
        CheckpointError,
        ("tag nnfleet.fold is '../../x'", "Nothing was written"),
    ),
    Row("MLflow", "a run nobody knows", lambda p: match_run("x\n'; --", []), ConfigError, ('no run in MLflow is called "x\\n\'; --"',)),
)


def _run_folder(place: Place, content: str) -> RunFolder:
    folder = RunFolder(place.base / "fold_0")
    folder.own.mkdir(parents=True)
    folder.spec_file.write_text(content)
    return folder


def answered(row: Row, base: Path) -> tuple[NnfleetError, bool]:
    """Give a row's input; returns the error that answers it, and whether anything of the input was executed."""
    place = Place(base)
    try:
        row.give(place)
    except NnfleetError as err:
        return err, place.mark.exists()
    raise AssertionError(f"{row.area}, {row.what}: nothing was refused")


def main() -> None:
    """Print the table."""
    print("| # | input | what | error | text |\n| --- | --- | --- | --- | --- |")
    for number, row in enumerate(ROWS, 1):
        with tempfile.TemporaryDirectory(prefix="nnf-") as folder:
            error, _ = answered(row, Path(folder))
            text = " ".join(str(error).replace(folder, "...").replace("|", "\\|").split())
        print(f"| {number} | {row.area} | {row.what} | {type(error).__name__} | {text[:300]} |")


if __name__ == "__main__":
    main()
