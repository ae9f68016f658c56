"""Saved views of MLflow's runs page, one for each question that a user has of an experiment, ready when the page is opened.

A view is an experiment tag `mlflow.sharedViewState.<id>` that holds the page's own state, compressed. That state is private to
MLflow (read from its pages in version 3.17, shown since 3.15), so views are written at best effort and their ids carry a version.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from orchestrator.tracking.groups import GROUP_TAG

TAG_PREFIX = "mlflow.sharedViewState."
VERSION = 1
RESULTS = f"nnfleet-results-{VERSION}"
CURVES = f"nnfleet-curves-{VERSION}"
FOLDS = f"nnfleet-folds-{VERSION}"
CHEAP = f"nnfleet-cheap-{VERSION}"
SETTINGS = f"nnfleet-settings-{VERSION}"
MODELS = f"nnfleet-models-{VERSION}"
CASES = f"nnfleet-cases-{VERSION}"
TESTS = f"nnfleet-tests-{VERSION}"
QUESTIONS = {
    MODELS: "Models, cross-validated",
    TESTS: "Held-out test sets",
    FOLDS: "Folds averaged",
    RESULTS: "Runs",
    CASES: "Case by case",
    CURVES: "Curves",
    CHEAP: "Pseudo-Dice against Dice",
    SETTINGS: "Settings against Dice",
}
"""View -> what its link is called where it is printed."""
CREATED_MS = 1_700_000_000_000
"""A fixed time keeps the value of a view the same in every experiment."""

PARAMS = ("configuration", "trainer", "plans", "variant", "fold", "seed")
METRICS = ("cv/dice_mean", "full/final/dice_mean", "full/best/dice_mean", "best/ema_pseudo_dice", "time/epoch_s")
FOLDS_ALONE = f"tags.`nnfleet.kind` = 'run' AND tags.`{GROUP_TAG}` != ''"
"""Without the cross-validation, which would be averaged with the folds that it is made of, and without runs whose group is not known."""
MODELS_ALONE = "tags.`nnfleet.kind` = 'cv'"
"""The cross-validations; the table of one holds the cases of all folds."""
MODEL_METRICS = ("cv/dice_mean", "cv/hd95_mm_mean", "cv/nsd_mean", "cv/num_folds", "cv/num_cases")
TEST_SETS_TAG = "nnfleet.test_sets"
"""Of a run with scores on held-out test sets: which."""
TESTED = f"tags.`{TEST_SETS_TAG}` != ''"
TEST_DICE = re.compile(r"test/(?P<column>.+)/dice_mean")
MOST_TEST_SETS = 8
"""In the view; the page becomes slow with hundreds of columns."""
MODE_OF = {CURVES: "CHART", CHEAP: "CHART", SETTINGS: "CHART", CASES: "ARTIFACT"}
"""View -> how the page shows the runs, where it is not the table of runs: a saved view does not say it, only a link does."""
Chart = dict[str, Any]
WORKFLOW = "workflowType=machine_learning"
"""Without it a browser that is new to the server shows MLflow's pages for language models."""
RUN_URL = re.compile(r"(?P<server>https?://.+?)/#/experiments/(?P<experiment>[^/]+)/runs/(?P<run>[^/?]+)(\?.*)?")


def view_tags() -> dict[str, str]:
    """Experiment tags that hold nnfleet's saved views; that of test sets before there is any."""
    averaged = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": GROUP_TAG}]}
    views = {
        MODELS: ("nnfleet: models, cross-validated", _models_state()),
        CASES: ("nnfleet: case by case", _state(searchFilter=MODELS_ALONE, orderByKey=f"metrics.`{METRICS[0]}`")),
        RESULTS: ("nnfleet: results", _state()),
        CURVES: ("nnfleet: curves", _state(_sections(), searchFilter=FOLDS_ALONE)),
        FOLDS: ("nnfleet: folds averaged", _state(_sections(), searchFilter=FOLDS_ALONE, groupBy=averaged)),
        CHEAP: ("nnfleet: pseudo-Dice against Dice", _state(_cheap_sections(), searchFilter=FOLDS_ALONE)),
        SETTINGS: ("nnfleet: settings against Dice", _state(_settings_sections(), searchFilter=FOLDS_ALONE)),
    }
    return dict([view_of_test_sets([])]) | {f"{TAG_PREFIX}{key}": _envelope(name, state) for key, (name, state) in views.items()}


