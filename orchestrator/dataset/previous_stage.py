"""The first stage's segmentations that a run of a cascade's second stage sees: which they are, and whether they are still those."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.dataset.folder import cases_in
from orchestrator.dataset.problems import listed
from orchestrator.dataset.remembered import CACHE_NAME, Reading, read_files
from orchestrator.errors import DataError
from trainers.contract.cascade import first_stage_folder, next_stages, previous_predictions, previous_stage, read_record
from trainers.contract.commits import commit_files
from trainers.contract.plans import Plans
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, made_by
from trainers.storage.files import read_json, write_json_atomic

DIGITS = 16
"""Digits of the SHA-256 of a segmentation's values that a run keeps."""


def stages_after(plans: Plans, configuration: str, val_cases: Iterable[str], preprocessed: Path) -> tuple[str, ...]:
    """The next stages that a run's full validation can leave its segmentations for: those whose cases are preprocessed.

    `preprocessed`: folder of the dataset.
    """
    named = [name for name in next_stages(plans.configuration(configuration)) if name in plans.configurations]
    of_this = [name for name in named if previous_stage(plans.configuration(name)) == configuration]
    cases = set(val_cases)
    return tuple(name for name in of_this if cases <= set(cases_in(preprocessed / str(plans.configuration(name)["data_identifier"]))))


def contents_of_previous(folder: Path, cases: Iterable[str], results: Path) -> dict[str, Reading]:
    """The segmentations of cases in a folder, with SHA-256 over their values, remembered beside the dataset's models.

    A missing or damaged one has a fault. Raises StorageError where their disk is away.
    """
    from trainers.data.case_files import previous_file, previous_sha256  # blosc2 is not on every laptop

    def read(case: str) -> Reading:
        try:
            return Reading(previous_sha256(folder, case))
        except DataError as err:
            return Reading(fault=str(err))

    return read_files({case: previous_file(folder, case) for case in cases}, read, "first stage", results / CACHE_NAME)


def sources_of(folder: Path, cases: Iterable[str], results: Path) -> dict[str, str]:
    """What `PreviousStage.sources` holds of the segmentations in a folder; without cases that have none, or a damaged one."""
    records = {case: read_record(folder, case) for case in cases}
    found = {case: made_by(record.run_key) for case, record in records.items() if record is not None}
    others = contents_of_previous(folder, [case for case in records if case not in found], results)
    return found | {case: reading.sha256[:DIGITS] for case, reading in others.items() if not reading.fault}


def changed_sources(spec: RunSpec, *, are_all_due: bool) -> list[DataError]:
    """Segmentations that are not those that a run was planned with. `are_all_due`: one that a run has still to make is missing, too."""
    stage = spec.previous_stage
    if stage is None:
        return []
    folder, results = previous_predictions(spec, stage.configuration), spec.model_folder.parent
    now = sources_of(folder, stage.sources, results)
    is_due = {case: are_all_due or not source.startswith(made_by("")) for case, source in stage.sources.items()}
    missing = [case for case in stage.sources if case not in now and is_due[case]]
    other = [case for case, source in stage.sources.items() if case in now and now[case] != source and is_due[case]]
    found = []
    if missing:
        found.append(
            DataError(
                f"previous stage: {folder} lacks the segmentation of {listed(missing)} by {stage.configuration!r}, or it is damaged. "
                f"Validate the runs in {first_stage_folder(spec, stage.configuration)} again."
            )
        )
    if other:
        found.append(
            DataError(
                f"previous stage: in {folder} the segmentation of {listed(other)} is not the one that {spec.address} was planned with. "
                "Restore it, or submit again: a new run, with --replace in this one's folder."
            )
        )
    return found


def keep_or_compare(spec: RunSpec, folder: RunFolder) -> str:
    """Note the values of the segmentations that a run begins with; once it has committed something, why they are others now, or ''.

    The runs that make them are named in the run key, and one of these may have been trained again since.
    """
    stage = spec.previous_stage
    if stage is None:
        return ""
    place = previous_predictions(spec, stage.configuration)
    readings = contents_of_previous(place, sorted(stage.sources), spec.model_folder.parent)
    now = {case: reading.sha256[:DIGITS] for case, reading in readings.items()}
    if not commit_files(folder) or not folder.previous_stage_file.is_file():
        write_json_atomic(folder.previous_stage_file, now)
        return ""
    return _differences(spec, place, read_json(folder.previous_stage_file, "run folder"), now)


def _differences(spec: RunSpec, place: Path, before: object, now: Mapping[str, str]) -> str:
    """In words; '' where there are none."""
    if not isinstance(before, dict) or before == now:
        return ""
    changed = sorted(case for case in now if before.get(case) != now[case])
    return (
        f"previous stage: in {place} the segmentation of {listed(changed)} changed since {spec.address} began. Restore it to continue this "
        "run, or begin anew: submit with another `replicate` and --replace."
    )
