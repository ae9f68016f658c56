"""Saved views of MLflow's runs page."""

import base64
import json
import zlib
from typing import Any

from orchestrator.tracking.groups import GROUP_TAG
from orchestrator.tracking.records import epoch_metrics
from orchestrator.tracking.saved_views import (
    CHEAP,
    CURVES,
    FOLDS,
    QUESTIONS,
    RESULTS,
    SETTINGS,
    TAG_PREFIX,
    Pages,
    pages_of,
    run_place,
    view_of_test_sets,
    view_tags,
)
from tests.fake_run import epoch_row

EXPERIMENT_TAG_LENGTH = 20_000
"""MLflow's limit for the value of an experiment tag."""


def decoded(tag_value: str) -> dict[str, Any]:
    """The page state in a saved view."""
    state = json.loads(tag_value)["state"]
    return dict(json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;")))))


def test_links_open_our_view_of_an_experiment_and_the_comparison_of_its_runs() -> None:
    urls = [f"http://h:1/mlflow/#/{run_place('7', run)}" for run in ("a", "b", "a")]
    [pages] = pages_of([*urls, ""])
    assert pages == Pages("http://h:1/mlflow", (("7", "a"), ("7", "b")))
    assert pages.overview == [f"http://h:1/mlflow/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey={RESULTS}"]
    assert pages.comparison.startswith(
        "http://h:1/mlflow/#/compare-runs?runs=%5B%22a%22%2C%20%22b%22%5D&experiments=%5B%227%22%5D&workflow"
    )


def test_a_server_without_runs_opens_its_list_of_experiments() -> None:
    [pages] = pages_of([], "http://h:1")
    assert (pages.overview, pages.comparison) == (["http://h:1/#/experiments?workflowType=machine_learning"], "")


def test_views_are_small_named_and_the_same_every_time() -> None:
    tags = view_tags()
    assert tags == view_tags()
    assert all(key.startswith(TAG_PREFIX) and len(value) < EXPERIMENT_TAG_LENGTH for key, value in tags.items())
    names = {json.loads(value)["name"] for value in tags.values()}
    assert names == {
        "nnfleet: results",
        "nnfleet: curves",
        "nnfleet: folds averaged",
        "nnfleet: pseudo-Dice against Dice",
        "nnfleet: settings against Dice",
        "nnfleet: models, cross-validated",
        "nnfleet: case by case",
        "nnfleet: held-out test sets",
    }


def test_every_question_has_a_view_and_a_link() -> None:
    assert {f"{TAG_PREFIX}{key}" for key in QUESTIONS} == set(view_tags())
    [pages] = pages_of([f"http://h:1/#/{run_place('7', 'a')}"])
    links = pages.answers("7")
    assert list(links) == list(QUESTIONS.values())
    assert all(f"&viewStateShareKey={key}" in link for link, key in zip(links.values(), QUESTIONS, strict=True))
    assert pages.view("7", CURVES).endswith("&compareRunsMode=CHART")
    assert "compareRunsMode" not in pages.view("7", FOLDS), "the table shows how many folds a mean is of"


def test_the_view_of_test_sets_has_their_columns_before_the_cross_validation_and_a_limit() -> None:
    key, value = view_of_test_sets(["a-1", "b-2"])
    state = decoded(value)
    columns = [column for column in state["selectedColumns"] if column.startswith("metrics")]
    assert columns[:4] == [
        f"metrics.`{name}`" for name in ("test/a-1/dice_mean", "test/b-2/dice_mean", "cv/dice_mean", "test/a-1/hd95_mm_mean")
    ]
    assert (state["orderByKey"], state["searchFilter"]) == ("metrics.`test/a-1/dice_mean`", "tags.`nnfleet.test_sets` != ''")
    assert [chart["metricKey"] for chart in state["compareRunCharts"]] == ["test/a-1/dice_mean", "test/b-2/dice_mean"]
    assert key in view_tags(), "there is one before there are test sets, so that the link to it is never broken"
    many = view_of_test_sets([f"imagesTs-{number:08}-folds-0-1-2-3" for number in range(500)])[1]
    assert len(many) < EXPERIMENT_TAG_LENGTH


def test_results_view_shows_what_runs_are_compared_by() -> None:
    state = decoded(view_tags()[TAG_PREFIX + RESULTS])
    assert {"params.`configuration`", "params.`fold`", "metrics.`full/best/dice_mean`"} <= set(state["selectedColumns"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`full/final/dice_mean`", False), "nnU-Net's weights"


def test_folds_are_averaged_within_a_group_and_without_the_cross_validation() -> None:
    state = decoded(view_tags()[TAG_PREFIX + FOLDS])
    assert state["groupBy"] == {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": GROUP_TAG}]}
    assert state["searchFilter"] == "tags.`nnfleet.kind` = 'run' AND tags.`nnfleet.group` != ''"


def test_pseudo_dice_is_drawn_against_dice_and_settings_against_dice() -> None:
    axes = [
        (chart["xaxis"]["key"], chart["yaxis"]["key"])
        for chart in decoded(view_tags()[TAG_PREFIX + CHEAP])["compareRunCharts"]
        if chart["type"] == "SCATTER"
    ]
    assert axes == [("val/ema_pseudo_dice", "full/final/dice_mean"), ("best/ema_pseudo_dice", "full/best/dice_mean")]
    [parallel] = decoded(view_tags()[TAG_PREFIX + SETTINGS])["compareRunCharts"]
    assert (parallel["type"], parallel["selectedMetrics"]) == ("PARALLEL", ["full/final/dice_mean"])
    assert {"trainer", "variant", "epochs"} <= set(parallel["selectedParams"])


def test_curves_are_those_of_runs_alone() -> None:
    assert "'run'" in decoded(view_tags()[TAG_PREFIX + CURVES])["searchFilter"]


def test_every_chart_of_a_training_shows_a_metric_that_is_logged() -> None:
    [record] = epoch_metrics([epoch_row(0)], ("a", "b"))
    for value in view_tags().values():
        charts = decoded(value).get("compareRunCharts", [])
        assert {c["metricKey"] for c in charts if c["type"] == "LINE"} <= set(record.values)


def test_every_chart_lies_in_a_section_and_has_an_id_of_its_own() -> None:
    for value in view_tags().values():
        state = decoded(value)
        charts, sections = state.get("compareRunCharts", []), state.get("compareRunSections", [])
        assert {c["metricSectionId"] for c in charts} == {s["uuid"] for s in sections}
        assert len({c["uuid"] for c in charts}) == len(charts)
