"""A subclass of nnU-Net's trainer that trains by its own loop, watched by ours, in this process; and what is refused of such classes."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.dataset.network_check import network_problem
from tests.conftest import Toys
from tests.own_functions import Package, package
from tests.toy import Toy, toy_spec
from trainers.contract.commits import committed_states, newest_committed
from trainers.contract.fencing import acquire_token
from trainers.contract.requests import PauseRequest, end_pause, request_finish, request_pause, request_stop
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import LoaderSpec, OwnCode, OwnParts, RunSpec, Schedule, ValidationSpec, WorkerSpec
from trainers.errors import ConfigError, DataError, DivergedError, StorageError
from trainers.network.checkpoint import read_checkpoint
from trainers.network.own_trainer import blamed, kept_of
from trainers.network.own_trial import try_own
from trainers.training import own_loop
from trainers.training.own_loop import torch_seed, train_by_own_loop
from trainers.training.world import World
from trainers.validation.inference import CasePredictor

__all__ = ["package"]
ALONE = World(global_rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
EXAMPLE = "own_trainer:nnUNetTrainerAdamWStep"
BASE = "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def toy(toys: Toys) -> Toy:
    return toys("labels")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A training sets nnU-Net's variables for its whole process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def run_of(toy: Toy, base: Path, code: OwnCode, **keys: Any) -> RunSpec:
    """A run of `code` whose loader is in this process."""
    name = code.name.partition(":")[2]
    fields = {"schedule": Schedule(epochs=3, train_iterations=2, val_iterations=1), "model_folder": base / "results" / toy.name / name}
    spec = toy_spec(toy, trainer=name, own=OwnParts(trainer=code), **{**fields, **keys})
    RunFolder(spec.run_folder).own.mkdir(parents=True, exist_ok=True)
    return spec


def class_of(package: Package, body: str, before: str = "") -> OwnCode:
    """A subclass of nnU-Net's trainer with this body."""
    return package.holds("mine:nnUNetTrainerMine", f"{BASE}{before}\nclass nnUNetTrainerMine(nnUNetTrainer):\n{body}\n")


def trained(spec: RunSpec, monkeypatch: pytest.MonkeyPatch, loaders: int = 0) -> str:
    """Train until it ends; `loaders`: its processes, 0 prepares batches in this one."""
    from trainers.network import own_trainer

    set_environment = own_trainer.set_environment

    def with_loaders(run: RunSpec, results: Path) -> None:
        set_environment(run, results)
        os.environ.update(nnUNet_n_proc_DA=str(loaders))

    monkeypatch.setattr(own_trainer, "set_environment", with_loaders)
    folder = RunFolder(spec.run_folder)
    return train_by_own_loop(spec, folder, ALONE, acquire_token(folder, "test", {"role": "workers"}))


