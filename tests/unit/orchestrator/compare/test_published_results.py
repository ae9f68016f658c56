"""Full validations out of MLflow's artifacts: the same results as in the run folder, or a reason why there are none."""

import json
import math
import shutil
from pathlib import Path

import pytest

from orchestrator.compare.choice import Places, compared, joined
from orchestrator.compare.models import ValidatedFold, read_fold
from orchestrator.compare.published_results import read_published
from orchestrator.compare.tables import as_json
from orchestrator.publishing.published import Published, published_tag
from orchestrator.publishing.validation_report import write_report
from orchestrator.run.names import Names
from orchestrator.tracking.scores import score_metrics
from tests.validated_model import validated_model
from trainers.contract.commits import Manifest, newest_committed
from trainers.contract.lesions import LESION_COUNTS, Lesions
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.storage.files import write_atomic, write_json_atomic

FOLDS = [["case_0", "case_1"], ["case_2", "case_3"]]
DICE = {"case_0": 0.5, "case_1": 0.0, "case_2": float("nan"), "case_3": 0.9}


class Server:
    """The artifacts of runs as files, a folder per run."""

    uri = "http://mlflow"

    def __init__(self, place: Path, folders: list[RunFolder]) -> None:
        self.place, self.names = place, list[Names]()
        self.values: dict[str, dict[str, float]] = {}
        self.tagged: dict[str, dict[str, str]] = {}
        self.curves: dict[str, dict[int, float]] = {}
        self.asked: list[str] = []
        """Curves."""
        for number, folder in enumerate(folders):
            spec, labels = folder.spec(), labels_of(load_dataset_json(folder.model_folder))
            results = [result for case in spec.val_cases if (result := read_result(folder, "final", case)) is not None]
            report = write_report(folder, spec, labels, "final", results)
            columns = list(report.table[0])
            rows = [[None if value != value else value for value in row.values()] for row in report.table]
            self.put(number, "run.json", folder.spec_file.read_bytes())
            self.put(number, "dataset.json", (folder.model_folder / "dataset.json").read_bytes())
            self.put(number, "fullval/final/summary.json", report.summary_file.read_bytes())
            self.put(number, "fullval/final/per_case.json", json.dumps({"columns": columns, "data": rows}).encode())
            committed = newest_committed(folder)
            assert committed is not None
            self.curves[str(number)] = {row.epoch: row.ema_pseudo_dice or 0.0 for row in committed.history}
            self.values[str(number)] = score_metrics("final", report.metrics) | {"val/ema_pseudo_dice": 0.5}
            self.names.append(Names(spec.run_key, spec.address, str(number), str(folder.root)))

    def put(self, number: int, path: str, content: bytes) -> None:
        write_atomic(self.place / str(number) / path, content)

    def run_names(self) -> list[Names]:
        return self.names

    def models_in(self, model_folder: str) -> list[str]:
        return []

    def tags(self, run_id: str) -> dict[str, str]:
        return self.tagged.get(run_id, {})

    def metrics(self, run_id: str) -> dict[str, float]:
        return self.values[run_id]

    def metric_history(self, run_id: str, key: str) -> dict[int, float]:
        self.asked.append(key)
        return self.curves[run_id]

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        root = self.place / run_id
        return {str(p.relative_to(root)): None if p.is_dir() else p.stat().st_size for p in (root / directory).iterdir()}

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        return Path(shutil.copy(self.place / run_id / path, folder))


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[1]", b'{"results": []}', b"\xff", b'{"name": "x", "sha256": "y"}', b"[" * 5000],
    ids=["empty", "null", "list", "no results", "no text", "half", "deep"],
)
def test_a_damaged_record_of_a_test_set_is_named_and_ends_no_comparison(server: "Server", folders: list[RunFolder], content: bytes) -> None:
    server.put(0, "test/imagesTs-12345678/scores.json", content)
    shutil.rmtree(folders[0].model_folder)
    found = compared(Places(server=lambda: server, asks_server=True), ["901/3d_fullres/nnUNetTrainer/0"], "final").answer
    [sentence] = found.unread
    assert sentence.startswith("The scores of a test set of 3d_fullres nnUNetTrainer in MLflow cannot be read: ")


@pytest.fixture
def folders(tmp_path: Path) -> list[RunFolder]:
    return validated_model(tmp_path, DICE, FOLDS)


@pytest.fixture
def server(tmp_path: Path, folders: list[RunFolder]) -> Server:
    return Server(tmp_path / "mlflow", folders)


