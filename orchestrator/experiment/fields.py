"""What each kind of value in an experiment file may be, and in which forms people write it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from orchestrator.errors import ConfigError
from orchestrator.experiment.own_code import OwnSource, own_trainer
from orchestrator.run.patients import compiled, is_table, read_table
from orchestrator.tracking.address import check_tracking_uri
from trainers.contract.names import LONGEST_CASE, LONGEST_NAME, Fold, fault_of_name, fault_of_variant
from trainers.contract.trainer_table import canonical_trainer
from trainers.storage.files import expanded

LONGEST_REPLICATE = 40
"""Most characters of a replicate's name."""
MAX_LISTED = 1000
"""Most entries of one list."""
SINGULAR = {"folds": "fold", "seeds": "seed"}
"""Keys of lists -> how people write them for one value; both mean the same."""


def listed(value: Any) -> Any:
    """A list as it is, one value as a list of it. Raises ValueError for too many entries."""
    if isinstance(value, list | tuple) and len(value) > MAX_LISTED:
        raise ValueError(f"has {len(value)} entries, at most {MAX_LISTED} are allowed; write several experiments")
    return value if isinstance(value, list | tuple) else [value]


def _numbered(value: Any) -> Any:
    """As `listed`, with every `0-4` as the numbers that it stands for."""
    return listed([number for entry in listed(value) for number in _range(entry)])


def _range(entry: Any) -> list[Any]:
    limits = re.fullmatch(r"\s*(\d{1,19})\s*-\s*(\d{1,19})\s*", entry, re.ASCII) if isinstance(entry, str) else None
    if limits is None:
        return [entry]
    first, last = int(limits[1]), int(limits[2])
    if last < first:
        raise ValueError(f"{entry} counts down; write {last}-{first}")
    if last - first >= MAX_LISTED:
        raise ValueError(f"{entry} stands for {last - first + 1} numbers, at most {MAX_LISTED} are allowed; write several experiments")
    return [*range(first, last + 1)]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """`values`, none of which stands there twice; else raises ValueError."""
    twice = sorted({str(v) for v in values if values.count(v) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is listed more than once; list each once")
    return values


def _whole_number(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"\d{1,19}", str(value), re.ASCII):
        raise ValueError(f"{what} must be a whole number from 0, got {value!r}")
    return int(value)


def _fold(value: Any) -> Fold:
    return "all" if value == "all" else _whole_number(value, "a fold is `all` or")


def _seed(value: Any) -> int:
    return _whole_number(value, "a seed")


def _trainer(value: Any) -> str | OwnSource:
    if (own := own_trainer(value)) is not None:
        return own
    try:
        return canonical_trainer(str(value))
    except ConfigError as err:
        raise ValueError(str(err).removeprefix("trainers: ")) from err


def _dataset(value: Any) -> str:
    text = "" if isinstance(value, bool) else str(value)
    if not re.fullmatch(r"\d{1,9}|Dataset\d{1,9}_.+", text, re.ASCII | re.DOTALL):
        raise ValueError("must be a dataset's number (17, 017) or its whole name (Dataset017_BTCV)")
    return _plain(text, LONGEST_CASE)


def _plain(value: str, longest: int = LONGEST_NAME) -> str:
    if fault := fault_of_name(value, longest):
        raise ValueError(f"the name {fault}")
    return value


def _replicate(value: str) -> str:
    return _plain(value, LONGEST_REPLICATE) if value else ""


def _variant(value: str) -> str:
    if value and (fault := fault_of_variant(value)):
        raise ValueError(f"the name {fault}")
    return value


def _printable(value: str) -> str:
    if not value.isprintable() or len(value) > 1000:
        raise ValueError("must be printable text on one line of at most 1000 characters")
    return value


def _folder(value: Path) -> Path:
    _printable(str(value))
    return value


def _patients(value: Any) -> Any:
    """A pattern as it is, if it is one; of a table what it holds, so that it goes with the experiment to machines without the file."""
    if not isinstance(value, str) or not value:
        return value
    try:
        if is_table(value):
            return read_table(expanded(Path(value)), "patients")
        compiled(value, "patients")
    except ConfigError as err:
        raise ValueError(str(err).removeprefix("patients: ")) from err
    return value


def _tracking_uri(value: str) -> str:
    try:
        return check_tracking_uri(value)
    except ConfigError as err:
        raise ValueError(str(err).removeprefix("tracking.uri: ")) from err


def _one_or_more(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


def _axis(item: dict[str, Any], written: Callable[[Any], Any] = listed) -> tuple[Any, ...]:
    return BeforeValidator(written), AfterValidator(distinct), Field(min_length=1), _one_or_more(item)


_Name = Annotated[str, Field(min_length=1), AfterValidator(lambda name: _plain(name))]
_NAME = {"type": "string", "minLength": 1}
_RANGE = {"type": "string", "pattern": "^[0-9]+-[0-9]+$"}
_FOLD = {"anyOf": [{"type": "integer", "minimum": 0}, {"const": "all"}, _RANGE]}
_SEED = {"anyOf": [{"type": "integer", "minimum": 0}, _RANGE]}
NameList = Annotated[tuple[_Name, ...], *_axis(_NAME)]
Trainers = Annotated[tuple[Annotated[str | OwnSource, BeforeValidator(_trainer)], ...], *_axis({"anyOf": [_NAME, {"type": "object"}]})]
Folds = Annotated[tuple[Annotated[Fold, BeforeValidator(_fold)], ...], *_axis(_FOLD, _numbered)]
Seeds = Annotated[tuple[Annotated[int, BeforeValidator(_seed), Field(lt=2**63)], ...], *_axis(_SEED, _numbered)]
DatasetName = Annotated[str, BeforeValidator(_dataset), WithJsonSchema({"type": ["integer", "string"]})]
Patients = Annotated[
    str | dict[str, str],
    BeforeValidator(_patients),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}]}),
]
Folder = Annotated[Path, AfterValidator(_folder)]
Printable = Annotated[str, AfterValidator(_printable)]
ReplicateName = Annotated[str, AfterValidator(_replicate)]
VariantName = Annotated[str, AfterValidator(_variant)]
TrackingUri = Annotated[str, AfterValidator(_tracking_uri)]
