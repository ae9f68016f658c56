"""The key `halving` of an experiment file: which runs are compared with each other, and how much is trained then."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from orchestrator.errors import ConfigError
from orchestrator.queue.rungs import num_kept
from orchestrator.run.halving import competitor_of, read_halving, stopping_decision
from trainers.contract.plans import plans_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import Halving, HalvingOfRun, RunSpec

if TYPE_CHECKING:
    from orchestrator.experiment.model import Experiment

MEASURED_ALIKE = ("epochs", "train_iterations", "val_iterations", "foreground_oversampling", "ema_decay")
"""Fields of the schedule by which pseudo-Dice at the same epoch is comparable: the place on the learning rate's curve, and the counting."""


def fault_of_halving(experiment: "Experiment") -> str:
    """Why the models of an experiment cannot be compared at its rungs; empty where they can."""
    halving = experiment.halving
    if halving is None:
        return ""
    if "all" in experiment.folds:
        return "fold all validates on cases that it trains on, so its pseudo-Dice chooses nothing; name other folds"
    schedules = {trainer: [variant.schedule for variant in experiment.variants(trainer)] for trainer in experiment.trainer_names}
    every = [schedule for found in schedules.values() for schedule in found]
    for field in MEASURED_ALIKE:
        if len(values := {getattr(schedule, field) for schedule in every}) > 1:
            return f"the models differ in {field} ({_listed(values)}), so pseudo-Dice at the same epoch does not compare them"
    if (last := halving.at[-1]) >= every[0].epochs:
        return f"at: {last} is not below epochs: {every[0].epochs}"
    if len(every) * _num_configurations(experiment, halving) < 2:
        return "there is one model only; name several trainers, values under `sweep`, or `over: configurations`"
    return ""


def _num_configurations(experiment: "Experiment", halving: Halving) -> int:
    return len(experiment.plans) * len(experiment.configurations) if halving.over == "configurations" else 1


def _listed(values: set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def with_comparisons(specs: Sequence[RunSpec], halving: Halving | None) -> list[RunSpec]:
    """The runs of an experiment, each with what it is compared with. Raises ConfigError for what cannot be compared."""
    if halving is None:
        return list(specs)
    if second := next((spec for spec in specs if spec.previous_stage is not None), None):
        raise ConfigError(
            f"halving: {second.configuration} needs the segmentations of a first stage, and ends where that is stopped; it also begins "
            "only when that has ended, so the two are never at the same rung. Leave it out: halve the first stages, then submit the "
            "second stage of those that went on without `halving`."
        )
    groups: dict[tuple[str, ...], list[RunSpec]] = {}
    for spec in specs:
        groups.setdefault(_group(spec, halving), []).append(spec)
    digests = {group: digest_of(members, halving) for group, members in groups.items()}
    return [
        spec.model_copy(update={"halving": HalvingOfRun(**halving.model_dump(), comparison=digests[_group(spec, halving)])})
        for spec in specs
    ]


def _group(spec: RunSpec, halving: Halving) -> tuple[str, ...]:
    return () if halving.over == "configurations" else (spec.plans, spec.configuration)


def digest_of(members: Iterable[RunSpec], halving: Halving) -> str:
    """What a comparison of these runs is called: by their keys, and by how they are compared."""
    how = Halving.model_validate(halving.model_dump(include=set(Halving.model_fields)))
    content = "\n".join([how.model_dump_json(), *sorted(spec.run_key for spec in members)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def halving_sentences(specs: Sequence[RunSpec]) -> list[str]:
    """What successive halving does with the runs of a plan, a sentence for each comparison, then what was decided before."""
    comparisons: dict[str, list[RunSpec]] = {}
    for spec in specs:
        if spec.halving is not None:
            comparisons.setdefault(spec.halving.comparison, []).append(spec)
    return [_sentence(members) for members in comparisons.values()] + _decided(specs)


def _sentence(members: Sequence[RunSpec]) -> str:
    halving, models = members[0].halving, len({competitor_of(spec) for spec in members})
    assert halving is not None
    epochs, steps, done, left = members[0].schedule.epochs, [], 0, models
    trained = 0
    for rung in halving.at:
        if left == 1:
            break
        trained, done = trained + left * (rung - done), rung
        steps.append(f"{num_kept(left, halving.keep)} of {left} models go on after epoch {rung}")
        left = num_kept(left, halving.keep)
    trained += left * (epochs - done)
    per_model = len(members) // models
    where = "" if halving.over == "configurations" else f" ({members[0].plans}, {members[0].configuration})"
    return (
        f"Successive halving{where}: {', '.join(steps)}: {trained * per_model} of {models * epochs * per_model} epochs, and those that "
        "runs train after a rung until the others have reached it, or until they leave their workers to these."
    )


def _decided(specs: Sequence[RunSpec]) -> list[str]:
    stopped = [spec.address for spec in specs if spec.halving and stopping_decision(spec, read_halving(RunFolder(spec.run_folder)))]
    if not stopped:
        return []
    runs = "1 run was" if len(stopped) == 1 else f"{len(stopped)} runs were"
    return [f"{runs} stopped by it before, and stay so ({stopped[0]}, ...): `nnfleet resume RUN` continues one all the same."]


def unlike_patches(specs: Sequence[RunSpec]) -> list[str]:
    """A warning where pseudo-Dice of unlike patches is compared."""
    compared = [spec for spec in specs if spec.halving is not None and spec.halving.over == "configurations"]
    found = {spec.configuration: plans_of(spec).configuration(spec.configuration) for spec in compared}
    patches = sorted({f"{name}: {'x'.join(map(str, one['patch_size']))} voxels of {one.get('spacing')} mm" for name, one in found.items()})
    if len({text.split(": ")[1] for text in patches}) < 2:
        return []
    return [
        f"halving: over configurations it compares pseudo-Dice of unlike patches ({'; '.join(patches)}), which is no fair comparison; "
        "`nnfleet compare` ranks by whole cases."
    ]
