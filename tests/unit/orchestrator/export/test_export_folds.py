"""Several folds of one model become one folder that nnU-Net reads: from run folders, from MLflow, and added to an earlier export."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator import api
from orchestrator.cli import app
from orchestrator.compare.crossval_folder import refresh_crossval
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.export import mlflow_folds
from orchestrator.export.fold_facts import facts_of, unlike
from orchestrator.export.fold_sources import folds_below
from orchestrator.export.mlflow_folds import folds_in_mlflow
from orchestrator.export.model import RECORD, Exported, export_model
from orchestrator.publishing.checkpoint_store import directory_of
from orchestrator.publishing.published import Published
from orchestrator.run.candidates import Candidates
from orchestrator.tracking.records import params_of, tags_of
from tests.fake_run import FakeRun
from tests.validated_model import model_with_predictions, validated_model
from trainers.contract.commits import newest_committed
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import candidate_name
from trainers.storage.files import read_json, write_atomic, write_json_atomic

MODEL = "901/3d_fullres/nnUNetTrainer"
FOLDS = [["case_0", "case_1"], ["case_2"], ["case_3"]]


@pytest.fixture
def folds(tmp_path: Path) -> list[RunFolder]:
    """Three validated folds of one model, with their predictions, summaries and cross-validation."""
    found = model_with_predictions(tmp_path, FOLDS)
    for folder in found:
        write_json_atomic(folder.summary("final"), {"fold": folder.root.name})
    refresh_crossval(found[0].model_folder)
    write_json_atomic(found[0].model_folder / "dataset_fingerprint.json", {"spacings": []})
    return found


def export(tmp_path: Path, name: str = MODEL) -> Exported:
    return export_model(name, tmp_path / "model", folds_below(tmp_path / "results", name), "here")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(folder: RunFolder, **changes: object) -> None:
    write_json_atomic(folder.spec_file, {**read_json(folder.spec_file, "run"), **changes})


def test_a_model_that_ended_early_is_exported_as_that(tmp_path: Path) -> None:
    validated_model(tmp_path, lambda case, name: 0.5, FOLDS, is_ended_early=True)
    exported = export(tmp_path)
    assert exported.early_end == "after 1 of 1000 epochs, learning rate not annealed"
    result = CliRunner().invoke(app, ["export", MODEL, str(tmp_path / "model"), "--results", str(tmp_path / "results")])
    assert f"Not the full schedule: ended early, as asked, {exported.early_end}." in result.stderr
    shown = CliRunner().invoke(app, ["export", MODEL, str(tmp_path / "model"), "--results", str(tmp_path / "results"), "--json"])
    assert json.loads(shown.stdout)["early_end"] == exported.early_end


def test_a_fold_that_ended_early_goes_into_no_folder_with_one_that_did_not(tmp_path: Path) -> None:
    validated_model(tmp_path, lambda case, name: 0.5, FOLDS, trained=[0])
    validated_model(tmp_path, lambda case, name: 0.5, FOLDS, trained=[1], is_ended_early=True)
    with pytest.raises(ConfigError, match="early_end"):
        export(tmp_path)


def test_all_folds_of_a_model_become_one_folder(folds: list[RunFolder], tmp_path: Path) -> None:
    exported = export(tmp_path)
    assert exported.folds == {number: ("best", "final") for number in "012"}
    assert exported.left == ()
    of_a_fold = ("checkpoint_best.pth", "checkpoint_final.pth", "validation/summary.json", RECORD)
    files = {f"fold_{number}/{name}" for number in "012" for name in of_a_fold}
    files |= {"plans.json", "dataset.json", "dataset_fingerprint.json", "crossval_results_folds_0_1_2/summary.json"}
    held = content(exported.folder)
    assert set(held) == files
    for folder in folds:
        committed = newest_committed(folder)
        assert committed is not None
        assert committed.best is not None
        assert held[f"{folder.root.name}/checkpoint_best.pth"] == (folder.root / committed.best.file).read_bytes()
        assert held[f"{folder.root.name}/checkpoint_final.pth"] == folder.checkpoint("final").read_bytes()
    assert not list(tmp_path.glob(".model*"))


def test_predictions_are_exported_with_the_probabilities_that_a_run_keeps(folds: list[RunFolder], tmp_path: Path) -> None:
    export(tmp_path)
    assert not list((tmp_path / "model").rglob("case_*"))
    change(folds[0], validation={"npz": True})
    for case in FOLDS[0]:
        for file in folds[0].probabilities("final", case):
            write_atomic(file, f"{file.name} of fold 0".encode())
    export(tmp_path)
    added = {path.name: path.read_bytes() for path in (tmp_path / "model" / "fold_0" / "validation").iterdir()}
    endings = (".nii.gz", ".npz", ".pkl")
    assert set(added) == {"summary.json", *(f"{case}{ending}" for case in FOLDS[0] for ending in endings)}
    assert added["case_1.npz"] == b"case_1.npz of fold 0"
    assert added["case_1.nii.gz"] == b"case_1"
    change(folds[0], pseudonyms=True)
    assert folds_below(tmp_path / "results", MODEL)[0].facts.probabilities == ()


def test_a_fold_is_added_and_what_is_there_stays(folds: list[RunFolder], tmp_path: Path) -> None:
    assert export(tmp_path, f"{MODEL}/1").folds == {"1": ("best", "final")}
    before = content(tmp_path / "model")
    inode = (tmp_path / "model" / "fold_1" / "checkpoint_best.pth").stat().st_ino
    assert list(export(tmp_path).folds) == ["0", "1", "2"]
    after = content(tmp_path / "model")
    assert before.items() <= after.items()
    assert "crossval_results_folds_0_1_2/summary.json" in after
    export(tmp_path)
    assert content(tmp_path / "model") == after
    assert (tmp_path / "model" / "fold_1" / "checkpoint_best.pth").stat().st_ino == inode


def test_a_final_checkpoint_is_added_to_an_exported_fold_and_another_best_never_replaces_one(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.epoch()
    assert export(tmp_path).folds == {"0": ("best",)}
    run.finish()
    assert export(tmp_path).folds == {"0": ("best", "final")}
    before = content(tmp_path / "model")
    run.epoch()
    with pytest.raises(ConfigError, match=r"holds other files by the name of fold_0/checkpoint_best\.pth, and nothing is replaced"):
        export(tmp_path)
    assert content(tmp_path / "model") == before


def kept(folder: RunFolder, winner: int | None, *epochs: int) -> None:
    """Make the best weights of a run those of its candidates, one of which has won."""
    committed = newest_committed(folder)
    assert committed is not None
    assert committed.best is not None
    candidates = tuple(committed.best.model_copy(update={"checkpoint": candidate_name(epoch), "epoch": epoch}) for epoch in epochs)
    changed = committed.model_copy(update={"candidates": candidates})
    write_atomic(folder.state / f"{committed.stem}.json", changed.model_dump_json().encode())
    write_atomic(folder.candidates_file, Candidates(winner=winner).model_dump_json().encode())


def test_the_winner_among_candidates_is_added_on_request_and_marked(folds: list[RunFolder], tmp_path: Path) -> None:
    """Its epoch is another one in each fold, its name the same, so that nnU-Net's ensemble takes it."""
    for number, folder in enumerate(folds):
        kept(folder, number, number, 7)
    export(tmp_path, f"{MODEL}/0")
    command = ["export", MODEL, str(tmp_path / "model"), "--results", str(tmp_path / "results"), "--checkpoint", "winner"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert "checkpoint_winner.pth is optimistic: it is of an epoch that was chosen on its own validation fold" in shown.output
    assert f"-m {tmp_path / 'model'} -f 0 1 2 -chk checkpoint_winner.pth" in shown.output
    for folder in folds:
        committed = newest_committed(folder)
        assert committed is not None
        winner = (folder.root / committed.candidates[0].file).read_bytes()
        assert (tmp_path / "model" / folder.root.name / "checkpoint_winner.pth").read_bytes() == winner
    again = api.export(MODEL, tmp_path / "model", results=tmp_path / "results", candidate="candidate_7")
    assert again.optimistic == dict.fromkeys("012", ("winner", "candidate_7"))
    assert export(tmp_path).checkpoint == "final"
    plain = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert plain["optimistic"]["0"] == ["checkpoint_winner.pth", "checkpoint_candidate_7.pth"]


def test_a_candidate_that_is_not_there_is_refused_with_its_folds(folds: list[RunFolder], tmp_path: Path) -> None:
    kept(folds[1], 3, 3)
    kept(folds[2], None, 3)

    def ask(candidate: str, **place: Any) -> None:
        api.export(MODEL, tmp_path / "model", candidate=candidate, **{"results": tmp_path / "results", **place})

    with pytest.raises(ConfigError, match=r"export: fold 0, 2 has no winner among candidates\. Candidates are kept with"):
        ask("winner")
    with pytest.raises(ConfigError, match=r"fold 0 has no candidate_3"):
        ask("candidate_3")
    with pytest.raises(ConfigError, match=r"--checkpoint 'latest' is no candidate\. Name `winner` or `candidate_<epoch>`"):
        ask("latest")
    with pytest.raises(ConfigError, match=r"MLflow holds no weights of candidates"):
        ask("winner", results=None, tracking_uri="http://127.0.0.1:1")
    assert not (tmp_path / "model").exists()


def test_folds_that_were_not_trained_alike_are_refused_with_what_differs(folds: list[RunFolder], tmp_path: Path) -> None:
    schedule = read_json(folds[2].spec_file, "run")["schedule"]
    change(folds[2], schedule={**schedule, "epochs": 7})
    with pytest.raises(ConfigError, match=r"fold 2 differs from fold 0 in epochs \(7 instead of 1000\)\. Nothing was written\."):
        export(tmp_path)
    assert not (tmp_path / "model").exists()
    export(tmp_path, f"{MODEL}/0")
    before = content(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"epochs \(7 instead of 1000\).* Name another folder than .*model"):
        export(tmp_path, f"{MODEL}/2")
    assert content(tmp_path / "model") == before


def test_folds_of_unlike_data_are_refused_with_the_cases(folds: list[RunFolder], tmp_path: Path) -> None:
    digests = {f"case_{number}": ["a", "b", "c"] for number in range(4)}
    change(folds[0], case_digests=digests)
    change(folds[1], case_digests={**digests, "case_3": ["a", "x", "c"]})
    with pytest.raises(ConfigError, match=r"fold 1 differs from fold 0 in the data of case_3\."):
        export(tmp_path)
    with pytest.raises(ConfigError, match="the data of case_3"):
        api.compare([MODEL], tmp_path / "results")


def test_a_replicate_is_another_training(folds: list[RunFolder]) -> None:
    spec = folds[0].spec()
    other = spec.model_copy(update={"replicate": "again", "fold": 1})
    assert unlike([facts_of(spec), facts_of(other)]) == ["fold 1 differs from fold 0 in replicate (again instead of none)"]


def test_a_name_of_several_models_lists_them(folds: list[RunFolder], tmp_path: Path) -> None:
    other = folds[0].model_folder.with_name("nnUNetTrainerDA5__nnUNetPlans__3d_fullres")
    validated_model(tmp_path, lambda case, name: 0.5, FOLDS, trainer="nnUNetTrainerDA5", model_folder=other)
    with pytest.raises(
        ConfigError, match=rf"901 means 2 models here: {MODEL} in .*, {MODEL}DA5 in .*DA5__nnUNetPlans__3d_fullres\. Name one"
    ):
        export(tmp_path, "901")


def test_a_damaged_checkpoint_is_refused_and_leaves_nothing(folds: list[RunFolder], tmp_path: Path) -> None:
    folds[1].checkpoint("final").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"fold_1/checkpoint_final\.pth is not the file of its manifest"):
        export(tmp_path)
    assert not list(tmp_path.glob("*model*"))


