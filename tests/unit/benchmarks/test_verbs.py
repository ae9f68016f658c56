"""The benchmark of the verbs: what it calls, and what its table says."""

import os
from pathlib import Path

from benchmarks.verbs import Sample, row, sample, verbs


def test_a_row_has_medians_the_longest_wait_and_the_exit_codes() -> None:
    samples = [Sample(1.0, 0.5, 0), Sample(3.0, 0.7, 2), Sample(2.0, 0.6, 0)]
    assert row("status", samples).split() == ["status", "2.00", "0.60", "3.00", "0,2"]


def test_only_what_was_asked_for_trains_or_names_a_run() -> None:
    experiment = Path("x.yaml")
    assert not {"submit", "logs"} & verbs(experiment, "", submits=False).keys()
    assert verbs(experiment, "17/2d", submits=True)["logs"] == ["logs", "17/2d"]


def test_a_typo_is_a_wrong_command_line() -> None:
    found = sample(verbs(Path("x.yaml"), "", submits=False)["typo"], os.environ)
    assert found.exit_code == 2
    assert found.cpu_s > 0
