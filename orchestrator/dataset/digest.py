"""What identifies a run: the digest of its data and its run key.

The data digest covers what decides a result: the resolved configuration and the plan's parts that preprocessing and export use, labels and
channels of dataset.json, the split, the bytes of the cases' label files in gt_segmentations, and the values of the preprocessed cases. Not
the bytes of these: blosc2 files of equal content differ in them (blocks lie in the order in which threads finished them). Placement,
loader, tracking and versions of libraries are left out on purpose: they must not orphan a run.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.contract.names import Fold
from trainers.contract.plans import Plans, Split, labels_of
from trainers.contract.run_spec import NOTHING_OWN, OwnParts, PreviousStage, Schedule
from trainers.contract.trainer_table import RECIPE_VERSION, TRAINERS

PLAN_PARTS = (
    "transpose_forward",
    "transpose_backward",
    "image_reader_writer",
    "foreground_intensity_properties_per_channel",
    "label_manager",
)
"""Keys of a plans file, besides the configuration, that decide what a network sees and how its output is written."""
LONGEST_READABLE = 111
"""Most characters of a run key before its digest."""


def model_parts(plans: Plans, configuration: str, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plans file and a dataset.json determines the results of a configuration: all folds of a model folder must agree in it.

    Raises ConfigError or DataError when the configuration or the labels are not there or contradict themselves.
    """
    labels = labels_of(dict(dataset_json))
    return {
        "configuration": plans.configuration(configuration),
        "plans": {key: plans.content.get(key) for key in PLAN_PARTS},
        "foreground": list(labels.foreground.items()),
        "ignore": labels.ignore_label,
        "regions_class_order": labels.regions_class_order,
        "channels": dataset_json.get("channel_names") or dataset_json.get("modality"),
    }


def data_digest(
    plans: Plans,
    configuration: str,
    dataset_json: Mapping[str, Any],
    split: Split,
    label_sha256: Mapping[str, str],
    content_sha256: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """SHA-256 of everything in the data that determines a run's result.

    `label_sha256` maps case ids to digests of label files, `content_sha256` to those of preprocessed image and labels. Without the latter
    it is the digest of runs that were planned before run keys covered the preprocessed cases.
    """
    cases = sorted({*split.train, *split.val})
    contents = {} if content_sha256 is None else {"contents": {case: list(content_sha256.get(case, ())) for case in cases}}
    return _sha256(
        {
            **model_parts(plans, configuration, dataset_json),
            "train": sorted(split.train),
            "val": sorted(split.val),
            "labels": {case: label_sha256.get(case) for case in cases},
            **contents,
        }
    )


def run_key(
    *,
    dataset: str,
    configuration: str,
    trainer: str,
    plans: str,
    fold: Fold,
    seed: int,
    schedule: Schedule,
    data_digest: str,
    replicate: str = "",
    variant: str = "",
    pretrained_sha256: str = "",
    weights_sha256: str = "",
    continued_sha256: str = "",
    own: OwnParts = NOTHING_OWN,
    candidates: int = 0,
    previous_stage: PreviousStage | None = None,
) -> str:
    """Readable parts and 8 digits of a digest, such as `d017-3d_fullres-nnUNetTrainer-nnUNetPlans-f0-s0-1a2b3c4d`.

    `variant`, `replicate`, the user's own functions by name and content, the number of candidates, a cascade's previous stage, the SHA-256
    of pretrained weights, or of the checkpoint of nnU-Net's that the run goes on from, are part of it only where there are such, so that
    all other runs keep their keys.
    `weights_sha256`, of the final checkpoint, takes the recipe's place in a run that was trained by nnU-Net: its samples cannot be drawn
    again.

    At most 140 characters of `A-Za-z0-9_.-`: it is part of Ray submission ids and of file names, and a tag in MLflow.
    """
    digest = _sha256(
        {
            "dataset": dataset,
            "data": data_digest,
            "configuration": configuration,
            "plans": plans,
            "trainer": trainer,
            "recipe": [weights_sha256] if weights_sha256 else _recipe(trainer, own),
            "fold": fold,
            "seed": seed,
            "schedule": schedule.model_dump(mode="json"),
            **({"variant": variant} if variant else {}),
            **({"replicate": replicate} if replicate else {}),
            **({"pretrained_weights": pretrained_sha256} if pretrained_sha256 else {}),
            **({"continued": continued_sha256} if continued_sha256 else {}),
            **({"own": own.model_dump(mode="json")} if own.named else {}),
            **({"candidates": candidates} if candidates else {}),
            **({"previous_stage": previous_stage.model_dump(mode="json")} if previous_stage else {}),
        }
    )
    number = re.match(r"Dataset(\d+)", dataset)
    parts = [f"d{number[1]}" if number else _slug(dataset, 12), _slug(configuration, 24), _slug(trainer, 24), _slug(plans, 24)]
    named = [*([_slug(variant, 24)] if variant else []), *([_slug(replicate, 12)] if replicate else [])]
    readable = "-".join([*parts, f"f{fold}", f"s{seed}", *named])
    return f"{readable[:LONGEST_READABLE] if variant else readable}-{digest[:8]}"


def _recipe(trainer: str, own: OwnParts) -> list[str | int]:
    """A class of the user's is part of the key with its files, and draws samples of its own, which no version of ours changes."""
    return [] if own.trainer is not None else [TRAINERS[trainer].recipe, RECIPE_VERSION]


def _slug(name: str, length: int) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)[:length]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()
