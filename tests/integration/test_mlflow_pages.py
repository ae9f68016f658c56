"""What a researcher sees in MLflow's pages, walked with a real browser: two models of two folds each, published by our own code."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Page, expect, sync_playwright

from orchestrator.compare.answer import answer
from orchestrator.compare.model_run import publish_cross_validation
from orchestrator.compare.models import ValidatedFold, models_of, read_fold
from orchestrator.publishing.pictures import overlay
from orchestrator.publishing.publisher import deliver_run
from orchestrator.publishing.validation_report import deliver_reports, picture_file, write_report
from orchestrator.report.page import html
from orchestrator.tracking.binding import track
from orchestrator.tracking.client import Tracker
from orchestrator.tracking.saved_views import CASES as CASE_BY_CASE
from orchestrator.tracking.saved_views import CHEAP, CURVES, FOLDS, MODELS, RESULTS, SETTINGS, WORKFLOW, Pages, pages_of
from tests.fake_run import CLASSES
from tests.integration.mlflow_server import MlflowServer, client_of
from tests.validated_model import score_cases, validated_model
from trainers.contract.commits import newest_committed
from trainers.contract.plans import labels_of, load_dataset_json
from trainers.contract.records import read_result
from trainers.contract.run_folder import RunFolder
from trainers.contract.states import RunState
from trainers.storage.files import write_atomic, write_json_atomic

FOLDS_OF_CASES = [["case_0", "case_1", "case_2"], ["case_3", "case_4", "case_5"]]
CASES = [case for fold in FOLDS_OF_CASES for case in fold]
BETTER = {"nnUNetTrainer": 0.0, "nnUNetTrainerDA5": 0.04}
"""Trainer -> what it adds to every Dice."""
EPOCHS = 8
PATIENCE_MS = 60_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]


@dataclass(frozen=True)
class Store:
    """A server with the runs of both models."""

    pages: Pages
    runs: dict[str, str]
    """Run name -> run id; those of models are among them."""

    @property
    def experiment(self) -> str:
        """Id of the one experiment."""
        return self.pages.experiments[0]


def dice(case: str, name: str) -> float:
    """The later the case, the better."""
    return 0.6 + 0.05 * CASES.index(case) + 0.02 * CLASSES.index(name)


def model(base: Path, tracker: Tracker, trainer: str) -> list[RunFolder]:
    """The folds of a model, trained and validated."""
    folder = base / "results" / "Dataset901_Toy" / f"{trainer}__nnUNetPlans__3d_fullres"
    settings: dict[str, Any] = {"trainer": trainer, "model_folder": folder, "tracking_uri": tracker.uri, "images": True}
    folds = validated_model(base, lambda case, name: dice(case, name) + BETTER[trainer], FOLDS_OF_CASES, epochs=EPOCHS, **settings)
    splits = [{"train": [case for case in CASES if case not in fold], "val": fold} for fold in FOLDS_OF_CASES]
    write_json_atomic(base / "preprocessed" / "Dataset901_Toy" / "splits_final.json", splits)
    return folds


def publish(folder: RunFolder, tracker: Tracker) -> str:
    """Publish a run as its jobs do: track, validate both checkpoints, deliver, end. Returns its link."""
    spec, committed, labels = folder.spec(), newest_committed(folder), labels_of(load_dataset_json(folder.model_folder))
    assert committed is not None
    assert committed.best is not None
    tracked = track(spec, tracker)
    score_cases(folder, "best", committed.best.sha256, lambda case, name: dice(case, name) + BETTER[spec.trainer] - 0.01)
    draw(folder, spec.val_cases[0])
    reports = []
    for name in spec.validation.checkpoints:
        results = [read_result(folder, name, case) for case in spec.val_cases]
        reports.append(write_report(folder, spec, labels, name, [result for result in results if result is not None]))
    assert deliver_reports(folder, spec, reports, 1, waits_s=()) is None
    assert deliver_run(folder, 1, 60)
    tracker.set_state(tracked.run_id, RunState.SUCCEEDED)
    return tracked.url


def draw(folder: RunFolder, case: str) -> None:
    """A picture of a case, as the validation makes it."""
    truth = np.zeros((3, 40, 40), int)
    truth[1, 10:30, 10:30] = 1
    picture = overlay(np.random.default_rng(0).random(truth.shape), truth, np.roll(truth, 2, axis=2), CLASSES, case, (3.0, 1.0, 1.0))
    write_atomic(picture_file(folder, "final", case), picture)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One server for all tests of this file; nothing changes it."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    try:
        tracker, base = Tracker(server.uri), tmp_path_factory.mktemp("data")
        folders = [folder for trainer in BETTER for folder in model(base, tracker, trainer)]
        links = [publish(folder, tracker) for folder in folders]
        for model_folder in dict.fromkeys(folder.model_folder for folder in folders):
            assert publish_cross_validation(model_folder, lambda fold: False)
        [pages] = pages_of(links)
        runs = {run.info.run_name: run.info.run_id for run in client_of(tracker).search_runs(pages.experiments)}
        tracker.upload_bytes(runs["901/3d_fullres/da5"], report(folders), "report.html")
        yield Store(pages, runs)
    finally:
        server.kill()


def report(folders: Sequence[RunFolder]) -> bytes:
    """The report of a comparison of all models."""
    folds = [read_fold(folder, folder.spec(), "final") for folder in folders]
    return html(answer(models_of([fold for fold in folds if isinstance(fold, ValidatedFold)]), "final")).encode()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a browser without a window, which is new to the server."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1900, "height": 1200})
        opened.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield opened
        browser.close()


@pytest.fixture(autouse=True)
def screenshot(page: Page, tmp_path: Path) -> Iterator[None]:
    """What was seen last stays in pytest's temporary folder."""
    yield
    page.screenshot(path=str(tmp_path / "page.png"))


