"""The small JSON files of a run folder as frozen records; each is read and written here and nowhere else."""

from pydantic import ConfigDict, Field, ValidationError

from trainers.contract.errors import DataError
from trainers.contract.files import read_json, write_json_atomic
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Frozen


class MlflowRun(Frozen):
    """mlflow.json: the MLflow run that a run folder belongs to."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

    run_id: str
    experiment_id: str = ""
    tracking_uri: str


def read_mlflow_run(folder: RunFolder) -> MlflowRun | None:
    """The MLflow run of a run folder; None while there is none. Raises DataError for a file that is no such record, StorageError."""
    try:
        return MlflowRun.model_validate(read_json(folder.mlflow_file, "MLflow run of the run folder"))
    except ValidationError as err:
        raise DataError(
            f"MLflow run of the run folder: {folder.mlflow_file} does not name one: {err}. Restore the file, or remove it: the "
            "next campaign or `nnfleet sync` writes it anew."
        ) from err
    except DataError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return None
        raise


def write_mlflow_run(folder: RunFolder, run: MlflowRun) -> None:
    """Record the MLflow run of a run folder. Raises StorageError."""
    write_json_atomic(folder.mlflow_file, run.model_dump())


class PublishedFiles(Frozen):
    """published.json: which small files MLflow has; only spares uploads."""

    run_id: str = ""
    """Of the MLflow run that has them."""
    files: dict[str, str] = Field(default_factory=dict)
    """Artifact path -> SHA-256."""


def read_published_files(folder: RunFolder) -> PublishedFiles:
    """What earlier deliveries have recorded; nothing where no file can be read: then everything is sent again."""
    try:
        return PublishedFiles.model_validate(read_json(folder.published_file, "record of delivered files"))
    except (DataError, ValidationError):
        return PublishedFiles()


def write_published_files(folder: RunFolder, published: PublishedFiles) -> None:
    """Record which small files MLflow has. Raises StorageError."""
    write_json_atomic(folder.published_file, published.model_dump())
