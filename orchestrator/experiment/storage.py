"""What a run will take on the disk: from the parameters of its network, and from the labels that its predictions resemble."""

from orchestrator.errors import NnfleetError
from trainers.contract.cascade import network_channels
from trainers.contract.num_parameters import num_parameters
from trainers.contract.plans import Labels, labels_of, load_dataset_json, plans_of
from trainers.contract.run_spec import RunSpec

BYTES = 4
"""Of a parameter, and of its momentum."""
KEPT_STATES = 2
"""Of a run that has ended (`trainers/training/state.py`: KEEP_STATES); the newer one is the final checkpoint too."""


def run_bytes(spec: RunSpec) -> int | None:
    """Bytes of a run's folder once it has ended, with P parameters of its network and B checkpoints that are validated:

        2 states of weights and momenta, 2 * 8 P; the best weights and those of candidates, 4 P each;
        B predictions of each validation case, each as large as the case's label file.

    While it trains, a third state and a second best are there for moments. Left out: probabilities (`npz`), logs and pictures (a few MB),
    and MLflow's copies of the best (4 P) and final (8 P) checkpoint. Of a run of the ignore label or of regions, predictions are larger
    or smaller than labels. None where the network is of another kind or the user's own, or the dataset cannot be read.
    """
    try:
        return _bytes(spec)
    except (NnfleetError, OSError):  # an estimate is never a reason to refuse a plan
        return None


def _bytes(spec: RunSpec) -> int | None:
    if spec.own.network is not None or spec.own.trainer is not None:
        return None
    plans, dataset_json = plans_of(spec), load_dataset_json(spec.preprocessed_folder)
    labels: Labels = labels_of(dataset_json, str(spec.preprocessed_folder / "dataset.json"))
    configuration = plans.configuration(spec.configuration)
    parameters = num_parameters(configuration, network_channels(configuration, dataset_json, labels), labels.num_heads)
    if parameters is None:
        return None
    num_weights = 1 + spec.validation.candidates
    weights = BYTES * parameters * (2 * KEPT_STATES + num_weights)
    return weights + len(spec.validation.checkpoints) * _label_bytes(spec, str(dataset_json.get("file_ending", "")))


def _label_bytes(spec: RunSpec, file_ending: str) -> int:
    """Of the label files of all validation cases; of those that are not there, as if they had the mean of the others."""
    folder = spec.preprocessed_folder / "gt_segmentations"
    sizes = [file.stat().st_size for case in spec.val_cases if (file := folder / f"{case}{file_ending}").is_file()]
    return round(sum(sizes) / len(sizes) * len(spec.val_cases)) if sizes else 0
