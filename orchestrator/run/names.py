"""How a user names runs: the one resolver of names, for statuses, run folders and MLflow alike."""

import contextlib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from trainers.contract.names import nearest, shown
from trainers.contract.trainer_table import SHORT, canonical_trainer
from trainers.errors import ConfigError

MAX_LISTED = 5
LONGEST_SHOWN = 200


MARKS = re.compile(r"[@+][^/]*")
"""What an address names beside the trainer where it is not the usual: `@plans`, `+variant`, `+seed1`."""
USUAL_PREFIX = "nnUNetTrainer"
UNPLANNED = "unplanned-"
"""What stands for the key of a run that cannot be computed yet, since its data are being preprocessed, begins so."""
SHORT_OF = {name: short for short, name in SHORT.items()}


class NoSuchRun(ConfigError):
    """A name means none of the runs that were looked at."""


class Names(NamedTuple):
    """What a run is called."""

    run_key: str
    address: str
    mlflow_run_id: str = ""
    folder: str = ""
    """Its run folder; empty where that is not known."""


def left_text(left: Sequence[str]) -> str:
    """How many run folders are left out, and why, in lines for users; empty where none is. `left`: a sentence for each. Pure."""
    if not left:
        return ""
    count = "1 run folder is" if len(left) == 1 else f"{len(left)} run folders are"
    more = [f"- and {len(left) - MAX_LISTED} more"] if len(left) > MAX_LISTED else []
    return "\n".join([f"{count} left out:", *(f"- {sentence}" for sentence in left[:MAX_LISTED]), *more])


def resolve(wanted: str, names: Sequence[Names], place: str, *, hints: bool = True, left: Sequence[str] = ()) -> list[int]:
    """The runs called `wanted`, as indices, at least one: those of this run key or MLflow run id; else those at or below this address,
    of the usual plans and seed if there are such; else those whose key or id begins so. `*`, `?` and `[...]` stand for any text within a
    part of an address, or within a key.

    `names`: of several runs in one folder the last one owns it; it is meant, the others are named by their keys. `place`: where was
    looked, as in `on this cluster`. Raises NoSuchRun with what is known when there is none, and with the run folders that are `left`.
    """
    if not wanted.strip(" /"):
        raise ConfigError("run: its name is empty. Name the run by its run key, a beginning of it, its address or its MLflow run id.")
    owner = {}
    for i in (matching := _matching(wanted, names)):
        owner[names[i].folder or i] = i  # where the folder is unknown, each is its own
    if owner:
        return [i for i in matching if i in owner.values()]
    hint = nearest(wanted, _suggested(names)) if hints else ""
    text = f"run: there is no run {shown(wanted, LONGEST_SHOWN)} {place}.{hint} Known: {_cut(_models(names))}. {left_text(left)}"
    raise NoSuchRun(text.rstrip())


def resolve_all(wanted: Sequence[str], names: Sequence[Names], place: str, *, hints: bool = True, left: Sequence[str] = ()) -> list[int]:
    """The runs that any of `wanted` means, as indices, each once. Raises ConfigError as `resolve`, for the first name that means none."""
    return list(dict.fromkeys(i for name in wanted for i in resolve(name, names, place, hints=hints, left=left)))


def resolve_one(wanted: str, names: Sequence[Names], place: str, *, left: Sequence[str] = ()) -> int:
    """The one run called `wanted`, as `resolve` finds it. Raises ConfigError with the candidates when several are."""
    found = resolve(wanted, names, place, left=left)
    if len(found) == 1:
        return found[0]
    candidates = _listed([names[i] for i in found])
    by = "address" if len({names[i].address for i in found}) == len(found) else "run key"
    raise ConfigError(f"run: {shown(wanted, LONGEST_SHOWN)} means {len(found)} runs {place}: {candidates}. Name one by its {by}.")


def _matching(wanted: str, names: Sequence[Names]) -> list[int]:
    parts = canonical_address(wanted).split("/")
    short = short_address("/".join(parts)).split("/")
    key = wanted if re.search(r"[*?[]", wanted) else f"{wanted}*"
    return (
        [i for i, name in enumerate(names) if wanted in (name.run_key, name.mlflow_run_id)]
        or [i for i, name in enumerate(names) if _is_below(name.address.split("/"), parts)]
        or [i for i, name in enumerate(names) if _is_below(MARKS.sub("", name.address).split("/"), parts)]
        or [i for i, name in enumerate(names) if _is_below(short_address(name.address).split("/"), short)]
        or [i for i, name in enumerate(names) if fnmatchcase(name.run_key, key) or fnmatchcase(name.mlflow_run_id, key)]
    )


def _is_below(address: Sequence[str], parts: Sequence[str]) -> bool:
    return len(parts) <= len(address) and all(map(fnmatchcase, address, parts))


def short_address(address: str) -> str:
    """The address of a run or model without what nnU-Net's names have in common, as MLflow's tables and legends show it:
    `17/3d_fullres/da5@ResEncUNetM+lowlr/0`. Addresses that differ stay different. Pure.
    """
    parts = address.split("/")
    if len(parts) < 3:
        return address
    trainer = re.split(r"[@+]", parts[2], maxsplit=1)[0]
    short = SHORT_OF.get(trainer) or trainer.removeprefix(USUAL_PREFIX).lstrip("_") or trainer
    marks = re.sub(r"^@nnUNet(.+?)Plans(?=[+]|$)", r"@\1", parts[2].removeprefix(trainer))
    return "/".join([*parts[:2], f"{short}{marks}", *parts[3:]])


def canonical_address(text: str) -> str:
    """An address, or its beginning, as `RunSpec.address` writes it, from what people write: `017/...`, `Dataset017_X/...`, `da5` for the
    trainer, `fold_0`.
    """
    parts = text.strip(" /").split("/")
    if number := re.fullmatch(r"(?:Dataset)?0*(\d+)(?:_.*)?", parts[0], re.ASCII):
        parts[0] = number[1]
    with contextlib.suppress(IndexError, ConfigError):
        trainer = MARKS.sub("", parts[2])
        parts[2] = canonical_trainer(trainer) + parts[2].removeprefix(trainer)
    if len(parts) > 3:
        parts[3] = parts[3].removeprefix("fold_")
    return "/".join(parts)


def _listed(names: Sequence[Names]) -> str:
    """`address (run key)` of each, cut."""
    return _cut([f"{name.address} ({name.run_key})" for name in names])


def _models(names: Sequence[Names]) -> list[str]:
    """Addresses without the fold, each once."""
    return list(dict.fromkeys("/".join(name.address.split("/")[:3]) for name in names))


def _suggested(names: Sequence[Names]) -> list[str]:
    """What a user may have meant: keys, addresses and their beginnings."""
    parts = [name.address.split("/") for name in names]
    beginnings = ["/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)]
    return [*(name.run_key for name in names), *beginnings]


def _cut(texts: Sequence[str]) -> str:
    more = len(texts) - MAX_LISTED
    return ", ".join(texts[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "") or "none"
