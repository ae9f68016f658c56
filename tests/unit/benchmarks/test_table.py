"""The one table of all benchmarks: rows, their storage, a benchmark that fails, and the arguments that it gives each."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import table
from benchmarks.rows import Row, pairwise, quartiles, store, stored
from benchmarks.table import LARGE, SMALL, line, lines_of, measured
from benchmarks.validation import table_rows

FOLDER = Path(table.__file__).parent


def test_the_ratio_is_the_median_of_the_pairs_with_quartiles() -> None:
    row = pairwise("epoch, s", [1.0, 1.0, 1.0, 3.0], [2.0, 4.0, 1.0, 4.0])
    assert (row.ours, row.theirs) == (1.0, 3.0)
    assert row.ratio == pytest.approx((0.3125, 0.625, 0.9375))  # of 0.25, 0.5, 0.75, 1
    assert row.cells == ["epoch, s", "1", "3", "0.625 (0.312 to 0.938)"]
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)


def test_what_was_measured_once_has_a_ratio_without_quartiles_and_what_only_we_have_has_none() -> None:
    assert Row("MB", 1908, 6211).cells == ["MB", "1908", "6211", "0.307"]
    assert Row("start, s", 21.64).cells == ["start, s", "21.6", "-", "-"]


def test_rows_come_back_from_the_file_of_a_benchmark(tmp_path: Path) -> None:
    rows = [pairwise("a", [1.0, 2.0], [2.0, 2.0]), Row("b", 1.0)]
    store(tmp_path / "a.json", rows, {"raw": [1]})
    store(None, rows, None)
    assert stored(tmp_path / "a.json") == rows


def test_the_command_stands_once_and_a_failure_in_its_place(tmp_path: Path) -> None:
    rows = [Row("a", 1.0), Row("b", 2.0)]
    assert lines_of("epoch", "--epochs 6", rows, tmp_path) == [
        "| a | 1 | - | - | `python -m benchmarks.epoch --epochs 6` |",
        "| b | 2 | - | - |  |",
    ]
    assert lines_of("epoch", "--epochs 6", None, tmp_path)[0].startswith(f"| epoch: failed, see {tmp_path}/epoch.txt | - |")


def test_a_benchmark_that_fails_has_no_rows_and_its_text_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        how["stdout"].write("no such file")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert measured("epoch", "--epochs 6", tmp_path) is None
    assert (tmp_path / "epoch.txt").read_text() == "no such file"
    assert ran[0][1:] == ["-m", "benchmarks.epoch", "--epochs", "6", "--json", str(tmp_path / "epoch.json")]


@pytest.mark.parametrize("arguments", [SMALL, LARGE])
def test_every_benchmark_knows_the_arguments_that_the_table_gives_it(arguments: dict[str, str]) -> None:
    assert list(arguments) == list(SMALL)
    for name, text in arguments.items():
        source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        options = [word for word in text.split() if word.startswith("--")]
        assert all(f'"{option}"' in source for option in (*options, "--json")), name


def test_a_line_is_markdown() -> None:
    assert line(["a", "b"]) == "| a | b |"


def test_a_validations_rows_compare_with_nnunets_own_processes() -> None:
    spent = {
        side: [{kind: {"total": seconds * factor} for kind in ("cpu", "wall")} for factor in (1.0, 1.0)]
        for side, seconds in (("ours", 1.0), ("nnunet", 4.0), ("nnunet with threads", 2.0))
    }
    rows = table_rows(spent, "small")
    assert [row.what for row in rows] == [f"full validation of a fold, small network, {kind} s" for kind in ("cpu", "wall")]
    assert rows[0].ratio == (0.25, 0.25, 0.25)
