"""Whose fault a failed gang is, and which fault of the workers counts."""

from pathlib import Path

import pytest

from orchestrator.fault import Fault, guilty, read_fault, write_fault
from trainers.spec.attempts import claim_attempt
from trainers.spec.errors import DataError, Superseded
from trainers.spec.folder import RunFolder

DIED, RAISED = False, True


def fault(error: BaseException, attempt: int = 1, driver: str = "d") -> Fault:
    return Fault.of(driver, attempt, error)


@pytest.mark.parametrize(
    ("failures", "known", "state"),
    [
        ([(RAISED, ValueError("bug")), (RAISED, RuntimeError("peer closed"))], fault(ValueError("bug")), "FAILED_CODE"),
        ([(DIED, RuntimeError("gone")), (RAISED, RuntimeError("connection closed by peer"))], None, "FAILED_CLUSTER"),
        ([(DIED, RuntimeError("gone"))], fault(RuntimeError("connection closed by peer")), "FAILED_CLUSTER"),
        ([(RAISED, DataError("case x")), (RAISED, RuntimeError("peer closed"))], None, "FAILED_CONFIG"),
        ([(RAISED, RuntimeError("peer closed"))], fault(DataError("case x")), "FAILED_CONFIG"),
        ([(RAISED, Superseded("newer"))], fault(Superseded("newer")), "SUPERSEDED"),
        ([], None, "FAILED_CODE"),
    ],
)
def test_the_guilty_party(failures: list[tuple[bool, BaseException]], known: Fault | None, state: str) -> None:
    assert guilty(failures, known) == state


def test_a_fault_counts_until_the_workers_have_started_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    number = claim_attempt(folder, "d")
    write_fault(folder, fault(RuntimeError("peer closed"), number))
    found = read_fault(folder, "d")
    assert found is not None
    assert found.is_worth_a_retry
    assert read_fault(folder, "another driver") is None
    claim_attempt(folder, "d")
    assert read_fault(folder, "d") is None


def test_an_error_of_the_users_making_is_not_replaced_by_its_echoes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    number = claim_attempt(folder, "d")
    write_fault(folder, fault(DataError("case x is damaged"), number))
    write_fault(folder, fault(RuntimeError("connection closed by peer"), number))
    found = read_fault(folder, "d")
    assert found is not None
    assert found.message == "DataError: case x is damaged"
    assert "case x is damaged" in found.evidence


def test_a_worker_that_does_not_see_the_run_folder_makes_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "not mounted" / "fold_0")
    write_fault(folder, fault(DataError("run folder: it does not exist")))
    assert not (tmp_path / "not mounted").exists()
