"""What only shows when cases are opened, and would stop a worker that has its accelerator in hand, or the validation after all epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.dataset.case_readings import damaged_cases
from orchestrator.dataset.label_files import unlike_shape
from orchestrator.dataset.problems import listed
from orchestrator.errors import DataError
from trainers.contract.plans import PREPROCESS_COMMAND


def cases_that_do_not_open(folder: Path, cases: Sequence[str], channels: int) -> list[DataError]:
    """Cases whose files do not open as an image and its labels; 1.5 ms each."""
    from trainers.data.case_files import check_case  # blosc2 is not on every laptop

    faults: dict[str, str] = {}
    for case in cases:
        try:
            check_case(folder, case, channels)
        except DataError as err:
            faults[case] = str(err)
    return damaged_cases(faults)


def labels_of_another_shape(folder: Path, labels: Mapping[str, Path]) -> list[DataError]:
    """Label files (case id -> path) that cannot be laid over a prediction. `folder` holds the preprocessed cases."""
    from trainers.data.case_files import read_properties

    faults: dict[str, str] = {}
    for case, file in sorted(labels.items()):
        try:
            shape = read_properties(folder, case).get("shape_before_cropping")
        except DataError as err:
            return [err]
        if isinstance(shape, tuple) and all(isinstance(size, int) for size in shape) and (fault := unlike_shape(file, shape)):
            faults[case] = fault
    if not faults:
        return []
    first, place = next(iter(faults)), next(iter(labels.values())).parent
    return [
        DataError(
            f"labels: in {place} the file of {listed(list(faults))} is of another image: that of {first} {faults[first]}. "
            f"Restore the label file, or run {PREPROCESS_COMMAND} again."
        )
    ]