def shown(store: Store, page: Page, view: str, name: str) -> None:
    """Open one of our views."""
    page.goto(store.pages.view(store.experiment, view))
    expect(page.get_by_role("button", name=f"nnfleet: {name}")).to_be_visible()


def of_run(store: Store, page: Page, name: str, tab: str = "") -> None:
    """Open the page of a run, anew: MLflow shows no artifacts where only the run in the address changes."""
    page.goto("about:blank")
    page.goto(f"{store.pages.server}/#/experiments/{store.experiment}/runs/{store.runs[name]}{tab}?{WORKFLOW}")
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def test_models_stand_in_the_order_of_their_cross_validated_dice(store: Store, page: Page) -> None:
    shown(store, page, MODELS, "models, cross-validated")
    rows = page.get_by_role("link", name="901/3d_fullres/")
    expect(rows).to_have_text(["901/3d_fullres/da5", "901/3d_fullres/default"])
    expect(page.get_by_text("0.775", exact=True).first).to_be_visible()


def test_runs_are_grouped_by_model_with_the_number_of_folds(store: Store, page: Page) -> None:
    shown(store, page, FOLDS, "folds averaged")
    for trainer in ("da5", "default"):
        group = page.get_by_role("row").filter(has_text=f"{trainer} 3d_fullres, 1000 epochs")
        expect(group).to_have_count(1)
        expect(group.get_by_text("2", exact=True)).to_be_visible()
    expect(page.get_by_text("(average)").first).to_be_visible()
    expect(page.get_by_role("link", name="901/3d_fullres/da5", exact=True)).to_have_count(0)


def test_cases_stand_side_by_side_for_every_model(store: Store, page: Page) -> None:
    shown(store, page, CASE_BY_CASE, "case by case")
    expect(page.get_by_text("fullval/final/per_case.json").first).to_be_visible()
    expect(page.get_by_text("case_0", exact=True).first).to_be_visible()
    for dice_of_case in ("0.65", "0.61"):
        expect(page.get_by_text(dice_of_case, exact=True).first).to_be_visible()
    expect(page.get_by_text("(empty)")).to_have_count(0)


def test_curves_and_bars_are_drawn(store: Store, page: Page) -> None:
    shown(store, page, CURVES, "curves")
    expect(page.get_by_text("Full validation: whole cases")).to_be_visible()
    expect(page.get_by_text("val/ema_pseudo_dice", exact=True).first).to_be_visible()
    expect(page.locator(".js-plotly-plot .barlayer .bars path")).to_have_count(8)
    expect(page.locator(".js-plotly-plot .scatterlayer .lines path").first).to_be_attached()