def test_a_fold_without_a_checkpoint_is_left_and_named(folds: list[RunFolder], tmp_path: Path) -> None:
    shutil.rmtree(folds[2].state)
    exported = export(tmp_path)
    assert list(exported.folds) == ["0", "1"]
    assert exported.left == ("fold 2 has no checkpoint yet and is not in it.",)
    assert not (exported.folder / "crossval_results_folds_0_1_2").exists()


@pytest.mark.parametrize("record", ["{", "[1]", '{"fold": "../x"}', "1"])
def test_a_record_that_was_changed_is_not_trusted(folds: list[RunFolder], tmp_path: Path, record: str) -> None:
    export(tmp_path, f"{MODEL}/0")
    file = tmp_path / "model" / "fold_0" / RECORD
    file.write_text(json.dumps({**read_json(file, "record"), "fold": "1"}) if record == "1" else record)
    before = content(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"fold_0 was not made by this version of `nnfleet export`.* Name a folder that does not exist"):
        export(tmp_path)
    assert content(tmp_path / "model") == before


@pytest.mark.parametrize("stranger", ["notes.txt", "fold_0/checkpoint_best.pth"])
def test_a_folder_of_somebody_else_is_not_added_to(folds: list[RunFolder], tmp_path: Path, stranger: str) -> None:
    write_atomic(tmp_path / "model" / stranger, b"theirs")
    with pytest.raises(ConfigError, match="Name a folder that does not exist yet"):
        export(tmp_path)
    assert content(tmp_path / "model") == {stranger: b"theirs"}


