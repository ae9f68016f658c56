"""Which of nnU-Net's trainers are accepted, as what, and why the others are refused; and that docs/trainers.md says the same."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest

from trainers.contract.trainer_table import REFUSED, SHORT, TRAINERS, TrainerSettings, canonical_trainer, checkpoint_trainer_name
from trainers.errors import ConfigError

DOCUMENT = Path(__file__).parents[4] / "docs" / "trainers.md"


def classes_of_nnunet() -> list[str]:
    """Names of the trainer classes in nnU-Net's sources, which need not be imported for that."""
    found = importlib.util.find_spec("nnunetv2")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "training" / "nnUNetTrainer"
    return re.findall(r"^class (\w+)\(", "\n".join(path.read_text() for path in sorted(folder.rglob("*.py"))), re.MULTILINE)


def settings_in_words(settings: TrainerSettings) -> str:
    """What differs from nnUNetTrainer, as docs/trainers.md writes it."""
    usual = TrainerSettings()
    changed = [(field.name, getattr(settings, field.name)) for field in fields(settings)]
    return "; ".join(f"{name} = {value}" for name, value in changed if value != getattr(usual, name)) or "the defaults"


def test_every_trainer_class_of_nnunet_is_accepted_or_refused_with_a_reason() -> None:
    classes = classes_of_nnunet()
    assert len(classes) > 70
    assert set(classes) == (set(TRAINERS) - {"nnUNetTrainerDA5_classic"}) | set(REFUSED)
    assert not set(TRAINERS) & set(REFUSED)


def test_the_document_lists_every_trainer_with_its_settings_or_the_reason() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", DOCUMENT.read_text(), re.MULTILINE))
    expected = {name: settings_in_words(settings) for name, settings in TRAINERS.items()}
    assert rows == expected | {name: f"refused: {reason}" for name, reason in REFUSED.items()}


def test_the_document_explains_every_setting() -> None:
    explained = re.findall(r"^\* `(\w+)`:", DOCUMENT.read_text(), re.MULTILINE)
    assert explained == [field.name for field in fields(TrainerSettings)]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_is_known_by_its_name(name: str) -> None:
    assert canonical_trainer(name) == name
    assert checkpoint_trainer_name(name) == name.removesuffix("_classic")


def test_usual_trainers_have_a_short_form() -> None:
    assert {short: canonical_trainer(short) for short in SHORT} == SHORT
    assert all(TRAINERS[name].recipe == short for short, name in SHORT.items())


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_trainer_is_refused_with_its_reason_and_no_other_is_suggested(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        canonical_trainer(name)
    assert f"trainers: nnfleet does not train {name} of nnU-Net: {REFUSED[name]}. Name another trainer" in str(caught.value)
    assert "Did you mean" not in str(caught.value)


def test_an_unknown_trainer_is_refused_with_the_nearest_and_the_cure_for_another_number_of_epochs() -> None:
    with pytest.raises(
        ConfigError, match=r"'nnUNetTrainer_25epochs' is not a trainer .* Did you mean 'nnUNetTrainer_\d+epochs'\?.*set `epochs`"
    ):
        canonical_trainer("nnUNetTrainer_25epochs")
