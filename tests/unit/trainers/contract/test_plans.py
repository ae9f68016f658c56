"""The torch-free ground: plans and labels as nnU-Net reads them, names, durable files, attempts, states."""

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import IO, Any

import pytest

from tests.unit.tiny_dataset import CONFIGURATIONS, Tiny, tiny_dataset
from trainers.contract.fencing import acquire_token, check_driver_fence, check_fence, newest_token
from trainers.contract.names import nearest
from trainers.contract.plans import Plans, Split, labels_of, load_dataset_json, load_plans, load_splits, num_input_channels, split_for
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import FINAL, TRANSITIONS, RunState, can_follow
from trainers.errors import ConfigError, DataError, Superseded
from trainers.storage import files
from trainers.storage.exclusive import create_exclusive
from trainers.storage.files import link_atomic, read_json, sha256_of, write_atomic, write_json_atomic

LABELS: list[dict[str, Any]] = [
    {"labels": {"background": 0, "organ": 1, "lesion": 2}},
    {"labels": {"lesion": 2, "background": 0, "organ": 1}},
    {"labels": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3}},
    {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, "regions_class_order": [1, 2, 3]},
    {"labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, "regions_class_order": [1, 2]},
    {"labels": {"background": 0, "enhancing": [3], "whole": [1, 2, 3], "core": [2, 3]}, "regions_class_order": [3, 1, 2]},
]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return tiny_dataset(tmp_path)


@pytest.mark.parametrize("dataset_json", LABELS)
def test_labels_are_those_of_nnunets_label_manager(dataset_json: dict[str, Any]) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    theirs = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    ours = labels_of(dataset_json)
    assert ours.has_regions == theirs.has_regions
    assert ours.ignore_label == theirs.ignore_label
    assert ours.num_heads == theirs.num_segmentation_heads
    scored = theirs.foreground_regions if theirs.has_regions else theirs.foreground_labels
    assert list(ours.foreground.values()) == [tuple(r) if isinstance(r, tuple | list) else (int(r),) for r in scored]
    assert ours.values == {int(v) for v in theirs.all_labels} | ({theirs.ignore_label} if theirs.has_ignore_label else set())


def test_foreground_is_in_the_order_of_the_networks_outputs() -> None:
    assert list(labels_of(LABELS[1]).foreground) == ["organ", "lesion"]
    assert list(labels_of(LABELS[5]).foreground) == ["enhancing", "whole", "core"]


@pytest.mark.parametrize(
    ("dataset_json", "message"),
    [
        ({"labels": {"organ": 1}}, 'needs "background": 0, got None'),
        ({"labels": {"background": 1, "organ": 0}}, 'needs "background": 0, got 1'),
        ({"labels": {"background": 0, "organ": 2}}, "must be consecutive from 0, got [0, 2]"),
        ({"labels": {"background": 0, "organ": 1, "twin": 1}}, "two labels have the same value"),
        ({"labels": {"background": 0, "organ": "one"}}, "must map names to integers"),
        ({"labels": [0, 1]}, "must map names to integers"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 4}}, "the ignore label must be the highest value (2), got 4"),
        ({"labels": {"background": 0, "organ": 1, "ignore": [2]}}, "the ignore label must be one integer"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "regions need 'regions_class_order'"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1]}, "regions need 'regions_class_order'"),
    ],
)
def test_labels_that_contradict_themselves_are_refused(dataset_json: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        labels_of(dataset_json)
    assert message in str(caught.value)


def test_inheritance_is_resolved_as_nnunet_does(tiny: Tiny) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    middle = {**CONFIGURATIONS, "smaller": {"inherits_from": "small", "patch_size": [4, 4, 4]}}
    tiny.write_plans(configurations=middle)
    plans = load_plans(tiny.preprocessed, "nnUNetPlans")
    assert plans.configurations == list(middle)
    for name in middle:
        theirs = PlansManager(plans.content)._internal_resolve_configuration_inheritance(name)
        assert plans.configuration(name) == {key: value for key, value in theirs.items() if key != "inherits_from"}
    assert (plans.configuration("smaller")["batch_size"], plans.configuration("smaller")["patch_size"]) == (2, [4, 4, 4])


@pytest.mark.parametrize(
    ("configurations", "message"),
    [
        ({"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}, "inherits from itself (a -> b -> a)"),
        ({"a": {"inherits_from": "z"}}, "inherits from 'z', which is not there (a -> z)"),
    ],
)
def test_inheritance_that_leads_nowhere_is_refused(configurations: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Plans("P", Path("P.json"), {"configurations": configurations}).configuration("a")
    assert message in str(caught.value)


def test_a_configuration_that_is_no_object_is_refused(tiny: Tiny) -> None:
    tiny.write_plans(configurations={"2d": 5})
    with pytest.raises(DataError, match="configuration '2d' of .* is not a JSON object"):
        load_plans(tiny.preprocessed, "nnUNetPlans")


def test_dataset_json_lists_what_it_lacks(tiny: Tiny) -> None:
    tiny.write_json("dataset.json", {"labels": {}})
    with pytest.raises(DataError, match="lacks file_ending, channel_names"):
        load_dataset_json(tiny.preprocessed)
    tiny.write_json("dataset.json", [])
    with pytest.raises(DataError, match="is not a JSON object"):
        load_dataset_json(tiny.preprocessed)


def test_channels_are_counted_under_both_of_nnunets_names() -> None:
    assert num_input_channels({"channel_names": {"0": "T1", "1": "T2"}}) == 2
    assert num_input_channels({"modality": {"0": "CT"}}) == 1


def test_splits_are_read_and_folds_counted(tiny: Tiny) -> None:
    tiny.write_json("splits_final.json", [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])
    splits = load_splits(tiny.preprocessed)
    assert split_for(splits, 1, (), "D") == Split(("b",), ("a",))
    assert split_for(splits, "all", ("a", "b"), "D") == Split(("a", "b"), ("a", "b"))
    for fold in (2, -1):
        with pytest.raises(ConfigError, match=f"fold {fold} does not exist: splits_final.json of D has 2 folds \\(0-1\\)"):
            split_for(splits, fold, (), "D")


@pytest.mark.parametrize("content", ["5", '{"train": []}', "[[]]", '[{"train": []}]', '[{"train": "case_1", "val": []}]', "[", "null"])
def test_malformed_splits_are_refused(tiny: Tiny, content: str) -> None:
    (tiny.preprocessed / "splits_final.json").write_text(content)
    with pytest.raises(DataError, match=r"splits_final\.json"):
        load_splits(tiny.preprocessed)


def test_the_nearest_name_is_suggested() -> None:
    assert nearest("3D_fullres", ["2d", "3d_fullres"]) == " Did you mean '3d_fullres'?"
    assert nearest("zzz", ["2d"]) == ""


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    def broken(stream: IO[bytes]) -> None:
        raise ZeroDivisionError

    target = tmp_path / "sub" / "a.json"
    write_json_atomic(target, {"x": float("nan")})
    write_atomic(target, b'{"x": 1}')
    assert read_json(target, "a file") == {"x": 1}
    with pytest.raises(TypeError):
        write_json_atomic(target, {"x": object()})
    with pytest.raises(ZeroDivisionError):
        files.write_through(target, broken)
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]
    assert sha256_of(target) == hashlib.sha256(b'{"x": 1}').hexdigest()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "a file: .* does not exist"), (b"{", "cannot be read"), (b"\xff", "cannot be read")]
)
def test_json_that_cannot_be_read_is_a_data_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json", "a file")


