"""What MLflow shows of the plans that a run follows."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.contract.plans import labels_of, load_dataset_json, plans_of
from trainers.contract.run_spec import RunSpec
from trainers.errors import NnfleetError

log = logging.getLogger(__name__)


def class_names(spec: RunSpec) -> list[str]:
    """Names of the scored classes in the order of `EpochRow.pseudo_dice`."""
    return list(labels_of(load_dataset_json(spec.preprocessed_folder)).foreground)


def plan_params(spec: RunSpec) -> dict[str, str]:
    """The essentials of the plans and the classes, as MLflow parameters; nothing where they cannot be read."""
    try:
        plan = plans_of(spec).configuration(spec.configuration)
        names = class_names(spec)
    except NnfleetError as err:
        log.warning("the plans of %s are not recorded in MLflow: %s", spec.run_key, err)
        return {}
    architecture: Mapping[str, Any] = plan.get("architecture") or {}
    arguments: Mapping[str, Any] = architecture.get("arch_kwargs") or {}
    found = {
        "patch_size": times(plan.get("patch_size")),
        "batch_size": plan.get("batch_size"),
        "spacing_mm": times(plan.get("spacing")),
        "batch_dice": plan.get("batch_dice"),
        "normalization": ", ".join(map(str, plan.get("normalization_schemes") or ())),
        "architecture": str(architecture.get("network_class_name") or "").rsplit(".", 1)[-1],
        "features_per_stage": "-".join(map(str, arguments.get("features_per_stage") or ())),
        "num_classes": len(names),
        "classes": ", ".join(names),
    }
    return {key: str(value) for key, value in found.items() if value not in (None, "")}


def times(sizes: Sequence[float] | None) -> str:
    """Sizes of the axes, as MLflow shows them."""
    return " x ".join(f"{size:g}" for size in sizes or ())
