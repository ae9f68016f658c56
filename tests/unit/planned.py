"""A run of a tiny dataset whose plans have a whole network."""

from pathlib import Path
from typing import Any

from orchestrator.experiment.expansion import expand
from orchestrator.experiment.model import single_training
from tests.nnunet_beside import configuration
from tests.unit.tiny_dataset import CONFIGURATIONS, tiny_dataset
from trainers.contract.run_spec import RunSpec


def planned(base: Path, **arguments: Any) -> RunSpec:
    """A run of a small dataset whose network has these arguments."""
    tiny = tiny_dataset(base)
    network = {"architecture": configuration(3, **arguments)["architecture"], "patch_size": [16, 16, 16]}
    tiny.write_plans(configurations={"3d_fullres": {**CONFIGURATIONS["3d_fullres"], **network}})
    (spec,) = expand(single_training(17, "3d_fullres", 0, **tiny.folders))
    return spec
