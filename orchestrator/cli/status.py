"""`nnfleet status`: the state of every run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import console, note, print_json, say
from orchestrator.cli.parameters import AsJson, Cluster, Runs, cluster_option
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.campaign.events import ComparisonMade
    from orchestrator.run.job_record import JobRecord
    from orchestrator.run.status import RunStatus

INTERVAL_S = 2.0
PAUSE_FACTOR = 4.0
"""Seconds of pause per second that an answer took: campaigns with long logs are polled less often."""
COMPARES_S = 60.0
"""How long `--watch` stays for the comparison of models whose runs have all ended."""


def status(
    runs: Runs = None,
    cluster: Cluster = None,
    campaign: Annotated[str | None, typer.Option("--campaign", metavar="ID", help="Only the runs of this campaign.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="FOLDER",
            help="Show also the runs below it that no campaign of the cluster knows. Default: nnUNet_results of this shell.",
        ),
    ] = None,
    all_runs: Annotated[bool, typer.Option("--runs", help="A line for each run, also for those that wait or succeeded.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Stay, with live progress bars, until every run and test set has ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state, epoch, EMA pseudo-Dice and time left of each run, below the model that it is a fold of."""
    from orchestrator import api
    from orchestrator.run.names import left_text

    if watch and as_json:
        raise ConfigError("status: --json prints one document and ends, --watch stays. Name one of them; a script polls with --json.")
    if watch:
        _watch(cluster, campaign, runs or [])
        return
    seen = api.snapshot(cluster, campaign, results)
    statuses, test_sets = _meant([*seen.statuses, *seen.stored], seen.test_sets, runs or [], seen.left)
    for text in filter(None, (seen.outage, left_text(seen.left))):
        note(text)
    if as_json:
        print_json([*_runs_as_json(statuses, [*seen.statuses, *seen.stored]), *map(_as_json, test_sets)])
        return
    if not (statuses or runs):
        say(_none(results, len(seen.left)))
    elif statuses:
        from orchestrator.cli.watch import watch_view

        out = console()
        out.print(watch_view(statuses, out.width, all_runs=all_runs or bool(runs)))
        _results(statuses, all_runs=all_runs)
        _comparisons(seen.comparisons, statuses)
    _test_sets(test_sets, cluster)


def _test_sets(jobs: "Sequence[JobRecord]", cluster: str | None) -> None:
    """A line for each test set at work, which no run shows."""
    for job in jobs:
        say(f"Test set: {job.test_set}. Stop it: nnfleet stop {job.submission_id}{cluster_option(cluster)}")


def _runs_as_json(runs: "Sequence[RunStatus]", known: "Sequence[RunStatus]") -> list[dict[str, Any]]:
    """Runs as scripts read them, with what all that is `known` shows of their models: `model`, its address; `model_states`, how many of its
    folds are in each state; and `older`, of those that are none of its folds now, why.
    """
    from orchestrator.cli.models import models_of

    more: dict[str, dict[str, Any]] = {}
    for model in models_of(known):
        of_all: dict[str, Any] = {"model": model.address, "model_states": {state.value: count for state, count in model.states.items()}}
        more |= {run.run_key: of_all | ({"older": model.older.why} if model.older else {}) for run in model.runs}
    return [{**run.model_dump(mode="json"), **more[run.run_key]} for run in runs]


def _as_json(job: "JobRecord") -> dict[str, str]:
    """A test set at work, as scripts read it."""
    return {"test_set": job.submission_id, "state": job.test_set_state, "what": job.test_set}


def _none(results: Path | None, num_left: int = 0) -> str:
    """That there is no run, and where was looked."""
    place = results or os.environ.get("nnUNet_results")  # noqa: SIM112 - nnU-Net's
    held = f"none that can be followed ({num_left} left out)" if num_left else "none"
    there = f"{place} holds {held}" if place else "nnUNet_results is not set"
    return (
        f"There are no runs: none was submitted to the cluster since it started, or it is down, and {there}. "
        "`nnfleet status --results FOLDER` shows those below a folder; finished runs are in MLflow too (`nnfleet ui`)."
    )


def _results(statuses: "list[RunStatus]", *, all_runs: bool = False) -> None:
    """The table of results, of the models, or runs, that have some."""
    from orchestrator.cli.tables import result_view

    if validated := [item for item in statuses if item.full_dice]:
        out = console()
        out.print()
        out.print(result_view(validated, out.width, all_runs=all_runs, known=statuses))


def _comparisons(made: "Sequence[ComparisonMade]", statuses: "Sequence[RunStatus]") -> None:
    """What campaigns of these runs have found at their end, with a link."""
    models = {status.model for status in statuses}
    for each in made:
        if models.intersection(each.models):
            say(f"\nComparison: {each.text}")


def _meant(
    statuses: "list[RunStatus]", test_sets: "list[JobRecord]", names: list[str], left: "Sequence[str]" = ()
) -> "tuple[list[RunStatus], list[JobRecord]]":
    """The runs, and the jobs of test sets, of these names in their order; all if there are none. Raises ConfigError for a name that
    means nothing."""
    from orchestrator.run.job_record import is_test_set, named_test_sets
    from orchestrator.run.status import match_all

    if not names:
        return statuses, test_sets
    of_runs = [name for name in names if not is_test_set(name)]
    of_test_sets = [name for name in names if is_test_set(name)]
    return match_all(of_runs, statuses, left=left) if of_runs else [], named_test_sets(of_test_sets, test_sets, "status")


def _watch(cluster: str | None, campaign: str | None, runs: list[str]) -> None:
    import time

    from orchestrator import api
    from orchestrator.cli.tables import worst_exit_code
    from orchestrator.cli.watch import Watch

    with Watch() as watch:
        looks, since = api.looks(cluster, campaign), 0.0
        while True:
            began = time.monotonic()
            look = next(looks)
            watch(*_meant(look.statuses, look.test_sets, runs))
            if all(item.state.is_final for item in watch.statuses) and not any(job.is_live for job in watch.test_sets):
                since = since or time.monotonic()
                to_compare = {item.model for item in watch.statuses if item.campaign in look.ending and item.full_dice}
                if len(to_compare) < 2 or time.monotonic() - since > COMPARES_S:
                    break
            time.sleep(INTERVAL_S + PAUSE_FACTOR * (time.monotonic() - began))
    if not (watch.statuses or watch.test_sets):
        say(_none(None))
    _results(watch.statuses)
    _comparisons(look.comparisons, watch.statuses)
    raise typer.Exit(worst_exit_code(watch.statuses, watch.test_sets))
