"""Compiled code: kept where it can be, compiled anew where it cannot, and never a reason to fail."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from trainers.data.kernels import compiled
from trainers.data.kernels.compiled import cache_folder, kernel

CODE = """
import logging; logging.basicConfig(level=logging.INFO)
from trainers.data.kernels.compiled import cache_folder
from tests.unit.trainers.data.test_compiled import doubled_kernel
doubled = doubled_kernel()
print(doubled(21), bool(doubled.stats.cache_hits), cache_folder())
"""


def double(number: Any) -> Any:
    return number * 2


def doubled_kernel() -> Any:
    return kernel("int64(int64)")(double)


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    yield
    cache_folder.cache_clear()


def kept_in(home: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    cache_folder.cache_clear()
    return cache_folder()


def test_a_home_that_cannot_be_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    file = tmp_path / "file"
    file.touch()
    found = kept_in(file, tmp_path, monkeypatch)
    assert found is not None
    assert found.parent.parent == tmp_path
    assert doubled_kernel()(21) == 42
    assert any(found.iterdir())
    assert kept_in(file, file, monkeypatch) is None
    assert "each process compiles" in caplog.text
    assert doubled_kernel()(21) == 42


def test_code_in_a_folder_that_others_may_write_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_to_all, other = tmp_path / "home", tmp_path / "other"
    (open_to_all / "nnfleet-kernels").mkdir(parents=True)
    (open_to_all / "nnfleet-kernels").chmod(0o777)
    found = kept_in(open_to_all, other, monkeypatch)
    assert found is not None
    assert found.is_relative_to(other)


def test_code_that_was_cut_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kept_in(tmp_path, tmp_path, monkeypatch)
    assert found is not None
    assert not doubled_kernel().stats.cache_hits
    assert doubled_kernel().stats.cache_hits
    for file in found.glob("*.nb*"):
        file.write_bytes(file.read_bytes()[:20])
    assert doubled_kernel()(21) == 42
    assert doubled_kernel().stats.cache_hits


def test_processes_that_start_at_once_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = Path(__file__).parents[4]
    started = [subprocess.Popen([sys.executable, "-c", CODE], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(output[:2] for output in outputs) == [["42", "False"], ["42", "True"], ["42", "True"]]
    assert {Path(output[2]).parent for output in outputs} == {tmp_path / "nnfleet-kernels"}


def test_a_lock_that_is_never_freed_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that a process of another host left on a file system without flock."""
    monkeypatch.setattr(compiled, "_LONGEST_COMPILING_S", 0.2)
    monkeypatch.setattr(compiled, "_unlocked", set())
    with filelock.FileLock(tmp_path / "lock"):
        waited = []
        for _ in range(3):
            began = time.monotonic()
            with compiled._one_at_a_time(tmp_path):
                waited.append(time.monotonic() - began >= 0.15)
    assert waited == [True, False, False]
