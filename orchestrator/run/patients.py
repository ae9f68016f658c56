"""Which patient each case is of: by a pattern over case ids, or by a table. The statistics of a comparison draw patients, not cases."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from trainers.errors import ConfigError

TABLE_ENDING = ".csv"
HEAD = ("case", "patient")
DIGITS = 8
"""Of a digest, in names."""
LONGEST_PATTERN = 200
"""Characters."""
MAX_LISTED = 3


def is_table(patients: str) -> bool:
    """True for the path of a table; everything else is a pattern."""
    return patients.lower().endswith(TABLE_ENDING)


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A pattern over case ids. Raises ConfigError for one that is none, or names the patient in several groups."""
    try:
        found = re.compile(pattern[: LONGEST_PATTERN + 1])
    except re.error as err:
        raise ConfigError(f"{where}: {pattern!r} is no regular expression: {err}. Correct it, or name a table (FILE.csv).") from err
    if len(pattern) > LONGEST_PATTERN:
        raise ConfigError(
            f"{where}: the pattern has {len(pattern)} characters, at most {LONGEST_PATTERN} are allowed. Name a table (FILE.csv)."
        )
    if found.groups > 1:
        raise ConfigError(
            f"{where}: {pattern!r} has {found.groups} groups, and one of them names the patient. Write the others as (?:...)."
        )
    return found


def read_table(path: Path, where: str) -> dict[str, str]:
    """Case -> patient, from a CSV file with the columns `case` and `patient`. Raises ConfigError with the line that is wrong."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(stream), 1) if any(row)]
    except (OSError, ValueError, csv.Error) as err:
        raise ConfigError(f"{where}: {path} cannot be read as a table: {err}. Name a CSV file in UTF-8.") from err
    if not rows or tuple(rows[0][1]) != HEAD:
        got = ",".join(rows[0][1])[:100] if rows else "an empty file"
        raise ConfigError(f"{where}: {path} begins with {got!r}. Its first line must be `case,patient`.")
    found: dict[str, str] = {}
    for number, row in rows[1:]:
        if len(row) != len(HEAD) or not all(row):
            raise ConfigError(f"{where}: {path}:{number}: {','.join(row)[:100]!r} is no case and its patient. Write `case,patient`.")
        if found.setdefault(row[0], row[1]) != row[1]:
            raise ConfigError(f"{where}: {path}:{number}: the case {row[0]} is of {row[1]} here, and of {found[row[0]]} above. Keep one.")
    return found


def patients_of(patients: str | Mapping[str, str], cases: Iterable[str], where: str) -> dict[str, str]:
    """Case -> patient of every case: by a pattern (its group, else its match), by the path of a table, or by what a table holds.

    Raises ConfigError with the cases that have no patient.
    """
    if isinstance(patients, str) and not is_table(patients):
        return _by_pattern(compiled(patients, where), cases, where)
    table = read_table(Path(patients), where) if isinstance(patients, str) else patients
    wanted = list(cases)
    if lacking := [case for case in wanted if case not in table]:
        raise ConfigError(f"{where}: the table of {len(table)} cases has no patient for {_listed(lacking)}. Add a line for each.")
    return {case: table[case] for case in wanted}


def digest_of(patients: str, where: str) -> str:
    """The same for the same pattern, and for tables that name the same patients wherever they lie. Raises ConfigError."""
    named = read_table(Path(patients), where) if is_table(patients) else patients
    return sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _by_pattern(pattern: re.Pattern[str], cases: Iterable[str], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for case in cases:
        match = pattern.search(case)
        patient = match[pattern.groups] if match else None
        if not patient:
            raise ConfigError(
                f"{where}: {pattern.pattern!r} finds no patient in the case id {case!r}. Correct the pattern, or name a table (FILE.csv)."
            )
        found[case] = patient
    return found


def _listed(cases: list[str]) -> str:
    more = len(cases) - MAX_LISTED
    return ", ".join(cases[:MAX_LISTED]) + (f" and {more} more cases" if more > 0 else "")
