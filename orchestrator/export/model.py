"""Folds of one model as a folder that nnU-Net's own tools read: `nnUNetv2_predict_from_modelfolder -m <folder> -f <folds>`.

A new folder appears complete or not at all. To one that was exported before, folds of the same model are added, each with a rename; what
lies there is never replaced. Beside the checkpoints of each fold lies what is known of it (`RECORD`), by which this is decided.
"""

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import ConfigError, DataError
from orchestrator.export.fold_facts import EARLY_END, FoldFacts, together, unlike
from orchestrator.export.fold_sources import WINNER, FoldSource, with_checkpoints
from orchestrator.tracking.records import OWN_TRAINER
from trainers.contract.cascade import previous_stage
from trainers.contract.plans import load_plans
from trainers.contract.run_folder import crossval_name
from trainers.contract.run_spec import CheckpointName
from trainers.storage.faults import storing
from trainers.storage.files import read_json, sha256_of, write_json_atomic

RECORD = "nnfleet_export.json"
MAX_LISTED = 20
EXTERNAL = "nnUNet_extTrainer"
"""nnU-Net's environment variable of folders with more trainers."""


@dataclass(frozen=True)
class Exported:
    """A model folder that nnU-Net reads."""

    folder: Path
    folds: dict[str, tuple[CheckpointName, ...]]
    """Every fold in it, also those of earlier exports -> its checkpoints."""
    left: tuple[str, ...]
    """A sentence for each fold that was meant and has no checkpoint yet."""
    candidate: str = ""
    """The candidate whose weights were asked for, beside best and final."""
    optimistic: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fold -> the candidates whose weights it has."""
    early_end: str = ""
    """How its folds ended before their schedule, as somebody asked (`EarlyEnd.text`); empty: they did not."""
    previous_stage: str = ""
    """Of a second stage of a cascade: the configuration whose predictions nnU-Net's predict needs; empty: it stands alone."""
    previous_model: str = ""
    """The address of that stage's model."""

    @property
    def checkpoint(self) -> str:
        """The candidate that was asked for. Else the final one, as compare, evaluate and predict use it; the best only where a fold has no
        final one and all have a best.
        """
        if self.candidate:
            return self.candidate
        held = [self.folds[fold] for fold in together(tuple(self.folds))]
        return "best" if any("final" not in names for names in held) and all("best" in names for names in held) else "final"

    @property
    def predicting(self) -> tuple[str, ...]:
        """The folds that predict together with that checkpoint."""
        return tuple(fold for fold in together(tuple(self.folds)) if self.checkpoint in (*self.folds[fold], *self.optimistic.get(fold, ())))


def export_model(name: str, target: Path, sources: Sequence[FoldSource], place: str, candidate: str = "") -> Exported:
    """Make `target` an nnU-Net model folder with these folds, or add them to it. `place`: where they are called `name`, as in `below X`;
    `candidate`: whose weights the sources have to have too.

    Raises ConfigError for folds of several models or of unlike data, plans or schedules, when none has a checkpoint, and for a target that
    holds anything else or cannot be made, and where a fold has no such candidate; CheckpointError, TrackingError.
    """
    target = target.absolute()
    refuse_several_models(name, sources, place)
    refuse_own_network(name, sources)
    refuse_unknown_trainer(name, sources)
    present = exported_folds(target)
    ready, unready = with_checkpoints(sources)
    if not ready:
        raise ConfigError(
            f"export: {name} {place} has no published checkpoint yet. Wait for its first epochs, or resume it if it has stopped."
        )
    if candidate:
        refuse_lacking(candidate, ready)
    refuse_unlike([*present.values(), *(source.facts for source in ready)], target if present else None)
    due = [source for source in ready if not _holds(present.get(source.facts.fold), source.facts)]
    if due:
        with storing(target):
            _write(due, target, present)
    left = [f"fold {fold} has no checkpoint yet and is not in it." for fold in unready]
    held = exported_folds(target)
    folds, optimistic = ({fold: tuple(getattr(facts, name)) for fold, facts in held.items()} for name in ("checkpoints", "optimistic"))
    early = next((facts.shared[EARLY_END] for facts in held.values() if EARLY_END in facts.shared), "")
    facts = next(iter(held.values()))
    stage = _previous_stage(target, facts)
    return Exported(target, folds, tuple(left), candidate, optimistic, early, stage, _address_of_stage(facts.model, stage))


