"""Seconds of what benchmarks/fuzz.py does for minutes: whatever the bytes, readers answer with errors of our own tree."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import fuzz
from orchestrator.experiment.model import parse_experiment, single_training
from trainers.contract.names import fault_of_case, fault_of_name
from trainers.data.restricted_pickle import loads
from trainers.errors import ConfigError

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@pytest.mark.filterwarnings("ignore")
def test_no_reader_fails_with_a_foreign_error() -> None:
    tallies = fuzz(seconds=4, seed=7)
    assert {name: dict(tally.faults) for name, tally in tallies.items() if tally.faults} == {}
    assert all(tally.accepted + tally.refused.total() > 0 for tally in tallies.values())


@QUICK
@given(st.text(max_size=200))
def test_any_text_is_an_experiment_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_experiment(text)


@QUICK
@given(st.text(max_size=100) | st.sampled_from(["a", "..", "a/../b", "-x", "é", "a b", "a\n", "x" * 90]))
def test_a_name_that_is_let_through_stays_in_its_folder(name: str) -> None:
    if not fault_of_case(name):
        assert (Path("/base") / f"{name}.json").resolve().parent == Path("/base")
        assert name.isprintable()
    try:
        (configuration,) = single_training(1, name, 0).configurations
    except ConfigError:
        assert fault_of_name(name)
    else:
        assert configuration == name
        assert not {*name} & {*" /\\'\"`$;&|<>*?~#!\n\t\0"}


@QUICK
@given(st.binary(max_size=300))
def test_any_bytes_are_a_plain_value_or_a_value_error(content: bytes) -> None:
    for start in (b"", b"\x80\x04"):
        with contextlib.suppress(ValueError):
            loads(start + content)
