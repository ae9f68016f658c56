"""Every trainer that is accepted by its name beside nnU-Net's own class of that name, built as nnU-Net's command builds it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import Toys
from tests.nnunet_beside import as_target, configuration
from tests.nnunet_reference import PATCHES, built_trainer, variant_class
from tests.toy import toy_spec
from tests.unit.trainers.data.test_recipes import PATCHES as RECIPE_PATCHES
from tests.unit.trainers.data.test_recipes import check_samples, check_transforms, inputs
from trainers.contract.plans import Labels
from trainers.contract.run_spec import Schedule
from trainers.contract.trainer_table import TRAINERS
from trainers.data.dataset import geometry
from trainers.network.learner import as_list
from trainers.network.loss import SegmentationLoss
from trainers.network.model import deep_supervision_weights, mirroring_axes
from trainers.training.assemble import assemble, model_config
from trainers.training.world import World

NAMES = [name for name in TRAINERS if name != "nnUNetTrainerDA5_classic"]
COVERED = {"__init__", "configure_rotation_dummyDA_mirroring_and_inital_patch_size", "get_training_transforms", "_build_loss"}
"""What these tests compare: a class that overrides something else would not be known by its settings."""
Built = Callable[..., Any]
ALONE = World(global_rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def built(toys: Toys, tmp_path: Path) -> Built:
    return lambda name, kind="labels", **options: built_trainer(name, toys(kind, **options), tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_class_overrides_nothing_that_is_not_compared(name: str) -> None:
    classes = [kind for kind in variant_class(name).__mro__ if kind not in (object, variant_class("nnUNetTrainer"))]
    overridden = {member for kind in classes for member, value in vars(kind).items() if callable(getattr(value, "__func__", value))}
    assert overridden <= COVERED


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_nnunet(built: Built, name: str) -> None:
    theirs, ours = built(name), Schedule.model_validate(TRAINERS[name].schedule)
    assert (theirs.num_epochs, theirs.num_iterations_per_epoch, theirs.num_val_iterations_per_epoch) == (
        ours.epochs,
        ours.train_iterations,
        ours.val_iterations,
    )
    assert (theirs.initial_lr, theirs.weight_decay) == (ours.initial_lr, ours.weight_decay)
    assert (theirs.oversample_foreground_percent, theirs.probabilistic_oversampling) == (ours.foreground_oversampling, False)
    assert theirs.enable_deep_supervision is TRAINERS[name].deep_supervision


@pytest.mark.parametrize("name", NAMES)
def test_margins_and_mirrored_axes_are_those_of_nnunet(built: Built, name: str) -> None:
    theirs = built(name)
    for patch in PATCHES:
        theirs.configuration_manager = SimpleNamespace(patch_size=list(patch))
        rotation, dummy_2d, loader_patch, mirror_axes = theirs.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        ours = geometry(patch, TRAINERS[name])
        assert (ours.rotation_rad, ours.dummy_2d, ours.mirror_axes) == (rotation, dummy_2d, mirror_axes or ())
        assert ours.loader_patch == tuple(loader_patch)
        config = {**configuration(len(patch)), "patch_size": list(patch)}
        assert mirroring_axes(config, TRAINERS[name]) == theirs.inference_allowed_mirroring_axes


@pytest.mark.parametrize("name", NAMES)
def test_transforms_are_those_of_nnunet(name: str) -> None:
    for patch in RECIPE_PATCHES:
        check_transforms(name, inputs(name, patch, None, 4, (True, False)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["labels", "regions", "ignore"])
def test_value_and_gradients_of_the_loss_are_those_of_nnunet(toys: Toys, built: Built, name: str, kind: str) -> None:
    """With the deep supervision that the class sets, for the mean over samples and for the pooled batch."""
    settings, theirs = TRAINERS[name], built(name, kind)
    plan = model_config(toy_spec(toys(kind), trainer=name))
    if settings.unfit(has_regions=plan.labels.has_regions, has_ignore_label=plan.labels.ignore_label is not None):
        with pytest.raises((AssertionError, RuntimeError)):  # nor does it work in nnU-Net
            theirs._build_loss()(*outputs_and_targets(theirs, plan.labels))
        return
    count = len(theirs._get_deep_supervision_scales() or [1])
    for batch_dice in (True, False):
        theirs.configuration_manager.configuration["batch_dice"] = batch_dice
        outputs, targets = outputs_and_targets(theirs, plan.labels)
        expected = theirs._build_loss()(outputs, targets)
        expected_gradients = torch.autograd.grad(expected, as_list(outputs)[:1])
        ours = SegmentationLoss(plan.labels, batch_dice, deep_supervision_weights(count), 2, kind=settings.loss)(outputs, targets)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(torch.autograd.grad(ours, as_list(outputs)[:1]), expected_gradients, rtol=1e-4, atol=1e-9)


def outputs_and_targets(trainer: Any, labels: Labels) -> tuple[Any, Any]:
    """Random logits that ask for gradients, and targets, as the trainer's network and loader give them: lists with deep supervision."""
    generator = torch.Generator().manual_seed(0)
    scales = trainer._get_deep_supervision_scales() or [[1, 1, 1]]
    shapes = [[round(24 * part) for part in scale] for scale in scales]
    outputs = [torch.randn((2, labels.num_heads, *shape), generator=generator).requires_grad_() for shape in shapes]
    values = [torch.randint(0, max(labels.values) + 1, (2, 1, *shape), generator=generator, dtype=torch.int16) for shape in shapes]
    targets = [as_target(value, labels) for value in values]
    return (outputs, targets) if trainer.enable_deep_supervision else (outputs[0], targets[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_that_of_nnunet(toys: Toys, built: Built, name: str) -> None:
    """The same weights under the same names for the same seed, and as many outputs."""
    theirs, spec = built(name), toy_spec(toys(), trainer=name)
    plan = model_config(spec)
    torch.manual_seed(spec.seed)
    network = theirs.build_network_architecture(
        theirs.plans_manager, theirs.configuration_manager, plan.channels, plan.labels.num_heads, theirs.enable_deep_supervision
    )
    ours = assemble(spec, plan, ALONE, fencing_token=1).plain
    assert list(ours.state_dict()) == list(network.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), network.state_dict().values(), strict=True))
    patch = torch.zeros((1, plan.channels, *plan.configuration["patch_size"]))
    with torch.no_grad():
        assert [type(out) for out in (ours(patch), network(patch))] in ([list] * 2, [torch.Tensor] * 2)
        assert [o.shape for o in as_list(ours(patch))] == [o.shape for o in as_list(network(patch))]


AUGMENTING_OTHERWISE = ["nnUNetTrainerNoMirroring", "nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_DA5"]


@pytest.mark.parametrize("name", AUGMENTING_OTHERWISE)
@pytest.mark.parametrize("patch", ["3d", "dummy_2d", "2d"])
def test_samples_are_bit_equal_to_nnunets_for_the_same_draws(name: str, patch: str) -> None:
    check_samples(name, inputs(name, patch, None, None, (True, False)), seeds=12)
