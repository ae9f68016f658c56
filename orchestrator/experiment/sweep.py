"""The key `sweep` of an experiment file: schedules that differ in a few fields, each a variant with a name."""

import math
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from orchestrator.experiment.fields import distinct, listed
from trainers.contract.names import LONGEST_VARIANT, fault_of_variant, nearest, shown
from trainers.contract.run_spec import Schedule

FIELDS = tuple(Schedule.model_fields)
USAGE = "name fields of the schedule with lists (`initial_lr: [0.01, 0.001]`), or variants with fields (`low: {initial_lr: 0.001}`)"
Fields = Mapping[str, int | float]


class Variant(NamedTuple):
    """Settings on the same data; without a name the usual ones."""

    name: str
    schedule: Schedule


class _Value(Schedule):
    """One field of a schedule on its own."""

    model_config = ConfigDict(allow_inf_nan=False)


def num_variants(sweep: Mapping[str, Any]) -> int:
    """How many variants a checked sweep has; a product of lists may be far too large to be written out."""
    return len(sweep) if names_variants(sweep) else math.prod(len(values) for values in sweep.values())


def variants_of(sweep: Mapping[str, Any], base: Schedule) -> list[Variant]:
    """The variants of a checked sweep, the last list changing fastest: each is `base` with its own fields."""
    if names_variants(sweep):
        return [Variant(name, base.model_copy(update=fields)) for name, fields in sweep.items()]
    combinations = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    return [Variant(name_of(fields), base.model_copy(update=fields)) for fields in combinations]


def names_variants(sweep: Mapping[str, Any]) -> bool:
    """True for NAME -> fields, false for field -> list."""
    return all(isinstance(value, Mapping) for value in sweep.values())


def name_of(fields: Fields) -> str:
    """`initial_lr-0.001_epochs-100`: every field of the sweep, so that a value that is added to a list renames no other variant."""
    return "_".join(f"{key}-{value}".replace("+", "") for key, value in fields.items())  # 1e+16


def swept_fields(sweep: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of lists; a variant that is named may override what the file has for all."""
    return () if names_variants(sweep) else tuple(sweep)


def fields_of(sweep: Mapping[str, Any]) -> set[str]:
    """All fields that some variant of a checked sweep has of its own."""
    return {field for fields in sweep.values() for field in fields} if names_variants(sweep) else set(sweep)


def _checked(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"must {USAGE}")
    if names_variants(value):
        return {_variant_name(name): _fields_of(name, fields) for name, fields in value.items()}
    if named := [str(key) for key, entry in value.items() if isinstance(entry, Mapping)]:
        raise ValueError(f"{shown(named[0])} names a variant beside fields with lists; {USAGE}")
    return {key: _values(key, entry) for key, entry in value.items()}


def _variant_name(name: Any) -> str:
    if fault := fault_of_variant(str(name)):
        raise ValueError(f"{shown(str(name))} {fault}")
    return str(name)


def _fields_of(name: Any, fields: Mapping[Any, Any]) -> dict[str, int | float]:
    try:
        return {key: _value(key, value) for key, value in fields.items()}
    except ValueError as err:
        raise ValueError(f"{name}: {err}") from err


def _values(key: Any, entry: Any) -> tuple[int | float, ...]:
    values = tuple(_value(key, value) for value in listed(entry))
    if not values:
        raise ValueError(f"{key}: the list is empty; name values, or leave the field out")
    return distinct(values)


def _value(key: Any, value: Any) -> int | float:
    if key not in FIELDS:
        raise ValueError(f"{shown(str(key))} is no field of the schedule.{nearest(str(key), FIELDS)} Known: {', '.join(FIELDS)}")
    try:
        found: int | float = getattr(_Value(**{key: value}), key)
    except ValidationError as err:
        why = err.errors()[0]["msg"].replace("Input should be", "must be")
        raise ValueError(f"{key}: {shown(value)} {why}") from None
    return found


def fault_of_names(sweep: Mapping[str, Any]) -> str:
    """Why the variants of lists cannot be named after their values; '' when they can."""
    if names_variants(sweep):
        return ""
    longest = max((name_of(dict(zip(sweep, values, strict=True))) for values in product(*sweep.values())), key=len)
    if len(longest) <= LONGEST_VARIANT:
        return ""
    return f"{longest} is longer than {LONGEST_VARIANT} characters; name each variant yourself: `NAME: {{{next(iter(sweep))}: ...}}`"


_ENTRY = {"propertyNames": {"enum": list(FIELDS)}}
_NUMBERS = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
Sweep = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", **_ENTRY, "additionalProperties": _NUMBERS, "minProperties": 1},
                {"type": "object", "additionalProperties": {"type": "object", **_ENTRY, "additionalProperties": {"type": "number"}}},
                {"type": "null"},
            ]
        }
    ),
]
