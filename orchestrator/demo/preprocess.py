"""nnU-Net's own fingerprint, plans and preprocessing of the demo dataset, and small configurations that inherit from its plan.

Runs in a process of its own (`python -m orchestrator.demo.preprocess DATASET`): nnU-Net reads its folders from the environment, prints a
lot and needs torch, none of which the command line wants. One line `CASE <done> <total>` on stdout tells how far it is.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

PLANS = "nnUNetPlans"
CONFIGURATIONS = ("2d", "3d_fullres")
DEMO_FEATURES = (8, 16, 32)
DEMO_PATCHES = {"demo_2d": (48, 48), "demo_3d": (32, 32, 32)}
DEMO_BATCHES = {"demo_2d": 12, "demo_3d": 4}
DEMO_PARENTS = {"demo_2d": "2d", "demo_3d": "3d_fullres"}


def small_configuration(name: str, parent: dict[str, Any]) -> dict[str, Any]:
    """A configuration that inherits everything from nnU-Net's own plan but patch, batch and the size of its U-Net."""
    patch = DEMO_PATCHES[name]
    stages, dims = len(DEMO_FEATURES), len(patch)
    kwargs = {
        **parent["architecture"]["arch_kwargs"],
        "n_stages": stages,
        "features_per_stage": list(DEMO_FEATURES),
        "kernel_sizes": [[3] * dims] * stages,
        "strides": [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return {
        "inherits_from": DEMO_PARENTS[name],
        "patch_size": list(patch),
        "batch_size": DEMO_BATCHES[name],
        "architecture": {**parent["architecture"], "arch_kwargs": kwargs},
    }


def add_demo_configurations(plans_file: Path) -> None:
    """Add `demo_2d` and `demo_3d` to a plans file."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    known = plans["configurations"]
    known.update({name: small_configuration(name, known[parent]) for name, parent in DEMO_PARENTS.items()})
    plans_file.write_text(json.dumps(plans, indent=1), encoding="utf-8")


def plan(dataset: str) -> None:
    """nnU-Net's fingerprint and plans."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    DatasetFingerprintExtractor(dataset, num_processes=1).run(overwrite_existing=True)
    ExperimentPlanner(dataset, plans_name=PLANS).plan_experiment()


def preprocess(dataset: str, raw: Path, preprocessed: Path) -> None:
    """nnU-Net's preprocessing, case by case, and the label files beside it for validation."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    manager = PlansManager(str(preprocessed / f"{PLANS}.json"))
    dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
    cases = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    for done, (configuration, case_id) in enumerate((c, k) for c in CONFIGURATIONS for k in cases):
        settings = manager.get_configuration(configuration)
        target = preprocessed / settings.data_identifier
        target.mkdir(exist_ok=True)
        files = cases[case_id]
        settings.preprocessor_class(verbose=False).run_case_save(
            str(target / case_id), files["images"], files["label"], manager, settings, dataset_json
        )
        print(f"CASE {done + 1} {len(cases) * len(CONFIGURATIONS)}", flush=True)  # noqa: T201
    for case_id, files in cases.items():
        (preprocessed / "gt_segmentations").mkdir(exist_ok=True)
        # with its time, as nnU-Net does: a later one would look like a label that was changed since
        shutil.copy2(files["label"], preprocessed / "gt_segmentations" / f"{case_id}{dataset_json['file_ending']}")


def write_splits(raw: Path, preprocessed: Path) -> None:
    """nnU-Net's five folds of all cases."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    case_ids = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").glob("*.nii.gz"))
    splits = [{part: list(map(str, ids)) for part, ids in fold.items()} for fold in generate_crossval_split(case_ids)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits, indent=1), encoding="utf-8")


def main(dataset: str) -> None:
    """Plan and preprocess `dataset` below the nnUNet_* folders of the environment."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    raw, preprocessed = Path(str(nnUNet_raw)) / dataset, Path(str(nnUNet_preprocessed)) / dataset
    preprocessed.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(raw / "dataset.json", preprocessed / "dataset.json")
    plan(dataset)
    preprocess(dataset, raw, preprocessed)
    add_demo_configurations(preprocessed / f"{PLANS}.json")
    write_splits(raw, preprocessed)


if __name__ == "__main__":
    main(sys.argv[1])