def _address_of_stage(model: str, stage: str) -> str:
    """The model that is the first stage of the model of this address; empty where there is no stage, or no address."""
    parts = model.split("/")
    return "/".join([parts[0], stage, *parts[2:]]) if stage and len(parts) > 2 else ""


def _previous_stage(model: Path, facts: FoldFacts) -> str:
    """Of an exported model, by its plans; empty where they do not name one, or cannot be read, which nnU-Net then reports."""
    try:
        return previous_stage(load_plans(model, "plans").configuration(facts.shared.get("configuration", "")))
    except (ConfigError, DataError):
        return ""


def _holds(present: FoldFacts | None, wanted: FoldFacts) -> bool:
    if present is None or present.checkpoints != wanted.checkpoints:
        return False
    if not wanted.optimistic.items() <= present.optimistic.items():
        return False
    return set(wanted.probabilities) <= set(present.probabilities)


def refuse_lacking(candidate: str, sources: Sequence[FoldSource]) -> None:
    """Raise ConfigError unless all of these folds have the weights of a candidate."""
    lacking = [source.facts.fold for source in sources if candidate not in source.facts.optimistic]
    if not lacking:
        return
    which = "no winner among candidates" if candidate == WINNER else f"no {candidate}"
    cure = "Candidates are kept with `validation: {candidates: K}`, and their full validation names the winner"
    raise ConfigError(f"export: fold {', '.join(lacking)} has {which}. {cure}. Without --checkpoint best and final are exported.")


def refuse_own_network(name: str, sources: Sequence[FoldSource]) -> None:
    """Raise ConfigError for a network that nnU-Net cannot build: under a trainer's name of nnU-Net's it would pass for another one."""
    if network := next((source.facts.shared["network"] for source in sources if "network" in source.facts.shared), ""):
        raise ConfigError(
            f"export: {name} has the network {network}, which nnU-Net cannot build, so nnUNetv2_predict takes no model of it. "
            f"`nnfleet predict {name}` and `nnfleet evaluate {name}` predict with it."
        )


def refuse_unknown_trainer(name: str, sources: Sequence[FoldSource]) -> None:
    """Raise ConfigError for a trainer of the user's that nnU-Net does not find here by the name in its checkpoints."""
    facts = next((source.facts.shared for source in sources if OWN_TRAINER in source.facts.shared), None)
    if facts is not None and not finds_trainer(facts["trainer"], os.environ.get(EXTERNAL, "")):
        raise ConfigError(
            f"export: {name} has the trainer {facts[OWN_TRAINER]}, which nnU-Net does not find here, so nnUNetv2_predict would take no "
            f"model of it. Name the folder of its file in {EXTERNAL}, as nnUNetv2_predict needs it too. `nnfleet predict {name}` and "
            f"`nnfleet evaluate {name}` predict with it as it is."
        )


def finds_trainer(trainer: str, external: str) -> bool:
    """True where a file in which nnU-Net looks for trainers defines a class of this name; `external`: its variable. Imports nothing."""
    found = find_spec("nnunetv2")
    own = [Path(place) / "training" / "nnUNetTrainer" for place in (found.submodule_search_locations or ())] if found else []
    folders = [*own, *(Path(place) for place in external.split(os.pathsep) if place.strip())]
    defines = re.compile(rf"^class {re.escape(trainer)}\b", re.MULTILINE)
    return any(defines.search(file.read_text(errors="replace")) for folder in folders for file in folder.rglob("*.py"))


def refuse_several_models(name: str, sources: Sequence[FoldSource], place: str) -> None:
    """Raise ConfigError, with all of them, unless these are folds of one model, each once."""
    models = sorted({(source.facts.model, source.place) for source in sources})
    folds = Counter(source.facts.fold for source in sources)
    if len(models) == 1 and max(folds.values()) == 1:
        return
    texts = [f"{model} in {folder}" for model, folder in models]
    if len(models) == 1:
        texts = [f"{source.facts.model}/{source.facts.fold} ({source.facts.run_key})" for source in sources]
    more = f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    what = f"{len(models)} models" if len(models) > 1 else "several runs of one fold"
    raise ConfigError(f"export: {name} means {what} {place}: {', '.join(texts[:MAX_LISTED])}{more}. Name one, by its run key if need be.")


