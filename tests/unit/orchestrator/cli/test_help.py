"""What `--help` prints on a terminal of eighty columns: all names of options in full, all lines within it."""

import re
from typing import Any

import pytest
import typer
from click.testing import CliRunner

from orchestrator.cli import VERBS, app

COLUMNS = 80
GROUP: Any = typer.main.get_command(app)


def help_of(*verb: str) -> str:
    shown = CliRunner().invoke(GROUP, [*verb, "--help"], env={"COLUMNS": str(COLUMNS)}, prog_name="nnfleet")
    assert shown.exit_code == 0, shown.output
    return shown.output


def names_of(verb: str) -> list[str]:
    """The options of a verb, and what it calls its arguments."""
    parameters = GROUP.commands[verb].params
    options = [name for each in parameters if each.param_type_name == "option" for name in (*each.opts, *each.secondary_opts)]
    return [*options, *(each.metavar for each in parameters if each.metavar)]


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_eighty_columns_and_cuts_no_name_of_an_option(verb: str) -> None:
    shown = help_of(verb)
    words = re.split(r"[\s,]+", shown)
    assert {"-h", "--help"} <= set(words)
    for name in names_of(verb):
        assert name in words if name.startswith("-") else name in shown, f"{name} of {verb}"
    assert max(map(len, shown.splitlines())) <= COLUMNS
    assert "…" not in shown


def test_the_list_of_verbs_has_the_whole_first_sentence_of_each() -> None:
    shown = " ".join(help_of().split())
    for name, verb in VERBS.items():
        whole = " ".join((verb.__doc__ or "").split())
        sentence = re.match(r".*?\.(?= |$)", whole)
        assert sentence, name
        assert f"{name} {sentence[0]}" in shown
    assert "…" not in shown
    assert max(map(len, help_of().splitlines())) <= COLUMNS
