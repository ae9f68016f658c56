"""What is known of one fold of a model, from its run folder, from MLflow or from an exported folder, and which folds go together. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from orchestrator.tracking.records import OWN_TRAINER, PARAM_LENGTH, fixed_params
from trainers.contract.commits import early_end_of, newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import CheckpointName, Frozen, RunSpec

OF_ONE_FOLD = ("fold", "data_digest", "num_train_cases", "num_val_cases")
"""Parameters of a run in which folds of one model differ."""
EARLY_END = "early_end"
"""Beside the parameters: how a run ended before its schedule, of one that did (`EarlyEnd.text`)."""
NOT_RECORDED = ("replicate", "pretrained_weights", "network", "loss", OWN_TRAINER, EARLY_END)
"""Parameters that only runs have which have such."""
MAX_LISTED = 3


class FoldFacts(Frozen):
    """One fold of one model."""

    run_key: str
    model: str
    """Its address without the fold."""
    fold: str = Field(pattern=r"^(?:[0-9]+|all)$")
    shared: dict[str, str]
    """The parameters in which the folds of one model agree, with how it ended early if it did."""
    cases: dict[str, str] | None
    """Case id -> digests of what it holds; None where they are not known, or may not be named."""
    previous_stage: dict[str, str] | None = Field(None, exclude_if=lambda sources: sources is None)
    """Of a second stage of a cascade: case id -> which segmentation it saw (`PreviousStage.sources`); None likewise."""
    checkpoints: dict[CheckpointName, str] = Field(default_factory=dict)
    """Name -> SHA-256, of those that there are."""
    optimistic: dict[str, str] = Field(default_factory=dict, exclude_if=lambda found: not found)
    """Name -> SHA-256, of the weights of candidates that were asked for: `winner`, `candidate_<epoch>`."""
    probabilities: tuple[CheckpointName, ...] = Field((), exclude_if=lambda names: not names)
    """Checkpoints whose predictions of the validation cases are in it, with their probabilities."""


def facts_of(spec: RunSpec, early_end: str = "") -> FoldFacts:
    """Of a run by its specification, without its checkpoints. `early_end`: how it ended before its schedule, if it did."""
    cases = None if spec.case_digests is None else {case: " ".join(digests) for case, digests in spec.case_digests.items()}
    shared = shared_params(fixed_params(spec)) | ended_early(early_end)
    seen = spec.previous_stage.sources if spec.previous_stage else None
    return FoldFacts(run_key=spec.run_key, model=spec.model, fold=str(spec.fold), shared=shared, cases=cases, previous_stage=seen)


def facts_in(folder: RunFolder) -> FoldFacts:
    """Of the run in a folder, likewise. Raises DataError, StorageError, OSError."""
    spec = folder.spec()
    return facts_of(spec, early_end_of(spec, newest_committed(folder)))


def ended_early(text: str) -> dict[str, str]:
    """What `FoldFacts.shared` has of an early end; nothing of a run without one."""
    return {EARLY_END: text} if text else {}


def shared_params(params: Mapping[str, str]) -> dict[str, str]:
    """Those parameters of a run in which the folds of one model agree."""
    return {key: value[:PARAM_LENGTH] for key, value in params.items() if key not in OF_ONE_FOLD}


def together(folds: Sequence[str]) -> tuple[str, ...]:
    """Those of a model's folds that predict together: those with numbers, as nnU-Net's predict takes 0 to 4; `all` where it is alone."""
    return tuple(fold for fold in folds if fold != "all") or tuple(folds)


def unlike(folds: Sequence[FoldFacts]) -> list[str]:
    """Why these are not folds of one model, a sentence each; empty when they are."""
    return [
        f"fold {other.fold} differs from fold {folds[0].fold} in {text}" for other in folds[1:] if (text := _differences(folds[0], other))
    ]


def _differences(first: FoldFacts, other: FoldFacts) -> str:
    data = _contents("the data", first.cases or {}, other.cases or {})
    seen = _contents("the first stage's segmentations", first.previous_stage or {}, other.previous_stage or {})
    return ", ".join([*_settings(first.shared, other.shared), *data, *seen])


def _settings(first: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    """What one of the two does not record says nothing, but `NOT_RECORDED` where there is none."""
    names = [name for name in first if name in other]
    for name in dict.fromkeys([*names, *NOT_RECORDED]):
        a, b = first.get(name, "none"), other.get(name, "none")
        if a != b:
            yield f"{name} ({b} instead of {a})"


def _contents(what: str, first: Mapping[str, str], other: Mapping[str, str]) -> Iterator[str]:
    if changed := sorted(case for case in first.keys() & other.keys() if first[case] != other[case]):
        yield f"{what} of {listed_cases(changed)}"


def listed_cases(cases: Sequence[str]) -> str:
    """`a, b, c and 4 more cases`."""
    more = len(cases) - MAX_LISTED
    return ", ".join(cases[:MAX_LISTED]) + (f" and {more} more cases" if more > 0 else "")
