"""The digests of a run's cases: label files and the values of the preprocessed image and labels, read once and remembered."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.dataset.label_files import read_label_files
from orchestrator.dataset.problems import listed
from orchestrator.dataset.remembered import CACHE_NAME, MOST_THREADS, Reading, read_files
from orchestrator.errors import DataError
from trainers.contract.run_spec import RunSpec

CaseDigests = Mapping[str, Sequence[str]]
DIGITS = 8
"""Digits of each digest that a run keeps: enough to name the case that changed, while `data_digest` covers all of them."""
PACKED_THREADS = 2
KINDS = ("labels", "images", "preprocessed labels")
"""What each of the digests in `RunSpec.case_digests` is of."""


@dataclass(frozen=True)
class CaseReadings:
    """What was read of cases, by case id."""

    labels: Mapping[str, Reading]
    """Files of gt_segmentations."""
    contents: Mapping[str, tuple[Reading, Reading]] = field(default_factory=dict)
    """Preprocessed image and labels; empty where nobody asked for them."""

    @property
    def label_sha256(self) -> dict[str, str]:
        """For `data_digest`."""
        return {case: reading.sha256 for case, reading in self.labels.items()}

    @property
    def content_sha256(self) -> dict[str, tuple[str, str]]:
        """Likewise."""
        return {case: (image.sha256, labels.sha256) for case, (image, labels) in self.contents.items()}

    def digests(self, cases: Iterable[str]) -> dict[str, tuple[str, str, str]]:
        """What a run of these cases keeps as `RunSpec.case_digests`."""
        none = Reading()
        found = {case: (self.labels.get(case, none), *self.contents.get(case, (none, none))) for case in sorted(cases)}
        return {case: (a.sha256[:DIGITS], b.sha256[:DIGITS], c.sha256[:DIGITS]) for case, (a, b, c) in found.items()}


def labels_of_cases(folder: Path, cases: Iterable[str], ending: str, reader: str, results: Path) -> dict[str, Reading]:
    """Label files of cases below gt_segmentations, with the digests remembered beside the dataset's models."""
    files = {case: folder / "gt_segmentations" / f"{case}{ending}" for case in cases}
    return read_label_files(files, reader, results / CACHE_NAME)


def contents_of_cases(data_folder: Path, cases: Iterable[str], channels: int, results: Path) -> dict[str, tuple[Reading, Reading]]:
    """Preprocessed image and labels of cases, remembered likewise; the first reading of a dataset unpacks all of it.

    Raises StorageError where their disk is away.
    """
    from trainers.data.case_files import Part, content_sha256, file_of

    def read(case: str, part: Part) -> Reading:
        try:
            return Reading(content_sha256(data_folder, case, channels, part))
        except DataError as err:
            return Reading(fault=str(err))

    def read_all(part: Part) -> dict[str, Reading]:
        files = {case: file_of(data_folder, case, part) for case in cases}
        return read_files(files, lambda case: read(case, part), f"preprocessed {part}", results / CACHE_NAME, most_threads(files.values()))

    cases = tuple(cases)
    images, labels = read_all("image"), read_all("labels")
    return {case: (images[case], labels[case]) for case in cases}


def most_threads(files: Iterable[Path]) -> int:
    """How many of these files are read at once: of packed ones each thread holds a whole image. Pure."""
    return PACKED_THREADS if any(file.suffix == ".npz" for file in files) else MOST_THREADS


def damaged_cases(faults: Mapping[str, str]) -> list[DataError]:
    """One problem for the cases of a run whose files are damaged (case id -> what is the matter with it)."""
    if len(faults) < 2:
        return [DataError(fault) for fault in faults.values()]
    return [
        DataError(f"cases: {len(faults)} of the run's cases are damaged: {listed(list(faults))}. The first: {next(iter(faults.values()))}")
    ]


def case_differences(before: CaseDigests, now: CaseDigests) -> list[str]:
    """Which of the cases that both hold changed, in words: `images of case_1`. Pure.

    Of a case that is named for its label file or image its preprocessed labels are not named too, for they follow from both.
    """
    found, named = [], set[str]()
    for place, kind in enumerate(KINDS):
        changed = [case for case in sorted(before) if case in now and before[case][place] != now[case][place]]
        if kind == "preprocessed labels":
            changed = [case for case in changed if case not in named]
        named.update(changed)
        if changed:
            found.append(f"{kind} of {listed(changed)}")
    return found


def data_changes(present: RunSpec, now: CaseDigests | None) -> str:
    """What may have changed of the data of a run whose data digest is not the present one, in words. Pure."""
    if present.case_digests is None or now is None:
        return "labels, plans or dataset.json"
    return ", ".join(case_differences(present.case_digests, now)) or "plans or dataset.json"
