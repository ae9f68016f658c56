"""The best epochs of a run, validated in full: each weights once, the winner marked, final, best and winner paired by case."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.answer import answer
from orchestrator.compare.candidates import judged
from orchestrator.compare.models import models_of, read_fold
from orchestrator.compare.tables import as_json, candidates_table
from orchestrator.publishing.candidates import TABLE, TAG, holds_candidates, send_candidates
from orchestrator.publishing.validation_report import picture_file
from orchestrator.report.page import html
from orchestrator.run.candidates import read_candidates
from orchestrator.run.outcome import write_outcome
from orchestrator.run.progress import progress_of
from orchestrator.validation import cases, job
from orchestrator.validation.case_worker import CaseWorker, loaded
from orchestrator.validation.cases import candidates_to_validate, digest_of, is_done, share_results
from tests.fake_run import CLASSES, FakeRun
from tests.validated_model import metrics_of
from trainers.contract.commits import Committed, Manifest, newest_committed, weights_file
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.run_spec import RunSpec, Schedule, ValidationSpec, WeightsName, candidate_name
from trainers.contract.summary import SCORING, CaseResult
from trainers.errors import CheckpointError
from trainers.storage.files import link_atomic, sha256_of, write_atomic, write_json_atomic

CASES = tuple(f"case_{number:02}" for number in range(12))


class CandidateRun(FakeRun):
    """A run of four epochs: best is epoch 2, candidates are epochs 2, 1 and 3, and epoch 3 is final too."""

    def __init__(self, base: Path, **validation: Any) -> None:
        asked = ValidationSpec(candidates=3, **validation)
        super().__init__(base, val_cases=CASES, schedule=Schedule(epochs=4), validation=asked)
        manifests = {number: self.epoch().best for number in range(3)}
        self.epoch(is_best=False)
        self.rows[0] = self.rows[0].model_copy(update={"ema_pseudo_dice": 0.05})
        assert manifests[2] is not None
        assert manifests[1] is not None
        last = self._checkpoint("best", 3, 0.1, 10_000)
        self.candidates = tuple(_named(manifest) for manifest in (manifests[2], manifests[1], last))
        self.finish()
        self.commit()
        assert self.best is not None
        link_atomic(self.folder.root / self.best.file, self.folder.checkpoint("best"))
        for name, target in (("dataset.json", "dataset.json"), ("nnUNetPlans.json", "plans.json")):
            write_atomic(self.folder.model_folder / target, (self.spec.preprocessed_folder / name).read_bytes())

    def commit(self) -> Committed:
        committed = super().commit().model_copy(update={"candidates": getattr(self, "candidates", ())})
        write_atomic(self.folder.state / f"{committed.stem}.json", committed.model_dump_json().encode())
        return committed

    def score_all(self, *, best: float, final: float, first: float) -> None:
        """Leave the results of the best, the final and the candidate of epoch 1."""
        self.score("best", best)
        self.score("final", final)
        self.score(candidate_name(1), first)

    def score(self, name: WeightsName, dice: float) -> None:
        """Leave the result of every case as a worker does, 0.02 above `dice` in the mean; what two names differ by depends on the case."""
        digest = digest_of(self.folder, name)
        for number, case in enumerate(CASES):
            value = dice + 0.01 * (number % 4) + 0.005 * ((number + round(10 * dice)) % 3)
            prediction = self.folder.validation(name) / f"{case}.nii.gz"
            write_atomic(prediction, f"{case} by {digest}".encode())
            result = CaseResult(
                case_id=case,
                checkpoint_sha256=digest,
                reference_file="labels.nii.gz",
                prediction_file=str(prediction),
                surface_tolerance_mm=self.spec.validation.surface_tolerance_mm,
                scoring=SCORING,
                metrics={name: metrics_of(value) for name in CLASSES},
                seconds=2.0,
            )
            write_json_atomic(self.folder.cases(name) / f"{case}.json", result.model_dump())


def _named(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"checkpoint": candidate_name(manifest.epoch)})


@pytest.fixture
def run(tmp_path: Path) -> CandidateRun:
    """Trained; the candidate of epoch 1 has the highest Dice of whole cases."""
    run = CandidateRun(tmp_path)
    run.score_all(best=0.6, final=0.5, first=0.7)
    return run


def validated(run: CandidateRun) -> Sequence[str]:
    """Validate; every case was predicted already, so no worker starts. Returns the sentences."""
    outcome, reports = job.validate(run.folder, run.fencing_token)
    assert outcome.state == "SUCCEEDED", outcome
    assert [report.name for report in reports or []] == ["best", "final"], "MLflow gets no scores of each candidate"
    found = read_candidates(run.folder)
    assert found is not None
    assert found.sentences[0] in outcome.message
    write_outcome(run.folder, outcome)
    return found.sentences


def test_candidates_are_validated_beside_best_and_final_and_the_same_weights_once(run: CandidateRun) -> None:
    assert candidates_to_validate(run.folder, run.spec) == ["candidate_2", "candidate_1", "candidate_3"]
    validated(run)
    for name, source in ((candidate_name(2), "best"), (candidate_name(3), "final")):
        for case in CASES:
            assert is_done(run.folder, run.spec, name, case, digest_of(run.folder, name))
            result = read_result(run.folder, name, case)
            assert result is not None
            assert Path(result.prediction_file).parent == run.folder.root / "validation_candidates" / name
            assert Path(result.prediction_file).samefile(run.folder.validation(source) / f"{case}.nii.gz")  # type: ignore[arg-type]
    assert {path.name for path in run.folder.root.glob("validation*")} == {"validation", "validation_best", "validation_candidates"}
    assert json.loads(run.folder.extended_summary(candidate_name(1)).read_text())["minus_ema_pseudo_dice"] is not None


def test_the_winner_is_marked_optimistic_and_final_best_and_winner_are_paired_by_case(run: CandidateRun) -> None:
    first, *pairs = validated(run)
    assert first == (
        "Of 3 candidates, the epochs of the highest EMA pseudo-Dice, epoch 1 has the highest full Dice, 0.7200 (optimistic: it is chosen "
        "on its own validation fold). The final checkpoint stays the fair one."
    )
    assert [sentence.partition(" by ")[0] for sentence in pairs] == [
        "best (optimistic) is better than final",
        "epoch 1 (optimistic) is better than final",
        "epoch 1 (optimistic) is better than best (optimistic)",
    ]
    assert all("12 paired cases" in sentence and "Holm, 3 comparisons" in sentence for sentence in pairs)
    found = read_candidates(run.folder)
    assert found is not None
    assert [(score.epoch, score.also) for score in found.scores] == [(2, ("best",)), (1, ()), (3, ("final",))]
    assert [score.ema_pseudo_dice for score in found.scores] == [0.502, 0.501, 0.1]


def test_weights_that_win_under_two_names_are_compared_once(tmp_path: Path) -> None:
    run = CandidateRun(tmp_path)
    run.score_all(best=0.7, final=0.5, first=0.6)
    first, *pairs = validated(run)
    assert "Its weights are those of the best checkpoint." in first
    assert [sentence.partition(" by ")[0] for sentence in pairs] == ["best (optimistic) is better than final"]


def test_patients_are_the_unit_where_the_experiment_names_them(run: CandidateRun) -> None:
    spec = run.spec.model_copy(update={"patients": {case: f"patient_{number // 2}" for number, case in enumerate(CASES)}})
    write_json_atomic(run.folder.spec_file, spec.model_dump(mode="json"))
    assert "12 paired cases of 6 patients" in validated(run)[1]


def test_a_run_is_finished_once_its_candidates_are_judged(run: CandidateRun) -> None:
    assert progress_of(run.spec).stage == "validates"
    validated(run)
    assert progress_of(run.spec).stage == "finished"
    run.folder.candidates_file.unlink()
    assert progress_of(run.spec).stage == "validates"


def test_lost_weights_of_a_candidate_cost_that_candidate_and_are_named(run: CandidateRun) -> None:
    (run.folder.root / run.candidates[1].file).write_bytes(b"damaged")
    sentences = validated(run)
    assert sentences[0].startswith("Of 2 candidates")
    assert sentences[-1] == "The weights of epoch 1 are damaged or missing: it was not validated."
    assert progress_of(run.spec).stage == "finished"


def test_a_candidate_that_was_lost_before_the_newest_commit_is_named_too(run: CandidateRun) -> None:
    """At a resume: the commits after it do not list it any more."""
    run.candidates = tuple(manifest for manifest in run.candidates if manifest.epoch != 1)
    run.commit()
    sentences = validated(run)
    assert sentences[0].startswith("Of 2 candidates")
    assert sentences[-1] == "The weights of epoch 1 are damaged or missing: it was not validated."


def test_where_all_candidates_are_lost_no_missing_dice_is_blamed(run: CandidateRun) -> None:
    committed = newest_committed(run.folder)
    assert committed is not None
    labels = labels_of(load_dataset_json(run.folder.model_folder))
    found = judged(committed, {}, labels, {}, 3)
    lost = [f"The weights of epoch {epoch} are damaged or missing: it was not validated." for epoch in (2, 1, 3)]
    assert found.sentences == ("No candidate was validated.", *lost)


def test_a_run_whose_candidates_were_all_lost_at_a_resume_gets_that_answer(run: CandidateRun) -> None:
    run.candidates = ()
    run.commit()
    assert progress_of(run.spec).stage == "validates"
    assert validated(run)[0] == "No candidate was validated."
    assert progress_of(run.spec).stage == "finished"


def test_the_weights_of_a_candidate_are_hashed_once_before_a_worker_loads_them(run: CandidateRun, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(cases, "sha256_of", counted)
    validated(run)
    own = [Path(manifest.file).name for manifest in run.candidates]
    assert [name for name in hashed if name in own] == own


def test_a_run_that_was_stopped_has_no_candidates_to_validate(run: CandidateRun) -> None:
    run.final = None
    stopped = run.spec.model_copy(update={"schedule": Schedule(epochs=9)})
    run.commit()
    assert candidates_to_validate(run.folder, stopped) == []


def test_candidates_have_neither_pictures_nor_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CandidateRun(tmp_path, npz=True)
    asked: list[RunSpec] = []

    class Predictor:
        def __init__(self, spec: RunSpec, checkpoint: Path, *_: object, **__: object) -> None:
            asked.append(spec)
            self.checkpoint_sha256 = digest_of(run.folder, names[len(asked) - 1])

    names: list[WeightsName] = ["best", candidate_name(1)]
    write_json_atomic(run.folder.spec_file, run.spec.model_copy(update={"images": True}).model_dump(mode="json"))
    monkeypatch.setattr("trainers.validation.inference.CasePredictor", Predictor)
    for name in names:
        loaded(run.folder, name, digest_of(run.folder, name))
    assert [(spec.images, spec.validation.npz) for spec in asked] == [(True, True), (False, False)]
    assert run.folder.has_probabilities_due(candidate_name(1), run.spec, CASES[0])
    assert not run.folder.has_probabilities_due("best", run.spec, CASES[0])
    run.score("best", 0.6)
    for file in (*run.folder.probabilities("best", CASES[0]), picture_file(run.folder, "best", CASES[0])):
        write_atomic(file, b"large")
    share_results(run.folder, run.spec, candidate_name(2), digest_of(run.folder, candidate_name(2)))
    assert read_result(run.folder, candidate_name(2), CASES[0]) is not None
    assert [path.name for path in run.folder.validation(candidate_name(2)).iterdir()] == [f"{CASES[0]}.nii.gz"]
    assert not picture_file(run.folder, candidate_name(2), CASES[0]).exists()


@pytest.mark.parametrize(("images", "npz", "is_shared"), [(False, False, True), (True, False, False), (False, True, False)])
def test_the_best_takes_results_of_its_candidate_unless_it_is_to_have_pictures_or_probabilities(
    tmp_path: Path, images: bool, npz: bool, is_shared: bool
) -> None:
    run = CandidateRun(tmp_path, npz=npz)
    run.score(candidate_name(2), 0.6)
    share_results(run.folder, run.spec.model_copy(update={"images": images}), "best", digest_of(run.folder, "best"))
    assert (read_result(run.folder, "best", CASES[0]) is not None) == is_shared


def test_weights_that_are_no_candidate_are_refused(run: CandidateRun) -> None:
    committed = newest_committed(run.folder)
    assert committed is not None
    assert weights_file(run.folder, candidate_name(1)) == run.folder.root / committed.candidates[1].file
    with pytest.raises(CheckpointError, match="names no candidate_7"):
        CaseWorker(str(run.folder.root)).load({candidate_name(7): "0" * 64})


class Calls:
    """A tracking server that remembers what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda run_id, *arguments: self.sent.append((name, *arguments))


