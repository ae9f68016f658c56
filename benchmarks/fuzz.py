"""Throws damaged and hostile bytes at everything that reads a file or an answer: only errors of nnfleet's own tree may come out.

    python -m benchmarks.fuzz --minutes 10 --seed 1

Each round takes one reader, damages a sound document of its kind (bits, cuts, repetitions, other documents, a dictionary of traps) and
gives it. Counted as a fault: any other exception, an answer that takes longer than SLOW_S, anything that was executed. Faulty inputs
are kept in `--keep`. One process; the same seed gives the same inputs.
"""

import argparse
import contextlib
import json
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.campaign.events import CampaignLog
from orchestrator.cluster.capacity import usable_cpus, usable_memory
from orchestrator.cluster.home import Home
from orchestrator.cluster.mlflow_store import read_settings
from orchestrator.cluster.neighbours import read_notice
from orchestrator.cluster.service_records import read_ports, read_record
from orchestrator.dataset.label_files import read_label_files
from orchestrator.dataset.preflight import usable_configuration
from orchestrator.experiment.model import parse_experiment
from orchestrator.imported.scores import dice_of_summary
from orchestrator.publishing.checkpoint_store import published
from orchestrator.run.activity import has_begun, owner_of
from orchestrator.run.outcome import read_outcome
from orchestrator.tracking.records import metric_names
from orchestrator.training.failures import read_failures
from tests.fake_run import epoch_row
from tests.unit.old_plans import old_configuration
from tests.unit.tiny_dataset import CONFIGURATIONS, DATASET_JSON
from trainers.contract.architecture import target_scales
from trainers.contract.cascade import NextStageRecord
from trainers.contract.cascade import read_record as read_stage_record
from trainers.contract.commits import Committed, Manifest, newest_committed
from trainers.contract.fencing import count_drivers
from trainers.contract.plans import labels_of, load_dataset_json, load_plans, load_splits, num_input_channels
from trainers.contract.records import (
    Undelivered,
    read_heartbeat,
    read_mlflow_run,
    read_published_files,
    read_result,
    read_validation_heartbeat,
)
from trainers.contract.records import read_record as read_run_record
from trainers.contract.requests import read_stop_request, stop_request_seen
from trainers.contract.run_folder import RunFolder
from trainers.data.case_files import read_properties
from trainers.data.dataset import read_locations
from trainers.data.nnunet_checkpoint import read_training_facts
from trainers.errors import NnfleetError
from trainers.network.checkpoint import read_checkpoint

SLOW_S = 10
TRAPS: tuple[bytes, ...] = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n---\n",
        b"\t",
        b"\\ud800",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"../",
        b"/etc/passwd",
    ),
    *(b"NaN", b"Infinity", b"-0", b"1e999", b"9" * 400, b"9" * 5000, b"0x" + b"f" * 3000, b"-1", b"null", b"true", b"[]", b"{}", b'""'),
    *(
        b"[" * 2000,
        b"{" * 2000,
        b'{"a":' * 2000,
        b"((" * 500,
        b"!!python/object/apply:os.system [id]",
        b"!!binary x",
        b"!!set {a}",
        b"&a [*a]",
    ),
    *(
        b"<<: *a",
        b"? [a]",
        b"%YAML 9.9\n",
        b"2001-99-99",
        b"12:99:99",
        b"0o99",
        b"0b2",
        b"_",
        b"~x",
        b"cos\nsystem\n(S'id'\ntR.",
        b"\x85" * 3000,
    ),
    *(b"\x8e" + b"\xff" * 8, b"\x96" + b"\xff" * 7 + b"\0", b"r\xff\xff\xff\x7f", b"b.", b"R.", b"\x81.", b"\x93.", b"Q.", b"\x94h\0."),
    *(b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in b"abcdefgh"),),
)


class Marked:
    """Leaves a mark when a pickle of it is executed."""

    path = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


class Answers:
    """An MLflow server that answers with one tag."""

    def __init__(self, value: str) -> None:
        self._value = value

    def tags(self, run_id: str) -> dict[str, str]:
        return {"nnfleet.best": self._value}


@dataclass
class Target:
    """A reader: where its document lies below the base folder, sound documents, and the call."""

    file: str
    seeds: list[bytes]
    read: Callable[[Path, bytes], object]


