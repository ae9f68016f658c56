"""`nnfleet resume`: continue what a dead driver, campaign or head left unfinished."""

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.output import note, print_json, say
from orchestrator.cli.parameters import AsJson, Cluster, Runs, cluster_option

Results = Annotated[
    Path | None,
    typer.Option("--results", metavar="FOLDER", help="Where the runs are. Default: nnUNet_results, here or on a named cluster's head."),
]


def resume(
    runs: Runs = None,
    results: Results = None,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="Of these only those that failed, none that was stopped.")] = False,
    campaign: Annotated[str | None, typer.Option("--campaign", metavar="ID", help="Of the runs of this campaign alone.")] = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Continue every run that was cut off, from its folder alone: the experiment file is not needed. Named runs are continued even if
    they were stopped or have failed; --only-failed continues what failed, of all or of the named ones.
    """
    import json

    from orchestrator import api
    from orchestrator.cli.foreground import in_foreground
    from orchestrator.cli.plan import show_plan

    submission = in_foreground(
        lambda on_submit: api.resume(runs or (), results, cluster, on_submit, note, only_failed=only_failed, campaign=campaign),
        cluster,
        "Looking for unfinished runs ...",
    )
    if as_json:
        plan = json.loads(submission.plan.to_json())
        print_json({"campaign": submission.campaign_id, "submission_id": submission.submission_id, "plan": plan})
        return
    for sentence in submission.plan.left:
        note(f"Left: {sentence}")
    if not submission.plan.rows:
        say("Nothing to resume.")
        return
    show_plan(submission.plan)
    say(f"Resumed as campaign {submission.campaign_id}. Watch it: nnfleet status --watch{cluster_option(cluster)}")
