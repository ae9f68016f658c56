"""The tables of the command line on narrow and wide terminals: no header and no number is broken, folds stand in their order."""

import re
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from orchestrator.cli.compare import drawn
from orchestrator.cli.diff import differences_table
from orchestrator.cli.drill import strikes_table
from orchestrator.cli.fitted_table import FittedTable, breaks, shared_out
from orchestrator.cli.models import by_fold, models_of, older_of
from orchestrator.cli.output import console
from orchestrator.cli.plan import plan_table
from orchestrator.cli.tables import result_view, status_line
from orchestrator.cli.watch import watch_table, watch_view
from orchestrator.compare.run_differences import Difference, RunDiff
from orchestrator.compare.text_table import TextTable
from orchestrator.drill.order import Report, Strike
from orchestrator.run.status import RunStatus
from tests.unit.orchestrator.cli.screens import LONG, planned, statuses
from tests.validated_model import validated_model
from trainers.contract.states import RunState
from trainers.storage.files import write_json_atomic

MODELS = TextTable(
    ("model", "folds", "cases", "Dice", "HD95 mm", "surface Dice", "missed", "false", "lesion sensitivity", "false lesions per case"),
    (
        (LONG.replace("/", " "), "0, 1, 2, 3 (without 4)", "12345", "0.8912", "1234.56", "0.9876", "1234", "5678", "0.7654", "12.34"),
        ("2d nnUNetTrainer", "0, 1, 2, 3, 4", "12345", "0.8812", "1.23", "0.9776", "12", "56", "0.7554", "0.34"),
    ),
)
DIFF = RunDiff(
    "a",
    "b",
    (
        Difference("data", "images", "case_0001, case_0002, case_0003 and 1234 more cases", "the same without case_0001"),
        Difference("schedule", "learning rate", "0.0123456789", "0.00123456789"),
        Difference("libraries", "torch", "2.11.0+cu128.with.a.very.long.local.version", "2.8.0"),
    ),
    (),
)
STRIKES = Report(
    strikes=(
        Strike(part="worker", what="rank 1 of 2, process 123456 on node 10.11.12.13", moment="epoch 3, iteration 120", recovery_s=123.4),
        Strike(part="tracking", what="the MLflow server, process 123457", moment="while it got a checkpoint", lost="7 metrics of epoch 5"),
    )
)
TABLES: dict[str, Callable[[int], RenderableType]] = {
    "status": lambda width: watch_table(statuses(), width),
    "status --runs": lambda width: watch_table(statuses(), width, all_runs=True),
    "results": lambda width: result_view([run for run in statuses() if run.full_dice], width),
    "plan": lambda width: plan_table(planned(), width),
    "compare": lambda width: drawn(MODELS, width, "Dataset004_Hippocampus"),
    "diff": lambda width: differences_table(DIFF),
    "drill": lambda width: strikes_table(STRIKES),
}


def shown(what: RenderableType, width: int) -> list[str]:
    sink = StringIO()
    Console(file=sink, width=width, highlight=False, emoji=False, markup=False).print(what)
    return [line.rstrip() for line in sink.getvalue().splitlines()]


def numbers_and_headers(what: RenderableType) -> set[str]:
    """What may not be broken: as it stands on a terminal on which nothing is."""
    lines = shown(what, 1000)
    headers = {word for table in [*getattr(what, "renderables", ()), what] if isinstance(table, FittedTable) for word in _headers(table)}
    return headers | {number for line in lines for number in re.findall(r"(?<!\S)[~\d][\d.:/+-]*(?!\S)", line)}


def _headers(table: FittedTable) -> list[str]:
    return [word for column in table.columns for word in str(column.header).split()]


@pytest.mark.parametrize("width", [80, 84, 100, 120, 140])
@pytest.mark.parametrize("name", TABLES)
def test_no_header_and_no_number_is_broken_and_no_line_is_too_long(name: str, width: int) -> None:
    table = TABLES[name](width)
    lines = shown(table, width)
    whole = numbers_and_headers(table)
    assert len(whole) > 5
    assert whole <= {word for line in lines for word in line.split()}
    assert max(map(len, lines)) <= width


