"""Which small files of a run go to MLflow. With pseudonyms, none that names cases: what is logged there can be read by every user."""

from pathlib import Path

from trainers.contract.plans import without_cases
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.storage.files import read_json, write_json_atomic


def shared_files(folder: RunFolder, spec: RunSpec, closing: bool) -> dict[str, Path]:
    """Artifact path -> local file, for the files that exist. Logs are among them only when `closing`."""
    files = {
        "plans.json": plans_file(folder, spec),
        "dataset.json": dataset_file(folder, spec),
        "progress.png": folder.root / "progress.png",
    }
    if not spec.pseudonyms:
        files |= {"splits_final.json": spec.preprocessed_folder / "splits_final.json", "run.json": folder.spec_file}
        if closing:
            files |= {f"logs/{path.name}": path for path in folder.root.glob("training_log_*.txt")}
    return {name: path for name, path in files.items() if path.is_file()}


def plans_file(folder: RunFolder, spec: RunSpec) -> Path:
    """The plans as they lie in the model folder, or in the preprocessed dataset before that exists."""
    shared = folder.model_folder / "plans.json"
    return shared if shared.is_file() else spec.preprocessed_folder / f"{spec.plans}.json"


def dataset_file(folder: RunFolder, spec: RunSpec) -> Path:
    """dataset.json for MLflow: as it is, or with pseudonyms a copy without the keys that may name cases."""
    shared = folder.model_folder / "dataset.json"
    whole = shared if shared.is_file() else spec.preprocessed_folder / "dataset.json"
    if not spec.pseudonyms or not whole.is_file():
        return whole
    reduced = folder.own / "mlflow" / "dataset.json"
    if not reduced.is_file():
        content = read_json(whole, "dataset.json")
        write_json_atomic(reduced, without_cases(content))
    return reduced
