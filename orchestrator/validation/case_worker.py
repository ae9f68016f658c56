"""The actor of a full validation: the checkpoints of a run loaded, one case after the other."""

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from orchestrator.publishing.validation_report import picture_file
from orchestrator.validation.cases import is_done
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
    """The actor: holds the networks of one or both checkpoints and validates one case after the other with each of them."""

    def __init__(self, root: str, fencing_token: int = 0) -> None:
        self._folder = RunFolder(Path(root))
        self._notice = StorageNotice(self._folder, fencing_token)
        self.predictors: dict[WeightsName, CasePredictor] = {}
        """Empty until `load`."""

    def load(self, digests: dict[WeightsName, str]) -> str:
        """Load checkpoints in place of those before, and return the place where they are. A disk that is away is waited for.

        `digests`: the SHA-256 of each. Raises as `loaded`.
        """
        self.predictors.clear()  # the memory of those before is free
        for name, digest in digests.items():
            what = f"loading the weights of {name} in {self._folder.root}"
            self.predictors[name] = retry_storage(functools.partial(loaded, self._folder, name, digest), what, tell=self._notice.tell)
        return own_place()

    def validate(self, case_id: str) -> dict[WeightsName, float]:
        """Validate one case with each checkpoint that it lacks a result of; its files are the result. Returns each mean Dice, for the log.

        A disk that is away, or takes nothing, is waited for. Raises DataError for files that are at fault, StorageError.
        """
        found: dict[WeightsName, float] = {}
        for name in self.predictors:
            work = functools.partial(self._validated, name, case_id)
            result = retry_storage(work, f"the validation of case {case_id}", tell=self._notice.tell)
            if result is None:
                continue
            if self.predictors[name].spec.images:
                self._draw(name, result)
            found[name] = result.dice_mean
        return found

    def _validated(self, name: WeightsName, case_id: str) -> CaseResult | None:
        """None where it is done: another visit of this case ended between two checkpoints."""
        from trainers.validation.one_case import validate_case

        predictor = self.predictors[name]
        if is_done(self._folder, predictor.spec, name, case_id, predictor.checkpoint_sha256):
            return None
        with takes_files(self._folder.own):
            return validate_case(predictor, self._folder, name, case_id)

    def _draw(self, name: WeightsName, result: CaseResult) -> None:
        """Write the picture of a case; a fault in it is logged and costs the picture alone."""
        from trainers.validation.one_case import case_picture

        try:
            from orchestrator.publishing.pictures import overlay

            shown = case_picture(self.predictors[name], result.case_id, Path(result.prediction_file))
            volumes = (shown.image_ZYX, shown.truth_ZYX, shown.prediction_ZYX)
            png = overlay(*volumes, shown.value_names, f"mean Dice {result.dice_mean:.3f}", shown.spacing_ZYX)
            write_atomic(picture_file(self._folder, name, result.case_id), png)
        except Exception:
            log.warning("no picture of case %s", result.case_id, exc_info=True)