def fold_in(server: Server, number: int = 0) -> ValidatedFold:
    found = read_published(server, str(number), "final")
    assert isinstance(found, ValidatedFold), found
    return found


def test_fold_all_has_the_reason_for_which_it_is_not_compared(server: Server, folders: list[RunFolder]) -> None:
    spec = folders[0].spec()
    of_all = spec.model_copy(update={"fold": "all", "train_cases": spec.val_cases})
    server.put(0, "run.json", of_all.model_dump_json().encode())
    assert read_published(server, "0", "final") == "fold all was trained on every case that it validates"


def test_the_results_are_those_of_the_run_folder(server: Server, folders: list[RunFolder]) -> None:
    for number, folder in enumerate(folders):
        seen = read_fold(folder, folder.spec(), "final")
        assert isinstance(seen, ValidatedFold)
        expected = [result.model_copy(update={"checkpoint_sha256": ""}) for result in seen.results]
        assert repr(list(fold_in(server, number).results)) == repr(expected)


def test_curve_and_pseudo_dice_are_those_of_the_run_folder(server: Server, folders: list[RunFolder]) -> None:
    seen, found = read_fold(folders[0], folders[0].spec(), "final"), fold_in(server)
    assert isinstance(seen, ValidatedFold)
    assert [(row.epoch, row.ema_pseudo_dice) for row in found.history] == [(row.epoch, row.ema_pseudo_dice) for row in seen.history]
    assert found.ema_pseudo_dice == seen.ema_pseudo_dice
    assert server.asked == ["val/ema_pseudo_dice"]


def test_the_scores_of_both_checkpoints_are_read(server: Server, folders: list[RunFolder]) -> None:
    table = json.loads((server.place / "0" / "fullval/final/per_case.json").read_text())
    for row in table["data"]:
        row[1] = None if row[1] is None else row[1] / 2
    server.put(0, "fullval/best/per_case.json", json.dumps(table).encode())
    server.values["0"] |= {"full/best/dice_mean": 0.2, "full/best/minus_ema_pseudo_dice": -0.25}
    shutil.rmtree(folders[0].root)
    found = fold_in(server).checkpoints
    assert found["final"].dice == pytest.approx(0.25)
    assert found["best"] == pytest.approx((0.45, 0.125))


@pytest.mark.parametrize(("published_ema", "weights"), [(0.5, ("b" * 64, 0.5)), (0.7, ("", 0.5))], ids=["validated", "a better one since"])
def test_scores_of_the_best_checkpoint_are_never_paired_with_a_better_one_published_since(
    server: Server, published_ema: float, weights: tuple[str, float]
) -> None:
    """What was validated has the pseudo-Dice 0.25 + 0.25."""
    for file in ("per_case.json", "summary.json"):
        server.put(0, f"fullval/best/{file}", (server.place / "0/fullval/final" / file).read_bytes())
    server.values["0"] |= {"full/best/dice_mean": 0.25, "full/best/minus_ema_pseudo_dice": -0.25, "best/ema_pseudo_dice": published_ema}
    manifest = Manifest(
        checkpoint="best", file="b.pth", epoch=3, fencing_token=1, ema_pseudo_dice=published_ema, sha256="b" * 64, size_bytes=1
    )
    published = Published(directory="checkpoints/best/e3-bbbbbbbb", manifest=manifest)
    server.tagged["0"] = {published_tag("best"): published.model_dump_json(by_alias=True)}
    found = read_published(server, "0", "best")
    assert isinstance(found, ValidatedFold)
    assert {result.checkpoint_sha256 for result in found.results} == {weights[0]}
    assert found.ema_pseudo_dice == weights[1]


def count_lesions(folder: RunFolder, counted: list[Lesions]) -> None:
    """Give each case of a run the same lesions in every class."""
    for case, lesions in zip(folder.spec().val_cases, counted, strict=True):
        result = read_result(folder, "final", case)
        assert result is not None
        metrics = {name: m.model_copy(update={"lesions": lesions}) for name, m in result.metrics.items()}
        write_json_atomic(folder.cases("final") / f"{case}.json", result.model_copy(update={"metrics": metrics}).model_dump())


def test_lesions_have_the_scores_of_the_run_folder(tmp_path: Path, folders: list[RunFolder]) -> None:
    counted = [Lesions(num_true=6, num_detected=4, num_false=2, dice=0.3), Lesions(num_true=0, num_detected=0, num_false=0, dice=math.nan)]
    count_lesions(folders[0], counted)
    server = Server(tmp_path / "mlflow", folders)
    for result, lesions in zip(fold_in(server).results, counted, strict=True):
        for found in result.metrics.values():
            assert found.lesions is not None
            assert repr(found.lesions.scores) == repr(lesions.scores)
    assert not any(result.has_lesions for result in fold_in(server, 1).results)


