"""Which folds of a model predict a held-out test set."""

from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.export.fold_facts import facts_in, together, unlike
from orchestrator.export.fold_sources import folds_below, with_checkpoints
from orchestrator.validation.held_out_first_stage import first_stage_folds
from trainers.contract.run_folder import RunFolder


def folds_of(name: str, results: Path) -> tuple[list[RunFolder], list[str]]:
    """The run folders of the folds that a name means, by fold, and a sentence for each that has no checkpoint yet and is left out.

    Raises ConfigError unless they are folds of one model, of one training, and one has a checkpoint; and as `first_stage_folds`, for the
    weights of a cascade's first stage must be there too.
    """
    found = folds_below(results, name)
    models = sorted({fold.place for fold in found})
    if len(models) > 1:
        raise ConfigError(f"test set: {name} means {len(models)} models: {', '.join(models[:5])}. Name one of them.")
    ready, unready = with_checkpoints(found)
    if not ready:
        raise ConfigError(f"test set: {name} has no checkpoint yet. Wait for its first epochs, or resume it if it has stopped.")
    if differences := unlike([facts_in(fold.folder) for fold in ready]):
        raise ConfigError(f"test set: the folds of {name} do not go together: {'; '.join(differences)}. Name one of them: {name}/0.")
    meant = together([fold.facts.fold for fold in ready])
    folds = [fold.folder for fold in sorted(ready, key=lambda fold: fold.facts.fold.zfill(4)) if fold.facts.fold in meant]
    first_stage_folds(folds)
    return folds, [f"fold {fold} has no checkpoint yet and does not predict." for fold in unready]
