"""The error tree, for the orchestrator's side; drawn and defined in `trainers/errors.py`, which both sides share."""

from trainers.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    DivergedError,
    NeverFits,
    NnfleetError,
    StorageError,
    Superseded,
    TrackingError,
)

__all__ = [
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "NeverFits",
    "NnfleetError",
    "StorageError",
    "Superseded",
    "TrackingError",
]


def name_of(error: NnfleetError) -> str:
    """Its name in the tree, by which `error_named` makes it again; of a kind that a module has for itself, the name of the kind above."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in __all__)


def error_named(name: str, message: str) -> NnfleetError:
    """The error of the tree with this name, so that it is handled here as if it had been raised here."""
    kind: type[NnfleetError] = globals()[name] if name in __all__ else NnfleetError
    return kind(message)
