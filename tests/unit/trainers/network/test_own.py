"""The user's own network, loss and recipe as a training calls them, and what is refused of them before any worker starts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.training.driver import preflight
from tests.conftest import Toys
from tests.own_functions import NAMES, Package, package
from tests.toy import Toy, toy_spec
from trainers.contract.own_code import own_function
from trainers.contract.run_spec import OwnCode, OwnParts, RunSpec, WorkerSpec
from trainers.data.dataset import open_dataset
from trainers.data.samples import make_batch
from trainers.errors import ConfigError
from trainers.network.checkpoint import checkpoint_header
from trainers.network.own_trial import try_own
from trainers.training.assemble import assemble, model_config, warm_up
from trainers.training.world import World

__all__ = ["package"]
ALONE = World(global_rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
DEEP = """
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans


def make(configuration, input_channels, output_channels, deep_supervision):
    parts = configuration["architecture"]
    names = parts["network_class_name"], parts["arch_kwargs"], parts["_kw_requires_import"]
    return get_network_from_plans(*names, input_channels, output_channels, deep_supervision=deep_supervision)
"""
MODES = f"""
from torch import nn
{DEEP.replace("def make", "def deep")}

class InTraining(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, image):
        found = self.inner(image)
        return found if self.training or not isinstance(found, list) else found[0]


def make(**facts):
    return InTraining(deep(**facts))
"""
HELPED = """
import torch
from torch import nn


class Helped(nn.Module):
    def __init__(self, channels, outputs):
        super().__init__()
        self.head, self.helper, self.idle = (nn.Conv3d(channels, outputs, 1) for _ in range(3))
        self.norm, self.dropout = nn.BatchNorm3d(channels), nn.Dropout3d(0.5)

    def forward(self, image):
        image = self.dropout(self.norm(image))
        return self.head(image) + (self.helper(image) if self.training else 0)


def make(configuration, input_channels, output_channels, deep_supervision):
    return Helped(input_channels, output_channels)
