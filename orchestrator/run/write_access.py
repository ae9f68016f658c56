"""Whether a run's results folder can be used, and the one sentence that says why not: the same for a plan and a submission."""

import contextlib
import errno
import os
from collections.abc import Iterator

from trainers.contract.run_spec import RunSpec
from trainers.errors import DataError


@contextlib.contextmanager
def explained(spec: RunSpec) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as err:
        raise DataError(
            f"results: {spec.run_folder} cannot be used for {spec.address}: {err.strerror or err} ({err.filename or 'unknown file'}). "
            f"The cluster runs as user id {os.getuid()}: let it write there, or name another nnUNet_results."
        ) from err


def refuse_unwritable(spec: RunSpec) -> None:
    """Raise DataError when the run folder, or the nearest folder above it that exists, may not be written. Creates nothing.

    What only an attempt shows (a full disk, a root user in /proc) passes here and is reported by `takeover.acquire`.
    """
    with explained(spec):
        nearest = next(path for path in (spec.run_folder, *spec.run_folder.parents) if path.exists())
        if not nearest.is_dir():
            raise _failure(errno.ENOTDIR, str(nearest))
        if not os.access(nearest, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(nearest).f_flag & os.ST_RDONLY
            raise _failure(errno.EROFS if is_read_only else errno.EACCES, str(nearest))


def _failure(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
