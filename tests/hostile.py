"""Bad and hostile inputs, each with the error that answers it: what the tables beside the readers share.

The tables are `tests/unit/**/test_hostile_*.py`; `python -m tests.hostile` prints all of them as Markdown.
"""

import importlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.errors import NnfleetError


class Evil:
    """Runs a command when a pickle of it is loaded the usual way."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@dataclass
class Place:
    """A folder of its own for one input."""

    base: Path
    mark: Path = field(init=False)
    """Exists if anything of an input was executed."""

    def __post_init__(self) -> None:
        self.mark = self.base / "executed"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.base / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path


@dataclass(frozen=True)
class Row:
    """One input: what it is, how it is given, and what answers it."""

    area: str
    what: str
    give: Callable[[Place], object]
    error: type[NnfleetError]
    parts: tuple[str, ...]
    """Telling parts of the text, in any order."""

    def __str__(self) -> str:
        return f"{self.area}: {self.what}"


def answered(row: Row, base: Path) -> tuple[NnfleetError, bool]:
    """Give a row's input; returns the error that answers it, and whether anything of the input was executed."""
    place = Place(base)
    try:
        row.give(place)
    except NnfleetError as err:
        return err, place.mark.exists()
    raise AssertionError(f"{row}: nothing was refused")


def check(row: Row, base: Path) -> None:
    """The type of the error is the row's, its text has the telling parts (what, where, got, do), and nothing was executed."""
    error, executed = answered(row, base)
    assert type(error) is row.error
    assert not executed
    assert [part for part in row.parts if part not in str(error)] == [], str(error)


def all_rows() -> Iterator[Row]:
    """The rows of every table."""
    root = Path(__file__).parents[1]
    for path in sorted((root / "tests/unit").rglob("test_hostile_*.py")):
        module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
        yield from getattr(module, "ROWS", ())


def main() -> None:
    """Print the tables as one."""
    print("| # | input | what | error | text |\n| --- | --- | --- | --- | --- |")
    for number, row in enumerate(all_rows(), 1):
        with tempfile.TemporaryDirectory(prefix="nnf-") as folder:
            error, _ = answered(row, Path(folder))
            text = " ".join(str(error).replace(folder, "...").replace("|", "\\|").split())
        print(f"| {number} | {row.area} | {row.what} | {type(error).__name__} | {text[:300]} |")


if __name__ == "__main__":
    main()
