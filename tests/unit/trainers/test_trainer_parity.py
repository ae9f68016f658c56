"""Every trainer that is accepted by its name beside nnU-Net's own class of that name, built as nnU-Net's command builds it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import Toys
from tests.nnunet_beside import configuration
from tests.nnunet_reference import PATCHES, built_trainer, variant_class
from tests.unit.trainers.data.test_recipes import PATCHES as RECIPE_PATCHES
from tests.unit.trainers.data.test_recipes import check_samples, check_transforms, inputs
from trainers.contract.run_spec import Schedule
from trainers.contract.trainer_table import TRAINERS
from trainers.data.dataset import geometry
from trainers.network.model import mirroring_axes

NAMES = [name for name in TRAINERS if name != "nnUNetTrainerDA5_classic"]
COVERED = {"__init__", "configure_rotation_dummyDA_mirroring_and_inital_patch_size", "get_training_transforms"}
"""What these tests compare: a class that overrides something else would not be known by its settings."""
Built = Callable[..., Any]


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
    assert theirs.enable_deep_supervision


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


AUGMENTING_OTHERWISE = ["nnUNetTrainerNoMirroring", "nnUNetTrainer_onlyMirror01", "nnUNetTrainer_onlyMirror01_DA5"]


@pytest.mark.parametrize("name", AUGMENTING_OTHERWISE)
@pytest.mark.parametrize("patch", ["3d", "dummy_2d", "2d"])
def test_samples_are_bit_equal_to_nnunets_for_the_same_draws(name: str, patch: str) -> None:
    check_samples(name, inputs(name, patch, None, None, (True, False)), seeds=12)
