"""Pseudonyms: one for a case in a results folder, and none that can be traced back from what the tracking server holds."""

from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.tracking.records import params_of, shared_reason, tags_of, validation_data
from tests.fake_run import FakeRun
from trainers.contract.pseudonyms import SALT_FILE, pseudonym, pseudonym_salt
from trainers.errors import DataError


def test_the_salt_is_made_once_and_private(tmp_path: Path) -> None:
    salt = pseudonym_salt(tmp_path / "Dataset001_X")
    assert pseudonym_salt(tmp_path / "Dataset001_X") == salt != pseudonym_salt(tmp_path / "Dataset002_Y")
    assert (tmp_path / "Dataset001_X" / SALT_FILE).stat().st_mode & 0o777 == 0o600
    assert pseudonym("patient_7", salt) == pseudonym("patient_7", salt) != pseudonym("patient_8", salt)


def test_a_damaged_salt_is_an_error_and_no_empty_key(tmp_path: Path) -> None:
    (tmp_path / SALT_FILE).write_text("")
    with pytest.raises(DataError, match="64 hexadecimal"):
        pseudonym_salt(tmp_path)


def test_what_mlflow_holds_of_a_run_does_not_give_the_pseudonyms_away(tmp_path: Path) -> None:
    spec = FakeRun(tmp_path, pseudonyms=True).spec
    salt = pseudonym_salt(spec.model_folder.parent)
    known = [*params_of(spec).values(), *tags_of(spec).values(), ""]
    assert salt not in known
    names = {pseudonym(case, salt) for case in spec.val_cases}
    assert names.isdisjoint(pseudonym(case, key) for case in spec.val_cases for key in known)
    assert validation_data(spec) != sha256("\n".join([spec.data_digest, *spec.val_cases]).encode()).hexdigest()


def test_with_pseudonyms_a_reason_is_not_shared(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    assert shared_reason(run.spec, "case_2 cannot be read") == "case_2 cannot be read"
    assert shared_reason(run.spec.model_copy(update={"pseudonyms": True}), "case_2 cannot be read") == ""