@dataclass
class Tally:
    """What came out of one reader."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: bytes = b""


def targets(base: Path) -> dict[str, Target]:
    """Every reader of files and answers that others may write."""
    return {**_documents(base), **_case_targets(base), **_run_targets(base), **_machine_targets(base)}


def _documents(base: Path) -> dict[str, Target]:
    """What people and nnU-Net write, and what servers and campaigns answer."""
    data = base / "data"
    return {
        "experiment": Target("e.yaml", _experiments(), lambda p, b: parse_experiment(b.decode("utf-8", "surrogateescape")).to_yaml()),
        "plans": Target("data/P.json", [_plans_document(), _old_plans_document()], lambda p, b: _plans(data)),
        "dataset.json": Target("data/dataset.json", _dataset_documents(), lambda p, b: _labels(data)),
        "splits": Target("data/splits_final.json", [_json([{"train": ["a", "b"], "val": ["c"]}])], lambda p, b: load_splits(data)),
        "MLflow tag": Target("tag", [_tag()], lambda p, b: published(Answers(b.decode("utf-8", "replace")), "r", "best")),  # type: ignore[arg-type]
        "campaign log": Target("log", _logs(), lambda p, b: CampaignLog().update(b.decode("utf-8", "replace"))),
    }


def _case_targets(base: Path) -> dict[str, Target]:
    """Files of cases, and checkpoints."""
    cache = {"version": 2, "files": {"labels by SimpleITKIO: /x": [1, 2, "ab", [0.0, 1.0]], "values: /y": [1, 2, "ab", []]}}
    return {
        **{f"labels {name}": _label_target(name, reader, documents) for name, reader, documents in _label_files(base)},
        "digest cache": Target("cache.json", [_json(cache)], lambda p, b: read_label_files({"c": base / "none.nii"}, "SimpleITKIO", p)),
        "pkl": Target("c.pkl", _pickles(base), lambda p, b: read_properties(base, "c")),
        "class_locations": Target("c.pkl", _pickles(base), lambda p, b: read_locations(base, "c")),
        "first stage's record": Target(
            "nnfleet/c.json",
            [_json(NextStageRecord(run_key="k", file="c.b2nd", size_bytes=3).model_dump())],
            lambda p, b: read_stage_record(base, "c"),
        ),
        "nnU-Net's checkpoint": Target("n.pth", _checkpoints(base), lambda p, b: read_training_facts(p)),
        "nnU-Net's summary": Target("validation/summary.json", [_summary()], lambda p, b: dice_of_summary(RunFolder(base), ".nii")),
        "checkpoint": Target("c.pth", _checkpoints(base), lambda p, b: read_checkpoint(p)),
    }


def _label_target(name: str, reader: str, documents: list[bytes]) -> Target:
    """Label files: whatever their bytes, the reading says what is wrong with them."""
    return Target(f"l{name}", documents, lambda p, b: read_label_files({"c": p}, reader))


def _run_targets(base: Path) -> dict[str, Target]:
    """The records of a run folder."""
    folder = RunFolder(base / "model" / "fold_0")
    own = "model/fold_0/nnfleet"
    claim = {"attempt": 1, "driver": "d", "job": "j", "role": "driver", "claimed_unix": 1.0}
    outcome = {"job": "training", "state": "TRAINED", "attempt": 1, "message": "m", "evidence": ""}
    heartbeat = {"epoch": 1, "iteration": 2, "phase": "train", "unix": 1.7e9, "attempt": 1}
    documents: dict[str, tuple[str, bytes, Callable[[], object]]] = {
        "state": ("state/e00001_a0001.json", _committed(), lambda: newest_committed(folder)),
        "run.json": ("run.json", _spec(base), lambda: folder.spec().address),
        "outcome": ("outcome.json", _json(outcome), lambda: read_outcome(folder)),
        "failures": ("failures/0001.json", _failure(), lambda: read_failures(folder)),
        "heartbeat": ("progress.json", _json(heartbeat), lambda: (read_heartbeat(folder), has_begun(folder))),
        "token": ("attempts/0001.json", _json(claim), lambda: (owner_of(folder), count_drivers(folder))),
        "stop": ("stop.json", _json({"now": True}), lambda: (read_stop_request(folder), stop_request_seen(folder))),
        "case result": ("cases/best/c.json", _result(), lambda: read_result(folder, "best", "c")),
        "mlflow.json": ("mlflow.json", _json({"run_id": "r", "tracking_uri": "http://h"}), lambda: read_mlflow_run(folder)),
        "delivered": ("published.json", _json({"run_id": "r", "files": {"a": "0" * 64}}), lambda: read_published_files(folder)),
        "validating": (
            "validating.json",
            _json({"attempt": 1, "checkpoint": "best", "done": 1, "cases": 2}),
            lambda: read_validation_heartbeat(folder),
        ),
        "undelivered": (
            "undelivered/epochs.json",
            _json({"what": "w", "since_unix": 1.0, "because": "full"}),
            lambda: read_run_record(folder.own / "undelivered/epochs.json", Undelivered),
        ),
    }
    return {
        name: Target(f"{own}/{file}", [content], lambda p, b, read=read: read())  # type: ignore[misc]
        for name, (file, content, read) in documents.items()
    }


def _machine_targets(base: Path) -> dict[str, Target]:
    """What stands in the home folder, and what the kernel and other users leave on this machine."""
    home = Home(base / "home")
    limits = base / "limits"
    membership = base / "membership"
    membership.write_text("0::/\n")
    return {
        "services": Target("home/services.json", [_services()], lambda p, b: read_record(home)),
        "ports": Target("home/ports.json", [_json({"ray": 1, "mlflow": 2})], lambda p, b: read_ports(home)),
        "MLflow settings": Target(
            str(home.mlflow_settings.relative_to(base)),
            [_json({"allowed_hosts": ["a.b"], "artifacts": "/x"})],
            lambda p, b: read_settings(home),
        ),
        "notice of a head": Target("nnfleet-head-0-x.json", [_notice()], lambda p, b: read_notice(p)),
        "cgroups": Target(
            "cgroup", [b"0::/a/b\n", b"5:cpu,cpuacct:/a\n4:memory:/b\n"], lambda p, b: (usable_cpus(p, limits), usable_memory(p, limits))
        ),
        "cpu.max": Target("limits/cpu.max", [b"200000 100000\n", b"max 100000\n"], lambda p, b: usable_cpus(membership, limits)),
        "memory.max": Target("limits/memory.max", [b"1073741824\n", b"max\n"], lambda p, b: usable_memory(membership, limits)),
    }


def _plans(data: Path) -> None:
    plans = load_plans(data, "P")
    for name in plans.configurations:
        target_scales(usable_configuration(plans, name))


def _labels(data: Path) -> object:
    content = load_dataset_json(data)
    labels = labels_of(content)
    return metric_names(list(labels.foreground)), labels.num_heads, labels.values, num_input_channels(content)


def damaged(draw: random.Random, seeds: list[bytes], others: list[bytes]) -> bytes:
    """A sound document with one to six faults."""
    content = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        at = draw.randint(0, len(content))
        size = draw.choice((1, 1, 2, 4, 16, 200))
        match draw.randrange(9):
            case 0:
                content[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = draw.choice(TRAPS)
            case 3:
                content[at : at + size] = draw.choice(TRAPS)
            case 4:
                content[at:at] = content[at : at + size] * draw.choice((1, 3, 50))
            case 5:
                content = content[:at]
            case 6:
                other = draw.choice(others)
                start = draw.randint(0, len(other))
                content[at : at + size] = other[start : start + draw.choice((4, 40, 400))]
            case 7:
                _swap_value(draw, content)
            case 8 if content:
                content[min(at, len(content) - 1)] ^= 1 << draw.randrange(8)
    return bytes(content[:200_000])


def _swap_value(draw: random.Random, content: bytearray) -> None:
    """Put a trap where a value stands: behind a colon, up to the next comma or line."""
    colons = [at for at, letter in enumerate(content) if letter == ord(":")]
    if colons:
        start = draw.choice(colons) + 1
        ends = [found for mark in b",\n}]" if (found := content.find(bytes([mark]), start)) > 0]
        content[start : min(ends, default=len(content))] = b" " + draw.choice(TRAPS)


def fuzz(seconds: float, seed: int, keep: Path | None = None, names: list[str] | None = None, limit_s: float = 0.0) -> dict[str, Tally]:
    """Fuzz for `seconds`; the tally of every reader. With `limit_s` a slower answer is a fault (needs `_on_alarm` as SIGALRM's handler)."""
    draw = random.Random(seed)
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="nnf-fuzz-") as name:
        base = Path(name)
        readers = targets(base)
        others = [document for target in readers.values() for document in target.seeds]
        tallies = {reader: Tally() for reader in names or readers}
        while time.monotonic() < until:
            for reader, tally in tallies.items():
                content = damaged(draw, readers[reader].seeds, others)
                fault = _given(base, readers[reader], content, tally, limit_s)
                if fault and keep is not None and tally.faults[fault] <= 3:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{reader.replace(' ', '_')}-{sum(tally.faults.values())}.bin").write_bytes(content)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for reader, tally in tallies.items():
                (keep / f"{reader.replace(' ', '_')}-slowest.bin").write_bytes(tally.slowest)
    return tallies


