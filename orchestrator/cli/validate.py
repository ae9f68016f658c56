"""`nnfleet validate`: the full validation of a run, by hand."""

import shlex

from orchestrator.cli.output import print_json, say, working
from orchestrator.cli.parameters import AsJson, Cluster, Run, cluster_option


def validate(run: Run, cluster: Cluster = None, as_json: AsJson = False) -> None:
    """Predict and score the whole validation cases of a run with its best and final weights; finished cases are kept."""
    from orchestrator import api

    with working("Submitting the validation ..."):
        submission_id = api.validate(run, cluster)
    if as_json:
        print_json({"submission_id": submission_id})
    else:
        say(f"Submitted as job {submission_id}. Follow it: nnfleet logs -f {shlex.quote(run)}{cluster_option(cluster)}")
