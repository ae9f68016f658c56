"""What MLflow gets of a run, as plain values: names of metrics, parameters, tags. Nothing here speaks to MLflow.

Parameters cannot change in MLflow, so only what the run key fixes is a parameter; what may differ between starts is a tag.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from orchestrator.run.names import short_address
from orchestrator.tracking.groups import grouping_tags
from orchestrator.tracking.plan_params import plan_params, times
from trainers.contract.bottleneck import limit_of
from trainers.contract.commits import EpochRow
from trainers.contract.pseudonyms import pseudonym_salt
from trainers.contract.run_spec import OWN_TRAINER_SCHEDULE, RunSpec
from trainers.contract.states import RunState

RUN_KEY_TAG = "nnfleet.run_key"
MODEL_KEY_TAG = "nnfleet.model_key"
"""Of the MLflow run that holds the cross-validation of a model; it has no run key."""
COMPARISON_KEY_TAG = "nnfleet.comparison_key"
"""Of the MLflow run that holds the report of a comparison, likewise."""
LIMITED_BY_TAG = "nnfleet.limited_by"
"""What limited the last epochs of a run (`trainers/contract/bottleneck.py`)."""
EARLY_END_TAG = "nnfleet.early_end"
"""How a run ends before its schedule, as somebody asked (`EarlyEnd.text`)."""
STATE_TAG = "nnfleet.state"
ADDRESS_TAG = "nnfleet.address"
NOTE_TAG = "mlflow.note.content"
"""The description on a run's page."""
FOLDER_TAG = "nnfleet.run_folder"
FOLDS_TAG = "nnfleet.folds"
"""Of a cross-validation: the folds that it holds, `0, 1, 2`."""
MARKER_METRIC = "time/epoch_s"
"""Logged for every epoch, always finite: the epochs that MLflow has are the steps of this metric."""
MAX_CLASS_METRICS = 60
"""Classes that get curves of their own; the charts page of MLflow freezes with hundreds of keys."""
NNUNET = "nnU-Net"
"""Tag `nnfleet.imported` and parameter `recipe` of a run that nnU-Net itself trained."""
CONTINUED_TAG = "nnfleet.continued"
"""Of a run that nnU-Net itself began: which epochs are its."""
NOT_EXACT_TAG = "nnfleet.not_exact"
"""Of a run whose trainer is a class of the user's: why it is not exact."""
OWN_TRAINER = "own_trainer"
"""Parameter of such a run: the class, with the SHA-256 of its files."""
NO_VARIANT = "-"
"""Parameter `variant` of a run of the usual settings: MLflow groups by what every run has. No variant has this name."""
DIGEST_LENGTH = 36
"""MLflow refuses longer dataset digests."""
PARAM_LENGTH = 500
"""Characters of a parameter that are recorded, and compared."""
RECORDED_PACKAGES = ("nnfleet", "ray", "torch", "numba", "nnunetv2", "mlflow")


def shows_end(state: str) -> bool:
    """True for the value of STATE_TAG of a run that has ended; other versions may write states that are not known here."""
    return state in RunState.__members__ and RunState(state).is_final


def mlflow_status(state: RunState, *, is_waiting: bool = False) -> str:
    """MLflow's status of a run in a state; `is_waiting`: it stands in the queue for its next job. Pure."""
    if state.is_final:
        return {RunState.SUCCEEDED: "FINISHED", RunState.STOPPED: "KILLED"}.get(state, "FAILED")
    return "SCHEDULED" if is_waiting or state is RunState.QUEUED else "RUNNING"


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch as MLflow gets it: always the same values and time for the same row, so sending twice changes nothing."""

    epoch: int
    timestamp_ms: int
    values: dict[str, float]


@dataclass(frozen=True)
class KnownRun:
    """What MLflow holds of a run."""

    run_id: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """The newest value of each."""
    is_deleted: bool = False
    """It is in MLflow's bin: nothing can be recorded of it until it is restored."""

    @property
    def has_ended(self) -> bool:
        """True when MLflow shows the run as ended."""
        return shows_end(self.tags.get(STATE_TAG, ""))


@dataclass(frozen=True)
class ModelRun:
    """What identifies and describes an MLflow run that is no training: of a cross-validation, or of a comparison."""

    key: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class OpenRun:
    """A run that MLflow shows as not ended."""

    run_id: str
    run_key: str
    state: str
    run_folder: str
    """As a tag says; whoever may write tags chooses it."""


def metric_name(text: str) -> str:
    """`text` with every character that MLflow refuses in a metric name replaced by `_`."""
    return re.sub(r"[^\w\-. :]", "_", text).replace("..", "__").strip() or "_"


def metric_names(texts: Sequence[str]) -> list[str]:
    """Metric names for several classes; two that become equal are distinguished by a number."""
    taken: dict[str, int] = {}
    names = []
    for text in texts:
        name = metric_name(text)
        taken[name] = taken.get(name, 0) + 1
        names.append(name if taken[name] == 1 else f"{name}_{taken[name]}")
    return names


