"""By what MLflow groups runs: the folds of one model, trained by one schedule on one state of the data.

MLflow averages whatever shares the value of a tag, so what is unlike never shares this one. It holds all that matters: then one key is
enough, and the name of a group stays short.
"""

import json
import logging
from collections.abc import Iterable
from hashlib import sha256

from orchestrator.run.names import short_address
from orchestrator.tracking.plan_params import plan_params
from trainers.contract.plans import Split, load_splits
from trainers.contract.pseudonyms import pseudonym_salt
from trainers.contract.run_spec import RunSpec, Schedule
from trainers.errors import DataError

log = logging.getLogger(__name__)

GROUP_TAG = "nnfleet.group"
DATA_DIGITS = 8
USUAL = Schedule()


def group_of(spec: RunSpec) -> str:
    """What the folds and seeds of one setting have in common, in one word."""
    return "__".join(filter(None, (spec.configuration, spec.trainer, spec.plans, spec.variant)))


def grouping_tags(spec: RunSpec, early_end: str = "") -> dict[str, str]:
    """Tags in which the folds of one model agree, and runs of different settings, schedules or data differ. Reads plans and split.

    `early_end`: how it ended before its schedule (`EarlyEnd.text`), if it did.
    """
    ended = f" (ended early {early_end})" if early_end else ""
    schedule, data = f"{schedule_text(spec.schedule)}{ended}", data_of_folds(spec)
    again = [f"replicate {spec.replicate}"] if spec.replicate else []
    return {
        "nnfleet.variant": group_of(spec),
        "nnfleet.model": spec.model,
        "nnfleet.schedule": schedule,
        "nnfleet.data": data,
        GROUP_TAG: ", ".join([_name(spec), schedule, f"data {data}", *again]),
    }


def _name(spec: RunSpec) -> str:
    """The model, what differs most often first: of a group's name a column shows the beginning. The dataset is part of the digest."""
    _, configuration, trainer = short_address(spec.model).split("/")
    return f"{trainer} {configuration}"


def schedule_text(schedule: Schedule) -> str:
    """The number of epochs, and every other setting that is not nnU-Net's. Pure."""
    changed = {name: value for name in Schedule.model_fields if (value := getattr(schedule, name)) != getattr(USUAL, name)}
    changed.pop("epochs", None)
    return ", ".join([f"{schedule.epochs} epochs", *(f"{name} {value:g}" for name, value in changed.items())])


def data_of_folds(spec: RunSpec) -> str:
    """Digest of what the folds of a model share of the data: the cases with their contents, all splits, and the plans.

    Where splits_final.json no longer holds the run's own split, the fold shares its digest with none of another split.
    """
    cases = {case: "" for case in (*spec.train_cases, *spec.val_cases)} | {
        case: " ".join(digests) for case, digests in (spec.case_digests or {}).items()
    }
    salt = pseudonym_salt(spec.model_folder.parent) if spec.pseudonyms else ""
    content = [salt, spec.dataset, cases, _splits(spec), plan_params(spec)]
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DATA_DIGITS]


def _splits(spec: RunSpec) -> list[list[list[str]]]:
    own = Split(spec.train_cases, spec.val_cases)
    if spec.fold == "all":
        return _sorted([own])
    try:
        every = _sorted(load_splits(spec.preprocessed_folder))
    except DataError as err:
        log.info("the splits of %s are not known: %s", spec.run_key, err)
        every = []
    return every if _sorted([own])[0] in every else _sorted([own])


def _sorted(splits: Iterable[Split]) -> list[list[list[str]]]:
    return [[sorted(split.train), sorted(split.val)] for split in splits]
