"""Names that nnU-Net's users know: datasets, plans, folds; what a name may hold; and the nearest name when one is misspelt."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

Fold = int | Literal["all"]

LONGEST_NAME = 80
"""Bytes of the name of plans or a configuration: both are in one folder's name, which file systems end at 255 bytes."""
LONGEST_CASE = 150
"""Bytes of a case id or a dataset's name."""
LONGEST_VARIANT = 60
"""Bytes of a variant's name, which is part of a folder's name too."""
_NAME = re.compile(r"\w[\w.+-]*")
_VARIANT = re.compile(r"\w[\w.-]*", re.ASCII)
_CASE = re.compile(r"\w[\w .,+=@()\[\]-]*")


def fault_of_name(name: str, longest: int = LONGEST_NAME) -> str:
    """Why `name` cannot name plans, a configuration or a dataset; '' when it can.

    Such names become parts of folders, of Ray submission ids and of MLflow tags: letters, digits and `_.+-`, the first a letter, digit
    or `_`. So none leaves its folder, none is taken for an option, and none needs quoting in a shell.
    """
    return _fault(name, _NAME, longest, "letters, digits and _.+-")


def fault_of_case(case_id: str) -> str:
    """Why `case_id` cannot name the files of a case; '' when it can. Like `fault_of_name`, with spaces and `,=@()[]` too."""
    return _fault(case_id, _CASE, LONGEST_CASE, "letters, digits, spaces and _.,+-=@()[]")


def fault_of_variant(name: str) -> str:
    """Why `name` cannot name a variant; '' when it can. Like `fault_of_name` without `+`, which begins it in an address; and it must not
    be taken for another part of a model folder's name: these are separated by `__`, and the last may be `seed3`.
    """
    if fault := _fault(name, _VARIANT, LONGEST_VARIANT, "letters (a-z, A-Z), digits and _.-"):
        return fault
    if "__" in name or name.strip("_") != name:
        return "must not hold `__`, nor begin or end with `_`, as `__` separates the parts of a model folder's name; write `-`"
    if re.fullmatch(r"seed\d+", name, re.IGNORECASE):
        return f"would be taken for a seed; write `seeds: {int(name[4:])}` for one, or another name, as `with-{name}`"
    return ""


def _fault(name: str, allowed: re.Pattern[str], longest: int, kinds: str) -> str:
    if len(name.encode("utf-8", "surrogatepass")) > longest:
        return f"is longer than {longest} bytes"
    if not allowed.fullmatch(name) or ".." in name or name[-1] in " .":
        return f"must consist of {kinds}, begin with a letter, digit or _, not end with a dot or space and not hold two dots in a row"
    return "" if unicodedata.is_normalized("NFC", name) else "is not in Unicode's composed form (NFC)"


def shown(value: object, longest: int = 60) -> str:
    """A value as an error text may hold it: on one line, without control characters, cut."""
    text = repr(value if not isinstance(value, str) else value[: longest + 1])
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint for an error text: ' Did you mean ...?' with the nearest known name, or '' when none is near."""
    by_lower = {known.lower(): known for known in words}
    found = difflib.get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.5)
    return f" Did you mean {by_lower[found[0]]!r}?" if found else ""
