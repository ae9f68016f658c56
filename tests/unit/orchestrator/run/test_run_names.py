"""How a user names runs."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.run.names import Names, resolve, resolve_one, short_address
from orchestrator.run.status import RunStatus, match, match_all
from trainers.contract.trainer_table import TRAINERS

RUNS = [
    Names("d017-3d-0-abc", "17/3d_fullres/nnUNetTrainer/0", "aaa1", "/r/3d/fold_0"),
    Names("d017-3d-1-abd", "17/3d_fullres/nnUNetTrainer/1", "bbb2", "/r/3d/fold_1"),
    Names("d017-2d-1-fff", "17/2d/nnUNetTrainerDA5/1", "ccc3", "/r/2d/fold_1"),
    Names("d170-2d-all-eee", "170/2d/nnUNetTrainer/all", "", "/r/2d/fold_all"),
]


def meant(wanted: str, names: list[Names] = RUNS) -> list[str]:
    return [names[i].run_key for i in resolve(wanted, names, "here")]


def one(wanted: str, names: list[Names] = RUNS) -> str:
    return names[resolve_one(wanted, names, "here")].run_key


@pytest.mark.parametrize(
    "wanted", ["d017-2d-1-fff", "d017-2d", "ccc3", "cc", "17/2d/nnUNetTrainerDA5/1", "17/2d", "d017-2d*", "*/2d/*/[0-9]"]
)
def test_a_run_is_found_by_any_of_its_names(wanted: str) -> None:
    assert one(wanted) == "d017-2d-1-fff"


@pytest.mark.parametrize(
    "wanted",
    ["017/2d/da5/1", "Dataset017_BTCV/2d/nnUNetTrainerDA5/fold_1", "17/2d/nnUNetTrainerDA5/1/", "Dataset017_BTCV/2d", "017/2d/da5"],
)
def test_an_address_and_its_beginning_are_understood_as_people_write_them(wanted: str) -> None:
    assert one(wanted) == "d017-2d-1-fff"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("17", ["d017-3d-0-abc", "d017-3d-1-abd", "d017-2d-1-fff"]),
        ("17/3d_fullres", ["d017-3d-0-abc", "d017-3d-1-abd"]),
        ("17/*/nnUNetTrainerDA5", ["d017-2d-1-fff"]),
        ("*/*/*/1", ["d017-3d-1-abd", "d017-2d-1-fff"]),
        ("17*", [name.run_key for name in RUNS]),
        ("d017-3d", ["d017-3d-0-abc", "d017-3d-1-abd"]),
        ("*-fff", ["d017-2d-1-fff"]),
    ],
)
def test_a_beginning_and_a_pattern_mean_all_that_match(wanted: str, found: list[str]) -> None:
    assert meant(wanted) == found


MARKED = [
    Names("a", "17/2d/nnUNetTrainer/0"),
    Names("b", "17/2d/nnUNetTrainer@nnUNetResEncUNetMPlans/0"),
    Names("c", "17/2d/nnUNetTrainer@nnUNetResEncUNetMPlans+seed1/0"),
    Names("d", "17/2d/nnUNetTrainerDA5+seed1/0"),
    Names("e", "17/2d/nnUNetTrainerDA5+lowlr/0"),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("17/2d/nnUNetTrainer", ["a"]),
        ("17/2d/default@nnUNetResEncUNetMPlans/0", ["b"]),
        ("17/2d/nnUNetTrainer@nnUNetResEncUNetMPlans+seed1", ["c"]),
        ("17/2d/*@*", ["b", "c"]),
        ("17/2d/*+seed1", ["c", "d"]),
        ("17/2d/da5", ["d", "e"]),
        ("17/2d/da5+lowlr", ["e"]),
        ("17/2d", ["a", "b", "c", "d", "e"]),
    ],
)
def test_plans_and_seed_that_are_not_the_usual_ones_are_part_of_an_address(wanted: str, found: list[str]) -> None:
    assert meant(wanted, MARKED) == found


def test_a_part_of_an_address_is_compared_as_a_whole() -> None:
    with pytest.raises(ConfigError, match="no run '17/3d'"):
        meant("17/3d")


def test_a_name_of_several_runs_lists_them_where_one_is_needed() -> None:
    listed = r"'17/3d_fullres' means 2 runs here: 17/3d_fullres/nnUNetTrainer/0 \(d017-3d-0-abc\), "
    with pytest.raises(ConfigError, match=f"{listed}.*Name one by its address"):
        one("17/3d_fullres")
    with pytest.raises(ConfigError, match="Name one by its run key"):  # both have one address
        one("17/2d", [Names("a", "17/2d/nnUNetTrainer/0", folder="/r/a"), Names("b", "17/2d/nnUNetTrainer/0", folder="/r/b")])


def test_an_unknown_name_lists_what_is_known_and_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"no run 'd017-2d-1-ffx' here\. Did you mean 'd017-2d-1-fff'\? Known: 17/3d_fullres/nnUNetTrainer, 17/2d/"
    ):
        meant("d017-2d-1-ffx")
    with pytest.raises(ConfigError, match="Known: none"):
        meant("x", [])


@pytest.mark.parametrize(
    ("wanted", "near"), [("18", "17"), ("17/2dd", "17/2d"), ("17/3d_fullres/nnUNetTrainr", "17/3d_fullres/nnUNetTrainer")]
)
def test_the_beginning_of_an_address_with_a_typing_error_gets_a_suggestion(wanted: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean '{near}'"):
        meant(wanted)


def test_whoever_stops_a_run_is_shown_what_there_is_and_offered_no_other_one() -> None:
    many = [Names(f"d017-{i}", f"17/2d/t{i // 2}/{i % 2}") for i in range(18)]
    with pytest.raises(ConfigError, match=r"no run 'd017-x' here\. Known: 17/2d/t0, .*, 17/2d/t4 and 4 more\.$"):
        resolve("d017-x", many, "here", hints=False)


@pytest.mark.parametrize("wanted", ["", " ", "/"])
def test_an_empty_name_means_no_run(wanted: str) -> None:
    with pytest.raises(ConfigError, match="its name is empty"):
        meant(wanted)


def test_of_two_runs_at_one_address_the_owner_of_the_folder_is_meant_and_the_other_has_its_key() -> None:
    failed = Names("d017-3d-0-aaa", "17/3d_fullres/nnUNetTrainer/0", "old", "/r/3d/fold_0")
    names = [failed, *RUNS]
    assert one("17/3d_fullres/nnUNetTrainer/0", names) == one("d017-3d-0", names) == "d017-3d-0-abc"
    assert meant("17/3d_fullres", names) == ["d017-3d-0-abc", "d017-3d-1-abd"]
    assert one("d017-3d-0-aaa", names) == one("d017-3d-0-aa", names) == one("old", names) == "d017-3d-0-aaa"


@pytest.mark.parametrize("folder", ["", "/elsewhere/fold_0"])
def test_two_runs_at_one_address_in_different_folders_are_not_told_apart_by_it(folder: str) -> None:
    names = [RUNS[0]._replace(folder=folder), RUNS[0]._replace(run_key="d017-3d-0-other", folder=folder and "/r")]
    with pytest.raises(ConfigError, match="means 2 runs"):
        one("17/3d_fullres/nnUNetTrainer/0", names)


@pytest.mark.parametrize(
    ("address", "short"),
    [
        ("17/2d/nnUNetTrainer/0", "17/2d/default/0"),
        ("17/2d/nnUNetTrainerDA5_classic/all", "17/2d/da5_classic/all"),
        ("17/3d_fullres/nnUNetTrainer_250epochs@nnUNetResEncUNetMPlans+lowlr+seed3/4", "17/3d_fullres/250epochs@ResEncUNetM+lowlr+seed3/4"),
        ("17/2d/nnUNetTrainer@myPlans/0", "17/2d/default@myPlans/0"),
        ("17/2d/nnUNetTrainer+aPlans/0", "17/2d/default+aPlans/0"),
        ("17/2d/nnUNetTrainer", "17/2d/default"),
        ("17", "17"),
    ],
)
def test_a_short_address_leaves_out_what_all_have_in_common_and_means_the_same(address: str, short: str) -> None:
    assert short_address(address) == short
    assert one(short, [Names("k", address), Names("other", "18/2d/nnUNetTrainer/0")]) == "k"


def test_no_two_trainers_have_one_short_name() -> None:
    assert len({short_address(f"17/2d/{trainer}/0") for trainer in TRAINERS}) == len(TRAINERS)


def test_statuses_are_found_by_the_same_names() -> None:
    statuses = [
        RunStatus(run_key=n.run_key, address=n.address, campaign="c", epochs=1, mlflow_run_id=n.mlflow_run_id, run_folder=Path(n.folder))
        for n in RUNS
    ]
    assert match("cc", statuses).run_key == "d017-2d-1-fff"
    assert [s.run_key for s in match_all(["ccc3", "17/2d", "17/3d_fullres/default/0"], statuses)] == ["d017-2d-1-fff", "d017-3d-0-abc"]