STATUS_80 = """\
20 runs of 4 models: 1 RUNNING, 1 RECOVERING, 1 VALIDATING, 8 QUEUED, 1
FAILED_CLUSTER, 1 PAUSED, 1 STOPPED, 6 SUCCEEDED.

run                                   state               epoch    EMA      left
4/3d_fullres/nnUNetTrainerDA5         1 RUNNING,      0/5 folds                -
@nnUNetResEncUNetMPlans+lowlr+seed1   1 RECOVERING,
                                      3 QUEUED
  fold 0                              RUNNING          120/1000  0.710  15:05:21
  fold 1                              RECOVERING       121/1000  0.710  15:05:21
4/3d_fullres/nnUNetTrainer_250epochs  1 VALIDATING,   1/5 folds
                                      1 FAILED,
                                      1 PAUSED,
                                      1 STOPPED,
                                      1 SUCCEEDED
  fold 0                              VALIDATING      1000/1000  0.710
  fold 2                              STOPPED          122/1000  0.710
  fold 3                              FAILED_CLUSTER   123/1000  0.710
  fold 4                              PAUSED           124/1000  0.710
4/3d_lowres/nnUNetTrainerDA5          5 QUEUED        0/5 folds
4/2d/nnUNetTrainer                    5 SUCCEEDED     5/5 folds

4/3d_fullres/nnUNetTrainer_250epochs/0: full validation of best: 3/52 cases
4/3d_fullres/nnUNetTrainerDA5@nnUNetResEncUNetMPlans+lowlr+seed1/1: its workers
were lost.
4/3d_fullres/nnUNetTrainerDA5@nnUNetResEncUNetMPlans+lowlr+seed1/2 and 2 more of
its model: waits for 2 GPUs: 0 of 8 are free.
4/3d_fullres/nnUNetTrainer_250epochs/2: stopped as asked.
4/3d_fullres/nnUNetTrainer_250epochs/3: a node was lost three times without
progress.
4/3d_fullres/nnUNetTrainer_250epochs/4: no campaign of this cluster follows it;
`nnfleet resume` continues it.
4/3d_lowres/nnUNetTrainerDA5/0 and 4 more of its model: waits for 2 GPUs: 0 of 8
are free.
"""


def test_the_status_of_four_models_on_eighty_columns() -> None:
    assert "\n".join([*shown(watch_view(statuses(), 80), 80), ""]) == STATUS_80


def test_a_wide_terminal_shows_how_many_folds_are_in_each_state_in_a_line() -> None:
    for view, width in ((watch_view(statuses(), 200), 200), (result_view(statuses(), 170), 170)):
        text = "\n".join(shown(view, width))
        for states in ("1 RUNNING, 1 RECOVERING, 3 QUEUED ", "1 VALIDATING, 1 FAILED, 1 PAUSED, 1 STOPPED, 1 SUCCEEDED ", "5 SUCCEEDED "):
            assert f" {states}" in text


def test_failures_of_all_kinds_are_counted_together_and_hidden_behind_no_other_state() -> None:
    states = [RunState.RUNNING, RunState.FAILED_CODE, RunState.FAILED_CLUSTER, RunState.SUCCEEDED, RunState.SUCCEEDED]
    runs = [run.model_copy(update={"state": state}) for run, state in zip(statuses(), states, strict=False)]
    (model,) = models_of(runs)
    assert [text for text, _ in model.state_texts] == ["1 RUNNING", "2 FAILED", "2 SUCCEEDED"]
    assert model.states == {RunState.RUNNING: 1, RunState.FAILED_CODE: 1, RunState.FAILED_CLUSTER: 1, RunState.SUCCEEDED: 2}
    for all_runs in (False, True):
        assert " 2 FAILED,\n" in "\n".join(shown(watch_table(runs, 80, all_runs=all_runs), 80))


def test_a_wide_terminal_shows_bars_and_numbers_in_the_same_order() -> None:
    lines = shown(watch_view(statuses(), 140), 140)
    assert max(map(len, lines)) <= 140
    assert lines[2].split() == ["run", "state", "progress", "epoch", "EMA", "best", "s/epoch", "left"]
    assert [line.split()[1] for line in lines if line.startswith("  fold")] == ["0", "1", "0", "2", "3", "4"]
    (failed,) = (line.split() for line in lines if line.startswith("  fold") and "FAILED_CLUSTER" in line)
    assert [word for word in failed if "━" not in word and "╸" not in word][2:] == ["FAILED_CLUSTER", "123/1000", "0.710", "0.723", "62.3"]


