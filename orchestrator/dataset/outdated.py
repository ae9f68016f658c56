"""Raw files that are newer than what preprocessing made of them: seldom meant, and never seen by a training."""

import os
from collections.abc import Iterable
from pathlib import Path

from orchestrator.dataset.problems import listed
from trainers.contract.plans import load_dataset_json, load_plans, num_input_channels
from trainers.contract.run_spec import RunSpec


def outdated_cases(specs: Iterable[RunSpec], raw: Path | None) -> list[str]:
    """A warning for each folder of preprocessed cases that is older than labels or images of the same cases; looks at times alone.

    nnU-Net copies labels into gt_segmentations with the times that they have in `raw`, its folder of raw datasets, so those tell as much.
    """
    folders: dict[tuple[Path, str], tuple[RunSpec, set[str]]] = {}
    for spec in specs:
        identifier = load_plans(spec.preprocessed_folder, spec.plans).configuration(spec.configuration)["data_identifier"]
        folders.setdefault((spec.preprocessed_folder, identifier), (spec, set()))[1].update(spec.train_cases, spec.val_cases)
    return [text for (_, identifier), (spec, cases) in folders.items() if (text := _warning(spec, identifier, sorted(cases), raw))]


def _warning(spec: RunSpec, identifier: str, cases: list[str], raw: Path | None) -> str:
    dataset_json = load_dataset_json(spec.preprocessed_folder)
    ending, channels = dataset_json["file_ending"], num_input_channels(dataset_json)
    made = _times(spec.preprocessed_folder / identifier)
    truth = [_times(spec.preprocessed_folder / "gt_segmentations")]
    images: dict[str, int] = {}
    if raw is not None:
        truth.append(_times(raw / spec.dataset / "labelsTr"))
        images = _times(raw / spec.dataset / "imagesTr")
    newer = {
        "labels": [c for c in cases if max(t.get(f"{c}{ending}", 0) for t in truth) > _made(made, c, "_seg")],
        "images": [c for c in cases if max(images.get(f"{c}_{n:04d}{ending}", 0) for n in range(channels)) > _made(made, c, "")],
    }
    found = " and ".join(f"{kind} of {listed(names)}" for kind, names in newer.items() if names)
    number = spec.address.split("/", 1)[0]
    return found and (
        f"dataset: {found} are newer than the preprocessed cases in {spec.preprocessed_folder / identifier}. Unless their times alone "
        f"changed, run nnUNetv2_preprocess -d {number} -plans_name {spec.plans} -c {spec.configuration}."
    )


def _made(times: dict[str, int], case: str, end: str) -> float:
    """When a case's image or labels were preprocessed; never where they are missing."""
    return next((times[name] for name in (f"{case}{end}.b2nd", f"{case}.npz", f"{case}{end}.npy") if name in times), float("inf"))


def _times(folder: Path) -> dict[str, int]:
    """Names of a folder's files -> time of change in nanoseconds; empty where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_mtime_ns for entry in entries}
    except OSError:
        return {}
