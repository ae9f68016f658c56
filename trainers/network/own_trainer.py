"""A trainer of the user's, a subclass of nnU-Net's: imported, made for a run, asked for its network and its checkpoint.

Its loop is `trainers/training/own_loop.py`'s business. nnU-Net's own trainer is imported here alone, and only when a run names such a
class: that takes seconds and 0.9 GB. Sources: nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (`__init__`, `initialize`,
`save_checkpoint`, `load_checkpoint`), nnunetv2/inference/predict_from_raw_data.py (`initialize_from_trained_model_folder`).
"""

import contextlib
import inspect
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainers.contract.commits import BestRecord, state_stem
from trainers.contract.own_code import fault_text, own_function
from trainers.contract.plans import load_dataset_json, plans_of, without_cases
from trainers.contract.run_spec import OwnCode, RunSpec, Schedule
from trainers.contract.trainer_table import REFUSED
from trainers.errors import CheckpointError, ConfigError, DataError, NnfleetError
from trainers.network.checkpoint import Checkpoint, checkpoint_header, read_checkpoint, training_part, whole_state
from trainers.storage.faults import is_there
from trainers.storage.files import takes_files

log = logging.getLogger(__name__)
ITERATIONS = {"num_iterations_per_epoch": "train_iterations", "num_val_iterations_per_epoch": "val_iterations"}
"""Attributes of a trainer -> the fields of the schedule that it gets there; the defaults of both are nnU-Net's."""
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's variable: whatever nnU-Net's code asks, nothing of a checkpoint is executed."""
OURS = ("trainer_name", "init_args", "inference_allowed_mirroring_axes", "_best_ema", "current_epoch")
"""Of a checkpoint: what every state of ours has of its own."""


def trainer_class(code: OwnCode) -> Any:
    """The class. Raises ConfigError where it cannot be imported, or is no trainer whose runs can be validated here."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    found, name = own_function("trainer", code), code.name.partition(":")[2]
    if not (isinstance(found, type) and issubclass(found, nnUNetTrainer)):
        raise ConfigError(f"trainers: {code.name} is no subclass of nnU-Net's nnUNetTrainer. Derive it from that, or from one of its own.")
    if found.__name__ != name:
        raise ConfigError(f"trainers: the class that {code.name} names is called {found.__name__}, as its checkpoints would be. Name that.")
    if name in REFUSED and not found.__module__.startswith("nnunetv2."):
        raise ConfigError(f"trainers: {code.name} has the name of a trainer of nnU-Net's, with which nnU-Net would predict. Rename it.")
    kind: Any = found
    for method in ("do_split", "get_tr_and_val_datasets"):
        if getattr(kind, method) is not getattr(nnUNetTrainer, method):
            raise ConfigError(
                f"trainers: {code.name} has a {method} of its own, and the split decides which cases nnfleet validates with. Remove it and "
                "write the split into splits_final.json."
            )
    return kind


def network_by_trainer(code: OwnCode, plans: Any, configuration: Any, channels: int, heads: int) -> nn.Module:
    """The network that predicts, built by the class as nnU-Net's predictor has it built. `plans`, `configuration`: nnU-Net's managers.

    Raises ConfigError.
    """
    build = trainer_class(code).build_network_architecture
    is_current = "plans_manager" in inspect.signature(build).parameters
    names = ("network_arch_class_name", "network_arch_init_kwargs", "network_arch_init_kwargs_req_import")
    described = (plans, configuration) if is_current else tuple(getattr(configuration, name) for name in names)
    with blamed(code, "build_network_architecture"):
        made = build(*described, channels, heads, enable_deep_supervision=False)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"trainers: build_network_architecture of {code.name} returned {type(made).__name__}, which is no torch network.")
    return made


@contextlib.contextmanager
def blamed(code: OwnCode, what: str) -> Iterator[None]:
    """Turn what the user's code raises into ConfigError, with its own line; what disk, memory or GPU does not give stays as it is."""
    try:
        yield
    except (NnfleetError, OSError, MemoryError):
        raise
    except Exception as err:
        if is_of_gpu(err):
            raise
        raise ConfigError(f"trainers: {what} of {code.name} failed: {fault_text(err, code)}.") from err


def is_of_gpu(error: Exception) -> bool:
    """True for what a GPU, or its driver, has failed in or has no memory for."""
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))  # the latter from torch 2.8 on
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def set_environment(spec: RunSpec, results: Path) -> None:
    """What nnU-Net reads from the environment of this process; below `results` it makes folders that nobody needs."""
    os.environ.update(
        nnUNet_preprocessed=str(spec.preprocessed_folder.parent),
        nnUNet_results=str(results),
        nnUNet_n_proc_DA=str(spec.loader.actors),
        nnUNet_def_n_proc="1",
        nnUNet_compile="t" if spec.compile and spec.workers.gpus else "f",
    )


