"""The scores of full validations as MLflow gets them, and whether it has them.

They are sent last: where MLflow has the scores that the run folder keeps, it has the summary, the table and the pictures beside them too.
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from orchestrator.tracking.records import metric_path
from trainers.contract.lesions import LESION_SCORES
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName


def tracked_metrics(extended: Mapping[str, Any]) -> dict[str, float]:
    """Names and values below `full/<checkpoint>/`, NaN left out. Pure."""
    classes = extended.get("classes", {})
    values = {f"{metric}/{name}": c.get(metric) for name, c in classes.items() for metric in ("dice", "hd95_mm", "nsd", *LESION_SCORES)}
    values |= {key: extended.get(key) for key in ("dice_mean", "hd95_mm_mean", "nsd_mean", "minus_ema_pseudo_dice", *LESION_SCORES)}
    return {key: float(value) for key, value in values.items() if value is not None and not math.isnan(value)}


def score_metrics(name: CheckpointName, metrics: Mapping[str, float]) -> dict[str, float]:
    """MLflow's metrics of a full validation; what is not finite has none. Pure."""
    return {metric_path(f"full/{name}/{key}"): float(value) for key, value in metrics.items() if math.isfinite(value)}


def holds_scores(held: Mapping[str, float], folder: RunFolder, name: CheckpointName) -> bool:
    """True when `held`, the metrics of an MLflow run, has the scores of the checkpoint's validation, value by value.

    Scores that are all NaN, since no case had foreground, are none to lack. Where the folder's record of them cannot be read, any will do.
    """
    try:
        stored = score_metrics(name, tracked_metrics(json.loads(folder.extended_summary(name).read_text())))
    except (OSError, ValueError, TypeError, AttributeError):
        return any(key.startswith(f"full/{name}/") for key in held)
    return all(math.isclose(held.get(key, math.nan), value, rel_tol=1e-9) for key, value in stored.items())


def scored_unix(folder: RunFolder, name: CheckpointName) -> float:
    """When a checkpoint got the scores that it has, the time that they carry in MLflow: of one step, MLflow shows the newest."""
    files = (folder.summary(name), folder.extended_summary(name))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=time.time())
