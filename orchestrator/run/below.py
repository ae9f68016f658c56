"""Which run folders lie below a folder of results."""

from collections.abc import Mapping
from pathlib import Path

from trainers.contract.run_folder import RunFolder
from trainers.errors import ConfigError
from trainers.storage.files import expanded

RUN_FILE = "nnfleet/run.json"
LEVELS = ("", "fold_*", "*/fold_*", "*/*/fold_*")
"""Where fold folders lie below a fold's own folder, a model folder, a dataset's folder, and nnUNet_results."""

RESULTS = "nnUNet_results"
"""The environment variable by which nnU-Net knows where results are."""
RAW = "nnUNet_raw"
"""The same for raw datasets."""
PREPROCESSED = "nnUNet_preprocessed"
"""The same for preprocessed ones."""


def results_folder(named: Path | None, environment: Mapping[str, str]) -> Path:
    """The folder to look below: the named one, else the one that the environment names as nnU-Net knows it. Raises ConfigError."""
    if named is None and not environment.get(RESULTS):
        raise ConfigError(
            "results: no folder is named, and nnUNet_results is set neither here nor on the cluster's head node. "
            "Set it (export nnUNet_results=...), or name the folder that holds the runs: --results FOLDER."
        )
    if named is None and (absence := results_absence(environment)):
        raise ConfigError(absence)
    folder = expanded(named or Path(environment[RESULTS]))
    if not folder.is_dir():
        raise ConfigError(
            f"results: {folder.absolute()} is no folder where nnfleet looks for it. Name the folder that holds the runs: --results."
        )
    return folder


def results_absence(environment: Mapping[str, str]) -> str:
    """A sentence where nnUNet_results names a folder that is not there; empty where it is, and where the variable is not set."""
    if not environment.get(RESULTS) or (folder := expanded(Path(environment[RESULTS]))).is_dir():
        return ""
    return (
        f"{RESULTS}: this variable names {folder}, which is no folder here. Correct it (export {RESULTS}=...), mount or make the folder, "
        "or name the one that holds the runs: --results FOLDER."
    )


def run_folders_below(results: Path) -> list[RunFolder]:
    """Every folder below `results` that holds a run of ours, in the order of their paths; `results` may be one itself."""
    found = {path for level in LEVELS for path in results.glob(f"{level}/{RUN_FILE}" if level else RUN_FILE)}
    return [RunFolder(path.parents[1]) for path in sorted(found)]