def test_only_one_of_many_creates_a_file(tmp_path: Path) -> None:
    won: list[int] = []

    def create(number: int) -> None:
        if create_exclusive(tmp_path / "claim", str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "claim").read_bytes() == str(won[0]).encode() * 1000
    assert [p.name for p in tmp_path.iterdir()] == ["claim"]


def test_a_claim_whose_answer_was_lost_still_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a link request whose answer it lost, and the repetition finds the first one's link."""
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert create_exclusive(tmp_path / "claim", b"x")
    monkeypatch.setattr(os, "link", link)
    assert not create_exclusive(tmp_path / "claim", b"y")
    assert (tmp_path / "claim").read_bytes() == b"x"


@pytest.mark.parametrize("number", [None, *sorted(files.NO_LINKS)])
def test_a_second_name_is_a_link_or_else_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    if number is not None:

        def refuse(source: Path, target: Path) -> None:
            raise OSError(number, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        link_atomic(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").samefile(tmp_path / "b") == (number is None)


def test_attempts_count_up_and_the_older_ones_are_fenced_off(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    assert newest_token(folder) == 0
    assert [acquire_token(folder, driver, {"job": "j"}) for driver in ("one", "two")] == [1, 2]
    (folder.tokens / "0note.json").touch()
    assert newest_token(folder) == 2
    check_fence(folder, 2)
    with pytest.raises(Superseded, match="fencing token 1 of the run in .* was superseded by token 2"):
        check_fence(folder, 1)
    with pytest.raises(Superseded, match="the driver with fencing token 1 of the run in .* was superseded by token 2"):
        check_driver_fence(folder, 1)
    assert acquire_token(folder, "two") == 3
    check_driver_fence(folder, 2)  # its own workers were started again
    assert json.loads((folder.tokens / "0002.json").read_text())["job"] == "j"


def test_attempts_claimed_at_once_are_all_different(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "fold_0")
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda: numbers.append(acquire_token(folder, "one"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_every_state_has_its_transitions_and_final_ones_only_start_anew() -> None:
    assert set(TRANSITIONS) == set(RunState)
    assert {state for state in RunState if state.is_final} == FINAL
    assert all(TRANSITIONS[state] == {RunState.QUEUED} for state in FINAL)
    assert [state.name for state in RunState if state.is_failure] == ["FAILED_CONFIG", "FAILED_CODE", "FAILED_CLUSTER"]
    assert can_follow(RunState.RUNNING, RunState.RUNNING)
    assert can_follow(RunState.RUNNING, RunState.RECOVERING)
    assert can_follow(RunState.RUNNING, RunState.QUEUED), "paused at a rung"
    assert not can_follow(RunState.VALIDATING, RunState.RUNNING)
    assert not can_follow(RunState.SUCCEEDED, RunState.RUNNING)
    reachable = {RunState.QUEUED}
    for _ in RunState:
        reachable |= {after for before in reachable for after in TRANSITIONS[before]}
    assert reachable == set(RunState) - {RunState.PAUSED}, "which is no state of a campaign's run"