def view_of_test_sets(columns: Sequence[str]) -> tuple[str, str]:
    """Name and value of the experiment tag that holds the view of test sets: `columns` are what stands between `test/` and a metric's name,
    the first ones the most important. Runs are sorted by the first.
    """
    shown = columns[:MOST_TEST_SETS]
    names = {column: f"test/{column}/dice_mean" for column in shown}
    beside = [f"test/{column}/{name}" for name in ("hd95_mm_mean", "nsd_mean") for column in shown]
    params = [f"params.`{name}`" for name in PARAMS]
    selected = [*params, *(f"metrics.`{name}`" for name in (*names.values(), METRICS[0], *beside)), f"tags.`{TEST_SETS_TAG}`"]
    charts = {"Dice on held-out test sets": [_bar(name, column) for column, name in names.items()]} if names else None
    order = f"metrics.`{next(iter(names.values()), METRICS[0])}`"
    state = _state(charts, searchFilter=TESTED, orderByKey=order, selectedColumns=selected)
    return f"{TAG_PREFIX}{TESTS}", _envelope("nnfleet: held-out test sets", state)


def run_place(experiment_id: str, run_id: str) -> str:
    """A run's page, behind `<server>/#/`."""
    return f"experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"


def run_url(server: str, experiment_id: str, run_id: str) -> str:
    """Link to a run's page."""
    return f"{server}/#/{run_place(experiment_id, run_id)}"


@dataclass(frozen=True)
class Pages:
    """Links to the MLflow pages of some runs on one server."""

    server: str
    runs: tuple[tuple[str, str], ...]
    """(experiment id, run id) of each run; may be empty."""

    @property
    def experiments(self) -> list[str]:
        """Ids of the experiments, in the order of the runs."""
        return list(dict.fromkeys(experiment for experiment, _ in self.runs))

    @property
    def overview(self) -> list[str]:
        """The table of runs of each experiment, in nnfleet's view of results; the list of experiments while there is none."""
        return [self.view(number, RESULTS) for number in self.experiments] or [f"{self.server}/#/experiments?{WORKFLOW}"]

    def view(self, experiment: str, key: str) -> str:
        """Link to one of nnfleet's views of an experiment."""
        mode = f"&compareRunsMode={MODE_OF[key]}" if key in MODE_OF else ""
        return f"{self.server}/#/experiments/{experiment}/runs?{WORKFLOW}&viewStateShareKey={key}{mode}"

    def answers(self, experiment: str) -> dict[str, str]:
        """A link for each question."""
        return {question: self.view(experiment, key) for key, question in QUESTIONS.items()}

    @property
    def comparison(self) -> str:
        """The page that shows the runs side by side; empty for less than two."""
        if len(self.runs) < 2:
            return ""
        runs = quote(json.dumps([run for _, run in self.runs]))
        experiments = quote(json.dumps(self.experiments))
        return f"{self.server}/#/compare-runs?runs={runs}&experiments={experiments}&{WORKFLOW}"


def pages_of(run_urls: Iterable[str], server: str = "") -> list[Pages]:
    """The pages of runs by the links to them, one entry per server; `server` gets one even if no run is there. Pure."""
    found: dict[str, list[tuple[str, str]]] = {server: []} if server else {}
    for url in run_urls:
        parts = RUN_URL.fullmatch(url)
        if parts and (parts["experiment"], parts["run"]) not in found.setdefault(parts["server"], []):
            found[parts["server"]].append((parts["experiment"], parts["run"]))
    return [Pages(place, tuple(runs)) for place, runs in found.items()]