def test_numbers_of_lesions_are_only_of_run_folders(tmp_path: Path, folders: list[RunFolder]) -> None:
    """Of 2 detected ones among 4 in each case MLflow has the sensitivity alone, which 1 among 2 have too."""
    for folder in folders:
        count_lesions(folder, [Lesions(num_true=4, num_detected=2, num_false=0, dice=0.4)] * 2)
    server = Server(tmp_path / "mlflow", folders)
    seen = as_json(compared(tmp_path / "results", (), "final").answer)["models"][0]["classes"]
    published = as_json(compared(Places(server=lambda: server), (), "final").answer)["models"][0]["classes"]
    for name, values in seen.items():
        assert (values["n_lesions"], values["n_detected"], values["lesion_sensitivity"]) == (16, 8, 0.5)
        assert published[name] == {key: value for key, value in values.items() if key not in LESION_COUNTS}


def test_what_mlflow_does_not_hold_is_named(server: Server) -> None:
    def notes() -> str:
        return " ".join(compared(Places(server=lambda: server), (), "final").answer.notes)

    assert "MLflow gives no pictures of cases." in notes()
    server.values["1"].pop("val/ema_pseudo_dice")
    assert "MLflow gives no pictures of cases and no curves of 1 fold." in notes()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("run.json", None, "MLflow has no run.json of it"),
        ("fullval/final/summary.json", None, "MLflow has no full validation of its final checkpoint"),
        ("run.json", b"[]", "is not of this version"),
        ("dataset.json", b"<html>", "dataset.json"),
        ("fullval/final/per_case.json", b'{"columns": ["case"], "data": [["case_0"]]}', "`nnfleet sync` delivers it again"),
    ],
)
def test_what_is_missing_or_broken_leaves_the_run_out_with_the_reason(
    server: Server, file: str, content: bytes | None, reason: str
) -> None:
    (server.place / "0" / file).unlink() if content is None else server.put(0, file, content)
    found = read_published(server, "0", "final")
    assert isinstance(found, str)
    assert reason in found
    assert len(compared(Places(server=lambda: server), (), "final").left) == 1


def test_a_table_and_a_summary_of_different_cases_are_not_put_together(server: Server) -> None:
    table = json.loads((server.place / "0" / "fullval/final/per_case.json").read_text())
    table["data"][0][0] = "case_7"
    server.put(0, "fullval/final/per_case.json", json.dumps(table).encode())
    assert "are of other cases, such as case_" in str(read_published(server, "0", "final"))


def test_where_no_folder_of_results_is_seen_the_error_names_the_variable() -> None:
    text = Places(server=lambda: pytest.fail("it is only named")).text
    assert text == "in MLflow alone (no folder of results is seen here: set nnUNet_results, or name --results)"
    assert Places(Path("/r"), lambda: pytest.fail("it is only named")).text == "below /r or in MLflow"


def test_the_server_is_asked_only_for_what_the_folders_do_not_hold(server: Server, folders: list[RunFolder], tmp_path: Path) -> None:
    asked: list[bool] = []

    def ask() -> Server:
        asked.append(True)
        return server

    results = tmp_path / "results"
    compared(Places(results, ask), ["901"], "final")
    assert asked == []
    shutil.rmtree(folders[1].root)
    answer = compared(Places(results, ask, asks_server=True), ["901"], "final").answer
    assert [fold.source for fold in answer.models[0].folds] == ["run folder", "MLflow at http://mlflow"]
    shutil.rmtree(folders[0].root)
    assert not compared(Places(results, ask), ["901"], "final").left
    assert len(asked) == 2


def test_folds_from_mlflow_join_a_model_folder_that_was_moved_but_not_its_copies(
    server: Server, folders: list[RunFolder], tmp_path: Path
) -> None:
    published = fold_in(server, 1)
    moved = RunFolder(tmp_path / "mounted" / folders[0].model_folder.name / "fold_0")
    shutil.copytree(folders[0].root, moved.root)
    seen = read_fold(moved, moved.spec(), "final")
    here = read_fold(folders[0], folders[0].spec(), "final")
    assert isinstance(seen, ValidatedFold)
    assert isinstance(here, ValidatedFold)
    assert {fold.folder.model_folder for fold in joined([seen, published])} == {moved.model_folder}
    assert joined([seen, here, published])[2] == published
