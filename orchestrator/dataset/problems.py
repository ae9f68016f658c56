"""Problems that are collected on the way and reported all at once."""

from orchestrator.errors import ConfigError, DataError, NnfleetError

MAX_LISTED = 5
"""Cases named in one problem; the rest is counted."""


MAX_PROBLEMS = 30


class Problems:
    """Problems in the order in which they were found, each once."""

    def __init__(self) -> None:
        self._found: dict[str, type[NnfleetError]] = {}

    def add(self, *problems: NnfleetError) -> None:
        """Keep problems; the type says whether the request (ConfigError) or the data (DataError) have to change."""
        for problem in problems:
            self._found.setdefault(str(problem), type(problem))

    @property
    def texts(self) -> list[str]:
        """One sentence or more per problem."""
        return list(self._found)

    def raise_if_any(self) -> None:
        """Raise one error that lists all problems: DataError if only data have to change, else ConfigError."""
        if not self._found:
            return
        kind = DataError if all(issubclass(t, DataError) for t in self._found.values()) else ConfigError
        if len(self._found) == 1:
            raise kind(self.texts[0])
        shown = [f"- {text}" for text in self.texts[:MAX_PROBLEMS]]
        rest = len(self._found) - MAX_PROBLEMS
        raise kind("\n".join([f"{len(self._found)} problems:", *shown, *([f"- and {rest} more"] if rest > 0 else [])]))


def listed(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    rest = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {rest} more" if rest > 0 else "")