def metric_path(text: str) -> str:
    """A whole metric key: `/` stays as the separator of sections."""
    return "/".join(metric_name(part) for part in text.split("/"))


def epoch_metrics(history: Sequence[EpochRow], class_names: Sequence[str]) -> list[EpochMetrics]:
    """What MLflow shows of each epoch of a whole history. `best/ema_pseudo_dice` appears only where the score rises.

    Values that are not finite are left out: MLflow turns infinity into 1.8e308, and a class that no patch showed has no Dice.
    """
    names = metric_names(class_names)
    if len(names) > MAX_CLASS_METRICS:
        names = []
    best: float | None = None
    records = []
    for row in history:
        values = _row_values(row, names)
        ema = row.ema_pseudo_dice
        if ema is not None and math.isfinite(ema) and (best is None or ema > best):
            best = ema
            values["best/ema_pseudo_dice"] = ema
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        records.append(EpochMetrics(row.epoch, int(row.ended_unix * 1000), finite))
    return records


def trained_s(epoch_seconds: Iterable[Any]) -> float:
    """Seconds that the epochs of a run took, by the points of MARKER_METRIC, each epoch once. Pure."""
    return math.fsum({point.step: point.value for point in epoch_seconds}.values())


def _row_values(row: EpochRow, class_names: Sequence[str]) -> dict[str, float]:
    values = {
        "train/loss": row.train_loss,
        "val/loss": row.val_loss,
        "val/pseudo_dice_mean": row.pseudo_dice_mean,
        "lr": row.learning_rate,
        MARKER_METRIC: row.epoch_s if math.isfinite(row.epoch_s) else 0.0,
        "time/train_s": row.train_s,
        "time/val_s": row.val_s,
        "time/wait_data_s": row.wait_data_s,
        "time/save_s": row.save_s,
        "loader/actors": float(row.loaders) if row.loaders else math.nan,
        "loader/actors_enough": float(limit.enough) if (limit := limit_of([row])) else math.nan,
        "loader/cpu_s": row.prepare_cpu_s,
        "loader/read_wait_s": row.read_wait_s,
        "throughput/samples_per_s": row.samples_per_s,
        "gpu/memory_gib": row.gpu_memory_gib,
        "workers": float(row.world_size) if row.world_size else math.nan,
        "attempt": float(row.fencing_token),
    }
    if row.ema_pseudo_dice is not None:
        values["val/ema_pseudo_dice"] = row.ema_pseudo_dice
    values |= {f"val/pseudo_dice/{name}": dice for name, dice in zip(class_names, row.pseudo_dice, strict=False)}
    values |= {key if key.startswith("system/") else f"system/node_0/{metric_path(key)}": v for key, v in row.system.items()}
    return values


def run_name(spec: RunSpec) -> str:
    """Readable name of the run, short enough for a legend: its address without what all have in common, and its replicate if it is one."""
    name = short_address(spec.address)
    return f"{name}, replicate {spec.replicate}" if spec.replicate else name


def fixed_params(spec: RunSpec) -> dict[str, str]:
    """MLflow parameters of a run that its specification alone gives."""
    grouping = ("dataset", "configuration", "trainer", "plans", "fold", "seed", "data_digest")
    params = {key: str(getattr(spec, key)) for key in grouping}
    params |= _training_params(spec)
    params |= {part: code.text for part, code in spec.own.named.items() if part != "trainer"}
    params["variant"] = spec.variant or NO_VARIANT
    params |= {"batch_size": str(spec.batch_size)} if spec.batch_size is not None else {}  # else the plans', by `plan_params`
    params |= {"patch_size": times(spec.patch_size)} if spec.patch_size is not None else {}
    params |= {"replicate": spec.replicate} if spec.replicate else {}
    params |= {"candidates": str(spec.validation.candidates)} if spec.validation.candidates else {}
    params |= {"pretrained_weights": f"SHA-256 {spec.pretrained_weights.sha256}"} if spec.pretrained_weights else {}
    return params | {"num_train_cases": str(len(spec.train_cases)), "num_val_cases": str(len(spec.val_cases))}


def _training_params(spec: RunSpec) -> dict[str, str]:
    """Augmentation and schedule; of a class of the user's what the experiment sets of them, the rest being its own."""
    schedule = {key: str(value) for key, value in spec.schedule.model_dump().items()}
    if spec.own.trainer is not None:
        return {OWN_TRAINER: spec.own.trainer.text, **{key: schedule[key] for key in OWN_TRAINER_SCHEDULE}}
    return {"recipe": NNUNET if spec.imported is not None else spec.recipe, **schedule}


def params_of(spec: RunSpec) -> dict[str, str]:
    """MLflow parameters of a run: everything that the run key fixes, with the essentials of the plans."""
    return fixed_params(spec) | plan_params(spec)