@pytest.mark.parametrize("width", [80, 140])
def test_a_plan_says_once_for_a_model_why_it_does_not_fit_now(width: int) -> None:
    lines = shown(plan_table(planned(), width), width)
    assert max(map(len, lines)) <= width
    fits = [line.split()[-1] for line in lines if line.split() and line.split()[-1] in ("-", "now", "later", "never")]
    assert fits == [*["-"] * 5, *["now"] * 5, *["later"] * 5, *["never"] * 5]
    text = " ".join(lines)
    assert text.count("waits behind 3 runs") == text.count("no node has 2 GPUs") == 1
    assert "4/3d_lowres/nnUNetTrainerDA5/0 and 4 more of its model: never: no node has 2 GPUs." in text


def test_folds_stand_in_their_order_whatever_started_first() -> None:
    runs = [run.model_copy(update={"address": f"17/2d/t/{fold}"}) for run, fold in zip(statuses(), ["10", "all", "2"], strict=False)]
    assert [run.address.rpartition("/")[2] for run in by_fold(runs)] == ["2", "10", "all"]


def validated(fold: str, dice: float) -> RunStatus:
    """A fold whose run folder is not to be seen here."""
    run = next(run for run in statuses() if run.full_dice)
    found = {"full_dice": {"final": dice}, "best_ema_pseudo_dice": dice, "run_folder": Path(f"/r/fold_{fold}")}
    return run.model_copy(update={"address": f"17/2d/t/{fold}", "run_key": fold, **found})


def test_fold_all_has_no_part_in_the_means_of_a_model() -> None:
    runs = [validated("0", 0.8), validated("1", 0.6), validated("all", 0.95)]
    (line,) = (line for line in shown(result_view(runs, 80), 80) if line.startswith("17/2d/t"))
    assert line.split()[-4:-1] == ["0.700", "-", "~0.700"]
    (model,) = models_of(runs)
    assert not model.is_of_training_cases
    assert models_of([validated("0", 0.8), validated("all", 0.9)])[0].dice_and_source("final") == (0.8, True)


@pytest.mark.parametrize("all_runs", [False, True])
def test_the_dice_of_fold_all_is_marked_as_that_of_training_cases(all_runs: bool) -> None:
    lines = shown(result_view([validated("all", 0.95)], 80, all_runs=all_runs), 80)
    assert "0.950*" in lines[-2]
    assert lines[-1] == "* of its training cases: fold all is trained on every case that it validates."
    assert "full Dice of final 0.950 (of its training cases)" in status_line(validated("all", 0.95))
    assert "training cases" not in status_line(validated("0", 0.95))


def test_names_are_broken_before_their_marks_and_sentences_after_words() -> None:
    def lines(text: str, width: int) -> list[str]:
        places = [0, *breaks(text, width), len(text)]
        return [text[start:end] for start, end in pairwise(places)]

    assert lines("17/2d/t@plans+seed1", 12) == ["17/2d/t", "@plans+seed1"]
    assert lines("17/2d/t", 4) == ["17/", "2d/t"]
    assert lines("two GPUs are free", 9) == ["two GPUs ", "are free"]
    assert lines("short", 9) == ["short"]


def test_headers_yield_before_texts_and_numbers_last_of_all() -> None:
    name, dice = (40, 40, 10), (15, 11, 11)
    assert shared_out([name, dice], 60) == [40, 15]
    assert shared_out([name, dice], 52) == [40, 12]
    assert shared_out([name, dice], 30) == [19, 11]
    assert shared_out([name, dice], 18) == [9, 9], "too narrow for whole words"


def test_a_pipe_is_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("80", 80), ("many", 140), (None, 140)):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", columns)
        assert console().width == width


def coded(model: str, fold: int, state: RunState, digit: str, begun_unix: float, folder: str = "") -> RunStatus:
    return RunStatus(
        run_key=f"{digit}-{fold}",
        address=f"{model}/{fold}",
        campaign="c1",
        state=state,
        epochs=4,
        epochs_done=4,
        full_dice={"final": 0.1 * int(digit)} if state is RunState.SUCCEEDED else {},
        own_code=f"trainer mine:Mine (SHA-256 {digit * 12}...)",
        begun_unix=begun_unix,
        run_folder=Path(folder or f"/r/{model}/fold_{fold}"),
    )