def _envelope(name: str, state: dict[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": name, "createdAt": CREATED_MS, "updatedAt": CREATED_MS, "state": f"deflate;{packed}"})


def _state(sections: dict[str, list[Chart]] | None = None, **fields: Any) -> dict[str, Any]:
    """The state of a page with these sections of charts. Fields that are not named keep MLflow's defaults."""
    state: dict[str, Any] = {
        "orderByKey": f"metrics.`{METRICS[1]}`",
        "orderByAsc": False,
        "selectedColumns": [*(f"params.`{name}`" for name in PARAMS), *(f"metrics.`{name}`" for name in METRICS), "tags.`nnfleet.state`"],
        "runsHiddenMode": "FIRST_20_RUNS",
        **fields,
    }
    if sections:
        state["compareRunSections"] = [_section(number, name, len(charts)) for number, (name, charts) in enumerate(sections.items())]
        state["compareRunCharts"] = [
            {"uuid": f"nnfleet-{number}-{place}", "metricSectionId": f"nnfleet-{number}", "deleted": False, "isGenerated": False, **chart}
            for number, section in enumerate(sections.values())
            for place, chart in enumerate(section)
        ]
        state["isAccordionReordered"] = True
    return state


def _section(number: int, name: str, charts: int) -> dict[str, Any]:
    """A section of so many charts; one alone takes the whole width."""
    is_ours = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": f"nnfleet-{number}", "name": name, "columns": min(charts, 3), "cardHeight": 360, **is_ours}


def _models_state() -> dict[str, Any]:
    params = [f"params.`{name}`" for name in PARAMS if name != "fold"]
    columns = [*params, *(f"metrics.`{name}`" for name in MODEL_METRICS), "tags.`nnfleet.missing_folds`"]
    charts = {"Cross-validation: whole cases of all folds": [_bar(name, name.removeprefix("cv/")) for name in MODEL_METRICS[:3]]}
    return _state(charts, searchFilter=MODELS_ALONE, orderByKey=f"metrics.`{METRICS[0]}`", selectedColumns=columns)


def _sections() -> dict[str, list[Chart]]:
    return {
        "Full validation: whole cases": [
            _bar("full/final/dice_mean", "Dice, final checkpoint"),
            _bar("full/best/dice_mean", "Dice, best checkpoint"),
        ],
        "Training: patches": [
            _line("Pseudo-Dice, smoothed", "val/ema_pseudo_dice"),
            _line("Best pseudo-Dice so far", "best/ema_pseudo_dice"),
            _line("Training loss", "train/loss"),
            _line("Validation loss", "val/loss"),
        ],
        "Speed": [
            _line("Seconds per epoch", "time/epoch_s"),
            _line("Seconds of waiting for data", "time/wait_data_s"),
            _line("Samples per second", "throughput/samples_per_s"),
        ],
    }


def _cheap_sections() -> dict[str, list[Chart]]:
    return {
        "Pseudo-Dice against Dice of whole cases": [
            _scatter("val/ema_pseudo_dice", "full/final/dice_mean", "Final checkpoint"),
            _scatter("best/ema_pseudo_dice", "full/best/dice_mean", "Best checkpoint"),
        ]
    }


def _settings_sections() -> dict[str, list[Chart]]:
    chart: Chart = {
        "type": "PARALLEL",
        "displayName": "Settings against Dice of whole cases",
        "runsCountToCompare": 100,
        "selectedParams": ["configuration", "trainer", "plans", "variant", "epochs", "initial_lr"],
        "selectedMetrics": ["full/final/dice_mean"],
        "showAllRuns": True,
    }
    return {"Which settings matter?": [chart]}


def _line(title: str, key: str) -> Chart:
    return {
        "type": "LINE",
        "metricKey": key,
        "selectedMetricKeys": [key],
        "displayName": title,
        "runsCountToCompare": 20,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _bar(key: str, title: str) -> Chart:
    return {"type": "BAR", "metricKey": key, "displayName": title, "runsCountToCompare": 20}


def _scatter(x: str, y: str, title: str) -> Chart:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "displayName": title, "runsCountToCompare": 100, **axes}
