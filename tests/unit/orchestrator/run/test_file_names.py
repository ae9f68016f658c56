"""Names of files that a results folder may refuse, or may not tell apart."""

import errno
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.run.file_names import names_problem


def test_usual_names_are_not_tried(tmp_path: Path) -> None:
    assert names_problem(tmp_path / "none", ["case_1", "Case.2-b"]) == ""


@pytest.mark.parametrize("names", [["a:b"], ["what?"], ["ärzte", "a b"], ["case_A", "case_a"]])
def test_a_disk_that_keeps_any_name_is_left_as_it_was(tmp_path: Path, names: list[str]) -> None:
    assert names_problem(tmp_path, names) == ""
    assert list(tmp_path.iterdir()) == []


class ExFat:
    """`Path.open` as on exFAT: a few characters are refused, and a file of other case is the same."""

    def __init__(self) -> None:
        self.open = Path.open

    def __call__(self, path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "xb":
            return self.open(path, mode, *arguments, **options)
        if set(path.name) & set('<>:"|?*\\'):
            raise OSError(errno.EINVAL, "Invalid argument")
        if any(path.name.casefold() == other.name.casefold() for other in path.parent.iterdir()):
            raise FileExistsError(errno.EEXIST, "File exists")
        return self.open(path, mode)


@pytest.mark.parametrize(("number", "fault"), [(errno.ENOSPC, "is full"), (errno.EIO, "unavailable"), (errno.ESTALE, "unavailable")])
def test_a_disk_that_takes_no_file_at_all_is_no_matter_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fault: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, "refused")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=fault):
        names_problem(tmp_path, ["a b"])


@pytest.mark.parametrize(
    ("names", "number", "first"), [(["ok", "a:b", "c?"], 2, "a:b"), (["case_A", "case_a"], 1, "case_a"), (["ä", "Ä"], 1, "Ä")]
)
def test_names_that_the_results_folder_does_not_keep_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], number: int, first: str
) -> None:
    fake = ExFat()
    monkeypatch.setattr(Path, "open", lambda path, *arguments, **options: fake(path, *arguments, **options))
    problem = names_problem(tmp_path, names)
    assert f"does not keep files by the names of {number} cases, first {first!r}" in problem
    assert "Name another nnUNet_results" in problem
    assert list(tmp_path.iterdir()) == []
