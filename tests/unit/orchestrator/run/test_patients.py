"""Patients of cases: by a pattern, by a table; what is no such thing is refused with what to do."""

from pathlib import Path

import pytest

from orchestrator.experiment.model import load_experiment, parse_experiment
from orchestrator.run.patients import patients_of, read_table
from trainers.errors import ConfigError

CASES = ["patient1_left", "patient1_right", "patient20_left"]
OF_EACH = {"patient1_left": "patient1", "patient1_right": "patient1", "patient20_left": "patient20"}


@pytest.mark.parametrize("pattern", [r"^(patient\d+)_", r"patient\d+", r"^(patient\d+)_(?:left|right)$"])
def test_the_group_of_a_pattern_else_its_match_is_the_patient(pattern: str) -> None:
    assert patients_of(pattern, CASES, "here") == OF_EACH


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"here: '\(' is no regular expression: .* Correct it"),
        (r"(\w+?)(\d+)", r"has 2 groups.*\(\?:\.\.\.\)"),
        (r"sub-(\d+)", "finds no patient in the case id 'patient1_left'"),
        (r"patient1_(left)?", "finds no patient in the case id 'patient1_right'"),
        ("a" * 300, "has 300 characters, at most 200"),
    ],
)
def test_a_pattern_that_names_no_patient_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        patients_of(pattern, CASES, "here")


def test_a_table_names_the_patient_of_each_case(tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("\ufeffcase,patient\r\n" + "".join(f"{case}, {patient}\r\n" for case, patient in OF_EACH.items()) + "\r\n")
    assert read_table(table, "here") == OF_EACH
    assert patients_of(str(table), CASES[:1], "here") == {CASES[0]: "patient1"}
    with pytest.raises(ConfigError, match="of 3 cases has no patient for a, b, c and 1 more cases. Add a line"):
        patients_of(str(table), "abcd", "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with 'an empty file'.*`case,patient`"),
        ("a,b\n", "begins with 'a,b'"),
        ("case,patient\na\n", r"patients.csv:2: 'a' is no case and its patient"),
        ("case,patient\na,\n", r"patients.csv:2: 'a,' is no case"),
        ("case,patient\na,1\nb,1\na,2\n", "patients.csv:4: the case a is of 2 here, and of 1 above"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "patients.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_table(table, "here")


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"case,patient\n\xff,1\n")
    for name in ("nowhere.csv", "latin.csv"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read as a table.*CSV file in UTF-8"):
            read_table(tmp_path / name, "here")


def test_an_experiment_takes_its_table_along(tmp_path: Path) -> None:
    """It lies beside the file; a cluster that does not see it reads the same patients."""
    (tmp_path / "patients.csv").write_text("case,patient\na,1\nb,1\n")
    file = tmp_path / "e.yaml"
    file.write_text("dataset: 17\nconfigurations: 2d\npatients: patients.csv\n")
    experiment = load_experiment(file)
    (tmp_path / "patients.csv").unlink()
    assert parse_experiment(experiment.to_yaml()).patients == {"a": "1", "b": "1"}
    with pytest.raises(ConfigError, match=r"e.yaml:3: patients: .*patients.csv cannot be read as a table"):
        load_experiment(file)


def test_an_experiment_refuses_a_pattern_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"patients: .*is no regular expression"):
        parse_experiment("dataset: 17\nconfigurations: 2d\npatients: '('\n")