def _given(base: Path, target: Target, content: bytes, tally: Tally, limit_s: float) -> str:
    """Give one document; returns the fault that it met, if any."""
    path = base / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    started, fault = time.perf_counter(), ""
    if limit_s:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        target.read(path, content)
        tally.accepted += 1
    except NnfleetError as err:
        tally.refused[type(err).__name__] += 1
    except BaseException as err:
        if isinstance(err, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(err.__traceback__)[-1]
        fault = f"{type(err).__name__}: {str(err)[:80]} ({Path(frame.filename).name}:{frame.lineno})"
    finally:
        if limit_s:
            signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - started
    if seconds > tally.slowest_s:
        tally.slowest_s, tally.slowest = seconds, content
    if (mark := base / "executed").exists():
        mark.unlink()
        fault = "EXECUTED"
    if fault:
        tally.faults[fault] += 1
    path.unlink(missing_ok=True)
    return fault


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what readers in C print about each broken file."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        sys.stdout.flush()
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nowhere)


class Slow(BaseException):
    """A reader did not answer in time."""


def _on_alarm(*_: object) -> None:
    raise Slow


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _experiments() -> list[bytes]:
    whole = b"""name: all keys
dataset: 17
nnUNet_preprocessed: /data/preprocessed
nnUNet_results: ~/results
plans: [nnUNetPlans, nnUNetResEncUNetMPlans]
configurations: [2d, 3d_fullres]
trainers: [default, da5]
folds: [0, 1, all]
seeds: [0, 1]
epochs: 10
initial_lr: 1e-2
workers: {count: 2, gpus: 1, cpus: 8}
loader: {actors: 4, prefetch: 2}
checkpoint: {every_minutes: 5}
validation: {checkpoints: [best], surface_tolerance_mm: 1.0}
replicate: again
tracking: {uri: "http://host:5000", experiment: e, upload_interval_s: 60, local_artifacts: true}
images: true
"""
    return [whole, b"dataset: Dataset017_BTCV\nconfigurations: 3d_fullres\n", b'{"dataset": "017", "configurations": ["2d"], "folds": 0}']


