"""A pytest plugin that writes down each test as it starts and ends, so that what a dying process had done can still be read.

python -m pytest -p tests.ring_record --ring-record=FILE ...
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_WEIGHT = ("passed", "skipped", "failed")
"""A test reports its setup, its call and its teardown; the heaviest of the three counts."""


@dataclass
class Record:
    """What became of the tests of one pytest process."""

    outcomes: dict[str, str] = field(default_factory=dict)
    """Test → passed, failed or skipped. A module that cannot be collected counts as one failed test."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Test → setup, call and teardown together."""
    unfinished: list[str] = field(default_factory=list)
    """Tests that had started and not ended when the process did."""

    def names(self, outcome: str) -> list[str]:
        """The tests of one outcome."""
        return [name for name, found in self.outcomes.items() if found == outcome]


def read_record(path: Path) -> Record:
    """What a process wrote; a half line at the end belongs to one that died while writing."""
    record = Record()
    for event in _events(path):
        name = event["test"]
        if event["what"] == "start":
            record.unfinished.append(name)
        elif event["what"] == "end":
            record.unfinished = [other for other in record.unfinished if other != name]
        else:
            record.seconds[name] = record.seconds.get(name, 0.0) + event["seconds"]
            record.outcomes[name] = max(event["what"], record.outcomes.get(name, "passed"), key=_WEIGHT.index)
    record.unfinished = [name for name in record.unfinished if record.outcomes.get(name) != "failed"]
    for name in record.unfinished:
        record.outcomes.pop(name, None)
    return record


def _events(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        if line.endswith("\n"):
            yield json.loads(line)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ring-record", metavar="FILE", type=Path, help="write each test's start, outcome and end into this file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--ring-record")
    if path is not None and not hasattr(config, "workerinput"):  # the workers of pytest-xdist report to the process that started them
        config.pluginmanager.register(_Recorder(path))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("start", nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write("end", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(report.outcome, report.nodeid, report.duration)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("failed", report.nodeid)

    def _write(self, what: str, test: str, seconds: float = 0.0) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"what": what, "test": test, "seconds": seconds}) + "\n")