def test_mlflow_gets_the_winner_the_answer_and_one_table(run: CandidateRun) -> None:
    server = Calls()
    send_candidates(server, "r", run.folder)  # type: ignore[arg-type]
    assert server.sent == []
    assert holds_candidates({}, run.folder)
    sentences = validated(run)
    assert not holds_candidates({}, run.folder)
    send_candidates(server, "r", run.folder)  # type: ignore[arg-type]
    (_, path, rows), (_, tags), (what, scores, _) = server.sent
    assert (path, [row["epoch"] for row in rows], [row["winner_optimistic"] for row in rows]) == (TABLE, [2, 1, 3], ["", "winner", ""])
    assert tags == {TAG: " ".join(sentences)}
    assert what == "log_scores", "last, as the commit"
    assert scores == {
        "candidates/winner_epoch": 1.0,
        "candidates/winner_ema_pseudo_dice": 0.501,
        "candidates/winner_dice_mean_optimistic": pytest.approx(0.72),
    }
    assert holds_candidates(scores, run.folder)


def test_the_report_shows_epoch_ema_and_full_dice_of_each_candidate_with_the_sentences(run: CandidateRun) -> None:
    sentences = validated(run)
    fold = read_fold(RunFolder(run.folder.root), run.spec, "final")
    assert not isinstance(fold, str)
    found = answer(models_of([fold]), "final")
    table = candidates_table(found)
    assert table is not None
    assert table.head[-2] == "full Dice (optimistic)"
    assert [row[1:] for row in table.rows] == [
        ("2", "0.5020", "0.6200", "best"),
        ("1", "0.5010", "0.7200", "winner (optimistic)"),
        ("3", "0.1000", "0.5200", "final"),
    ]
    page = html(found)
    assert "Is the best epoch by pseudo-Dice the best by Dice?" in page
    assert sentences[0] in page
    assert as_json(found)["models"][0]["candidates_optimistic"]["0"]["winner"] == 1


def test_the_report_of_runs_without_candidates_does_not_mention_them(run: CandidateRun) -> None:
    fold = read_fold(run.folder, run.spec, "final")
    assert not isinstance(fold, str)
    found = answer(models_of([fold]), "final")
    assert candidates_table(found) is None
    assert "best epoch by pseudo-Dice" not in html(found)
    assert "candidates_optimistic" not in as_json(found)["models"][0]