def test_with_pseudonyms_no_file_names_a_case(folds: list[RunFolder], tmp_path: Path) -> None:
    for folder in folds:
        change(folder, pseudonyms=True, case_digests={"case_0": ["a", "b", "c"]})
        write_json_atomic(folder.validation("final") / "summary.json", {"case": "case_0"})
        write_json_atomic(folder.own / "pseudonyms" / "final" / "summary.json", {"case": "case-12345678"})
    exported = export(tmp_path)
    assert not [name for name, held in content(exported.folder).items() if b"case_" in held]
    assert read_json(exported.folder / "fold_0" / "validation" / "summary.json", "summary") == {"case": "case-12345678"}


class MlflowOnDisk:
    """An MLflow server that holds what a publisher sends of these runs."""

    uri = "http://mlflow"

    def __init__(self, folders: list[RunFolder], place: Path) -> None:
        self._specs = {f"id{folder.spec().fold}": folder.spec() for folder in folders}
        self._place, self._tags = place, {run_id: tags_of(spec) for run_id, spec in self._specs.items()}
        for run_id, folder in zip(self._specs, folders, strict=True):
            committed = newest_committed(folder)
            assert committed is not None
            for manifest in (committed.best, committed.final):
                assert manifest is not None
                self._put(run_id, directory_of(manifest), folder.root / manifest.file, f"checkpoint_{manifest.checkpoint}.pth")
                record = Published(directory=directory_of(manifest), manifest=manifest)
                self._tags[run_id][f"nnfleet.{manifest.checkpoint}"] = record.model_dump_json()
            for name in ("plans.json", "dataset.json"):
                content = json.dumps(read_json(folder.model_folder / name, name), indent=7)
                write_atomic(place / run_id / name, content.encode())
            self._put(run_id, "", folder.spec_file, "run.json")
            self._put(run_id, "fullval/final", folder.validation("final") / "summary.json", "summary.json")

    def _put(self, run_id: str, directory: str, file: Path, name: str) -> None:
        write_atomic(self._place / run_id / directory / name, file.read_bytes())

    def ping(self) -> None:
        """It answers."""

    def find_runs(self, text: str) -> list[str]:
        return [run_id for run_id, spec in self._specs.items() if spec.address.startswith(text)]

    def tags(self, run_id: str) -> dict[str, str]:
        return self._tags[run_id]

    def params(self, run_id: str) -> dict[str, str]:
        return params_of(self._specs[run_id])

    def list_files(self, run_id: str, directory: str = "") -> dict[str, int | None]:
        root = self._place / run_id
        return {str(p.relative_to(root)): None if p.is_dir() else p.stat().st_size for p in (root / directory).iterdir()}

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        return Path(shutil.copy(self._place / run_id / path, folder))


