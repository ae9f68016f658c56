"""Every trainer that is accepted by its name beside nnU-Net's own class of that name, built as nnU-Net's command builds it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from tests.conftest import Toys
from tests.nnunet_beside import as_target, configuration
from tests.nnunet_reference import PATCHES, built_trainer, variant_class
from tests.toy import nnunet_environment, toy_spec
from tests.unit.trainers.data.test_recipes import PATCHES as RECIPE_PATCHES
from tests.unit.trainers.data.test_recipes import check_samples, check_transforms, inputs
from trainers.contract.plans import Labels, Plans
from trainers.contract.run_spec import Schedule
from trainers.contract.trainer_table import TRAINERS
from trainers.data.batches import SplitName
from trainers.data.dataset import geometry, open_dataset
from trainers.data.samples import SampleKey, _is_forced, forced_probability, make_batch
from trainers.network.learner import as_list, learning_rate
from trainers.network.loss import SegmentationLoss
from trainers.network.model import deep_supervision_weights, mirroring_axes
from trainers.network.optimizer import sgd
from trainers.training.assemble import assemble, model_config
from trainers.training.world import World

NAMES = [name for name in TRAINERS if name != "nnUNetTrainerDA5_classic"]
COVERED = {"__init__", "configure_rotation_dummyDA_mirroring_and_inital_patch_size", "get_training_transforms", "_build_loss"} | {
    "configure_optimizers",
    "on_train_epoch_start",
    "load_checkpoint",  # of warmup: the same, but for the order in which the optimizer is made
    "_set_batch_size_and_oversample",  # of the drawn oversampling: the plain one without another share per rank
}
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
    settings, batch_size = TRAINERS[name], theirs.configuration_manager.batch_size
    assert theirs.probabilistic_oversampling is (settings.oversampling != "last")
    if settings.oversampling == "last":
        assert theirs.oversample_foreground_percent == ours.foreground_oversampling
    else:
        assert theirs.oversample_foreground_percent == forced_probability(batch_size, ours.foreground_oversampling, settings)
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings(
    "ignore:Detected call of:UserWarning", "ignore:The epoch parameter:UserWarning"
)  # nnU-Net's way with schedulers
def test_the_optimizer_and_the_learning_rates_are_those_of_nnunet(built: Built, name: str) -> None:
    theirs, schedule = built(name), Schedule.model_validate(TRAINERS[name].schedule)
    theirs.network = torch.nn.Linear(2, 2)
    theirs.optimizer, theirs.lr_scheduler = theirs.configure_optimizers()
    theirs.logger = SimpleNamespace(log=lambda *_: None)
    ours = sgd(torch.nn.Linear(2, 2), schedule)
    assert type(theirs.optimizer) is type(ours)
    changing = {"lr", "initial_lr", "params"}
    groups = [{key: value for key, value in o.param_groups[0].items() if key not in changing} for o in (theirs.optimizer, ours)]
    assert groups[0] == groups[1]
    for epoch in (e for e in (0, 1, 2, 4, 9, 48, 49, 50, 51, 499, 500, 998, 999) if e < schedule.epochs):
        theirs.current_epoch = epoch
        theirs.on_train_epoch_start()
        assert learning_rate(schedule, epoch, TRAINERS[name].rate) == theirs.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 9])
def test_the_share_of_drawn_oversampling_is_that_of_nnunet(built: Built, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    monkeypatch.setattr(ConfigurationManager, "batch_size", batch_size)
    for name in NAMES:
        if TRAINERS[name].oversampling != "last":
            share = Schedule.model_validate(TRAINERS[name].schedule).foreground_oversampling
            assert built(name).oversample_foreground_percent == forced_probability(batch_size, share, TRAINERS[name])


def test_drawn_oversampling_draws_for_each_sample_of_either_split_and_moves_nothing_else(toys: Toys) -> None:
    """The stream of its own leaves case, location and augmentation of every sample where they are without it."""
    spec = toy_spec(toys(), schedule=Schedule(foreground_oversampling=0.5))
    drawing = spec.model_copy(update={"trainer": "nnUNetTrainer_probabilisticOversampling"})
    splits: tuple[SplitName, ...] = ("train", "val")
    keys = [SampleKey(0, split, 0, iteration, position) for split in splits for iteration in range(500) for position in range(2)]
    forced = [_is_forced(key, 2, drawing) for key in keys]
    assert forced == [_is_forced(key, 2, drawing) for key in keys]
    assert [round(sum(forced[part::2]) / 1000, 1) for part in (0, 1)] == [0.5, 0.5]  # whatever the position
    data, chosen = open_dataset(spec), next(key for key in keys if key.position == 1 and _is_forced(key, 2, drawing))
    one, other = (make_batch(data, run, chosen.split, chosen.epoch, chosen.iteration, [1]) for run in (spec, drawing))
    assert np.array_equal(one.images, other.images)


AUGMENTING_OTHERWISE = [
    "nnUNetTrainerNoMirroring",
    "nnUNetTrainer_onlyMirror01",
    "nnUNetTrainer_onlyMirror01_DA5",
    "nnUNetTrainer_noDummy2DDA",
    "nnUNetTrainer_DASegOrd0",
    "nnUNetTrainer_DASegOrd0_NoMirroring",
    "nnUNetTrainer_onlyMirror01_DASegOrd0",
    "nnUNetTrainerDA5Segord0",
    "nnUNetTrainerDA5ord0",
    "nnUNetTrainerNoDA",
]


@pytest.mark.parametrize("name", AUGMENTING_OTHERWISE)
@pytest.mark.parametrize("patch", ["3d", "dummy_2d", "2d"])
def test_samples_are_bit_equal_to_nnunets_for_the_same_draws(name: str, patch: str) -> None:
    check_samples(name, inputs(name, patch, None, None, (True, False)), seeds=12)


@pytest.mark.parametrize("planner", ["ResEncUNetPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL"])
def test_plans_of_nnunets_planners_read_as_nnunet_reads_them_over_several_steps_of_inheritance(toys: Toys, planner: str) -> None:
    toy = toys("labels")
    with nnunet_environment(toy.base):
        from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        made = getattr(residual_encoder_unet_planners, planner)(toy.name)
        with mock.patch.object(made, "save_plans"):
            content = json.loads(json.dumps(made.plan_experiment(), default=lambda value: value.tolist()))
    steps = {"fewer": {"inherits_from": "3d_fullres", "batch_size": 3}, "wider": {"inherits_from": "fewer", "batch_dice": True}}
    last = {"inherits_from": "wider", "batch_size": 5}
    content["configurations"] |= {**steps, "last": last}
    plans = Plans(made.plans_identifier, toy.preprocessed / "plans.json", content)
    theirs = PlansManager(content)
    for name in plans.configurations:
        expected = theirs.get_configuration(name).configuration
        assert plans.configuration(name) == {key: value for key, value in expected.items() if key != "inherits_from"}
    settings = plans.configuration("last")
    assert (settings["batch_size"], settings["batch_dice"]) == (5, True)
    assert settings["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    assert plans.with_sizes("last", 4, None).configuration("last")["batch_size"] == 4
    assert plans.configuration("last")["batch_size"] == 5
