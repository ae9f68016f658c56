"""The MLflow run of a comparison: its report, beside the runs that it compares. The same comparison again brings that run up to date.

One on other terms (models that are not alike, patients that were named for it) has a run of its own and never replaces the usual one.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.compare.answer import Answer
from orchestrator.compare.tables import models_table
from orchestrator.report.case_pictures import CasePictures, renamed, shown_names
from orchestrator.report.page import html
from orchestrator.tracking.binding import experiment_of
from orchestrator.tracking.records import COMPARISON_KEY_TAG, NOTE_TAG, PARAM_LENGTH, ModelRun

if TYPE_CHECKING:
    from orchestrator.tracking.client import Tracker

log = logging.getLogger(__name__)
REPORT = "comparison.html"
"""Artifact path of the report, which MLflow shows beside the list of artifacts."""
FORCED = "NOT COMPARABLE"
FORCED_TAG = "nnfleet.not_comparable"
"""Why the models should not have been compared; absent from comparisons that nobody had to ask for twice."""
MOST_BYTES = 20_000_000
TOO_LARGE = (
    "Pictures of cases are left out: with them the report has more than 20 MB, and MLflow does not show it. `--report FILE` has them."
)


def publish_comparison(answer: Answer, pictures: CasePictures, tracker: "Tracker") -> str:
    """Send the report to the experiment of the best model; returns where it is. Raises ConfigError, TrackingError, DataError."""
    spec = answer.models[0].spec
    page = bounded(answer, pictures)
    experiment_id = tracker.ensure_experiment(experiment_of(spec), local_artifacts=spec.local_artifacts)
    run_id = tracker.get_or_create_model_run(experiment_id, run_of(answer), COMPARISON_KEY_TAG)
    tracker.upload_bytes(run_id, page, REPORT)
    tracker.set_tags(run_id, {NOTE_TAG: note_of(answer)})
    return tracker.run_url(run_id) or f"run {run_id} at {tracker.uri}"


def bounded(answer: Answer, pictures: CasePictures, most_bytes: int = MOST_BYTES) -> bytes:
    """The report, without pictures of cases where it would be too large with them, which it then says."""
    page = html(answer, pictures).encode()
    if len(page) <= most_bytes:
        return page
    log.warning("%s", TOO_LARGE)
    return html(answer, CasePictures({}, left_out=TOO_LARGE)).encode()


def run_of(answer: Answer) -> ModelRun:
    """What identifies and describes the run; cases in it as in the report. Raises DataError."""
    names = [model.name for model in answer.models]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    tags = {
        "nnfleet.kind": "comparison",
        "nnfleet.dataset": answer.dataset,
        "nnfleet.checkpoint": answer.checkpoint,
        "nnfleet.models": ", ".join(names)[:PARAM_LENGTH],
        "nnfleet.verdict": answer.verdict[:PARAM_LENGTH],
    }
    if answer.forced:
        shown = shown_names(answer.models)
        tags[FORCED_TAG] = renamed("; ".join(answer.forced), shown)[:PARAM_LENGTH]
    title = ", ".join([f"comparison: {names[0]}{more}", answer.checkpoint, *terms_of(answer)])
    return ModelRun(comparison_key(answer), title, {}, tags)


def terms_of(answer: Answer) -> list[str]:
    """How a comparison differs from the usual one of the same models, in words. Pure."""
    forced = [FORCED] if answer.forced else []
    return [*forced, f"patients {answer.patients}"] if answer.patients else forced


def comparison_key(answer: Answer) -> str:
    """The same for the same models, checkpoint and terms, wherever they were read and however many of their folds are validated. Pure."""
    models = sorted(f"{model.spec.model} {model.spec.model_folder}" for model in answer.models)
    digest = hashlib.sha256(json.dumps([models, answer.checkpoint, *terms_of(answer)]).encode()).hexdigest()
    return f"comparison-{answer.dataset}-{digest[:12]}"


def note_of(answer: Answer) -> str:
    """What a user reads first on the run's page, in Markdown; cases in it under the names that the report gives them. Raises DataError."""
    table, names = models_table(answer), shown_names(answer.models)
    marks = [f"**{renamed(mark, names)}**" for mark in answer.marks]
    rows = [_row(table.head), _row(["---"] * len(table.head)), *map(_row, table.rows)]
    return "\n\n".join([*marks, f"**{answer.verdict}**", "\n".join(rows), f"The report is the artifact `{REPORT}`."])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