def test_runs_of_older_code_stand_beside_their_model_with_what_is_newer() -> None:
    """Two folds of the old code that still have their folders, one whose folder a run of the new code has."""
    old = [coded("17/2d/t", fold, RunState.SUCCEEDED, "1", 10.0 + fold) for fold in (0, 1, 2)]
    new = [coded("17/2d/t", fold, RunState.SUCCEEDED, "2", 20.0 + fold) for fold in (2, 3, 4)]
    lines = shown(watch_view([*old, *new], 120), 120)
    rows = {line.split("  ")[0]: line.split() for line in lines if line.startswith("17/2d/t")}
    assert [name for name in rows if ":" not in name] == ["17/2d/t", "17/2d/t (older)", "17/2d/t/2 (older)"]
    assert "3/3" in rows["17/2d/t"]
    assert "2/2" in rows["17/2d/t (older)"]
    code = "trainer mine:Mine (SHA-256 111111111111...), now trainer mine:Mine (SHA-256 222222222222...)."
    text = " ".join(lines)
    assert f"17/2d/t (older): trained by older code: {code}" in text
    assert f"17/2d/t/2 (older): another run has its folder now; it was trained by older code: {code}" in text
    results = [line.split() for line in shown(result_view([*old, *new], 120), 120)]
    assert [(row[0], row[1] == "(older)", row[-3]) for row in results[1:]] == [
        ("17/2d/t", False, "~0.200"),
        ("17/2d/t", True, "~0.100"),
        ("17/2d/t/2", True, "0.100"),
    ]


def test_a_run_that_is_not_validated_yet_makes_others_older_in_the_results_too() -> None:
    old, new = coded("17/2d/t", 0, RunState.SUCCEEDED, "1", 10.0), coded("17/2d/t", 0, RunState.RUNNING, "2", 20.0)
    for all_runs in (False, True):
        (row,) = shown(result_view([old], 120, all_runs=all_runs, known=[old, new]), 120)[1:]
        assert row.startswith("17/2d/t/0 (older)  SUCCEEDED")


def test_the_dice_of_runs_whose_folders_others_have_is_none_of_these(tmp_path: Path) -> None:
    folders = validated_model(tmp_path, lambda case, name: 0.9, [["a", "b"], ["c", "d"]])
    for folder in folders:
        write_json_atomic(folder.extended_summary("final"), {"classes": {"tumour": {"dice": 0.9, "n_dice": 2}}})
    old = [coded("17/2d/t", fold, RunState.SUCCEEDED, "1", 10.0, str(folder.root)) for fold, folder in enumerate(folders)]
    now = [run.model_copy(update={"run_key": f"new-{run.run_key}"}) for run in old]
    current, older = models_of([*old, *now])
    assert [model.dice_and_source("final") for model in (current, older)] == [(0.9, True), (0.1, False)]
    assert older.unlike == ""


def test_an_older_run_that_still_trains_and_one_that_waits_for_the_new_code() -> None:
    """What was begun or taken up last counts, whenever its state changed."""
    trains, waits = coded("17/2d/t", 0, RunState.RUNNING, "1", 10.0), coded("17/2d/t", 1, RunState.QUEUED, "2", 0.0)
    assert list(older_of([trains, waits.model_copy(update={"begun_unix": 30.0})])) == [trains.run_key]
    assert older_of([trains, waits.model_copy(update={"since_unix": 30.0})]) == {}, "nothing of its own code has trained"
    assert older_of([trains.model_copy(update={"own_code": ""}), waits]) == {}, "of an earlier version, or not begun"


@pytest.mark.parametrize("more", [{"run_key": "unplanned-0"}, {"is_claimed": False}])
def test_a_run_without_a_key_yet_and_one_that_never_began_own_no_folder(more: dict[str, object]) -> None:
    first = coded("17/2d/t", 0, RunState.SUCCEEDED, "1", 10.0)
    second = first.model_copy(update={"run_key": "new", "own_code": "", **more})
    assert older_of([first, second]) == older_of([second, first]) == {}


def test_the_epochs_of_a_model_are_those_of_each_fold() -> None:
    runs = [coded("17/2d/t", fold, RunState.SUCCEEDED, "1", 10.0) for fold in (0, 1)]
    assert shown(result_view(runs, 120), 120)[1].split()[-1] == "4/4"
    runs[1] = runs[1].model_copy(update={"epochs_done": 2})
    assert shown(result_view(runs, 120), 120)[1].split()[-1] == "2-4/4"