def test_pseudo_dice_is_drawn_against_dice(store: Store, page: Page) -> None:
    shown(store, page, CHEAP, "pseudo-Dice against Dice")
    for pair in ("val/ema_pseudo_dice vs. full/final/dice_mean", "best/ema_pseudo_dice vs. full/best/dice_mean"):
        expect(page.get_by_text(pair)).to_be_visible()
    expect(page.locator(".js-plotly-plot .scatterlayer .points path").first).to_be_visible()


def test_settings_are_drawn_against_dice(store: Store, page: Page) -> None:
    shown(store, page, SETTINGS, "settings against Dice")
    expect(page.get_by_text("Parallel Coordinates").first).to_be_visible()
    for name in ("trainer", "variant", "epochs"):
        expect(page.locator("svg text").filter(has_text=name).first).to_be_attached()


def test_the_comparison_shows_the_runs_side_by_side(store: Store, page: Page) -> None:
    page.goto(store.pages.comparison)
    expect(page.get_by_role("heading", name="Comparing 4 Runs from 1 Experiment")).to_be_visible()
    for name in ("901/3d_fullres/da5/0", "901/3d_fullres/default/1"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


@pytest.mark.parametrize("name", ["901/3d_fullres/da5", "901/3d_fullres/da5/0"])
def test_a_description_has_one_picture_which_is_there(store: Store, page: Page, name: str) -> None:
    of_run(store, page, name)
    page.get_by_text("Show more").first.click()
    picture = page.locator("img[src*='get-artifact']")
    expect(picture).to_have_count(1)
    page.wait_for_function("document.querySelector(\"img[src*='get-artifact']\").naturalWidth > 100")


def test_the_report_opens_in_the_artifact_viewer(store: Store, page: Page) -> None:
    of_run(store, page, "901/3d_fullres/da5", "/artifacts/report.html")
    inside = page.frame_locator("iframe")
    expect(inside.get_by_text("nnUNetTrainerDA5 is better than nnUNetTrainer by 4.00 Dice points").first).to_be_visible()
    assert inside.locator("img").first.evaluate("image => image.naturalWidth > 100")


def test_a_table_of_cases_opens_in_the_artifact_viewer_with_the_worst_first(store: Store, page: Page) -> None:
    of_run(store, page, "901/3d_fullres/da5", "/artifacts")
    for step in ("fullval", "final", "per_case.json"):
        page.get_by_text(step, exact=True).click()
    expect(page.get_by_text("View as table")).to_be_visible()
    cells = page.get_by_role("cell").or_(page.get_by_role("gridcell"))
    expect(cells.filter(has_text="case_")).to_have_text(CASES)


def test_the_name_of_a_picture_begins_with_the_dice_of_its_case(store: Store, page: Page) -> None:
    of_run(store, page, "901/3d_fullres/da5/0", "/artifacts")
    for step in ("fullval", "final", "overlays", "0.650_case_0.png"):
        page.get_by_text(step, exact=True).click()
    expect(page.locator("img[src*='blob:'], img[src*='get-artifact']").first).to_be_visible()


def test_no_banner_of_usage_data_stands_on_the_pages_that_we_link(store: Store, page: Page) -> None:
    shown(store, page, RESULTS, "results")
    expect(page.get_by_role("link", name="901/3d_fullres/da5/0", exact=True)).to_be_visible()
    expect(page.get_by_text("MLflow collects usage data")).to_have_count(0)
    expect(page.get_by_text("AI Gateway")).to_have_count(0)


def test_a_run_lasts_as_long_as_its_epochs_and_its_best_checkpoint_is_a_model_with_scores_on_its_data(store: Store) -> None:
    client = MlflowClient(store.pages.server)
    run = client.get_run(store.runs["901/3d_fullres/da5/0"])
    assert run.info.end_time - run.info.start_time == EPOCHS * 9500
    [found] = [each for each in client.search_logged_models([store.experiment]) if each.source_run_id == run.info.run_id]
    [score] = [metric for metric in found.metrics if metric.key == "full/best/dice_mean"]
    [digest] = [each.dataset.digest for each in run.inputs.dataset_inputs if each.dataset.name == "Dataset901_Toy fold 0"]
    assert (found.status, score.dataset_digest) == ("READY", digest)
