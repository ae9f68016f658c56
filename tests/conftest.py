"""Fixtures of all rings."""

import errno
import os
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.toy import Toy, toy_dataset

Toys = Callable[..., Toy]


@pytest.fixture
def read_only_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file that is replaced whole can be begun, as where a share is mounted read-only (root may write whatever the modes forbid)."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """`toys(kind, **options)` makes a toy dataset on first use and returns the same one after that: read-only for tests."""
    made: dict[tuple[Any, ...], Toy] = {}
    base = tmp_path_factory.mktemp("toys")

    def toy(kind: Any = "labels", **options: Any) -> Toy:
        key = (kind, *sorted(options.items()))
        if key not in made:
            folder = base / str(len(made))
            folder.mkdir()
            made[key] = toy_dataset(folder, kind, **options)
        return made[key]

    return toy