def made_trainer(spec: RunSpec, device: torch.device, results: Path, *, goes_on: bool = False) -> Any:
    """The initialised trainer of a run, as nnU-Net's command makes it, with the run's schedule, data and split.

    What nnU-Net writes for a whole model goes below `results`, what it prints to the log. `goes_on`: a state will be loaded into it.
    Raises ConfigError, DataError.
    """
    code = spec.own.named["trainer"]
    _check_fingerprint(spec)
    kind, plans = trainer_class(code), {**deepcopy(plans_of(spec).content), "continue_training": goes_on}
    set_environment(spec, results)
    with blamed(code, "the constructor"):
        trainer = kind(plans, spec.configuration, spec.fold, load_dataset_json(spec.preprocessed_folder), device)
    trainer.print_to_log_file = _print_to_log
    trainer.plot_network_architecture = _nothing
    trainer.output_folder_base = str(results)
    trainer.preprocessed_dataset_folder_base = str(spec.preprocessed_folder)
    data_folder = str(trainer.configuration_manager.data_identifier)
    trainer.preprocessed_dataset_folder = str(spec.preprocessed_folder / data_folder)
    trainer.do_split = lambda: (list(spec.train_cases), list(spec.val_cases))
    _set_schedule(trainer, spec)
    with blamed(code, "initialize"):
        trainer.initialize()
    return trainer


def _check_fingerprint(spec: RunSpec) -> None:
    """Raise DataError where the dataset lacks a file that nnU-Net's `on_train_start` copies; ours trains without it."""
    file = spec.preprocessed_folder / "dataset_fingerprint.json"
    if not is_there(file):
        raise DataError(
            f"preprocessed data: {file} is missing, which {spec.trainer} copies when it begins, as nnU-Net's trainers do. Bring it from "
            "where the dataset was preprocessed, or make it with nnUNetv2_extract_fingerprint."
        )


def _set_schedule(trainer: Any, spec: RunSpec) -> None:
    trainer.num_epochs = spec.schedule.epochs
    for name, field in ITERATIONS.items():
        wanted, own = getattr(spec.schedule, field), getattr(trainer, name)
        if own not in (wanted, getattr(Schedule(), field)):
            log.warning("%s of %s is %d, as the experiment has it, instead of %s", name, spec.trainer, wanted, own)
        setattr(trainer, name, wanted)


def _print_to_log(*texts: Any, **_: Any) -> None:
    """In place of nnU-Net's own, which writes a log file of its own and retries."""
    if line := " ".join(map(str, texts)).strip():
        log.info("%s", line)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a picture of the network by a package that no longer works."""


@contextlib.contextmanager
def trying(spec: RunSpec) -> Iterator[Any]:
    """A trainer of a run on the CPU that leaves no trace."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(nnUNet_wandb_enabled="0")  # no run of a service for a trial
        trainer = made_trainer(spec, torch.device("cpu"), Path(folder))
        trainer.output_folder = str(Path(folder) / "saved")
        Path(trainer.output_folder).mkdir()
        yield trainer


def kept_of(trainer: Any, code: OwnCode, file: Path) -> Checkpoint:
    """What its own `save_checkpoint` keeps beside OURS, by way of `file`, which does not stay, read without executing anything.

    Raises ConfigError, StorageError.
    """
    file.unlink(missing_ok=True)
    try:
        with takes_files(file.parent):  # torch hides a full disk behind an error of its own
            with blamed(code, "save_checkpoint"):
                type(trainer).save_checkpoint(trainer, str(file))
            content = _read(code, file)
    finally:
        file.unlink(missing_ok=True)  # else a kill during the training would leave it on the node
    return {key: plain(value) for key, value in content.items() if key not in OURS}


def _read(code: OwnCode, file: Path) -> Checkpoint:
    try:
        return read_checkpoint(file)
    except CheckpointError as err:
        why = f"save_checkpoint of {code.name} writes what cannot be read without executing it" if file.exists() else "it writes none"
        raise ConfigError(f"trainers: {why}: {err} Keep tensors, numbers, texts, lists and dicts there.") from err


def plain(value: Any) -> Any:
    """Nested containers with numpy's single numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def load_state(trainer: Any, code: OwnCode, file: Path) -> None:
    """Have its own `load_checkpoint` take up a state, of which nothing is executed. Raises ConfigError."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        with blamed(code, "load_checkpoint"):
            trainer.load_checkpoint(str(file))
    finally:
        os.environ.pop(FORCED)
        os.environ.update({FORCED: before} if before is not None else {})


def check_state(trainer: Any, spec: RunSpec) -> None:
    """Raise ConfigError where a trainer would not go on from a state of its run: one file, in another folder, with OURS of our making."""
    code, saved = spec.own.named["trainer"], Path(trainer.output_folder)
    kept = kept_of(trainer, code, saved / "checkpoint_latest.pth")
    shutil.rmtree(saved)  # what it keeps beside that file is not there either
    saved.mkdir()
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    shown = without_cases(dataset_json) if spec.pseudonyms else dataset_json
    header = checkpoint_header(spec, plans_of(spec).content, shown, trainer.inference_allowed_mirroring_axes)
    curves = {**training_part((), BestRecord()), "current_epoch": 1}
    state = saved.with_name("state") / f"{state_stem(1, 1)}.pth"
    state.parent.mkdir()
    with takes_files(state.parent):
        torch.save(whole_state(kept, header, curves), state)
    try:
        load_state(trainer, code, state)
    except FileNotFoundError as err:
        if not Path(str(err.filename)).is_relative_to(saved.parent):
            raise
        raise ConfigError(
            f"trainers: load_checkpoint of {code.name} failed: {fault_text(err, code)}. A restart has one file alone, that which "
            "save_checkpoint is asked for. Keep everything in it."
        ) from err
    with blamed(code, "set_deep_supervision_enabled"):
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
