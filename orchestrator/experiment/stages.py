"""The two stages of a cascade in one experiment: which runs leave segmentations for which, and where those come from that a run needs."""

from collections.abc import Iterable
from pathlib import Path

from orchestrator.dataset.previous_stage import sources_of, stages_after
from orchestrator.dataset.problems import listed
from orchestrator.errors import ConfigError
from orchestrator.experiment.identity import Planned
from trainers.contract.cascade import model_folder_name, predictions_of, previous_stage
from trainers.contract.plans import Plans
from trainers.contract.run_spec import PreviousStage, RunSpec, ValidationSpec, made_by


def depth(plans: Plans, configuration: str) -> int:
    """How many stages come before a configuration: 0 for one that stands alone. Pure."""
    found, stage = 0, previous_stage(plans.configuration(configuration))
    while stage in plans.configurations and found < len(plans.configurations):
        found, stage = found + 1, previous_stage(plans.configuration(stage))
    return found


def stages_due(planned: Planned, validation: ValidationSpec, preprocessed: Path) -> tuple[str, ...]:
    """The next stages that a run's full validation leaves its segmentations for, of those that it can (`stages_after`).

    None where the final weights are not validated, and none of the fold `all`: it would replace the segmentations of cases that were not
    trained on by those of cases that were.
    """
    if planned.fold == "all" or "final" not in validation.checkpoints:
        return ()
    return stages_after(planned.plans, planned.configuration, planned.split.val, preprocessed)


def previous_of(planned: Planned, earlier: Iterable[RunSpec], results: Path) -> PreviousStage | None:
    """Which segmentations a run sees: those that `earlier` runs of the experiment leave, else those that are there.

    `results`: of the dataset. None for a run without a previous stage. Raises ConfigError where a case has none, StorageError.
    """
    stage = previous_stage(planned.plans.configuration(planned.configuration))
    if not stage:
        return None
    model_folder = results / model_folder_name(planned.trainer, planned.plans.name, stage, planned.variant, planned.seed)
    cases = sorted({*planned.split.train, *planned.split.val})
    sources = sources_of(predictions_of(model_folder, planned.configuration), cases, results)
    makers = [spec for spec in earlier if spec.model_folder == model_folder and planned.configuration in spec.next_stages]
    sources |= {case: made_by(spec.run_key) for spec in makers for case in spec.val_cases if case in set(cases)}
    if missing := [case for case in cases if case not in sources]:
        raise ConfigError(_nobody_makes(planned.configuration, stage, model_folder, missing, len(cases)))
    return PreviousStage(configuration=stage, sources=dict(sorted(sources.items())))


def _nobody_makes(configuration: str, stage: str, model_folder: Path, missing: list[str], count: int) -> str:
    return (
        f"configurations: {configuration!r} sees the segmentations by {stage!r}, and {len(missing)} of its {count} cases have none in "
        f"{predictions_of(model_folder, configuration)}: {listed(missing)}. Name {stage!r} in `configurations` too, with all folds and "
        "with `final` in validation.checkpoints, or train and validate it first."
    )
