"""A cascade in an experiment: which runs leave segmentations for which, what is refused, and what makes a run another one."""

import json
import shutil
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

from orchestrator.dataset.model_folder import run_differences
from orchestrator.dataset.preflight import check_run, problems_of
from orchestrator.dataset.previous_stage import keep_or_compare
from orchestrator.errors import ConfigError
from orchestrator.experiment.expansion import expand
from orchestrator.experiment.plan import plan_report
from tests.unit.orchestrator.experiment.test_plan import experiment_of, node
from tests.unit.tiny_dataset import CASES, CONFIGURATIONS, Tiny, tiny_dataset
from trainers.contract.cascade import NextStageRecord, previous_predictions, record_of
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec
from trainers.storage.files import write_json_atomic

FIRST, SECOND = "3d_lowres", "3d_cascade_fullres"
BOTH = [FIRST, SECOND]
SHAPE = (4, 3, 2)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """The tiny dataset with nnU-Net's two stages."""
    tiny = tiny_dataset(tmp_path)
    lowres = {"inherits_from": "3d_fullres", "data_identifier": "nnUNetPlans_3d_lowres", "next_stage": SECOND}
    tiny.write_plans(configurations={**CONFIGURATIONS, FIRST: lowres})
    shutil.copytree(tiny.data_folder(), tiny.data_folder("nnUNetPlans_3d_lowres"))
    return tiny


def runs(tiny: Tiny, configurations: Any = SECOND, folds: Any = 0, **keys: Any) -> list[RunSpec]:
    return expand(experiment_of(tiny, configurations=configurations, folds=folds, **keys))