def test_from_mlflow_folds_come_one_by_one_and_join_those_of_run_folders(
    folds: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = MlflowOnDisk(folds, tmp_path / "mlflow")
    monkeypatch.setattr(mlflow_folds, "Tracker", lambda uri: server)
    export(tmp_path, f"{MODEL}/1")
    exported = export_model(MODEL, tmp_path / "model", folds_in_mlflow("http://mlflow", MODEL), "in MLflow")
    assert exported.folds == {number: ("best", "final") for number in "012"}
    for folder in folds:
        name = f"{folder.root.name}/validation/summary.json"
        assert (exported.folder / name).read_bytes() == (folder.model_folder / name).read_bytes()
        assert (exported.folder / folder.root.name / "checkpoint_final.pth").read_bytes() == folder.checkpoint("final").read_bytes()


def test_run_folders_that_are_seen_here_come_before_mlflow(folds: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def server(uri: str) -> MlflowOnDisk:
        asked.append(uri)
        return MlflowOnDisk(folds, tmp_path / "mlflow")

    monkeypatch.setattr(mlflow_folds, "Tracker", server)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    assert list(api.export(MODEL, tmp_path / "a").folds) == ["0", "1", "2"]
    assert asked == []
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    assert list(api.export(MODEL, tmp_path / "b").folds) == ["0", "1", "2"]
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    assert list(api.export(MODEL, tmp_path / "c", "http://named").folds) == ["0", "1", "2"]
    assert asked == ["http://mlflow", "http://named"]
    with pytest.raises(ConfigError, match="no run '902' below"):
        api.export("902", tmp_path / "d", results=tmp_path / "results")
    with pytest.raises(ConfigError, match="Name one of them"):
        api.export(MODEL, tmp_path / "d", "http://named", tmp_path / "results")
