"""In what two runs differ: data, split, plans, settings, schedule, code, libraries, hardware, restarts. Pure functions of what was read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.export.fold_facts import listed_cases
from trainers.contract.commits import EpochRow
from trainers.contract.records import TokenClaim
from trainers.contract.run_spec import RunSpec

PARTS = ("data", "split", "plans", "settings", "schedule", "code", "libraries", "hardware", "restarts")
NONE = "-"
"""Where one of the two has no such value."""
NOT_SETTINGS = frozenset(
    {
        "run_key",
        "model_folder",
        "preprocessed_folder",
        "dataset",
        "data_digest",
        "case_digests",
        "patients",
        "previous_stage",
        "next_stages",
        "fold",
        "train_cases",
        "val_cases",
    }
    | {"plans", "configuration", "schedule"}
)
"""Fields of a run specification that are names and places, or belong to another part."""
VERSION = "nnfleet.version."
CODE = {"nnfleet.version.nnfleet": "nnfleet", "mlflow.source.git.commit": "commit"}


@dataclass(frozen=True)
class RunFacts:
    """What is known of one run."""

    spec: RunSpec
    plans: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration of its plans; empty where it cannot be read."""
    tags: Mapping[str, str] | None = None
    """Its tags in MLflow, which hold the versions; None where they are not known."""
    claims: Sequence[TokenClaim] = ()
    history: Sequence[EpochRow] = ()
    early_end: str = ""
    """How it ended before its schedule, as somebody asked; empty: it did not."""


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ."""

    part: str
    """One of `PARTS`."""
    what: str
    first: str
    second: str


@dataclass(frozen=True)
class RunDiff:
    """The comparison of two runs."""

    first: str
    """Address and run key."""
    second: str
    differences: tuple[Difference, ...]
    unknown: tuple[str, ...] = ()
    """What could not be compared, a sentence each."""

    @property
    def are_equal(self) -> bool:
        """True when nothing that could be compared differs."""
        return not self.differences


def differences_of(a: RunFacts, b: RunFacts) -> list[Difference]:
    """What differs, in the order of `PARTS`."""
    known = a.tags is not None and b.tags is not None
    values = {
        "split": (_split(a), _split(b)),
        "plans": (_plans(a), _plans(b)),
        "settings": (_settings(a.spec), _settings(b.spec)),
        "schedule": (_schedule(a), _schedule(b)),
        "code": (_code(a.tags), _code(b.tags)) if known else ({}, {}),
        "libraries": (_libraries(a.tags), _libraries(b.tags)) if known else ({}, {}),
        "hardware": (_hardware(a), _hardware(b)),
        "restarts": (_restarts(a.claims), _restarts(b.claims)),
    }
    found = [*_data(a.spec, b.spec), *(row for part, (first, second) in values.items() for row in _unlike(part, first, second))]
    is_named = any(row.part in ("data", "split", "plans") for row in found)
    if not is_named and a.spec.data_digest != b.spec.data_digest:
        found.append(Difference("data", "digest", a.spec.data_digest[:12], b.spec.data_digest[:12]))
    return sorted(found, key=lambda row: PARTS.index(row.part))


def _unlike(part: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    for what in dict.fromkeys([*first, *second]):
        a, b = (_text(values.get(what)) for values in (first, second))
        if a != b:
            yield Difference(part, what, a, b)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value)) or NONE
    return NONE if value is None or value == "" else str(value)


def _schedule(run: RunFacts) -> dict[str, Any]:
    return _flat(run.spec.schedule.model_dump()) | {"early end": run.early_end}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """`{"workers": {"count": 2}}` as `{"workers.count": 2}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def _data(a: RunSpec, b: RunSpec) -> Iterator[Difference]:
    yield from _unlike("data", {"dataset": a.dataset}, {"dataset": b.dataset})
    patients = [spec.patients or {} for spec in (a, b)]
    if other := sorted(case for case in {**patients[0], **patients[1]} if patients[0].get(case) != patients[1].get(case)):
        yield Difference("data", "patients", f"{len(patients[0])} cases", f"{len(patients[1])} cases; other: {listed_cases(other)}")
    seen = [spec.previous_stage.sources if spec.previous_stage else {} for spec in (a, b)]
    if others := sorted(case for case in seen[0].keys() & seen[1].keys() if seen[0][case] != seen[1][case]):
        yield Difference("data", "previous stage's segmentations", f"{len(others)} cases", f"others: {listed_cases(others)}")
    if a.case_digests is None or b.case_digests is None:
        return
    both = a.case_digests.keys() & b.case_digests.keys()
    for place, what in enumerate(("label files", "preprocessed images", "preprocessed labels")):
        if changed := sorted(case for case in both if a.case_digests[case][place] != b.case_digests[case][place]):
            yield Difference("data", what, f"{len(changed)} cases", f"other content: {listed_cases(changed)}")


def _split(run: RunFacts) -> dict[str, Any]:
    """Each case by what the run does with it, so that a case that moved is one line."""
    uses = dict.fromkeys(run.spec.train_cases, "training")
    for case in run.spec.val_cases:
        uses[case] = "training and validation" if case in uses else "validation"
    return {"fold": run.spec.fold, **{f"case {case}": use for case, use in uses.items()}}


def _plans(run: RunFacts) -> dict[str, Any]:
    return {"plans": run.spec.plans, "configuration": run.spec.configuration, **_flat(run.plans)}


def _settings(spec: RunSpec) -> dict[str, Any]:
    settings = _flat({key: value for key, value in spec.model_dump(mode="json").items() if key not in NOT_SETTINGS})
    return settings | ({"exactness": spec.inexactness} if spec.inexactness else {})


def _code(tags: Mapping[str, str] | None) -> dict[str, str]:
    return {what: tags[tag] for tag, what in CODE.items() if tag in tags} if tags else {}


def _libraries(tags: Mapping[str, str] | None) -> dict[str, str]:
    return {tag.removeprefix(VERSION): value for tag, value in (tags or {}).items() if tag.startswith(VERSION) and tag not in CODE}


def _hardware(run: RunFacts) -> dict[str, Any]:
    """Nodes by Ray's ids, numbers of workers in the order in which they were used, and whether a GPU was used."""
    workers = list(dict.fromkeys(row.world_size for row in run.history))
    memory = max((row.gpu_memory_gib for row in run.history), default=0.0)
    nodes = sorted({claim.node[:8] for claim in run.claims if claim.node and claim.role == "workers"})
    return {"nodes of rank 0": nodes, "workers": workers, "GPU memory": f"{memory:.1f} GiB" if memory else ""}


def _restarts(claims: Sequence[TokenClaim]) -> dict[str, Any]:
    drivers = {claim.driver for claim in claims if claim.driver}
    return {"fencing tokens": len(claims), "drivers": len(drivers), "jobs": len({claim.job for claim in claims if claim.job})}