def validation_data(spec: RunSpec) -> str:
    """SHA-256 that stands for the validation cases: equal only where scores may be compared. With pseudonyms it is keyed."""
    salt = [pseudonym_salt(spec.model_folder.parent)] if spec.pseudonyms else []
    return sha256("\n".join([*salt, spec.data_digest, *spec.val_cases]).encode()).hexdigest()


def early_end_tags(spec: RunSpec, early_end: str) -> dict[str, str]:
    """Tags of a run that ends early: it is grouped with runs that end alike. Reads plans and split."""
    return grouping_tags(spec, early_end) | {EARLY_END_TAG: early_end}


def shared_reason(spec: RunSpec, reason: str) -> str:
    """Why a run is in its state, as MLflow may show it. With pseudonyms nothing: a reason may name cases."""
    return "" if spec.pseudonyms else reason[:500]


def tags_of(spec: RunSpec) -> dict[str, str]:
    """MLflow tags of a run: its names, and what may differ between starts (workers, loader, validation, kernels, versions). Of a run that
    nnU-Net trained, what is known of its start."""
    tags = {
        RUN_KEY_TAG: spec.run_key,
        ADDRESS_TAG: spec.address,
        "nnfleet.kind": "run",
        **({"nnfleet.pretrained_run": spec.pretrained_weights.run} if spec.pretrained_weights and spec.pretrained_weights.run else {}),
        FOLDER_TAG: str(spec.run_folder),
        "nnfleet.images": str(spec.images),
        "nnfleet.upload_interval_s": f"{spec.upload_interval_s:g}",
        **grouping_tags(spec),
        **{f"nnfleet.{key}": str(getattr(spec, key)) for key in ("dataset", "configuration", "trainer", "plans", "fold", "seed")},
        **{f"nnfleet.validation.{key}": str(value) for key, value in spec.validation.model_dump(mode="json").items()},
        "nnfleet.pseudonyms": str(spec.pseudonyms),
    }
    tags |= {"nnfleet.replicate": spec.replicate} if spec.replicate else {}
    tags |= {CONTINUED_TAG: spec.continued.text} if spec.continued else {}
    tags |= {NOT_EXACT_TAG: spec.inexactness} if spec.inexactness else {}
    tags |= _start_tags(spec) if spec.imported is None else {"nnfleet.imported": NNUNET}
    found = versions() if spec.imported is None else spec.imported.versions
    return tags | {f"nnfleet.version.{name}": version for name, version in found.items()}


def _start_tags(spec: RunSpec) -> dict[str, str]:
    """How a run is trained here."""
    return {
        **{f"nnfleet.workers.{key}": str(value) for key, value in spec.workers.model_dump().items()},
        **{f"nnfleet.loader.{key}": str(value) for key, value in spec.loader.model_dump().items()},
        **{f"nnfleet.{key}": str(getattr(spec, key)) for key in ("deterministic", "compile")},
    }


def job_tags(submission_id: str, fencing_token: int) -> dict[str, str]:
    """The fencing token and the Ray job that published last; the id is that of `nnfleet logs` and of Ray's dashboard."""
    kind = {"train": "training", "validate": "validation"}.get(submission_id.split("-", 1)[0])
    return {"nnfleet.attempt": str(fencing_token)} | ({f"nnfleet.ray_job.{kind}": submission_id} if kind else {})


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a run does, read from their metadata without importing them."""
    found = {"python": python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class ModelEntry:
    """What an entry in MLflow's Models tab holds."""

    name: str
    sha256: str
    """Of the checkpoint; one run has at most one entry per checkpoint."""
    files: Mapping[str, Path]
    """Path inside the model -> local file."""
    params: Mapping[str, str]
    scores: Mapping[str, float]
    unix: float
    """Time of the scores, the one with which the run itself has them."""
    data: tuple[str, str]
    """Name and digest of the cases that gave the scores."""


def note_of(spec: RunSpec, run_id: str) -> str:
    """What a user reads first on the run's page, in Markdown; the picture is the run's own artifact."""
    variant = f", variant {spec.variant}" if spec.variant else ""
    trained_by = "nnfleet" if spec.imported is None else NNUNET
    begun = f"{spec.continued.text}\n\n" if spec.continued else f"{spec.inexactness}\n\n" if spec.inexactness else ""
    return (
        f"**{spec.dataset}, {spec.configuration}, {spec.trainer}{variant}, fold {spec.fold}**, trained by {trained_by} for "
        f"{spec.schedule.epochs} epochs on {len(spec.train_cases)} cases, validated on {len(spec.val_cases)} whole cases.\n\n{begun}"
        "`pseudo_dice` counts patches and guides the choice of the best checkpoint; `full/...` are the Dice values of whole cases.\n\n"
        f"Get the model: `nnfleet export {spec.run_key} FOLDER`\n\n"
        f"{artifact_picture('Losses, pseudo-Dice, times and learning rate', 'progress.png', run_id)}"
    )


def artifact_picture(title: str, path: str, run_id: str) -> str:
    """A picture among the artifacts of a run, in the Markdown of its description."""
    return f"![{title}](get-artifact?path={path}&run_uuid={run_id})"
