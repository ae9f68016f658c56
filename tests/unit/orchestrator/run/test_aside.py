"""Run folders that are moved aside."""

from pathlib import Path

from orchestrator.run.aside import move_aside
from orchestrator.run.below import run_folders_below

NOON = 1_800_000_000.0


def fold(base: Path, content: str) -> Path:
    root = base / "model" / "fold_0"
    (root / "nnfleet").mkdir(parents=True)
    (root / "nnfleet" / "run.json").write_text(content)
    return root


def test_a_folder_keeps_everything_under_its_new_name_and_is_a_fold_no_more(tmp_path: Path) -> None:
    root = fold(tmp_path, "old")
    target = move_aside(root, "replaced", NOON)
    assert target == root.parent / "replaced-fold_0-20270115T080000Z"
    assert (target / "nnfleet" / "run.json").read_text() == "old"
    assert not root.exists()
    assert list(root.parent.glob("fold_*")) == []
    assert run_folders_below(root.parent) == []


def test_a_second_one_in_the_same_second_replaces_nothing(tmp_path: Path) -> None:
    targets = [move_aside(fold(tmp_path, text), "replaced", NOON) for text in ("first", "second")]
    assert [target.name for target in targets] == ["replaced-fold_0-20270115T080000Z", "replaced-fold_0-20270115T080000Z-2"]
    assert [(target / "nnfleet" / "run.json").read_text() for target in targets] == ["first", "second"]
