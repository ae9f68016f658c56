"""How wrong the expected duration of a training was: the expectation is written down when a run begins, the error is known once it is
trained."""

import logging
import math
import time

from pydantic import Field

from trainers.contract.commits import Committed
from trainers.contract.records import Record, read_record
from trainers.contract.run_folder import RunFolder
from trainers.errors import StorageError
from trainers.storage.files import write_json_atomic

log = logging.getLogger(__name__)


class ExpectedDuration(Record):
    """`expected.json`: what an epoch of the run was expected to take when its first training job was submitted."""

    epoch_s: float = Field(gt=0)
    unix: float = 0.0


def note_expected(folder: RunFolder, epoch_s: float) -> None:
    """Write down what an epoch is expected to take, unless that was done before; never raises: it informs."""
    try:
        if not folder.expected_file.exists():
            write_json_atomic(folder.expected_file, ExpectedDuration(epoch_s=epoch_s, unix=time.time()).model_dump())
    except (StorageError, OSError) as err:
        log.warning("how long %s is expected to train is not recorded: %s", folder.root, err)


def estimate_metrics(folder: RunFolder, committed: Committed) -> dict[str, float]:
    """MLflow's metrics of a trained run whose duration was expected: `estimate/expected_h`, `estimate/trained_h`, both of the epochs that
    it trained, and `estimate/error`, by how much of the expectation it took longer (0.1: 10 %; negative: shorter). Empty for others.
    """
    expected = read_record(folder.expected_file, ExpectedDuration)
    seconds = [row.epoch_s for row in committed.history if math.isfinite(row.epoch_s)]
    if expected is None or committed.final is None or not seconds:
        return {}
    took_s, expected_s = math.fsum(seconds), expected.epoch_s * len(seconds)
    return {"estimate/expected_h": expected_s / 3600, "estimate/trained_h": took_s / 3600, "estimate/error": took_s / expected_s - 1}


def estimate_error(folder: RunFolder, committed: Committed) -> float | None:
    """`estimate/error` of a run; None where nothing was expected, or it is not trained to its end."""
    return estimate_metrics(folder, committed).get("estimate/error")