"""


@pytest.fixture
def toy(toys: Toys) -> Toy:
    return toys("labels")


def run(toy: Toy, **parts: OwnCode) -> RunSpec:
    return toy_spec(toy, own=OwnParts(**parts))


def test_the_examples_train_and_every_parameter_of_the_network_learns(toy: Toy, package: Package) -> None:
    spec = run(toy, **{part: package.holds(name) for part, name in NAMES.items()})
    try_own(spec)
    plan = model_config(spec)
    learner = assemble(spec, plan, ALONE, 1)
    warm_up(learner, plan, ALONE)
    before = {name: weight.detach().clone() for name, weight in learner.plain.named_parameters()}
    learner.start_epoch(0)
    data = open_dataset(spec)
    losses = [float(learner.step(make_batch(data, spec, "train", 0, i, range(plan.global_batch)))) for i in range(3)]
    assert all(np.isfinite(losses))
    assert all((weight != before[name]).any() for name, weight in learner.plain.named_parameters())
    with torch.no_grad():
        _, logits, _ = learner.evaluate(make_batch(data, spec, "val", 0, 0, range(plan.global_batch)))
    assert logits.shape == (plan.global_batch, 3, 24, 24, 24)
    header = checkpoint_header(spec, plan.plans, plan.dataset_json, None)
    assert header["trainer_name"] == "own network own_network:small_unet"


def test_a_network_with_nnunets_outputs_trains_as_nnunets_own(toy: Toy, package: Package) -> None:
    mine, theirs = run(toy, network=package.holds("deep:make", DEEP)), toy_spec(toy)
    try_own(mine)
    batch = make_batch(open_dataset(theirs), theirs, "train", 0, 0, range(2))
    losses = []
    for spec in (mine, theirs):
        plan = model_config(spec)
        learner = assemble(spec, plan, ALONE, 1)
        learner.start_epoch(0)
        losses.append([float(learner.step(batch)) for _ in range(2)])
        trained = {name for name, weight in learner.plain.named_parameters() if weight.requires_grad}
        assert "decoder.seg_layers.0.weight" not in trained, "the output of weight 0: DDP would wait for its gradient"
    assert losses[0] == losses[1]


def test_what_a_network_uses_in_training_mode_alone_learns_and_what_does_not_is_named(
    toy: Toy, package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    spec = run(toy, network=package.holds("helped:make", HELPED))
    try_own(spec)
    torch.manual_seed(spec.seed)
    for _ in range(3):
        torch.nn.Conv3d(1, 3, 1)  # as the network draws its first weights
    drawn = torch.rand(3)
    learner = assemble(spec, model_config(spec), ALONE, 1)
    assert torch.equal(torch.rand(3), drawn), "asking the network draws nothing"
    assert {name for name, weight in learner.plain.named_parameters() if not weight.requires_grad} == {"idle.weight", "idle.bias"}
    assert "the loss does not reach keep their first values: idle.weight, idle.bias" in caplog.text
    assert float(learner.plain.state_dict()["norm.num_batches_tracked"]) == 0, "asking leaves no trace"


def test_outputs_that_differ_between_the_modes_are_refused_by_a_worker_too(toy: Toy, package: Package) -> None:
    spec = run(toy, network=package.holds("modes:make", MODES))
    with pytest.raises(ConfigError, match="in training mode, and .* in evaluation mode"):
        assemble(spec, model_config(spec), ALONE, 1)


def test_a_network_that_draws_needs_a_fixed_number_of_workers(toy: Toy, package: Package) -> None:
    spec = run(toy, network=package.holds("helped:make", HELPED))
    elastic = spec.model_copy(update={"workers": WorkerSpec(min=1, max=2, gpus=0, cpus=1)})
    with pytest.raises(ConfigError, match=r"workers: helped:make has batch normalisation or dropout.* Set workers\.count \(such as 1\)"):
        try_own(elastic)


def test_a_loss_per_sample_has_the_same_gradient_for_any_split_of_the_batch(toy: Toy, package: Package) -> None:
    spec = run(toy, loss=package.holds(NAMES["loss"]))
    plan = model_config(spec)
    whole = make_batch(open_dataset(spec), spec, "train", 0, 0, [0, 1])
    learner = assemble(spec, plan, ALONE, 1)
    images, targets = learner.on_device(whole)
    with torch.no_grad():
        together = learner.loss(learner.plain(images), targets)
        parts = [learner.loss(learner.plain(images[i : i + 1]), [target[i : i + 1] for target in targets]) for i in range(2)]
    assert float(together) == pytest.approx(sum(map(float, parts)), rel=1e-5)
    logits = [torch.zeros(1, 3, 2, 2, 2), torch.ones(1, 3, 1, 1, 1)]
    found = learner.loss(logits, [torch.zeros(1, 1, 2, 2, 2, dtype=torch.int16), torch.zeros(1, 1, 1, 1, 1, dtype=torch.int16)])
    entropy = np.log(3)  # by hand: of equal logits; the second output has weight 0; a batch of two
    assert float(found) == pytest.approx((1 - 1 / 3) ** 2 * entropy / 2)


def test_samples_of_an_own_recipe_are_pure_functions_of_the_seed(toy: Toy, package: Package) -> None:
    spec = run(toy, recipe=package.holds(NAMES["recipe"]))
    data = open_dataset(spec)
    together = make_batch(data, spec, "train", 3, 5, [0, 1])
    alone = make_batch(open_dataset(spec), spec, "train", 3, 5, [1])
    assert together.images[1].tobytes() == alone.images[0].tobytes()
    assert together.targets[0][1].tobytes() == alone.targets[0][0].tobytes()
    assert make_batch(data, spec, "train", 3, 6, [1]).images.tobytes() != alone.images.tobytes()
    plain = make_batch(data, toy_spec(toy), "val", 0, 0, [0, 1])
    assert make_batch(data, spec, "val", 0, 0, [0, 1]).images.tobytes() == plain.images.tobytes(), "validation samples are only cut"


REFUSED: list[tuple[str, str, str]] = [
    (
        "loss",
        "import absent_module\n\ndef make(labels, configuration):\n    pass\n",
        r"ModuleNotFoundError: .*\(line 1 of f\.py\)\. What it",
    ),
    ("loss", "def other():\n    pass\n", "f has no function 'make'"),
    ("loss", "class make:\n    pass\n", r"takes no arguments\.? It is called as loss\(labels="),
    ("loss", "def make(labels, configuration):\n    return 1\n", "f:make returned int. Return a function"),
    (
        "loss",
        "def make(labels, configuration):\n    return lambda x, y: x.mean()\n",
        r"of the shape \(\) for a batch of 2\. Return one value",
    ),
    ("loss", "def make(labels, configuration):\n    return lambda x, y: x.nothing\n", r"has no attribute 'nothing' \(line 2 of f\.py\)"),
    ("loss", "def make(labels, configuration):\n    return lambda x, y: x.detach().flatten(1).mean(1)\n", "no gradient flows"),
    (
        "loss",
        "def make(labels, configuration):\n    return lambda x, y: (x - x.mean()).abs().flatten(1).mean(1) + x.max()\n",
        "depends on the other samples of its batch",
    ),
    ("network", "def make(**facts):\n    return 3\n", "returned int, which is no torch network"),
    (
        "network",
        "from torch import nn\n\ndef make(configuration, input_channels, output_channels, deep_supervision):\n"
        "    return nn.Conv3d(input_channels, output_channels + 1, 1)\n",
        r"gives outputs of the shapes \[\(4, 24, 24, 24\)\]",
    ),
    (
        "network",
        "from torch import nn\n\ndef make(configuration, input_channels, output_channels, deep_supervision):\n"
        "    return nn.Conv3d(input_channels, output_channels, 1 if deep_supervision else 3, padding='same')\n",
        "has other weights with deep_supervision=False",
    ),
    (
        "network",
        "from torch import nn\n\ndef make(configuration, input_channels, output_channels, deep_supervision):\n"
        "    return nn.Conv2d(input_channels, output_channels, 1)\n",
        r"does not take a patch of \(24, 24, 24\) voxels",
    ),
    ("network", MODES, r"f:make gives outputs of the shapes \[.*\] in training mode, and \[\(3, 24, 24, 24\)\] in evaluation mode"),
    ("recipe", "def make(inputs):\n    return None\n", "returned NoneType. Return a list of transforms"),
    ("recipe", "def make(inputs):\n    return [lambda image, segmentation: image]\n", "returned no dict with `image` and `segmentation`"),
    ("recipe", "def make(inputs):\n    return [lambda **sample: {}['a']]\n", r"failed: KeyError: 'a' \(line 2 of f\.py\)"),
    (
        "recipe",
        "def make(inputs):\n    def cut(image, segmentation):\n"
        "        return {'image': image[:, 1:], 'segmentation': segmentation[:, 1:]}\n    return [cut]\n",
        r"gives images of \(23, 24, 24\) voxels, and the network's patch",
    ),
    (
        "recipe",
        "seen = []\n\ndef make(inputs):\n    def count(image, segmentation):\n        seen.append(1)\n"
        "        return {'image': image + len(seen), 'segmentation': segmentation}\n    return [count]\n",
        "is no pure function of the seed",
    ),
]


@pytest.mark.parametrize(("part", "text", "words"), REFUSED)
def test_a_function_that_does_not_give_what_is_due_is_refused(toy: Toy, package: Package, part: str, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        try_own(run(toy, **{part: package.holds("f:make", text)}))
    assert str(refused.value).startswith(f"{part}: ")


def test_two_versions_of_one_file_serve_one_process(package: Package) -> None:
    made: list[Any] = [own_function("loss", package.holds("f:make", f"def make():\n    return {n}\n"))() for n in (1, 2)]
    assert made == [1, 2]


def test_files_that_a_job_did_not_bring_or_that_changed_are_refused(toy: Toy, package: Package) -> None:
    code = package.holds(NAMES["loss"])
    (file,) = package.root.rglob("own_loss.py")
    file.write_text("import os\n")
    for is_there in (True, False):
        if not is_there:
            file.unlink()
        with pytest.raises(ConfigError, match=r"loss: the files of own_loss:focal \(SHA-256 .*\) are not in the code package of this job"):
            own_function("loss", code)


def test_a_run_ends_before_a_worker_starts_where_its_own_code_cannot_serve(toy: Toy, tmp_path: Path, package: Package) -> None:
    code = package.holds(NAMES["loss"])
    shutil.rmtree(package.root)
    spec = run(toy, loss=code).model_copy(update={"model_folder": tmp_path / toy.name / "m"})
    outcome = preflight(spec, 1)
    assert outcome is not None
    assert outcome.state == "FAILED_CONFIG"
    assert outcome.message.startswith("loss: the files of own_loss:focal")
