"""The error tree, for the orchestrator's side; drawn and defined in `trainers/errors.py`, which both sides share."""

from trainers.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    DataError,
    DivergedError,
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
    "NnfleetError",
    "StorageError",
    "Superseded",
    "TrackingError",
]
