"""The key `preprocess` of an experiment file, and which planner of nnU-Net's makes which plans."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from trainers.contract.names import nearest
from trainers.contract.run_spec import Frozen

PLANNERS = {
    "ExperimentPlanner": "nnUNetPlans",
    "ResEncUNetPlanner": "nnUNetResEncUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
    "nnUNetPlannerResEncL_noResampling": "nnUNetResEncUNetLPlans_noResampling",
    "nnUNetPlannerResEncL_torchres": "nnUNetResEncUNetLPlans_torchres",
    "nnUNetPlannerResEncL_torchres_sepz": "nnUNetResEncUNetLPlans_torchres_sepz",
    "nnUNetPlanner_torchres": "nnUNetPlans_torchres",
}
"""nnU-Net's planners -> the name of the plans that each makes unless it is given another one."""


def _planner(name: str) -> str:
    if name and name not in PLANNERS:
        whole = f"nnUNetPlanner{name}"
        meant = f" Did you mean {whole!r}?" if whole in PLANNERS else nearest(name, PLANNERS)
        raise ValueError(f"{name!r} is no planner of nnU-Net's.{meant} Known: {', '.join(PLANNERS)}")
    return name


class Preprocess(Frozen):
    """How what lacks of a dataset is planned and preprocessed, by nnU-Net itself."""

    planner: Annotated[str, BeforeValidator(_planner)] = ""
    """nnU-Net's planner of plans that do not exist yet (-pl); empty: the one whose plans have that name."""
    gpu_memory_target: float | None = Field(None, gt=0, allow_inf_nan=False)
    """GPU memory in GB that new plans are made for (nnU-Net: -gpu_memory_target); default: the planner's own. Name other `plans` for it."""
    cpus: int | None = Field(None, ge=1)
    """CPU cores of the job, each with a process that reads, resamples and writes cases; default: those of the largest node, at most 8."""
    memory_gib: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Memory that the job asks the cluster for, in GiB; default: none, so that only its cores count."""


def _switch(value: Any) -> Any:
    """`true` and `false` as people write them. Raises ValueError for another word or number."""
    if value is not None and not isinstance(value, bool | Mapping | Preprocess):
        raise ValueError(f"{value!r} is neither true nor false; write `true`, or what the job takes: {{cpus: 8, memory_gib: 32}}")
    return ({} if value else None) if isinstance(value, bool) else value


PreprocessField = Annotated[
    Preprocess | None,
    BeforeValidator(_switch),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, Preprocess.model_json_schema(), {"type": "null"}]}),
]


def with_plans_of_planner(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of a file that names a planner and no plans, with the plans that it makes."""
    named = content.get("preprocess")
    planner = named.get("planner") if isinstance(named, dict) else None
    if not isinstance(planner, str) or planner not in PLANNERS or "plans" in content:
        return content
    return {**content, "plans": PLANNERS[planner]}


def planner_of(plans: str, preprocess: Preprocess) -> str:
    """The planner that makes plans of this name; empty: none is known. Pure."""
    return preprocess.planner or next((planner for planner, made in PLANNERS.items() if made == plans), "")


def fault_of_preprocess(preprocess: Preprocess | None, plans: tuple[str, ...]) -> str:
    """What of the key cannot be, beside these plans; '' when all can. Pure."""
    if preprocess is None or len(plans) == 1:
        return ""
    if preprocess.planner:
        return f"preprocess.planner makes one plans file, and `plans` names {len(plans)}; leave it out where their names are nnU-Net's own"
    return ""
