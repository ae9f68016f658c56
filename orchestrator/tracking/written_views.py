"""Writes nnfleet's saved views into MLflow's experiments. They are private state of MLflow's pages, so what fails here is never a reason to
fail."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.tracking.pages import pages
from orchestrator.tracking.saved_views import TAG_PREFIX, TEST_DICE, TESTED, TESTS, view_of_test_sets, view_tags

log = logging.getLogger(__name__)
NOT_WRITTEN = "the saved views of experiment %s could not be written (nothing else is affected): %s"


def write_views(client: Any, experiment_id: str, present: Mapping[str, str]) -> None:
    """Those that an experiment has not, or not as this version writes them; that of test sets only where there is none."""
    try:
        for key, value in view_tags().items():
            if present.get(key) != value and not (key == f"{TAG_PREFIX}{TESTS}" and key in present):
                client.set_experiment_tag(experiment_id, key, value)
    except Exception as err:
        log.warning(NOT_WRITTEN, experiment_id, err)


def write_test_view(client: Any, run_id: str) -> None:
    """Make the view of test sets, in the experiment of a run, show all that runs there were evaluated on; the most frequent ones first."""
    experiment_id = "?"
    try:
        experiment_id = client.get_run(run_id).info.experiment_id
        runs = pages(client.search_runs, [experiment_id], TESTED)
        found = Counter(match["column"] for run in runs for name in run.data.metrics if (match := TEST_DICE.fullmatch(name)))
        columns = sorted(found, key=lambda column: (-found[column], column))
        client.set_experiment_tag(experiment_id, *view_of_test_sets(columns))
    except Exception as err:
        log.warning(NOT_WRITTEN, experiment_id, err)
