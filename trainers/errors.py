"""Every error that nnfleet raises on purpose.

NnfleetError
├── ConfigError       the experiment file or a command line asks for something that cannot be: ends a run as FAILED_CONFIG
├── DataError         a dataset, plans, split or case file is missing, unreadable or contradicts itself: FAILED_CONFIG
├── DivergedError     training has reached weights that are not finite numbers: FAILED_CODE
├── StorageError      a file system is full, read-only or away: FAILED_CLUSTER
├── CheckpointError   a checkpoint or state is missing, truncated or does not match its digest
├── ClusterError      the Ray cluster cannot be reached or refuses
│   └── NeverFits     it can never hold what is asked for
├── TrackingError     the MLflow server cannot be reached or refuses
└── Superseded        somebody has acquired a newer fencing token of this run: whoever sees it stops writing at once

A message answers four questions: what is wrong, where, what was found, what to do.
"""

from collections.abc import Sequence


class NnfleetError(Exception):
    """Root of all errors that nnfleet raises on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(NnfleetError):
    """The request cannot be met as it is written: change the experiment file or the command line."""

    exit_code = 2


class DataError(NnfleetError):
    """The data do not allow the request: change or repair the dataset."""

    exit_code = 3


class DivergedError(NnfleetError):
    """Training has reached weights or losses that are not finite numbers; nothing of that epoch is kept."""

    exit_code = 10


class StorageError(NnfleetError):
    """A file system does not take what has to be stored, or does not give what it holds: full, read-only or away."""

    exit_code = 11


class CheckpointError(NnfleetError):
    """A checkpoint or saved state is missing, truncated or not what its manifest says."""

    exit_code = 4


class ClusterError(NnfleetError):
    """The Ray cluster cannot be reached, refuses, or can never hold what is asked for."""

    exit_code = 5


class NeverFits(ClusterError):
    """The Ray cluster, as it is, can never hold what is asked for: ask for less, or add nodes."""


class TrackingError(NnfleetError):
    """The MLflow tracking server cannot be reached or refuses."""

    exit_code = 6


class Superseded(NnfleetError):
    """Somebody has acquired a newer fencing token of this run; whoever raises this has to stop without writing."""

    exit_code = 7


def joined(errors: Sequence[NnfleetError], *more: str) -> NnfleetError:
    """Several errors as one of the first one's kind: the texts of all, then what is `more` to know, a line each."""
    return type(errors[0])("\n".join([*map(str, errors), *more]))