def test_its_own_loop_is_committed_stopped_and_continued_from_its_checkpoint(
    toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run_of(toy, tmp_path, package.holds(EXAMPLE), validation=ValidationSpec(candidates=1))
    folder = RunFolder(spec.run_folder)
    try_own(spec)
    request_stop(folder, is_now=False)
    assert trained(spec, monkeypatch) == "STOPPED"
    first = newest_committed(folder)
    assert first is not None
    assert (first.epochs_done, first.final, first.fencing_token) == (1, None, 1)
    names = ("latest", "best", "final")
    assert [(folder.root / f"checkpoint_{name}.pth").exists() for name in names] == [True, True, False]
    state = read_checkpoint(folder.state / f"{first.stem}.pth")
    assert sorted(state["optimizer_state"]["state"][0]) == ["exp_avg", "exp_avg_sq", "step"]
    assert (state["trainer_name"], state["current_epoch"], state["inference_allowed_mirroring_axes"]) == (spec.trainer, 1, None)
    assert state["logging"]["lrs"] == [1e-3]
    assert trained(spec, monkeypatch) == "STOPPED", "it was not asked to go on"

    folder.stop_file.unlink()
    request_pause(folder, PauseRequest(rung=1))
    assert trained(spec, monkeypatch) == "PAUSED"
    end_pause(folder)
    assert trained(spec, monkeypatch) == "TRAINED"
    last = newest_committed(folder)
    assert last is not None
    assert (last.epochs_done, last.final is not None, len(last.candidates)) == (3, True, 1)
    assert [(row.fencing_token, row.learning_rate) for row in last.history] == [(1, 1e-3), (4, 1e-3), (4, 1e-4)]
    assert last.history[0] == first.history[0]
    assert all(row.train_loss > 0 and len(row.pseudo_dice) == 2 and row.epoch_s > row.train_s > 0 for row in last.history)
    final = read_checkpoint(folder.checkpoint("final"))
    assert float(final["optimizer_state"]["state"][0]["step"]) == 6, "the optimizer went on from its state"
    curves = {"train_losses": "train_loss", "val_losses": "val_loss", "mean_fg_dice": "pseudo_dice_mean", "ema_fg_dice": "ema_pseudo_dice"}
    for theirs, ours in curves.items():
        assert [getattr(row, ours) for row in last.history] == pytest.approx(final["logging"][theirs], abs=1e-6), theirs
    assert [(folder.root / f"checkpoint_{name}.pth").exists() for name in names] == [False, True, True]
    assert not [path for path in folder.root.iterdir() if path.name in ("plans.json", "progress.png")]
    assert trained(spec, monkeypatch) == "TRAINED"
    assert committed_states(folder)[0] == last, "nothing was left to do"

    (spec.model_folder / "plans.json").write_text((toy.preprocessed / "nnUNetPlans.json").read_text())
    (spec.model_folder / "dataset.json").write_text((toy.preprocessed / "dataset.json").read_text())
    written = CasePredictor(spec, folder.checkpoint("final"), "cpu").predict(spec.val_cases[0], tmp_path / "predicted")
    assert written.is_file()


def test_an_early_end_is_a_trained_run(toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = run_of(toy, tmp_path, class_of(package, "    pass"))
    folder = RunFolder(spec.run_folder)
    request_finish(folder, spec.run_key, anneal_epochs=0)
    assert trained(spec, monkeypatch) == "TRAINED"
    found = newest_committed(folder)
    assert found is not None
    assert (found.epochs_done, found.final is not None) == (1, True)


def test_what_its_own_checkpoint_and_logger_keep_more_is_kept(
    toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.logger.local_logger.my_fantastic_logging["entropy"] = []
        self.seen = 0

    def train_step(self, batch):
        self.seen += 1
        return super().train_step(batch)

    def on_epoch_end(self):
        self.logger.log("entropy", 0.5, self.current_epoch)
        super().on_epoch_end()

    def save_checkpoint(self, filename):
        super().save_checkpoint(filename)
        kept = torch.load(filename, weights_only=False)
        torch.save({**kept, "seen": self.seen}, filename)

    def load_checkpoint(self, filename):
        super().load_checkpoint(filename)
        self.seen = torch.load(filename, weights_only=False)["seen"]
"""
    spec = run_of(toy, tmp_path, class_of(package, body, "import torch"), schedule=Schedule(epochs=2, train_iterations=2, val_iterations=1))
    folder = RunFolder(spec.run_folder)
    try_own(spec)
    request_stop(folder, is_now=False)
    assert trained(spec, monkeypatch) == "STOPPED"
    folder.stop_file.unlink()
    assert trained(spec, monkeypatch) == "TRAINED"
    final = read_checkpoint(folder.checkpoint("final"))
    assert (final["seen"], final["logging"]["entropy"]) == (4, [0.5, 0.5])


def test_weights_that_are_no_numbers_end_it(toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
    def train_step(self, batch):
        for weight in self.network.parameters():
            weight.data.fill_(float("nan"))
        return super().train_step(batch)
"""
    with pytest.raises(DivergedError, match=r"diverged in epoch 0: train loss nan.* or change nnUNetTrainerMine"):
        trained(run_of(toy, tmp_path, class_of(package, body)), monkeypatch)


def test_a_loop_that_closes_no_epoch_is_refused(toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    code = class_of(package, "    def run_training(self):\n        self.on_train_start()\n")
    with pytest.raises(ConfigError, match="run_training of nnUNetTrainerMine ended after 0 of 3 epochs that it closed with on_epoch_end"):
        trained(run_of(toy, tmp_path, code), monkeypatch)


def test_an_error_of_a_class_of_its_own_reaches_other_processes(
    toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = class_of(package, "    def train_step(self, batch):\n        raise Odd('no luck')\n", "class Odd(Exception):\n    pass\n")
    with pytest.raises(RuntimeError, match=r"^Odd: no luck \(line \d+ of mine.py\)$") as caught:
        trained(run_of(toy, tmp_path, code), monkeypatch)
    assert type(caught.value) is RuntimeError


def test_a_network_that_needs_a_gpu_is_not_known_before_a_worker_starts(toy: Toy, tmp_path: Path, package: Package) -> None:
    code = class_of(package, "    def _build_loss(self):\n        raise RuntimeError('No CUDA GPUs are available')\n")
    with pytest.raises(NotImplementedError, match="No CUDA GPUs are available"):
        try_own(run_of(toy, tmp_path, code, workers=WorkerSpec(count=1, gpus=1, cpus=1)))
    with pytest.raises(ConfigError, match="No CUDA GPUs are available"):
        try_own(run_of(toy, tmp_path, code))


BESIDE = """
    def save_checkpoint(self, filename):
        super().save_checkpoint(filename)
        torch.save({"x": 1}, filename + ".teacher")

    def load_checkpoint(self, filename):
        super().load_checkpoint(filename)
        torch.load(filename + ".teacher")
"""
IN_ITS_FOLDER = """
    def save_checkpoint(self, filename):
        super().save_checkpoint(filename)
        torch.save({"x": 1}, self.output_folder + "/teacher.pth")

    def load_checkpoint(self, filename):
        super().load_checkpoint(filename)
        torch.load(self.output_folder + "/teacher.pth")
"""
DEVICE = """
    def load_checkpoint(self, filename):
        super().load_checkpoint(filename)
        torch.load(filename, weights_only=False)["init_args"]["device"]
"""


@pytest.mark.parametrize(("body", "words"), [(BESIDE, "No such file"), (IN_ITS_FOLDER, "No such file"), (DEVICE, "KeyError: 'device'")])
def test_a_class_that_no_state_of_its_run_continues_is_refused_before_a_worker_starts(
    toy: Toy, tmp_path: Path, package: Package, body: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=f"load_checkpoint of mine:nnUNetTrainerMine failed: .*{words}"):
        try_own(run_of(toy, tmp_path, class_of(package, body, "import torch")))


def test_what_a_gpu_does_not_give_is_no_error_of_the_class(toy: Toy, tmp_path: Path, package: Package) -> None:
    errors = (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    for error in (*errors, getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: unspecified launch failure")):
        with pytest.raises(type(error), match=str(error)), blamed(package.holds(EXAMPLE), "initialize"):
            raise error
    body = "    def _build_loss(self):\n        raise RuntimeError('CUDA error: uncorrectable ECC error encountered')\n"
    with pytest.raises(NotImplementedError, match="uncorrectable ECC"):
        try_own(run_of(toy, tmp_path, class_of(package, body)))


def test_a_scratch_disk_that_is_full_is_no_error_of_the_class(tmp_path: Path, package: Package) -> None:
    class Saves:
        def save_checkpoint(self, filename: str) -> None:
            allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, allowed[1]))
            torch.save({"network_weights": {"a": torch.zeros(1_000_000)}}, filename)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(StorageError, match=f"{tmp_path}.* cannot be written"):
            kept_of(Saves(), package.holds(EXAMPLE), tmp_path / "checkpoint_latest.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_checkpoint_stays_on_the_scratch_disk(toy: Toy, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    seen: list[list[Path]] = []
    monkeypatch.setattr(own_loop, "describe", lambda *_: seen.append([path for path in scratch.rglob("*.pth*")]))
    trained(run_of(toy, tmp_path, class_of(package, "    pass")), monkeypatch)
    assert seen == [[], [], []], "at the end of each epoch"


def test_a_dataset_without_the_fingerprint_that_nnunet_copies_is_refused(toy: Toy, tmp_path: Path, package: Package) -> None:
    shutil.copytree(toy.preprocessed, bare := tmp_path / toy.name, ignore=lambda *_: ["dataset_fingerprint.json"])
    spec = run_of(toy, tmp_path, class_of(package, "    pass"))
    with pytest.raises(DataError, match="dataset_fingerprint.json is missing, which nnUNetTrainerMine copies when it begins"):
        try_own(spec.model_copy(update={"preprocessed_folder": bare}))


REFUSED = [
    ("nnUNetTrainerMine = dict\n", "", "mine:nnUNetTrainerMine is no subclass of nnU-Net's nnUNetTrainer"),
    ("class Other(nnUNetTrainer):\n    pass\n\n\nnnUNetTrainerMine = Other\n", "", "is called Other"),
    ("import absent_package\n", "pass", r"mine:nnUNetTrainerMine cannot be imported: ModuleNotFoundError.* \(line 2 of mine.py\)"),
    ("", "def do_split(self):\n        return [], []", "has a do_split of its own"),
    (
        "",
        "def get_tr_and_val_datasets(self):\n        return super().get_tr_and_val_datasets()",
        "has a get_tr_and_val_datasets of its own",
    ),
    ("", "def __init__(self):\n        pass", "the constructor of mine:nnUNetTrainerMine failed: TypeError"),
    ("", "def _build_loss(self):\n        return 1 / 0", r"initialize of .* failed: ZeroDivisionError.* \(line 5 of mine.py\)"),
    ("", "disable_checkpointing = property(lambda self: True, lambda self, on: None)", "it writes none"),
    (
        "import torch\n",
        "def save_checkpoint(self, filename):\n        torch.save({'network_weights': {}, 'me': type(self)}, filename)",
        "save_checkpoint of mine:nnUNetTrainerMine writes what cannot be read without executing it: .* could run code",
    ),
    (
        "",
        "@staticmethod\n    def build_network_architecture(\n"
        "        plans_manager, configuration_manager, inputs, outputs, enable_deep_supervision=True\n    ):\n"
        "        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "        return nnUNetTrainer.build_network_architecture(\n"
        "            plans_manager, configuration_manager, inputs, outputs + (not enable_deep_supervision), enable_deep_supervision\n"
        "        )",
        "gives a network with other weights with enable_deep_supervision=False",
    ),
]


@pytest.mark.parametrize(("before", "body", "words"), REFUSED)
def test_what_does_not_do_as_nnunets_trainer_is_refused_before_a_worker_starts(
    toy: Toy, tmp_path: Path, package: Package, before: str, body: str, words: str
) -> None:
    code = class_of(package, f"    {body}", before) if body else package.holds("mine:nnUNetTrainerMine", f"{BASE}{before}")
    with pytest.raises(ConfigError, match=words):
        try_own(run_of(toy, tmp_path, code))


def test_a_training_job_whose_package_lacks_the_class_ends_by_it(toy: Toy, tmp_path: Path) -> None:
    spec = run_of(toy, tmp_path, OwnCode(name="mine:nnUNetTrainerMine", sha256="0" * 64))
    with pytest.raises(ConfigError, match="trainer: the files of mine:nnUNetTrainerMine .* are not in the code package"):
        network_problem(spec)


def test_nnunets_old_signature_of_a_network_is_called(toy: Toy, tmp_path: Path, package: Package) -> None:
    body = """
    @staticmethod
    def build_network_architecture(
        architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, inputs, outputs, enable_deep_supervision=True
    ):
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        return get_network_from_plans(
            architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, inputs, outputs,
            allow_init=True, deep_supervision=enable_deep_supervision,
        )
"""
    try_own(run_of(toy, tmp_path, class_of(package, body)))


def test_run_json_holds_no_code_and_a_run_without_such_a_class_as_ever(toy: Toy, tmp_path: Path, package: Package) -> None:
    spec = run_of(toy, tmp_path, package.holds(EXAMPLE), loader=LoaderSpec(actors=1))
    assert set(json.loads(spec.model_dump_json())["own"]) == {"trainer"}
    assert "configure_optimizers" not in spec.model_dump_json()
    assert spec.inexactness.startswith("Not exact: ")
    assert "own" not in json.loads(toy_spec(toy).model_dump_json())
    assert toy_spec(toy).inexactness == ""


def test_every_seed_that_an_experiment_may_name_is_one_of_torch() -> None:
    assert [torch_seed(seed, epoch) for seed, epoch in ((0, 3), (2, 1))] == [3, 200_007]
    numbers = {torch_seed(2**63 - 1, epoch) for epoch in range(3)}
    assert len(numbers) == 3
    for number in numbers:
        torch.Generator().manual_seed(number)