def _plans_document() -> bytes:
    stages = {"n_stages": 2, "strides": [[1, 1, 1], [2, 2, 2]], "kernel_sizes": [[3, 3, 3], [3, 3, 3]], "features_per_stage": [4, 8]}
    blocks = {"n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2]}
    layers = {**stages, **blocks, "conv_op": "torch.nn.modules.conv.Conv3d", "nonlin": "torch.nn.LeakyReLU"}
    network = {"network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet", "arch_kwargs": layers}
    whole = {**CONFIGURATIONS["3d_fullres"], "architecture": {**network, "_kw_requires_import": ["conv_op", "nonlin"]}}
    small = {"inherits_from": "3d_fullres", "batch_size": 4}
    return _json({"configurations": {"3d_fullres": whole, "small": small}, "image_reader_writer": "SimpleITKIO"})


def _old_plans_document() -> bytes:
    return _json({"configurations": {"3d_fullres": old_configuration()}, "image_reader_writer": "SimpleITKIO"})


def _dataset_documents() -> list[bytes]:
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    return [_json(DATASET_JSON), _json({**DATASET_JSON, "labels": regions, "regions_class_order": [1, 2]})]


def _manifest() -> Manifest:
    return Manifest(
        checkpoint="best", file="nnfleet/best/e1.pth", epoch=0, fencing_token=1, ema_pseudo_dice=0.5, sha256="0" * 64, size_bytes=9
    )


def _committed() -> bytes:
    history = (epoch_row(0), epoch_row(1))
    state = Committed(
        run_key="k", epochs_done=2, fencing_token=1, history=history, best=_manifest(), state_sha256="0" * 64, state_size_bytes=1
    )
    return state.model_dump_json().encode()


def _spec(base: Path) -> bytes:
    fields = {"run_key": "k", "dataset": "Dataset001_X", "plans": "P", "configuration": "2d", "trainer": "nnUNetTrainer", "fold": 0}
    folders = {"preprocessed_folder": str(base), "model_folder": str(base)}
    return _json({**fields, **folders, "train_cases": ["a"], "val_cases": ["b"], "data_digest": "0" * 64})


def _failure() -> bytes:
    places = {"driver": "d", "attempt": 1, "epochs_done": 1, "iteration": 0}
    return _json({**places, "kind": "user", "state": "FAILED_CONFIG", "message": "m", "evidence": "e"})


def _result() -> bytes:
    numbers = {"tp": 1, "fp": 0, "fn": 0, "tn": 9, "dice": 1.0, "iou": 1.0, "hd95_mm": 0.0, "nsd": 1.0}
    files = {"case_id": "c", "checkpoint_sha256": "0" * 64, "reference_file": "r", "prediction_file": "p"}
    return _json({**files, "surface_tolerance_mm": 1.0, "metrics": {"organ": numbers}, "seconds": 1.0})


def _tag() -> bytes:
    return _json({"directory": "checkpoints/best/e00001-00000000", "manifest": _manifest().model_dump()})


def _logs() -> list[bytes]:
    status = {"run_key": "k", "address": "17/2d/nnUNetTrainer/0", "state": "RUNNING"}
    events = [
        {"event": "status", "status": status},
        {"event": "error", "error": "DataError", "message": "m"},
        {"event": "done", "exit_code": 0},
    ]
    return [b"".join(b"NNFLEET " + _json(event) + b"\n" for event in events), b"NNFLEET []\nNNFLEET 1\nplain\n"]


def _pickles(base: Path) -> list[bytes]:
    Marked.path = str(base / "executed")
    locations = {1: np.arange(40).reshape(10, 4), (1, 2): [], 3: np.zeros((0, 4), np.int64)}
    sitk = {"spacing": (1.0, 1.0, 2.0), "origin": (0.0,), "original_orientation": "LPS"}
    value = {"class_locations": locations, "sitk_stuff": sitk, "affine": np.eye(4), "bbox": [[np.int64(0), 4]], "shape": (4, 5, 6)}
    return [
        *(pickle.dumps(value, protocol) for protocol in range(6)),
        pickle.dumps({"class_locations": Marked()}),
        pickle.dumps(Marked(), 0),
    ]


def _label_files(base: Path) -> list[tuple[str, str, list[bytes]]]:
    """Ending, reader and sound documents of label files. ITK's own parsers of NRRD and MetaImage are left out: a header that is written
    to do harm (`kinds:` of 3,000 letters) ends any process that uses them."""
    import SimpleITK as sitk  # noqa: N813 - its own name in its documentation

    image = sitk.GetImageFromArray(np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3)
    made: dict[str, bytes] = {}
    for ending in (".nii", ".nii.gz", ".tif"):
        path = base / f"made{ending}"
        sitk.WriteImage(image, str(path))
        made[ending] = path.read_bytes()
        path.unlink()
    readers = {".nii": "NibabelIO", ".tif": "Tiff3DIO"}
    return [(ending, readers.get(ending, "SimpleITKIO"), [content]) for ending, content in made.items()]


def _services() -> bytes:
    record = {"name": "ray", "pid": 1, "started_unix": 1.0, "mark": "m", "port": 1, "host": socket.gethostname(), "boot_id": "b"}
    offer = {"cpus": 2, "gpu_ids": ["0"], "memory_gib": 4.0}
    return _json({"records": {"ray": record}, "asked": {"cpus": 2, "gpus": None, "memory_gib": 1.5}, "offer": offer})


def _notice() -> bytes:
    offer = {"cpus": 2, "gpu_ids": [], "memory_gib": 4.0}
    return _json({"uid": 0, "user": "u", "home": "x", "pid": 1, "started_unix": 1.0, "boot_id": "b", "offer": offer})


def _summary() -> bytes:
    return _json({"metric_per_case": [{"prediction_file": "/p/c.nii", "metrics": {"1": {"Dice": 0.5}, "(1, 2)": {"Dice": float("nan")}}}]})


def _checkpoints(base: Path) -> list[bytes]:
    import torch

    documents = []
    contents: tuple[dict[str, Any], ...] = ({"trainer_name": "t", "current_epoch": 1}, {"x": Marked()})
    for content in contents:
        path = base / "made.pth"
        torch.save({"network_weights": {"a": torch.arange(8.0), "b": torch.zeros(2, 3)}, **content}, path)
        documents.append(path.read_bytes())
        path.unlink()
    return documents


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for inputs that met a fault")
    parser.add_argument("--only", nargs="*", help="names of readers")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _on_alarm)
    import logging

    logging.disable(logging.CRITICAL)  # readers tell of every broken file
    with silent():
        tallies = fuzz(options.minutes * 60, options.seed, options.keep, options.only, SLOW_S)
    print("| reader | inputs | accepted | refused by | slowest s | faults |\n| --- | --- | --- | --- | --- | --- |")
    for name, tally in tallies.items():
        inputs = tally.accepted + tally.refused.total() + tally.faults.total()
        refused = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.refused.items())) or "-"
        print(f"| {name} | {inputs} | {tally.accepted} | {refused} | {tally.slowest_s:.2f} | {tally.faults.total()} |")
    for name, tally in tallies.items():
        for fault, count in tally.faults.most_common():
            print(f"FAULT {name}: {count} x {fault}")
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
