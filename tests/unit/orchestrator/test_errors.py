"""An error that is sent as its name, and made again where it arrives."""

import pytest

from orchestrator import errors
from orchestrator.errors import ConfigError, NnfleetError, error_named, name_of
from orchestrator.run.names import NoSuchRun


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_the_tree_arrives_as_what_it_was(name: str) -> None:
    kind = getattr(errors, name)
    arrived = error_named(name_of(kind("why")), "why")
    assert (type(arrived), str(arrived)) == (kind, "why")


def test_a_kind_that_a_module_has_for_itself_arrives_as_the_one_above() -> None:
    assert type(error_named(name_of(NoSuchRun("why")), "why")) is ConfigError


@pytest.mark.parametrize("name", ["OfALaterVersion", "error_named", "__all__", ""])
def test_a_name_that_the_tree_lacks_is_the_root(name: str) -> None:
    assert type(error_named(name, "why")) is NnfleetError
