"""Batch size and patch size of an experiment in the place of the plans'."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from orchestrator.dataset.model_folder import run_differences
from orchestrator.dataset.preflight import check_run
from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import single_training
from orchestrator.resume.takeover import acquire, sized_plans
from orchestrator.tracking.plan_params import plan_params
from tests.nnunet_beside import configuration
from tests.unit.tiny_dataset import CONFIGURATIONS, Tiny, tiny_dataset
from trainers.contract.plans import plans_of
from trainers.contract.run_spec import RunSpec
from trainers.data.dataset import open_dataset


def planned(base: Path) -> Tiny:
    """A network of four stages, whose patches are divisible by 8."""
    tiny = tiny_dataset(base)
    network = {"architecture": configuration(3)["architecture"], "patch_size": [16, 16, 16]}
    tiny.write_plans(configurations={**CONFIGURATIONS, "3d_fullres": {**CONFIGURATIONS["3d_fullres"], **network}})
    return tiny


def run(tiny: Tiny, name: str = "3d_fullres", **keys: Any) -> RunSpec:
    (spec,) = expand(single_training(17, name, 0, **tiny.folders, **keys))
    return spec


def test_other_sizes_are_another_model_and_none_the_same_run_as_ever(tmp_path: Path) -> None:
    tiny = planned(tmp_path)
    plain, batch, patch = run(tiny), run(tiny, batch_size=4), run(tiny, patch_size=[16, 24, 16])
    assert len({spec.run_key for spec in (plain, batch, patch)}) == 3
    assert len({spec.data_digest for spec in (plain, batch, patch)}) == 3
    assert [spec.variant for spec in (plain, batch, patch)] == ["", "batch_size-4", "patch_size-16x24x16"]
    assert "patch_size" not in plain.model_dump()
    assert RunSpec.model_validate_json(patch.model_dump_json()) == patch
    assert run_differences(plain, patch) == "patch_size (the plans', now 16 x 24 x 16)"
    assert run_differences(batch, plain) == "batch_size (4, now the plans')"
    assert plan_params(patch)["patch_size"] == "16 x 24 x 16"
    assert check_run(patch) == []


def test_samples_and_batches_have_these_sizes_and_nnunet_reads_them_from_the_model_folder(tmp_path: Path) -> None:
    spec = run(planned(tmp_path), batch_size=5, patch_size=[16, 24, 16])
    data = open_dataset(spec)
    assert (data.geometry.patch, data.batch_size) == ((16, 24, 16), 5)
    acquire(spec, [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    theirs = PlansManager(str(spec.model_folder / "plans.json")).get_configuration("3d_fullres")
    assert (list(theirs.patch_size), theirs.batch_size) == ([16, 24, 16], 5)
    assert json.loads((spec.model_folder / "plans.json").read_text()) == plans_of(spec).content
    assert sized_plans(run(planned(tmp_path / "plain"))) is None, "the bytes of nnU-Net's file"


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        (
            "3d_fullres",
            {"patch_size": [16, 20, 16]},
            r"^patch_size: .*\[16, 20, 16\] must be divisible by \[8, 8, 8\].*fits is \[16, 24, 16\]",
        ),
        ("3d_fullres", {"patch_size": [16, 16]}, r"^patch_size: \[16, 16\] has 2 numbers, and configuration '3d_fullres' of .* has 3 axes"),
        ("2d", {"patch_size": [16, 16, 16]}, r"has 3 numbers, and configuration '2d' of .* has 2 axes"),
        ("3d_fullres", {"batch_size": 1, "workers": {"count": 2, "gpus": 0}}, "2 workers"),
    ],
)
def test_sizes_that_the_plans_do_not_allow_are_refused(tmp_path: Path, name: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(planned(tmp_path), name, **keys)


@pytest.mark.parametrize(
    ("keys", "words"), [({"batch_size": 0}, "batch_size"), ({"patch_size": [0, 8]}, "patch_size"), ({"patch_size": [8]}, "patch_size")]
)
def test_sizes_that_can_never_be_are_refused_with_the_file(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        single_training(17, "3d_fullres", 0, **keys)
