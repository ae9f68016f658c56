"""`nnfleet validate`: the full validation of runs, by hand."""

import shlex
from typing import Annotated

import typer

from orchestrator.cli.foreground import hearing_signals
from orchestrator.cli.output import note, print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, SomeRuns, cluster_option


def validate(
    runs: SomeRuns,
    npz: Annotated[bool, typer.Option("--npz", help="Keep probabilities from now on, for ensembles.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Of a run that was stopped before its end: its best checkpoint.")] = False,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Predict and score the whole validation cases of runs with their best and final weights; finished cases are kept."""
    from orchestrator import api

    try:
        with hearing_signals(), working("Submitting the validation ..."):
            submission_ids = api.validate(runs, cluster, npz=npz, best=best)
    except KeyboardInterrupt:
        note(f"Validations that were submitted before go on: nnfleet status{cluster_option(cluster)}")
        raise
    if as_json:
        print_json({"submission_ids": submission_ids})
        return
    for submission_id in submission_ids:
        say(f"Submitted as job {submission_id}.")
    follow = f"logs -f {shlex.quote(runs[0])}" if len(submission_ids) == 1 else "status --watch"
    say(f"Follow it: nnfleet {follow}{cluster_option(cluster)}")