def write(folder: Path, case: str, value: int = 1, run_key: str = "") -> None:
    """A segmentation of a case, of a run of ours where a key is given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{case}.b2nd"
    file.unlink(missing_ok=True)
    blosc2.asarray(np.full(SHAPE, value, np.uint8), urlpath=str(file))
    if run_key:
        record = NextStageRecord(run_key=run_key, checkpoint_sha256="0" * 64, file=file.name, size_bytes=file.stat().st_size)
        write_json_atomic(record_of(folder, case), record.model_dump())


def folder_of(tiny: Tiny, model: str = f"nnUNetTrainer__nnUNetPlans__{FIRST}") -> Path:
    return tiny.results / tiny.name / model / "predicted_next_stage" / SECOND


def write_all(tiny: Tiny) -> Path:
    for case in CASES:
        write(folder_of(tiny), case)
    return folder_of(tiny)


def test_segmentations_that_nobody_makes_are_named_once_with_what_to_do(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as caught:
        runs(tiny, folds=[0, 1, 2, 3, 4])
    text = str(caught.value)
    assert f"'{SECOND}' sees the segmentations by '{FIRST}', and 10 of its 10 cases have none in {folder_of(tiny)}: case_0" in text
    assert "Name '3d_lowres' in `configurations` too, with all folds" in text
    assert text.count("sees the segmentations") == 1


def test_one_experiment_trains_both_stages(tiny: Tiny) -> None:
    """Each case's segmentation is of the fold that validates it; the order of the runs is the experiment's."""
    specs = runs(tiny, [SECOND, FIRST], [0, 1, 2, 3, 4])
    assert [spec.configuration for spec in specs] == [SECOND] * 5 + [FIRST] * 5
    first = specs[5:]
    assert {spec.next_stages for spec in first} == {(SECOND,)}
    for spec in specs[:5]:
        assert spec.previous_stage is not None
        assert spec.previous_stage.configuration == FIRST
        assert spec.previous_stage.sources == {case: f"run {run.run_key}" for run in first for case in run.val_cases}
        assert set(spec.previous_stage.run_keys) == {run.run_key for run in first}
        assert spec.next_stages == ()
        assert previous_predictions(spec, FIRST) == folder_of(tiny)


def test_each_model_has_its_own_first_stage(tiny: Tiny) -> None:
    """Of the same trainer, variant and seed."""
    keys: dict[str, Any] = {"trainers": ["nnUNetTrainer", "nnUNetTrainerDA5"], "seeds": [0, 1], "variant": "v"}
    specs = runs(tiny, BOTH, [0, 1, 2, 3, 4], **keys)
    by_key = {spec.run_key: spec for spec in specs}
    for spec in specs:
        for key in spec.previous_stage.run_keys if spec.previous_stage else ():
            made = by_key[key]
            assert (made.configuration, made.trainer, made.seed, made.variant) == (FIRST, spec.trainer, spec.seed, "v")
            assert previous_predictions(spec, FIRST).parent.parent == made.model_folder


@pytest.mark.parametrize(
    ("keys", "missing", "folds"),
    [
        ({"folds": [0, 1, 2]}, 4, "folds 3, 4"),
        ({"folds": "all"}, 10, "folds 0, 1, 2, 3, 4"),
        ({"validation": {"checkpoints": ["best"]}}, 10, "folds 0, 1, 2, 3, 4"),
    ],
)
def test_first_stages_that_leave_too_few_are_refused(tiny: Tiny, keys: dict[str, Any], missing: int, folds: str) -> None:
    """The fold `all` leaves none: it would replace what was not trained on by what was. Nor do the best weights."""
    with pytest.raises(ConfigError, match=rf"{missing} of its 10 cases have none .* Missing: {folds} of '3d_lowres'. .* with `final`"):
        runs(tiny, BOTH, **{"folds": [0, 1, 2, 3, 4], **keys})


def test_the_second_stage_of_all_cases_sees_those_of_the_folds(tiny: Tiny) -> None:
    specs = runs(tiny, FIRST, [0, 1, 2, 3, 4])
    for run in specs:
        for case in run.val_cases:
            write(folder_of(tiny), case, run_key=run.run_key)
    (spec,) = runs(tiny, SECOND, "all")
    assert spec.previous_stage is not None
    assert set(spec.previous_stage.sources) == set(CASES)


def test_a_run_is_the_same_before_and_after_its_first_stage_was_made(tiny: Tiny) -> None:
    *first, before = runs(tiny, FIRST, [0, 1, 2, 3, 4]) + runs(tiny, BOTH, [0, 1, 2, 3, 4])[5:6]
    for run in first:
        for case in run.val_cases:
            write(folder_of(tiny), case, run_key=run.run_key)
    (after,) = runs(tiny)
    assert after.run_key == before.run_key
    assert check_run(after) == []


def test_other_segmentations_make_another_run(tiny: Tiny) -> None:
    folder = write_all(tiny)
    (before,) = runs(tiny)
    assert check_run(before) == []
    assert before.previous_stage is not None
    assert before.previous_stage.run_keys == ()
    write(folder, "case_3", 2)
    (after,) = runs(tiny)
    assert before.run_key != after.run_key
    assert before.data_digest == after.data_digest
    assert run_differences(before, after) == "the segmentations of the previous stage"
    (problem,) = check_run(before)
    assert f"in {folder} the segmentation of case_3 is not the one that 17/{SECOND}/nnUNetTrainer/0 was planned with" in problem
    write(folder, "case_3")  # other bytes, maybe, of the same values
    (again,) = runs(tiny)
    assert again.run_key == before.run_key


def test_what_a_run_of_the_experiment_has_still_to_make_is_missed_by_the_training_alone(tiny: Tiny) -> None:
    """A campaign that is resumed finds no fault in it; the driver, which starts when it is made, does."""
    spec = runs(tiny, BOTH, [0, 1, 2, 3, 4])[5]
    assert problems_of(spec) == []
    (problem,) = check_run(spec)
    assert f"{folder_of(tiny)} lacks the segmentation of case_0, case_1" in problem
    assert "Validate the runs in" in problem


def test_first_stages_trained_again_under_the_same_key_do_not_change_a_run_under_way(tiny: Tiny) -> None:
    specs = runs(tiny, BOTH, [0, 1, 2, 3, 4])
    for run in specs[:5]:
        for case in run.val_cases:
            write(folder_of(tiny), case, run_key=run.run_key)
    spec, folder = specs[5], RunFolder(specs[5].run_folder)
    assert keep_or_compare(spec, folder) == ""
    maker = next(run.run_key for run in specs[:5] if "case_3" in run.val_cases)
    write(folder_of(tiny), "case_3", 2, maker)
    assert keep_or_compare(spec, folder) == ""  # nothing is committed yet: it begins with these
    folder.state.mkdir(parents=True)
    (folder.state / "e00001_a0001.json").write_text("{}")
    assert keep_or_compare(spec, folder) == ""
    write(folder_of(tiny), "case_3", 1, maker)
    assert f"the segmentation of case_3 changed since {spec.address} began" in keep_or_compare(spec, folder)


def test_runs_without_a_cascade_keep_their_keys_and_their_run_json(tiny: Tiny) -> None:
    (spec,) = runs(tiny, "3d_fullres")
    assert not {"previous_stage", "next_stages"} & set(json.loads(spec.model_dump_json()))
    (first,) = runs(tiny, FIRST)
    assert first == RunSpec.model_validate_json(first.model_dump_json())
    shutil.rmtree(tiny.data_folder("nnUNetPlans_3d_lowres"))
    shutil.copytree(tiny.data_folder(), tiny.data_folder("nnUNetPlans_3d_lowres"))
    (tiny.data_folder() / "case_0.b2nd").unlink()  # its next stage is not preprocessed: it leaves nothing for it
    assert {spec.next_stages for spec in runs(tiny, FIRST, [0, 1, 2, 3, 4])} == {(), (SECOND,)}


@pytest.mark.parametrize("stage", [3, ["3d_lowres"], {"a": 1}])
def test_a_previous_stage_that_is_no_name_is_refused(tiny: Tiny, stage: Any) -> None:
    tiny.write_plans(configurations={**CONFIGURATIONS, SECOND: {"inherits_from": "3d_fullres", "previous_stage": stage}})
    with pytest.raises(Exception, match="previous_stage must be the name of a configuration"):
        runs(tiny)


def test_stages_in_a_circle_end(tiny: Tiny) -> None:
    circle = {"inherits_from": "3d_fullres", "previous_stage": SECOND}
    tiny.write_plans(configurations={**CONFIGURATIONS, FIRST: circle})
    with pytest.raises(ConfigError, match="sees the segmentations by"):
        runs(tiny, BOTH)


def test_the_plan_shows_which_runs_wait_for_others_and_gives_these_the_room(tiny: Tiny) -> None:
    """One that fits no cluster is shown as such all the same."""
    experiment = experiment_of(tiny, configurations=[SECOND, FIRST], folds=[0, 1, 2, 3, 4])
    specs = expand(experiment)
    rows = plan_report(experiment, specs, [node(5)]).rows
    assert {(row.fits, row.because) for row in rows[:5]} == {("later", "waits for the segmentations of 5 runs of its previous stage.")}
    assert [row.fits for row in rows[5:]] == ["now"] * 5
    assert {row.fits for row in plan_report(experiment, specs, [node(0.5)]).rows} == {"never"}


@pytest.mark.parametrize("over", ["trainers", "configurations"])
def test_a_second_stage_is_not_halved_as_it_ends_with_its_first(tiny: Tiny, over: str) -> None:
    keys: dict[str, Any] = {"trainers": ["nnUNetTrainer", "nnUNetTrainerDA5"], "halving": {"at": [1], "over": over}}
    with pytest.raises(ConfigError, match=f"halving: {SECOND} needs the segmentations of a first stage, and ends where that is stopped"):
        runs(tiny, BOTH, [0, 1, 2, 3, 4], **keys)
    assert all(spec.halving for spec in runs(tiny, FIRST, **keys)), "a first stage alone is halved"
