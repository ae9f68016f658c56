"""Records that the processes of a run leave for each other in its folder, and the one place that reads each.

They read across versions: a key that is not known is ignored, one that is missing has its default. They inform; what cannot be read counts
as not there. Only the fences and the MLflow run need a sure answer: `read_claim` and `read_mlflow_run` raise.
"""

import logging
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import WeightsName
from trainers.contract.summary import CaseResult
from trainers.errors import DataError
from trainers.storage.files import read_json, write_json_atomic

log = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
"""Rank 0 writes a heartbeat at most so often."""


class Record(BaseModel):
    """A value that is checked on construction and never changes; as JSON it has the keys of the version before."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
        populate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )


_R = TypeVar("_R", bound=Record)


class Heartbeat(Record):
    """`progress.json`: where rank 0 is. With its defaults it is nobody's."""

    epoch: int = -1
    iteration: int = 0
    phase: str = ""
    """`train` or `val`."""
    unix: float = 0.0
    """By the clock of rank 0's node."""
    fencing_token: int = Field(0, alias="attempt")


class TokenClaim(Record):
    """`attempts/<fencing token>.json`: who acquired the token."""

    fencing_token: int = Field(0, alias="attempt")
    driver: str = ""
    """The training driver that the token belongs to."""
    claimed_unix: float = 0.0
    job: str = ""
    """Submission id of the driver's job; empty if it did not say, and for its workers."""
    cluster: str = ""
    """Address of the cluster that the job is of. Empty if it did not say."""
    role: str = ""
    """`driver` or `workers`."""
    pid: int = 0
    """Process of the driver, or of rank 0."""
    node: str = ""
    """Ray's id of its node."""
    world_size: int = 0
    """Of a start of the workers: how many there are."""
    threads: int = 0
    """Of a start of the workers: threads that each computes its steps with."""


class ValidationHeartbeat(Record):
    """`validating.json`: how far the full validation of a checkpoint is."""

    fencing_token: int = Field(alias="attempt")
    """Of the training whose checkpoint this is."""
    checkpoint: WeightsName
    done: int
    cases: int


class Undelivered(Record):
    """`undelivered/<channel>.json`: what MLflow has not taken since when, and why; the file goes with the first delivery."""

    what: str
    since_unix: float
    because: str


def read_record(path: Path, kind: type[_R]) -> _R | None:
    """What a file holds; None when it is not there, is no such record, or the disk gives no answer."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_heartbeat(folder: RunFolder) -> Heartbeat:
    """The last heartbeat of rank 0; nobody's when there is none."""
    return read_record(folder.progress_file, Heartbeat) or Heartbeat()


def read_validation_heartbeat(folder: RunFolder) -> ValidationHeartbeat | None:
    """How far the validation job said it is; None while it has said nothing."""
    return read_record(folder.validating_file, ValidationHeartbeat)


def read_result(folder: RunFolder, name: WeightsName, case_id: str) -> CaseResult | None:
    """The stored result of a case; None when there is none that can be read. Raises StorageError where its disk is away."""
    path = folder.cases(name) / f"{case_id}.json"
    try:
        return CaseResult.model_validate(read_json(path, "result of a case"))
    except (DataError, ValueError) as err:
        if not isinstance(err.__cause__, FileNotFoundError):
            log.warning("%s is not readable, the case is done again: %s", path, err)
        return None


def read_claim(folder: RunFolder, fencing_token: int) -> TokenClaim:
    """Who acquired a token. Raises DataError when the file is missing, broken or names no driver, StorageError when its disk is away."""
    path = folder.token_file(fencing_token)
    content = read_json(path, "fencing token")
    try:
        claim = TokenClaim.model_validate(content)
    except ValidationError as err:
        raise DataError(f"fencing token: {path} is no record of one: {err}. Restore the file.") from err
    if not claim.driver:
        raise DataError(
            f"fencing token: {path} does not name the driver that acquired it. Restore the file, or delete it if nothing of the run lives."
        )
    return claim


def claim_seen(folder: RunFolder, fencing_token: int) -> TokenClaim:
    """Who acquired a token; nobody when that cannot be read."""
    return read_record(folder.token_file(fencing_token), TokenClaim) or TokenClaim()


class MlflowRun(Record):
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


class PublishedFiles(Record):
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