def refuse_unlike(folds: Sequence[FoldFacts], target: Path | None) -> None:
    """Raise ConfigError, with what differs, unless these folds go together. `target`: the folder that holds some of them."""
    found = unlike(folds)
    runs: dict[str, str] = {}
    for fold in folds:
        if runs.setdefault(fold.fold, fold.run_key) != fold.run_key:
            found.append(f"fold {fold.fold} is of the run {runs[fold.fold]}, not of {fold.run_key}")
    if found:
        cure = f"Name another folder than {target}." if target else "Export each into a folder of its own."
        raise ConfigError(f"export: these are not folds of one model: {'; '.join(dict.fromkeys(found))}. Nothing was written. {cure}")


def exported_folds(target: Path) -> dict[str, FoldFacts]:
    """What earlier exports wrote into a folder, by fold. Raises ConfigError where it holds anything else."""
    if not target.exists():
        return {}
    if not target.is_dir():
        raise ConfigError(f"export: {target} exists and is not a folder. Name a folder that does not exist yet.")
    records = [_record(folder / RECORD) for folder in sorted(target.glob("fold_*"))]
    if any(target.iterdir()) and not records:
        raise ConfigError(f"export: {target} exists and is not an empty folder. Name a folder that does not exist yet.")
    return {record.fold: record for record in records}


def _record(file: Path) -> FoldFacts:
    try:
        facts = FoldFacts.model_validate(read_json(file, "export"))
        if file.parent.name != f"fold_{facts.fold}":
            raise ValueError("it is of another fold")
        return facts
    except (DataError, ValueError) as err:
        why = f"{file.parent} was not made by this version of `nnfleet export`, so nothing is added beside it"
        raise ConfigError(f"export: {why}. Name a folder that does not exist yet.") from err


def _write(due: Sequence[FoldSource], target: Path, present: dict[str, FoldFacts]) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"export: {target.parent} cannot be made: {err}. Name a folder that you may write.") from err
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        model = Path(folder) / "model"
        for source in due:
            part = Path(folder) / "part"
            written = _with_those_of(present.get(source.facts.fold), source.fill(part))
            write_json_atomic(part / f"fold_{written.fold}" / RECORD, written.model_dump(mode="json"))
            merge(part, model)
        _add_crossval(due[0], [*present, *(source.facts.fold for source in due)], model)
        if present:
            merge(model, target)
        else:
            model.rename(target)  # replaces an empty folder


def _with_those_of(earlier: FoldFacts | None, written: FoldFacts) -> FoldFacts:
    """What is written of a fold, with the candidates that an earlier export left there."""
    optimistic = {**(earlier.optimistic if earlier else {}), **written.optimistic}
    return written.model_copy(update={"optimistic": optimistic})


def merge(source: Path, target: Path) -> None:
    """Move what `source` holds and `target` lacks. Raises ConfigError, and moves nothing, where a file of `target` is another one."""
    target.mkdir(parents=True, exist_ok=True)
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    other = [str(file) for file in files if file.name != RECORD and (target / file).exists() and not _same(source / file, target / file)]
    if other:
        raise ConfigError(
            f"export: {target} holds other files by the name of {', '.join(other[:3])}, and nothing is replaced. Name another folder."
        )
    for fold in sorted(source.glob("*")):
        if fold.is_dir() and not (target / fold.name).exists():
            fold.rename(target / fold.name)
    for file in sorted(files, key=lambda path: path.name == RECORD):  # the record last: it vouches for the rest
        if (source / file).exists() and (file.name == RECORD or not (target / file).exists()):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / file, target / file)
    shutil.rmtree(source)


def _same(one: Path, other: Path) -> bool:
    """Equal bytes, or of a model's own files equal JSON: MLflow's copy may be laid out in another way."""
    if sha256_of(one) == sha256_of(other):
        return True
    is_of_model = one.suffix == ".json" and one.name != "summary.json"
    return is_of_model and bool(read_json(one, "export") == read_json(other, "export"))


def _add_crossval(source: FoldSource, folds: Sequence[str], model: Path) -> None:
    """The summary of the cross-validation over exactly these folds, where it lies in the folder that they come from."""
    numbers = sorted(set(folds) - {"all"}, key=int)
    name = crossval_name(numbers)
    summary = None if source.model_folder is None else source.model_folder / name / "summary.json"
    if summary is not None and summary.is_file():
        (model / name).mkdir()
        shutil.copyfile(summary, model / name / "summary.json")
