"""The actor of a full validation: one checkpoint loaded, one case after the other."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from orchestrator.publishing.validation_report import picture_file
from trainers.contract.commits import weights_file
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, WeightsName, is_checkpoint
from trainers.contract.storage_notice import StorageNotice
from trainers.contract.summary import CaseResult
from trainers.errors import CheckpointError
from trainers.storage.faults import retry_storage
from trainers.storage.files import takes_files, write_atomic

if TYPE_CHECKING:
    from trainers.validation.inference import CasePredictor

log = logging.getLogger(__name__)


def loaded(folder: RunFolder, name: WeightsName, digest: str, device: str = "") -> "CasePredictor":
    """The network of a checkpoint, on the run's kind of device unless one is named.

    Raises CheckpointError, also when it is not the file that the job started with, DataError or StorageError.
    """
    from trainers.validation.inference import CasePredictor

    spec, checkpoint = _asked_of(folder.living_spec(), name), weights_file(folder, name)
    predictor = CasePredictor(spec, checkpoint, device or ("cuda" if spec.workers.gpus else "cpu"), threads=spec.workers.cpus)
    if predictor.checkpoint_sha256 != digest:
        raise CheckpointError(f"checkpoint: {checkpoint} changed while it was being validated. Validate again.")
    return predictor


def _asked_of(spec: RunSpec, name: WeightsName) -> RunSpec:
    """The run as the validation of these weights takes it: of candidates nothing is kept but predictions and scores."""
    if is_checkpoint(name):
        return spec
    return spec.model_copy(update={"images": False, "validation": spec.validation.model_copy(update={"npz": False})})


def own_place() -> str:
    """Where this actor runs: its node, and its GPU if it has one."""
    context = ray.get_runtime_context()
    gpus = context.get_accelerator_ids().get("GPU", [])
    return f"node {context.get_node_id()}" + (f", GPU {','.join(gpus)}" if gpus else "")


class CaseWorker:
    """The actor: holds the network of one checkpoint at a time and validates one case after the other."""

    def __init__(self, root: str, fencing_token: int = 0) -> None:
        self._folder = RunFolder(Path(root))
        self._notice = StorageNotice(self._folder, fencing_token)
        self._name: WeightsName = "best"
        self.predictor: CasePredictor | None = None
        """None until `load`."""

    def load(self, name: WeightsName, digest: str) -> str:
        """Load a checkpoint in place of the one before, and return the place where it is. A disk that is away is waited for.

        Raises as `loaded`.
        """
        self._name, self.predictor = name, None  # the memory of the one before is free
        what = f"loading the weights of {name} in {self._folder.root}"
        self.predictor = retry_storage(lambda: loaded(self._folder, name, digest), what, tell=self._notice.tell)
        return own_place()

    def validate(self, case_id: str) -> float:
        """Validate one case; its files are the result. Returns the mean Dice, for the log.

        A disk that is away, or takes nothing, is waited for. Raises DataError for files that are at fault, StorageError.
        """
        result = retry_storage(lambda: self._validated(case_id), f"the validation of case {case_id}", tell=self._notice.tell)
        if self.predictor and self.predictor.spec.images:
            self._draw(result)
        return result.dice_mean

    def _validated(self, case_id: str) -> CaseResult:
        from trainers.validation.one_case import validate_case

        assert self.predictor is not None
        with takes_files(self._folder.own):
            return validate_case(self.predictor, self._folder, self._name, case_id)

    def _draw(self, result: CaseResult) -> None:
        """Write the picture of a case; a fault in it is logged and costs the picture alone."""
        from trainers.validation.one_case import case_picture

        assert self.predictor is not None
        try:
            from orchestrator.publishing.pictures import overlay

            shown = case_picture(self.predictor, result.case_id, Path(result.prediction_file))
            volumes = (shown.image_ZYX, shown.truth_ZYX, shown.prediction_ZYX)
            png = overlay(*volumes, shown.value_names, f"mean Dice {result.dice_mean:.3f}", shown.spacing_ZYX)
            write_atomic(picture_file(self._folder, self._name, result.case_id), png)
        except Exception:
            log.warning("no picture of case %s", result.case_id, exc_info=True)
