"""Whether nnU-Net's model folder of a run may hold it: whose it is, and which plans lie there."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.dataset.case_readings import data_changes
from orchestrator.dataset.digest import model_parts
from orchestrator.dataset.folder import file_names
from orchestrator.dataset.problems import listed
from orchestrator.errors import ConfigError, DataError, NnfleetError
from trainers.contract.commits import commit_files
from trainers.contract.plans import Plans, load_dataset_json, load_plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import OwnPart, RunSpec

OWN_FOLDER = "`variant: NAME` in the experiment file gives the new runs a model folder of their own"
_OWN: tuple[OwnPart, ...] = ("network", "loss", "recipe", "trainer")
ESCAPE = f"{OWN_FOLDER}; or name another nnUNet_results."
CURES = f"To keep both: {ESCAPE} To start anew here: `nnfleet submit --replace` moves the old run folder aside."


def run_differences(present: RunSpec, wanted: RunSpec) -> str:
    """What makes two runs of one folder different, in words: `epochs (1, now 2)`. Pure."""
    found = [
        f"{name} ({getattr(present.schedule, name)}, now {getattr(wanted.schedule, name)})"
        for name in type(wanted.schedule).model_fields
        if getattr(present.schedule, name) != getattr(wanted.schedule, name)
    ]
    if (present.imported is None) != (wanted.imported is None):
        found.append("who trained it (nnU-Net itself)")
    if present.continued != wanted.continued:
        found.append("the training of nnU-Net's that it goes on from")
    if present.replicate != wanted.replicate:
        found.append(f"replicate ({present.replicate or 'none'}, now {wanted.replicate or 'none'})")
    if present.validation.candidates != wanted.validation.candidates:
        found.append(f"validation.candidates ({present.validation.candidates}, now {wanted.validation.candidates})")
    if _pretrained(present) != _pretrained(wanted):
        found.append(f"pretrained_weights ({_pretrained(present)}, now {_pretrained(wanted)})")
    found += [f"{part} ({_own(present, part)}, now {_own(wanted, part)})" for part in _OWN if _own(present, part) != _own(wanted, part)]
    if present.previous_stage != wanted.previous_stage:
        found.append("the segmentations of the previous stage")
    if (present.train_cases, present.val_cases) != (wanted.train_cases, wanted.val_cases):
        found.append("the cases of the fold")
    elif sizes := [text for name in ("batch_size", "patch_size") if (text := _size_difference(present, wanted, name))]:
        found += sizes
    elif present.data_digest != wanted.data_digest:
        found.append(data_changes(present, wanted.case_digests))
    return ", ".join(found) or "the recipe's version"


def _size_difference(present: RunSpec, wanted: RunSpec, name: str) -> str:
    before, now = getattr(present, name), getattr(wanted, name)
    return "" if before == now else f"{name} ({_size_text(before)}, now {_size_text(now)})"


def _size_text(size: int | tuple[int, ...] | None) -> str:
    return "the plans'" if size is None else " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _own(spec: RunSpec, part: OwnPart) -> str:
    return spec.own.named[part].text if part in spec.own.named else "nnU-Net's"


def _pretrained(spec: RunSpec) -> str:
    return f"SHA-256 {spec.pretrained_weights.sha256[:12]}..." if spec.pretrained_weights else "none"


def problems_of_folders(specs: Sequence[RunSpec], plans: Mapping[str, Plans], *, replaces: bool = False) -> list[NnfleetError]:
    """`model_folder_problems` of the runs of an experiment, where folders of other runs that differ in the same are one problem.

    `replaces`: they are none, as these folders will be moved aside.
    """
    leaving = folders_of_others(specs) if replaces else set()
    others: dict[str, list[tuple[RunFolder, RunSpec, RunSpec]]] = {}
    found: list[NnfleetError] = []
    for spec in specs:
        present = _kept_by_another(spec)
        if present is None or replaces:
            found += model_folder_problems(spec, _as_followed(spec, plans), leaving=leaving)
        else:
            others.setdefault(run_differences(present, spec), []).append((RunFolder(spec.run_folder), present, spec))
    return [*found, *(_belong_to_others(runs, differences) for differences, runs in others.items())]


def _as_followed(spec: RunSpec, plans: Mapping[str, Plans]) -> Plans:
    return plans[spec.plans].with_sizes(spec.configuration, spec.batch_size, spec.patch_size)


def folders_of_others(specs: Sequence[RunSpec]) -> set[Path]:
    """The run folders of `specs` in which other runs have kept something."""
    return {spec.run_folder for spec in specs if _kept_by_another(spec) is not None}


def _kept_by_another(spec: RunSpec) -> RunSpec | None:
    """The other run that has kept something in the folder of `spec`."""
    folder = RunFolder(spec.run_folder)
    if not folder.spec_file.exists():
        return None
    try:
        present = folder.spec()
    except DataError:
        return None
    is_another = present.run_key != spec.run_key and not present.is_imported_in_place
    return present if is_another and commit_files(folder) else None


def _belong_to_others(runs: Sequence[tuple[RunFolder, RunSpec, RunSpec]], differences: str) -> ConfigError:
    if len(runs) == 1:
        return belongs_to_another(*runs[0])
    folders = listed([str(folder.root) for folder, _, _ in runs])
    return ConfigError(
        f"results: {len(runs)} folders belong to other runs, which differ from those of this experiment in {differences}: {folders}. "
        f"{CURES}"
    )


def model_folder_problems(
    spec: RunSpec,
    plans: Plans,
    at_work: Collection[str] = (),
    is_active: Callable[[RunFolder, RunSpec], bool] = lambda folder, run: False,
    leaving: Collection[Path] = (),
) -> list[NnfleetError]:
    """The folder of a run belongs to it alone: refuse what nnU-Net or another run keeps there, and a model folder of other plans.

    A run that has kept nothing and is not `at_work` (run keys) leaves its folder, and the plans if no other fold needs them, to the next.
    `is_active` is asked of the other folds where the plans depend on it: whether a fold's own folder shows work, maybe of another cluster.
    `leaving`: run folders of other runs that are moved aside, unless these are at work or active.
    A fold that has kept something is not compared with the model folder again: its run key says that it is the same run.
    """
    folder = RunFolder(spec.run_folder)
    if folder.spec_file.exists():
        try:
            present = folder.spec()
        except DataError as err:
            return [DataError(f"{err} {ESCAPE}")]
        is_its_own = present.run_key == spec.run_key
        if not is_its_own and present.is_imported_in_place:
            return [_not_ours(folder, sorted(path.name for path in folder.root.glob("checkpoint_*.pth")))]
        is_leaving = not is_its_own and folder.root in leaving
        if commit_files(folder) and not is_leaving:
            return [] if is_its_own else [belongs_to_another(folder, present, spec)]
        if (present.run_key in at_work and not is_its_own) or (is_leaving and is_active(folder, present)):
            return [_is_at_work(folder, present, spec)]
        if not is_leaving and (strange := sorted(path.name for path in folder.root.glob("checkpoint_*.pth"))):
            return [_not_ours(folder, strange)]
    elif foreign := sorted(file_names(folder.root) - {folder.own.name}):
        return [_not_ours(folder, foreign)]
    return _problems_of_plans(spec, plans, at_work, is_active, leaving)


def belongs_to_another(folder: RunFolder, present: RunSpec, wanted: RunSpec) -> ConfigError:
    """The refusal of a folder in which another run has kept something."""
    return ConfigError(
        f"results: {folder.root} belongs to the run {present.run_key}, which differs from {wanted.run_key} "
        f"in {run_differences(present, wanted)}. {CURES}"
    )


def _is_at_work(folder: RunFolder, present: RunSpec, wanted: RunSpec) -> ConfigError:
    return ConfigError(
        f"results: {folder.root} belongs to the run {present.run_key}, which has not ended. "
        f"Stop it first (nnfleet stop {present.run_key}), or name another nnUNet_results. "
        f"It differs from {wanted.run_key} in {run_differences(present, wanted)}."
    )


def _problems_of_plans(
    spec: RunSpec,
    plans: Plans,
    at_work: Collection[str],
    is_active: Callable[[RunFolder, RunSpec], bool],
    leaving: Collection[Path],
) -> list[NnfleetError]:
    """Other plans in the model folder are no problem if it has folds of ours alone, none of which keeps anything there or is at work."""
    problems = other_plans(spec, plans)
    folds = [RunFolder(path) for path in spec.model_folder.glob("fold_*")]
    if not problems or not folds or not all(fold.root in leaving or _has_kept_nothing(fold) for fold in folds):
        return problems
    runs = [(fold, fold.spec()) for fold in folds]
    busy = sorted(run.run_key for fold, run in runs if run.run_key in at_work or (fold.root != spec.run_folder and is_active(fold, run)))
    advice = f"{listed(busy)} may be at work by them, here or on another cluster: stop it there first, or name another nnUNet_results."
    return [ConfigError(str(problem).removesuffix(ESCAPE) + advice) for problem in problems] if busy else []


def _has_kept_nothing(fold: RunFolder) -> bool:
    try:
        fold.spec()
    except DataError:
        return False
    return not commit_files(fold) and not any(fold.root.glob("checkpoint_*.pth"))


def _not_ours(folder: RunFolder, names: list[str]) -> ConfigError:
    return ConfigError(f"results: {folder.root} was not made by nnfleet (it holds {listed(names)}) and is never overwritten. {ESCAPE}")


def other_plans(spec: RunSpec, plans: Plans) -> list[NnfleetError]:
    """Differences between the model folder's plans.json and dataset.json and the ones of this run, in what a run key covers."""
    path = spec.model_folder / "plans.json"
    if not path.is_file():
        return []
    here = model_parts(plans, spec.configuration, load_dataset_json(spec.preprocessed_folder))
    try:
        there_json = spec.model_folder / "dataset.json"
        dataset_json = load_dataset_json(spec.model_folder if there_json.is_file() else spec.preprocessed_folder)
        there = model_parts(load_plans(spec.model_folder, "plans"), spec.configuration, dataset_json)
    except (ConfigError, DataError, KeyError, TypeError) as err:
        return [ConfigError(f"results: {path} is not a plans file with {spec.configuration!r} ({err}). {ESCAPE}")]
    differ = differing_parts(there, here)
    if not differ:
        return []
    return [
        ConfigError(
            f"results: {path} and dataset.json beside it differ from {plans.path} and its dataset.json in {', '.join(differ)} of "
            f"{spec.configuration!r}: folds of one model folder must share one plan. {ESCAPE}"
        )
    ]


def differing_parts(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The settings in which two `model_parts` differ. Pure."""
    a, b = ({**parts["configuration"], **parts["plans"], **parts} for parts in (there, here))
    nested = ("configuration", "plans")
    return sorted(key for key in {*a, *b} if key not in nested and _as_json(a.get(key)) != _as_json(b.get(key)))


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
